//! The receiving host's part.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::{LaxNetSlice, LaxSlicedPacket};
use overlay_core::model::HostId;

use super::{Arrival, Step, advice, both};
use crate::agent::{Fate, Judge, Judgement, Port, Request, Tried};
use crate::api::server::Ctx;

/// What becomes here of a frame that the host `from` would send.
pub async fn arrive(ctx: &Ctx, from: HostId, arrival: Arrival) -> Result<Vec<Step>> {
    check_sender(ctx, from, &arrival.frame)?;
    let here = ctx.cluster.me().name;
    let judge = Judge {
        port: None,
        sealed: arrival.sealed,
        frame: arrival.frame,
    };
    let judgement = ctx.ask(|reply| Request::Judge(judge, reply)).await?;
    let mut step = Step::new(&here, "uplink", true, "");
    step.details = both(&judgement);
    let stops = |mut step: Step, says: String, reason: &str| {
        step.good = false;
        step.says = says;
        vec![step.advice(advice::about(reason))]
    };
    Ok(match (&judgement.programs, &judgement.tables) {
        (Ok(Tried::Dropped(reasons)), _) => {
            let reason = reasons.first().copied().unwrap_or("unknown");
            stops(step, advice::dropped(reason, &judgement), reason)
        }
        (Err(_), Fate::Dropped(reason)) => stops(step, advice::dropped(reason, &judgement), reason),
        (Ok(Tried::Passed), _) => stops(
            step,
            "not taken for a frame of the overlay: the host's own stack gets it".to_owned(),
            "unknown",
        ),
        (_, Fate::Decapsulated(ifindex)) => {
            let ifindex = *ifindex;
            if let Ok(Tried::ToAgent(reason)) = &judgement.programs {
                step.details.push(format!(
                    "the agent decides in the program's place ({reason}) and fills the maps"
                ));
            }
            step.says = match arrival.sealed {
                true => "opened by a crypt worker, taken out of the tunnel".to_owned(),
                false => "taken out of the tunnel".to_owned(),
            };
            vec![step, delivered(ctx, &here, ifindex, arrival.to).await?]
        }
        _ => {
            let reason = reason_for_agent(&judgement).unwrap_or("unknown");
            stops(step, format!("the agent can't place it: {reason}"), reason)
        }
    })
}

fn reason_for_agent(judgement: &Judgement) -> Option<&'static str> {
    match (&judgement.programs, &judgement.tables) {
        (Ok(Tried::ToAgent(reason)), _) | (_, Fate::ToAgent(reason)) => Some(reason),
        _ => None,
    }
}

/// The last step: the port that the frame is given to.
pub async fn delivered(ctx: &Ctx, here: &str, ifindex: u32, to: Option<IpAddr>) -> Result<Step> {
    let ports: Vec<Port> = ctx.ask(Request::Ports).await?;
    let port = ports
        .into_iter()
        .find(|port| port.local.port_ifindex == ifindex);
    let Some(port) = port else {
        return Ok(Step::new(
            here,
            format!("ifindex {ifindex}"),
            false,
            "no container has this port",
        )
        .advice("'overlay-dp verify --repair' on this host"));
    };
    let (endpoint, local) = (&port.endpoint, &port.local);
    let link = overlay_host::Host::new()?.link(&local.port).await?;
    let up = link.as_ref().is_some_and(|link| link.up && link.carrier);
    let is_meant = to.is_none_or(|to| endpoint.ips.contains(&to));
    let at = format!("container {}", endpoint.name);
    let step = Step::new(here, at, up && is_meant, "").detail(format!(
        "port {}, interface {} in {}, addresses {}",
        local.port,
        local.ifname,
        local.netns,
        endpoint
            .ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    ));
    let says = |mut step: Step, says: &str| {
        step.says = says.to_owned();
        step
    };
    Ok(match (up, is_meant) {
        (true, true) => says(step, "arrives"),
        (false, _) => says(step, "its interface is down").advice(format!(
            "set {} up in the container, or add the container again",
            local.ifname
        )),
        (true, false) => says(step, "it is for another address: the container drops it")
            .advice("an old entry of the sender's neighbour table: 'ip neigh flush dev eth0' in the sending container"),
    })
}

/// Nobody may ask what would become of somebody else's frames.
fn check_sender(ctx: &Ctx, from: HostId, frame: &[u8]) -> Result<()> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).context("that is no frame")?;
    let src: IpAddr = match sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => ip.header().source_addr().into(),
        Some(LaxNetSlice::Ipv6(ip)) => ip.header().source_addr().into(),
        _ => bail!("that is no IP packet"),
    };
    let members = ctx.cluster.members();
    let member = members.iter().find(|member| member.host.id == from);
    if member.map(|member| member.host.vtep) != Some(src) {
        bail!("{src} is not the asking host's VTEP");
    }
    Ok(())
}
