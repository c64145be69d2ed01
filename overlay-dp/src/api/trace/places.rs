//! Who is meant by a name or an address.

use std::net::IpAddr;

use anyhow::{Result, anyhow, bail};
use futures_util::future::join_all;
use overlay_cluster::MemberState;
use overlay_core::model::{Endpoint, HostId, Network};

use super::TraceAsk;
use crate::api::server::Ctx;

/// An endpoint, and the host it is on.
#[derive(Clone, Debug)]
pub struct Place {
    pub host: HostId,
    pub endpoint: Endpoint,
}

/// Who would send, and its network.
pub async fn sender(ctx: &Ctx, ask: &TraceAsk) -> Result<(Network, Place)> {
    let networks: Vec<Network> = match &ask.network {
        Some(name) => vec![ctx.network(name).await?],
        None => ctx.cluster.networks(),
    };
    let lists = join_all(
        networks
            .iter()
            .map(|network| ctx.cluster.look_up(network.vni)),
    )
    .await;
    let mut found = Vec::new();
    for (network, list) in networks.iter().zip(lists) {
        let here = list
            .into_iter()
            .filter(|(_, endpoint)| is(endpoint, &ask.from));
        found.extend(here.map(|(host, endpoint)| (network, Place { host, endpoint })));
    }
    // Where both are on several networks, it is the one that they have in common.
    if found.len() > 1 {
        let mut common = Vec::new();
        for (network, place) in &found {
            if receiver(ctx, network, &ask.to)
                .await
                .is_ok_and(|(_, place)| place.is_some())
            {
                common.push((*network, place.clone()));
            }
        }
        if common.len() == 1 {
            found = common;
        }
    }
    let names = |found: &[(&Network, Place)]| {
        let names = found.iter().map(|(network, _)| network.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    match found.as_slice() {
        [(network, place)] => Ok(((*network).clone(), place.clone())),
        [] => Err(anyhow!(
            "no container '{}' is known: see 'overlay-dp container ls'{}",
            ask.from,
            withdrawn(ctx)
        )),
        several => bail!(
            "'{}' is on several networks ({}): say which with --network",
            ask.from,
            names(several)
        ),
    }
}

/// Who is to get it: an address, and the endpoint that has it, if one has.
pub async fn receiver(ctx: &Ctx, network: &Network, to: &str) -> Result<(IpAddr, Option<Place>)> {
    let endpoints = ctx.cluster.look_up(network.vni).await;
    let places = || {
        let all = endpoints.iter();
        all.map(|(host, endpoint)| (*host, endpoint))
    };
    if let Ok(ip) = to.parse::<IpAddr>() {
        let place = places().find(|(_, endpoint)| endpoint.ips.contains(&ip));
        return Ok((ip, place.map(owned)));
    }
    if to == "gateway" {
        return Ok((network.gateway, None));
    }
    let service = ctx.cluster.facts(|facts| facts.service(to).cloned());
    if let Some(offset) = service.filter(|s| s.vni == network.vni).and_then(|s| s.vip)
        && let Some(ip) = network.address_at(offset).first()
    {
        return Ok((*ip, None));
    }
    let by_name = places().find(|(_, endpoint)| is(endpoint, to));
    let by_service = || places().find(|(_, e)| e.service.as_deref() == Some(to));
    let Some(place) = by_name.or_else(by_service) else {
        bail!(
            "no '{to}' on network '{}': see 'overlay-dp network inspect {0}', or give an address{}",
            network.name,
            withdrawn(ctx),
        );
    };
    let ip = place.1.ips.first().copied();
    let ip = ip.ok_or_else(|| anyhow!("'{to}' has no address"))?;
    Ok((ip, Some(owned(place))))
}

/// What may be missing, as hosts are down.
pub fn withdrawn(ctx: &Ctx) -> String {
    let members = ctx.cluster.members().into_iter();
    let down = members.filter(|member| member.state == MemberState::Down);
    let down: Vec<String> = down.map(|member| member.host.name).collect();
    match down.is_empty() {
        true => String::new(),
        false => format!(
            " (down, so that what they have may be withdrawn: {})",
            down.join(", ")
        ),
    }
}

fn owned((host, endpoint): (HostId, &Endpoint)) -> Place {
    Place {
        host,
        endpoint: endpoint.clone(),
    }
}

/// Whether it goes by this name or address.
fn is(endpoint: &Endpoint, text: &str) -> bool {
    let ip = text.parse::<IpAddr>();
    endpoint.name == text
        || endpoint.aliases.iter().any(|alias| alias == text)
        || ip.is_ok_and(|ip| endpoint.ips.contains(&ip))
}
