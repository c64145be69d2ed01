//! What has been acknowledged, and what is in doubt because nobody answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_lab::{Container, Ns, wait_until};
use serde_json::Value;

/// What one namespace is used for. Names are never used twice.
#[derive(Clone, Debug)]
pub enum Use {
    Free,
    /// Acknowledged.
    Attached {
        host: usize,
        container: Container,
    },
    /// A command failed or was not answered: it may be attached or not, unless it fails for ever.
    Doubt {
        host: usize,
        name: String,
        network: String,
    },
}

/// Whether there is such a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exists {
    Yes,
    No,
    Doubt,
}

/// All that is known.
pub struct Ledger {
    slots: Vec<(Ns, Use)>,
    pub networks: BTreeMap<String, Exists>,
    /// The managers; `None` is doubt.
    pub managers: BTreeMap<usize, Option<bool>>,
    /// Containers whose removal was acknowledged.
    pub removed: BTreeSet<String>,
    names: usize,
}

impl Ledger {
    pub fn new(spaces: &[Ns], managers: usize) -> Ledger {
        let slots = spaces.iter().map(|ns| (ns.clone(), Use::Free));
        let roles = (1..=crate::HOSTS).map(|host| (host, Some(host <= managers)));
        Ledger {
            slots: slots.collect(),
            networks: BTreeMap::new(),
            managers: roles.collect(),
            removed: BTreeSet::new(),
            names: 0,
        }
    }

    pub fn new_name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    /// The networks that are there without a doubt.
    pub fn sure_networks(&self) -> Vec<String> {
        let sure = self.networks.iter().filter(|(_, e)| **e == Exists::Yes);
        sure.map(|(name, _)| name.clone()).collect()
    }

    /// Networks that are there and that nothing is known to use.
    pub fn unused_networks(&self) -> Vec<String> {
        let used: BTreeSet<&str> = self
            .slots
            .iter()
            .filter_map(|(_, usage)| match usage {
                Use::Free => None,
                Use::Attached { container, .. } => Some(container.network.as_str()),
                Use::Doubt { network, .. } => Some(network.as_str()),
            })
            .collect();
        let mut unused = self.sure_networks();
        unused.retain(|name| !used.contains(name.as_str()));
        unused
    }

    pub fn free_slots(&self) -> Vec<usize> {
        self.slots_where(|usage| matches!(usage, Use::Free))
    }

    pub fn slots_where(&self, is: impl Fn(&Use) -> bool) -> Vec<usize> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, (_, usage))| is(usage))
            .map(|(index, _)| index)
            .collect()
    }

    pub fn ns(&self, slot: usize) -> &Ns {
        &self.slots[slot].0
    }

    pub fn usage(&self, slot: usize) -> &Use {
        &self.slots[slot].1
    }

    pub fn set(&mut self, slot: usize, usage: Use) {
        self.slots[slot].1 = usage;
    }

    pub fn attached(&self) -> impl Iterator<Item = &Container> {
        self.slots.iter().filter_map(|(_, usage)| match usage {
            Use::Attached { container, .. } => Some(container),
            _ => None,
        })
    }

    /// Acknowledged containers with their hosts.
    pub fn attached_on(&self) -> Vec<(usize, Container)> {
        let all = self.slots.iter().filter_map(|(_, usage)| match usage {
            Use::Attached { host, container } => Some((*host, container.clone())),
            _ => None,
        });
        all.collect()
    }

    /// What was on that host died with it, and its namespaces are empty.
    pub fn powered_off(&mut self, off: usize) -> Result<()> {
        for (ns, usage) in &mut self.slots {
            let (Use::Attached { host, .. } | Use::Doubt { host, .. }) = &*usage else {
                continue;
            };
            if *host == off {
                let what = format!("{} is empty", ns.label());
                wait_until(&what, Duration::from_secs(5), || {
                    addresses(ns).is_ok_and(|all| all.is_empty())
                })?;
                *usage = Use::Free;
            }
        }
        Ok(())
    }

    /// What containers really have: no two the same, at any moment. (Each network has a subnet of
    /// its own, and a network without containers may give its subnet to the next.)
    pub fn no_address_twice(&self) -> Result<()> {
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (ns, usage) in &self.slots {
            for ip in addresses(ns)? {
                if let Some(other) = owners.insert(ip, ns.label()) {
                    anyhow::bail!("{ip} is in {other} and in {} ({usage:?})", ns.label());
                }
            }
            if let Use::Attached { container, .. } = usage {
                let there = owners.get(&container.ip).copied();
                ensure!(
                    there == Some(ns.label()),
                    "{} has lost {}",
                    container.name,
                    container.ip
                );
            }
        }
        Ok(())
    }
}

/// The global addresses of a container.
pub fn addresses(ns: &Ns) -> Result<Vec<IpAddr>> {
    let links: Vec<Value> = serde_json::from_str(&ns.run("ip -j addr show scope global")?)?;
    let all = links.iter().flat_map(|link| {
        let infos = link["addr_info"].as_array().into_iter().flatten();
        infos.filter_map(|info| info["local"].as_str()?.parse().ok())
    });
    Ok(all.collect())
}
