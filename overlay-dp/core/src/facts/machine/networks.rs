//! Which networks there are.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::grants::holders;
use super::subnets::Subnets;
use crate::facts::{
    Change, FIRST_VNI, Facts, MAX_NETWORKS, MAX_PIECES, NetworkSpec, Range, Refusal,
};
use crate::model::{Network, Subnet, Vni, check_name};

/// The network that a spec asks for, and what its addresses are chosen from.
pub(super) fn plan(
    facts: &Facts,
    spec: &NetworkSpec,
    avoid: &[IpNetwork],
    ula: [u8; 6],
    next_vni: u32,
) -> Result<(Network, Range), Refusal> {
    check_name(&spec.name)?;
    if facts.network_named(&spec.name).is_some() {
        return Err(Refusal::NetworkExists(spec.name.clone()));
    }
    if facts.networks().count() >= MAX_NETWORKS {
        return Err(Refusal::TooManyNetworks);
    }
    if avoid.len() > MAX_PIECES {
        return Err(Refusal::TooLong);
    }
    let given4 = one_of_family(&spec.subnets, "subnet", |subnet| subnet.is_ipv4())?;
    let given6 = one_of_family(&spec.subnets, "subnet", |subnet| subnet.is_ipv6())?;
    let subnets = Subnets::new(facts, avoid, ula);
    for subnet in &spec.subnets {
        subnets.check(*subnet)?;
    }
    let only6 = given6.is_some() && given4.is_none() && !spec.ipv6;
    let subnet4 = match given4 {
        None if !only6 => Some(subnets.free_v4()?),
        given => given,
    };
    let subnet6 = match given6 {
        None if spec.ipv6 => Some(subnets.free_v6()?),
        given => given,
    };
    let mut families = [subnet4, subnet6]
        .into_iter()
        .flatten()
        .map(|subnet| family(subnet, spec));
    let first = families.next().ok_or(Refusal::NoSubnet)??;
    let second = families.next().transpose()?;
    drop(families);

    let network = Network {
        name: spec.name.clone(),
        vni: free_vni(facts, spec.vni, next_vni)?,
        subnet: first.subnet,
        gateway: first.gateway,
        ipv6: second,
        internal: spec.internal,
        encrypted: spec.encrypted,
        multicast: spec.multicast,
    };
    if let Some(gateway) = spec
        .gateways
        .iter()
        .find(|ip| network.gateways().all(|gateway| gateway != **ip))
    {
        return Err(Refusal::Gateway(*gateway));
    }
    let chosen = match spec.ip_range {
        None => network.usable(),
        Some(range) => chosen_from(&network, range)?,
    };
    Ok((network, chosen))
}

pub(super) fn remove(facts: &Facts, name: &str, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    let pool = facts.pools.values().find(|pool| pool.network.name == name);
    let pool = pool.ok_or_else(|| Refusal::NoNetwork(name.to_owned()))?;
    let its = facts.services().filter(|s| s.vni == pool.network.vni);
    let services: Vec<&str> = its.take(5).map(|service| service.name.as_str()).collect();
    if !services.is_empty() {
        return Err(Refusal::HasServices {
            network: name.to_owned(),
            services: services.join(", "),
        });
    }
    if pool.holders().next().is_some() {
        return Err(Refusal::InUse {
            network: name.to_owned(),
            hosts: holders(facts, pool),
        });
    }
    changes.push(Change::NetworkGone(pool.network.vni));
    Ok(())
}

/// Said again, it changes nothing.
pub(super) fn everywhere(
    facts: &Facts,
    name: &str,
    changes: &mut Vec<Change>,
) -> Result<(), Refusal> {
    let network = facts.network_named(name);
    let vni = network
        .ok_or_else(|| Refusal::NoNetwork(name.to_owned()))?
        .vni;
    if !facts.is_everywhere(vni) {
        changes.push(Change::NetworkEverywhere(vni));
    }
    Ok(())
}

/// The one of a family, if any.
fn one_of_family<T: Copy>(
    given: &[T],
    what: &str,
    family: impl Fn(&T) -> bool,
) -> Result<Option<T>, Refusal> {
    let mut of_family = given.iter().filter(|item| family(item));
    let first = of_family.next().copied();
    match of_family.next() {
        Some(_) => Err(Refusal::Family {
            what: what.to_owned(),
        }),
        None => Ok(first),
    }
}

/// A subnet with its gateway: the one asked for, else its first address.
fn family(subnet: IpNetwork, spec: &NetworkSpec) -> Result<Subnet, Refusal> {
    let first = match subnet.network() {
        IpAddr::V4(ip) => IpAddr::V4(ip.to_bits().wrapping_add(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(ip.to_bits().wrapping_add(1).into()),
    };
    let given = one_of_family(&spec.gateways, "gateway", |ip| {
        ip.is_ipv4() == subnet.is_ipv4()
    })?;
    let gateway = given.unwrap_or(first);
    let family = Subnet { subnet, gateway };
    match family.offset_of(gateway) {
        Some(offset) if family.usable().contains(offset) => Ok(family),
        _ => Err(Refusal::Gateway(gateway)),
    }
}

/// The offsets of `--ip-range`.
fn chosen_from(network: &Network, range: IpNetwork) -> Result<Range, Refusal> {
    if range.ip() != range.network() {
        return Err(Refusal::HostBits {
            subnet: range,
            network: range.network(),
            prefix: range.prefix(),
        });
    }
    let bad = || Refusal::IpRange(range);
    let first = network.offset_of(range.network()).ok_or_else(bad)?;
    let family = network.subnet_of(range.network()).ok_or_else(bad)?;
    if range.prefix() < family.subnet.prefix() {
        return Err(bad());
    }
    // Beyond 32 bits nothing is usable.
    let last = family.offset_of(range.broadcast()).unwrap_or(u32::MAX);
    let chosen = Range { first, last }
        .intersection(network.usable())
        .ok_or_else(bad)?;
    let mut gateways: Vec<u32> = network
        .gateways()
        .filter_map(|ip| network.offset_of(ip))
        .collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways.retain(|offset| chosen.contains(*offset));
    if chosen.count() <= gateways.len() as u64 {
        return Err(bad());
    }
    Ok(chosen)
}

fn free_vni(facts: &Facts, wanted: Option<Vni>, next: u32) -> Result<Vni, Refusal> {
    if let Some(vni) = wanted {
        return match facts.network(vni) {
            Some(network) => Err(Refusal::VniTaken {
                vni,
                network: network.name.clone(),
            }),
            None => Ok(vni),
        };
    }
    let start = next.clamp(FIRST_VNI, Vni::MAX.get() + 1);
    let mut candidates = (start..=Vni::MAX.get())
        .chain(FIRST_VNI..start)
        .filter_map(Vni::new);
    // At most as many are taken as there are networks.
    candidates
        .find(|vni| facts.network(*vni).is_none())
        .ok_or(Refusal::NoVniLeft)
}
