//! Which services there are.

use std::net::IpAddr;

use super::grants::{exhausted, taken};
use crate::facts::pool::Pool;
use crate::facts::{Change, Facts, MAX_PUBLISHED, MAX_SERVICES, Refusal, ServiceSpec};
use crate::model::{EndpointMode, HostId, Service, Vni, check_name};

/// Makes the service that a spec asks for.
pub(super) fn create(
    facts: &Facts,
    spec: &ServiceSpec,
    from: Option<HostId>,
    changes: &mut Vec<Change>,
) -> Result<Service, Refusal> {
    check_name(&spec.name)?;
    if facts.service(&spec.name).is_some() {
        return Err(Refusal::ServiceExists(spec.name.clone()));
    }
    if facts.services().count() >= MAX_SERVICES || spec.publish.len() > MAX_PUBLISHED {
        return Err(Refusal::TooManyServices);
    }
    let network = facts
        .network_named(&spec.network)
        .ok_or_else(|| Refusal::NoNetwork(spec.network.clone()))?;
    if network.internal && !spec.publish.is_empty() {
        return Err(Refusal::Internal(spec.network.clone()));
    }
    for (index, wanted) in spec.publish.iter().enumerate() {
        let port = (wanted.host_port, wanted.protocol);
        if wanted.host_port == 0 || wanted.port == 0 {
            return Err(Refusal::PortZero);
        }
        let taken =
            |publish: &crate::model::ServicePort| (publish.host_port, publish.protocol) == port;
        let others = facts
            .services()
            .filter(|other| other.publish.iter().any(taken));
        let again = spec.publish[..index]
            .iter()
            .any(taken)
            .then(|| spec.name.clone());
        if let Some(service) = others.map(|other| other.name.clone()).next().or(again) {
            return Err(Refusal::Published {
                port: wanted.host_port,
                protocol: wanted.protocol,
                service,
            });
        }
    }
    spec.check.as_ref().map_or(Ok(()), |check| check.check())?;
    let service = Service {
        name: spec.name.clone(),
        vni: network.vni,
        publish: spec.publish.clone(),
        check: spec.check.clone(),
        vip: match (spec.mode, spec.ip) {
            (EndpointMode::Vip, ip) => Some(vip(facts, network.vni, ip, from)?),
            (EndpointMode::Dnsrr, None) => None,
            (EndpointMode::Dnsrr, Some(ip)) => return Err(Refusal::NoVip(ip)),
        },
    };
    changes.push(Change::ServiceSet(service.clone()));
    Ok(service)
}

pub(super) fn remove(facts: &Facts, name: &str, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    if facts.service(name).is_none() {
        return Err(Refusal::NoService(name.to_owned()));
    }
    changes.push(Change::ServiceGone(name.to_owned()));
    Ok(())
}

/// The offset of a new service's own address, from then on nobody else's: it is free, or `from`
/// leaves it.
fn vip(facts: &Facts, vni: Vni, ip: Option<IpAddr>, from: Option<HostId>) -> Result<u32, Refusal> {
    let pool = facts.pools.get(&vni).ok_or(Refusal::NoVni(vni))?;
    let Some(ip) = ip else {
        let lowest = pool.lowest(1).first().map(|range| range.first);
        return lowest.ok_or_else(|| exhausted(facts, pool));
    };
    let offset = offset_of(facts, pool, ip)?;
    match pool.grant_at(offset) {
        None => Ok(offset),
        Some(grant) if Some(grant.host) == from => Ok(offset),
        Some(grant) => Err(taken(facts, pool, "address", &ip.to_string(), grant.host)),
    }
}

/// The offset of an address that somebody asks for. It may be a host's, but is no service's.
pub(super) fn offset_of(facts: &Facts, pool: &Pool, ip: IpAddr) -> Result<u32, Refusal> {
    let network = &pool.network;
    if network.gateways().any(|gateway| gateway == ip) {
        return Err(Refusal::GatewayWanted(ip));
    }
    let offset = network.offset_of(ip);
    let usable = offset.filter(|offset| pool.is_usable(*offset));
    let offset = usable.ok_or_else(|| Refusal::address(ip, network))?;
    match facts.vip_at(network.vni, offset) {
        None => Ok(offset),
        Some(service) => Err(Refusal::OfService {
            ip,
            service: service.name.clone(),
        }),
    }
}
