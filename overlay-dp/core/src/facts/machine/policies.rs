//! Which policies there are, and what networks do without one.

use crate::facts::{Change, Facts, MAX_POLICIES, MAX_RULES, PolicySpec, Refusal};
use crate::model::{Network, check_name};
use crate::policy::{Policy, Selector};

/// Adds the policy that a spec asks for.
pub(super) fn add(
    facts: &Facts,
    spec: &PolicySpec,
    changes: &mut Vec<Change>,
) -> Result<Policy, Refusal> {
    check_name(&spec.name)?;
    spec.rule.check()?;
    if facts.policy(&spec.name).is_some() {
        return Err(Refusal::PolicyExists(spec.name.clone()));
    }
    let network = network(facts, &spec.network)?;
    if let Selector::Addresses(net) = &spec.rule.to {
        if !network.subnets().any(|s| s.subnet.contains(net.ip())) {
            return Err(Refusal::address(net.ip(), network));
        }
        if let Some(offset) = network.offset_of(net.ip())
            && let Some(service) = facts.vip_at(network.vni, offset)
            && network.address_at(offset).contains(&net.ip())
            && matches!(net.prefix(), 32 | 128)
        {
            return Err(Refusal::PolicyToVip {
                ip: net.ip(),
                service: service.name.clone(),
            });
        }
    }
    let policy = Policy {
        name: spec.name.clone(),
        vni: network.vni,
        rule: spec.rule.clone(),
    };
    if facts.policies().count() >= MAX_POLICIES || most_about_one(facts, &policy) > MAX_RULES {
        return Err(Refusal::TooManyPolicies);
    }
    changes.push(Change::PolicySet(policy.clone()));
    Ok(policy)
}

pub(super) fn remove(facts: &Facts, name: &str, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    if facts.policy(name).is_none() {
        return Err(Refusal::NoPolicy(name.to_owned()));
    }
    changes.push(Change::PolicyGone(name.to_owned()));
    Ok(())
}

/// Said again, it changes nothing.
pub(super) fn set_default(
    facts: &Facts,
    name: &str,
    deny: bool,
    changes: &mut Vec<Change>,
) -> Result<(), Refusal> {
    let vni = network(facts, name)?.vni;
    if facts.denies(vni) != deny {
        changes.push(Change::PolicyDefault { vni, deny });
    }
    Ok(())
}

fn network<'f>(facts: &'f Facts, name: &str) -> Result<&'f Network, Refusal> {
    let network = facts.network_named(name);
    network.ok_or_else(|| Refusal::NoNetwork(name.to_owned()))
}

/// How many policies there would be about one endpoint at most, with this one.
fn most_about_one(facts: &Facts, new: &Policy) -> usize {
    let all = || {
        let policies = facts.policies().filter(|policy| policy.vni == new.vni);
        policies.chain([new]).map(|policy| &policy.rule.to)
    };
    let about = |name: &str| {
        let its = |to: &&Selector| !matches!(to, Selector::Service(other) if other != name);
        all().filter(its).count()
    };
    let services = all().filter_map(|to| match to {
        Selector::Service(name) => Some(about(name)),
        _ => None,
    });
    services.max().unwrap_or_else(|| all().count())
}
