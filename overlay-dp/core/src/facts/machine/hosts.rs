//! Who is a member.

use std::net::IpAddr;

use crate::facts::{Change, Facts, MAX_HOSTS, Refusal};
use crate::model::{Host, HostId, check_name};

pub(super) fn add(
    facts: &Facts,
    host: &Host,
    replace: Option<HostId>,
    changes: &mut Vec<Change>,
) -> Result<(), Refusal> {
    if facts.host(host.id) == Some(host) {
        // Asked again, because the answer was lost.
        return Ok(());
    }
    let replaced = replace.and_then(|id| facts.host(id));
    let stays = |other: &&Host| Some(other.id) != replaced.map(|host| host.id);
    if facts.hosts().filter(stays).any(|other| other.id == host.id) {
        return Err(Refusal::HostExists(host.id));
    }
    if facts.hosts().filter(stays).count() >= MAX_HOSTS {
        return Err(Refusal::TooManyHosts);
    }
    if let Some(dead) = replaced.filter(|dead| dead.manager && !host.manager) {
        keep_a_manager(facts, dead.id)?;
    }
    check(facts, host, replaced.map(|host| host.id))?;
    changes.extend(replaced.map(|host| Change::HostGone(host.id)));
    changes.push(Change::HostSet(host.clone()));
    Ok(())
}

pub(super) fn update(facts: &Facts, host: Host, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    let before = member(facts, host.id)?;
    if *before != host {
        check(facts, &host, Some(host.id))?;
        changes.push(Change::HostSet(host));
    }
    Ok(())
}

pub(super) fn remove(facts: &Facts, id: HostId, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    if member(facts, id)?.manager {
        keep_a_manager(facts, id)?;
    }
    changes.push(Change::HostGone(id));
    Ok(())
}

pub(super) fn set_role(
    facts: &Facts,
    id: HostId,
    manager: bool,
    changes: &mut Vec<Change>,
) -> Result<(), Refusal> {
    let host = member(facts, id)?;
    if host.manager == manager {
        return Ok(());
    }
    if !manager {
        keep_a_manager(facts, id)?;
    }
    changes.push(Change::HostSet(Host {
        manager,
        ..host.clone()
    }));
    Ok(())
}

pub(super) fn member(facts: &Facts, id: HostId) -> Result<&Host, Refusal> {
    facts.host(id).ok_or(Refusal::NoHost(id))
}

fn keep_a_manager(facts: &Facts, id: HostId) -> Result<(), Refusal> {
    if facts.managers().all(|host| host.id == id) {
        return Err(Refusal::LastManager(id));
    }
    Ok(())
}

/// Whether a host can be a member like this, in the place of `instead_of`.
fn check(facts: &Facts, host: &Host, instead_of: Option<HostId>) -> Result<(), Refusal> {
    check_name(&host.name)?;
    let unusable = match host.vtep {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    };
    if unusable {
        return Err(Refusal::Vtep(host.vtep));
    }
    for other in facts.hosts().filter(|other| Some(other.id) != instead_of) {
        if other.vtep == host.vtep {
            return Err(Refusal::VtepTaken {
                vtep: host.vtep,
                host: other.id,
                name: other.name.clone(),
            });
        }
        if other.data_port != host.data_port {
            return Err(Refusal::DataPort {
                port: host.data_port,
                cluster: other.data_port,
            });
        }
        if other.esp_port != host.esp_port {
            return Err(Refusal::EspPort {
                port: host.esp_port,
                cluster: other.esp_port,
            });
        }
    }
    for network in facts.networks() {
        if let Some(family) = network
            .subnets()
            .find(|family| family.subnet.contains(host.vtep))
        {
            return Err(Refusal::VtepInNetwork {
                vtep: host.vtep,
                subnet: family.subnet,
                network: network.name.clone(),
            });
        }
    }
    Ok(())
}
