//! What a command changed, for the copies that every host keeps.

use serde::{Deserialize, Serialize};

use super::pool::{Claim, Grant, Pool};
use super::{Facts, Range, Version, Wanted};
use crate::model::{Host, HostId, MacAddr, Network, Service, Vni};
use crate::policy::Policy;

/// One difference between two versions of the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new host, or other facts about one.
    HostSet(Host),
    /// A host left; all that it held and wanted is free.
    HostGone(HostId),
    /// A new network.
    NetworkSet {
        /// The network.
        network: Network,
        /// What addresses are chosen from.
        pool: Range,
    },
    /// A network is gone, with all in it and its policies.
    NetworkGone(Vni),
    /// Every host's container engine is to have a network.
    NetworkEverywhere(Vni),
    /// A host got offsets, or a spare of its became an ordinary one.
    Granted {
        /// The network.
        vni: Vni,
        /// The offsets.
        range: Range,
        /// Who has them.
        host: HostId,
        /// For times when no manager can be asked.
        spare: bool,
        /// The version that granted them.
        since: Version,
    },
    /// Offsets are free.
    Returned {
        /// The network.
        vni: Vni,
        /// The offsets.
        range: Range,
    },
    /// A host claimed a MAC address.
    MacClaimed {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
        /// Whose it is.
        host: HostId,
        /// The version that granted it.
        since: Version,
    },
    /// A MAC address is free.
    MacReleased {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
    },
    /// A host could not get something.
    WantedSet {
        /// The network.
        vni: Vni,
        /// Who and what.
        wanted: Wanted,
    },
    /// A host no longer waits.
    WantedGone {
        /// The network.
        vni: Vni,
        /// Who.
        host: HostId,
    },
    /// A new service.
    ServiceSet(Service),
    /// A service is gone.
    ServiceGone(String),
    /// A new policy.
    PolicySet(Policy),
    /// A policy is gone.
    PolicyGone(String),
    /// What becomes in a network of what no policy is about.
    PolicyDefault {
        /// The network.
        vni: Vni,
        /// Whether it is denied.
        deny: bool,
    },
}

/// What a copy lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FactsNews {
    /// It is current.
    Nothing,
    /// These, in this order.
    Changes {
        /// What the copy must have.
        after: Version,
        /// What it has then.
        version: Version,
        /// What happened in between.
        changes: Vec<Change>,
    },
    /// Everything: it is too old, or of another epoch.
    Snapshot(Facts),
}

/// Changes were left out: the copy needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after {after:?} do not follow version {have:?}: fetch the facts anew")]
pub struct Gap {
    /// What the copy has.
    pub have: Version,
    /// What the changes begin after.
    pub after: Version,
}

impl Facts {
    /// Applies what happened between `after` and `version`. What is in it already does no harm:
    /// every change says how something is now, so repeating a run of them ends the same.
    ///
    /// # Errors
    /// [`Gap`] when it is older than `after`, or of another epoch; it is as it was then.
    pub fn apply(
        &mut self,
        after: Version,
        version: Version,
        changes: &[Change],
    ) -> Result<(), Gap> {
        let have = self.version;
        if version <= have {
            return Ok(());
        }
        if after > have || after.epoch != have.epoch || version.epoch != have.epoch {
            return Err(Gap { have, after });
        }
        changes.iter().for_each(|change| self.change(change));
        self.version = version;
        Ok(())
    }

    /// Takes news of any kind. Tells whether it became another version.
    ///
    /// # Errors
    /// See [`Facts::apply`].
    pub fn update(&mut self, news: FactsNews) -> Result<bool, Gap> {
        let before = self.version;
        match news {
            FactsNews::Nothing => {}
            FactsNews::Changes {
                after,
                version,
                changes,
            } => self.apply(after, version, &changes)?,
            FactsNews::Snapshot(facts) if facts.version > self.version => *self = facts,
            FactsNews::Snapshot(_) => {}
        }
        Ok(self.version != before)
    }

    /// One change. Of a network that is gone in the meantime it says nothing.
    pub(super) fn change(&mut self, change: &Change) {
        match change {
            Change::HostSet(host) => {
                self.hosts.insert(host.id, host.clone());
            }
            Change::HostGone(id) => {
                self.hosts.remove(id);
                let pools = self.pools.values_mut();
                pools.for_each(|pool| pool.release_host(*id));
            }
            Change::NetworkSet { network, pool } => {
                let pool = Pool::new(network.clone(), *pool);
                self.pools.insert(network.vni, pool);
            }
            Change::NetworkGone(vni) => {
                self.pools.remove(vni);
                self.everywhere.remove(vni);
                self.denying.remove(vni);
                self.policies.retain(|_, policy| policy.vni != *vni);
            }
            Change::NetworkEverywhere(vni) => {
                self.everywhere.insert(*vni);
            }
            Change::Granted {
                vni,
                range,
                host,
                spare,
                since,
            } => self.in_pool(*vni, |pool| {
                pool.assign(Grant {
                    range: *range,
                    host: *host,
                    spare: *spare,
                    since: *since,
                });
            }),
            Change::Returned { vni, range } => self.in_pool(*vni, |pool| pool.release(*range)),
            Change::MacClaimed {
                vni,
                mac,
                host,
                since,
            } => self.in_pool(*vni, |pool| {
                pool.claim(
                    *mac,
                    Claim {
                        host: *host,
                        since: *since,
                    },
                );
            }),
            Change::MacReleased { vni, mac } => self.in_pool(*vni, |pool| pool.release_mac(*mac)),
            Change::WantedSet { vni, wanted } => self.in_pool(*vni, |pool| {
                pool.wanted.insert(wanted.host, wanted.want);
            }),
            Change::ServiceSet(service) => {
                self.remove_service(&service.name);
                if let Some(offset) = service.vip {
                    self.in_pool(service.vni, |pool| pool.take_vip(offset));
                }
                self.services.insert(service.name.clone(), service.clone());
            }
            Change::ServiceGone(name) => self.remove_service(name),
            Change::PolicySet(policy) => {
                self.policies.insert(policy.name.clone(), policy.clone());
            }
            Change::PolicyGone(name) => {
                self.policies.remove(name);
            }
            Change::PolicyDefault { vni, deny: true } => {
                self.denying.insert(*vni);
            }
            Change::PolicyDefault { vni, deny: false } => {
                self.denying.remove(vni);
            }
            Change::WantedGone { vni, host } => self.in_pool(*vni, |pool| {
                pool.wanted.remove(host);
            }),
        }
    }

    fn remove_service(&mut self, name: &str) {
        if let Some(service) = self.services.remove(name)
            && let Some(offset) = service.vip
        {
            self.in_pool(service.vni, |pool| pool.free_vip(offset));
        }
    }

    fn in_pool(&mut self, vni: Vni, change: impl FnOnce(&mut Pool)) {
        if let Some(pool) = self.pools.get_mut(&vni) {
            change(pool);
        }
    }
}
