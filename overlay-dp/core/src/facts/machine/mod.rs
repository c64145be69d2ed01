//! The state that the managers agree on, and its commands.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Change, Command, FIRST_VNI, Facts, FactsNews, Refusal, Reply, Version};
use crate::model::Host;

mod grants;
mod hosts;
mod networks;
mod policies;
mod services;
mod subnets;

/// So many changes are kept for copies that are not far behind; others get a snapshot.
const MAX_RECENT: usize = 4096;

/// What only managers know.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// The cluster CA's certificate, DER.
    pub ca_cert: Vec<u8>,
    /// Its private key, PKCS#8 DER.
    pub ca_key: Vec<u8>,
    /// The secret in the join token of hosts.
    pub worker_token: Vec<u8>,
    /// The secret in the join token of managers.
    pub manager_token: Vec<u8>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// What the managers agree on. `serde` state: its snapshots and backups are postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMachine {
    facts: Facts,
    secrets: Secrets,
    /// The VNI tried next; it never goes back, so that a new network doesn't inherit stray frames.
    next_vni: u32,
    /// The cluster's own IPv6 prefix, a /48.
    ula_prefix: [u8; 6],
    /// The latest changes, the oldest first, for copies that are not far behind.
    recent: VecDeque<Step>,
}

/// What one command changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    after: Version,
    version: Version,
    changes: Vec<Change>,
}

impl StateMachine {
    /// A cluster of one manager. `ula` is its random IPv6 prefix, fdxx:xxxx:xxxx::/48; `epoch` is
    /// at least 1.
    pub fn new(first: Host, secrets: Secrets, ula: [u8; 6], epoch: u64) -> StateMachine {
        let mut machine = StateMachine {
            facts: Facts::default(),
            secrets,
            next_vni: FIRST_VNI,
            ula_prefix: ula,
            recent: VecDeque::new(),
        };
        machine.begin(first, epoch);
        machine
    }

    /// The same cluster after a restore: `host` is the only manager, in place of a host with the
    /// same VTEP, and the epoch is the next.
    #[must_use]
    pub fn restored(self, host: Host) -> StateMachine {
        self.restored_at(host, 0)
    }

    /// As [`StateMachine::restored`], with an epoch of at least `epoch`: one that rises with time
    /// tells two restores of the same backup apart.
    #[must_use]
    pub fn restored_at(mut self, host: Host, epoch: u64) -> StateMachine {
        let others: Vec<Host> = self.facts.hosts().cloned().collect();
        for other in others {
            let change = if other.vtep == host.vtep && other.id != host.id {
                Change::HostGone(other.id)
            } else {
                Change::HostSet(Host {
                    manager: false,
                    ..other
                })
            };
            self.facts.change(&change);
        }
        let next = self.facts.version.epoch.saturating_add(1);
        self.begin(host, next.max(epoch));
        self
    }

    /// A new epoch: nobody has changes of an earlier one.
    fn begin(&mut self, first: Host, epoch: u64) {
        self.facts.change(&Change::HostSet(Host {
            manager: true,
            ..first
        }));
        self.facts.version = Version {
            epoch: epoch.max(1),
            index: 0,
        };
        self.recent.clear();
    }

    /// The public part.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What only managers know.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The cluster's own IPv6 prefix, a /48.
    pub fn ula_prefix(&self) -> [u8; 6] {
        self.ula_prefix
    }

    /// Applies the command at `index` of the log; indices rise from 1, with or without gaps.
    ///
    /// Afterwards `facts().version()` is what a copy must have reached to show the outcome. It is
    /// an older one when the command changed nothing public.
    ///
    /// # Errors
    /// When the command can't be met. All but what hosts want is as it was then.
    pub fn apply(&mut self, index: u64, command: &Command) -> Result<Reply, Refusal> {
        let after = self.facts.version;
        let version = Version {
            epoch: after.epoch,
            index,
        };
        let mut changes = Vec::new();
        let outcome = self.decide(command, version, &mut changes);
        if !changes.is_empty() {
            changes.iter().for_each(|change| self.facts.change(change));
            self.facts.version = version;
            self.remember(Step {
                after,
                version,
                changes,
            });
        }
        outcome
    }

    /// What a copy of version `have` lacks. Nothing when it is ahead of this manager.
    pub fn since(&self, have: Version) -> FactsNews {
        let version = self.facts.version;
        if have >= version {
            return FactsNews::Nothing;
        }
        let Ok(start) = self.recent.binary_search_by_key(&have, |step| step.after) else {
            return FactsNews::Snapshot(self.facts.clone());
        };
        let steps = self.recent.range(start..);
        FactsNews::Changes {
            after: have,
            version,
            changes: steps.flat_map(|step| step.changes.clone()).collect(),
        }
    }

    /// What a command changes in the facts. Only the managers' own part changes at once.
    fn decide(
        &mut self,
        command: &Command,
        version: Version,
        changes: &mut Vec<Change>,
    ) -> Result<Reply, Refusal> {
        let facts = &self.facts;
        match command {
            Command::HostAdd { host, replace } => hosts::add(facts, host, *replace, changes)?,
            Command::HostUpdate {
                id,
                name,
                vtep,
                data_port,
                esp_port,
                control_port,
                gossip_port,
            } => {
                let host = Host {
                    id: *id,
                    name: name.clone(),
                    vtep: *vtep,
                    data_port: *data_port,
                    esp_port: *esp_port,
                    control_port: *control_port,
                    gossip_port: *gossip_port,
                    manager: facts.host(*id).is_some_and(|host| host.manager),
                };
                hosts::update(facts, host, changes)?;
            }
            Command::HostRemove { id } => hosts::remove(facts, *id, changes)?,
            Command::SetRole { id, manager } => hosts::set_role(facts, *id, *manager, changes)?,
            Command::NetworkCreate { spec, avoid } => {
                let (network, pool) =
                    networks::plan(facts, spec, avoid, self.ula_prefix, self.next_vni)?;
                if spec.vni.is_none() {
                    self.next_vni = network.vni.get() + 1;
                }
                changes.push(Change::NetworkSet {
                    network: network.clone(),
                    pool,
                });
                return Ok(Reply::Network(network));
            }
            Command::NetworkRemove { name } => networks::remove(facts, name, changes)?,
            Command::NetworkEverywhere { name } => networks::everywhere(facts, name, changes)?,
            Command::Grant { host, vni, want } => {
                let asked = grants::Asked::new(facts, *host, *vni, version)?;
                return asked.grant(*want, changes);
            }
            Command::Return {
                host,
                vni,
                ranges,
                macs,
                seen,
            } => {
                let asked = grants::Asked::new(facts, *host, *vni, *seen)?;
                asked.take_back(ranges, macs, changes)?;
            }
            Command::Unwant { host, vni } => {
                let asked = grants::Asked::new(facts, *host, *vni, version)?;
                asked.unwant(changes);
            }
            Command::TokenRotate { manager, secret } => {
                let token = if *manager {
                    &mut self.secrets.manager_token
                } else {
                    &mut self.secrets.worker_token
                };
                token.clone_from(secret);
            }
            Command::ServiceCreate { spec, from } => {
                return services::create(facts, spec, *from, changes).map(Reply::Service);
            }
            Command::ServiceRemove { name } => services::remove(facts, name, changes)?,
            Command::PolicyAdd { spec } => {
                return policies::add(facts, spec, changes).map(Reply::Policy);
            }
            Command::PolicyRemove { name } => policies::remove(facts, name, changes)?,
            Command::PolicyDefault { network, deny } => {
                policies::set_default(facts, network, *deny, changes)?;
            }
        }
        Ok(Reply::Done)
    }

    /// Keeps a step, and of the earlier ones as many as are allowed.
    fn remember(&mut self, step: Step) {
        self.recent.push_back(step);
        let mut count: usize = self.recent.iter().map(|step| step.changes.len()).sum();
        while count > MAX_RECENT {
            let Some(oldest) = self.recent.pop_front() else {
                break;
            };
            count -= oldest.changes.len();
        }
    }
}
