//! The log of the facts that one host owns, its endpoints: as its owner keeps it, and as the
//! others follow it. Sans-IO.
//!
//! A log is known by its [`Position`]. What is newer comes as changes, or as a snapshot when too
//! much happened in between; a snapshot replaces what was known, and only real differences come
//! out. After a restart the owner's log begins empty: what it held before stays with the others
//! until the owner publishes it again or says that it has settled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use overlay_core::model::{Endpoint, Network, Vni, check_name};

use crate::wire::{Change, Position};

/// More endpoints than this are not accepted from one host.
pub const MAX_ENDPOINTS: usize = 65_536;
/// More addresses than this are not accepted for one endpoint.
const MAX_IPS: usize = 8;
/// So many changes back, a follower gets changes and not a snapshot.
const RECENT: usize = 1024;

/// What names an endpoint in its host's log.
pub type Key = (Vni, String);

fn key(endpoint: &Endpoint) -> Key {
    (endpoint.vni, endpoint.name.clone())
}

/// What every endpoint must be, whatever its network is.
pub fn well_formed(endpoint: &Endpoint) -> Result<(), &'static str> {
    if check_name(&endpoint.name).is_err() {
        Err("its name is malformed")
    } else if !endpoint.mac.is_unicast() {
        Err("its MAC address is not one host's")
    } else if endpoint.ips.is_empty() || endpoint.ips.len() > MAX_IPS {
        Err("it must have from 1 to 8 addresses")
    } else {
        Ok(())
    }
}

/// What an endpoint of `network` must be.
pub fn fits(endpoint: &Endpoint, network: &Network) -> Result<(), &'static str> {
    let inside = |ip: &IpAddr| match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
        ip => {
            let subnet = network.subnet;
            subnet.contains(*ip) && *ip != subnet.network() && *ip != subnet.broadcast()
        }
    };
    if !endpoint.ips.iter().all(inside) {
        Err("one of its addresses is outside of the network's subnet")
    } else if endpoint.ips.contains(&network.gateway) || endpoint.mac == network.gateway_mac() {
        Err("it has the gateway's address")
    } else {
        Ok(())
    }
}

/// This host's own log.
pub struct OwnLog {
    position: Position,
    endpoints: BTreeMap<Key, Endpoint>,
    settled: bool,
    /// The last ones; the newest has the position's number.
    recent: VecDeque<Change>,
}

/// What brings a follower up to date.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    Changes {
        first: u64,
        changes: Vec<Change>,
    },
    Snapshot {
        settled: bool,
        endpoints: Vec<Endpoint>,
    },
}

impl OwnLog {
    pub fn new(incarnation: u64) -> OwnLog {
        OwnLog {
            position: Position {
                incarnation,
                seq: 0,
            },
            endpoints: BTreeMap::new(),
            settled: false,
            recent: VecDeque::new(),
        }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// Whether the others would take no more.
    pub fn is_full(&self) -> bool {
        self.endpoints.len() >= MAX_ENDPOINTS
    }

    /// False when it is published as it is, already.
    pub fn publish(&mut self, endpoint: Endpoint) -> bool {
        let before = self.endpoints.insert(key(&endpoint), endpoint.clone());
        let new = before.as_ref() != Some(&endpoint);
        if new {
            self.push(Change::Up(endpoint));
        }
        new
    }

    /// Also of one that was published before a restart only.
    pub fn withdraw(&mut self, vni: Vni, name: &str) {
        let key = (vni, name.to_owned());
        if self.endpoints.remove(&key).is_some() || !self.settled {
            self.push(Change::Down { vni, name: key.1 });
        }
    }

    /// False when it was settled already.
    pub fn settle(&mut self) -> bool {
        let new = !self.settled;
        if new {
            self.settled = true;
            self.push(Change::Settled);
        }
        new
    }

    pub fn leave(&mut self) {
        self.push(Change::Left);
    }

    fn push(&mut self, change: Change) {
        self.position.seq += 1;
        self.recent.push_back(change);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    pub fn since(&self, have: Position) -> News {
        let Position { incarnation, seq } = self.position;
        let behind = seq
            .checked_sub(have.seq)
            .filter(|_| have.incarnation == incarnation);
        match behind {
            Some(0) => News::Nothing,
            Some(behind) if behind <= self.recent.len() as u64 => {
                let skip = self.recent.len() - behind as usize;
                let changes = self.recent.iter().skip(skip).cloned().collect();
                News::Changes {
                    first: have.seq + 1,
                    changes,
                }
            }
            _ => News::Snapshot {
                settled: self.settled,
                endpoints: self.endpoints.values().cloned().collect(),
            },
        }
    }
}

/// A difference in what a followed host has: before and after.
#[derive(Debug, PartialEq, Eq)]
pub struct Diff {
    pub old: Option<Endpoint>,
    pub new: Option<Endpoint>,
}

/// Another host's log.
#[derive(Default)]
pub struct PeerLog {
    have: Position,
    endpoints: BTreeMap<Key, Endpoint>,
    /// Of an earlier incarnation, which the current one has neither published nor withdrawn.
    before: BTreeMap<Key, Endpoint>,
    left: bool,
    /// What was not taken in, because it broke the rules.
    pub refused: u64,
}

/// Something between is missing: ask the owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap;

impl PeerLog {
    pub fn have(&self) -> Position {
        self.have
    }

    /// Whether its owner has said that it leaves.
    pub fn left(&self) -> bool {
        self.left
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values().chain(self.before.values())
    }

    /// Takes in changes. Those that are known already are passed over, as the same may come on
    /// two connections.
    pub fn changes(
        &mut self,
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
    ) -> Result<Vec<Diff>, Gap> {
        if incarnation < self.have.incarnation {
            return Ok(Vec::new());
        }
        let next = self.have.seq.checked_add(1).ok_or(Gap)?;
        if incarnation > self.have.incarnation || first > next {
            return Err(Gap);
        }
        let known = usize::try_from(next - first).unwrap_or(usize::MAX);
        let mut diffs = Vec::new();
        for change in changes.into_iter().skip(known) {
            self.have.seq = self.have.seq.saturating_add(1);
            self.change(change, &mut diffs);
        }
        Ok(diffs)
    }

    fn change(&mut self, change: Change, diffs: &mut Vec<Diff>) {
        match change {
            Change::Up(endpoint) => diffs.extend(self.up(endpoint)),
            Change::Down { vni, name } => diffs.extend(self.down(&(vni, name))),
            Change::Settled => {
                let gone = std::mem::take(&mut self.before).into_values();
                diffs.extend(gone.map(|old| Diff {
                    old: Some(old),
                    new: None,
                }));
            }
            Change::Left => {
                self.left = true;
                diffs.extend(self.clear());
            }
        }
    }

    /// Replaces what was known, unless that is as new.
    pub fn snapshot(&mut self, at: Position, settled: bool, endpoints: Vec<Endpoint>) -> Vec<Diff> {
        if at <= self.have {
            return Vec::new();
        }
        let restarted = at.incarnation > self.have.incarnation;
        self.have = at;
        self.left = false;
        let known = std::mem::take(&mut self.endpoints);
        if restarted {
            // The newest claim of each endpoint that outlives the restart.
            self.before.extend(known);
        } else {
            // Those that are not in the snapshot were withdrawn in this incarnation.
            self.endpoints = known;
        }
        let mut diffs = Vec::new();
        let listed: BTreeSet<Key> = endpoints.iter().map(key).collect();
        let gone: Vec<Key> = self
            .endpoints
            .keys()
            .filter(|key| !listed.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            diffs.extend(self.down(&key));
        }
        for endpoint in endpoints {
            diffs.extend(self.up(endpoint));
        }
        if settled {
            self.change(Change::Settled, &mut diffs);
        }
        diffs
    }

    /// Its owner has been away for too long, or is gone: everything goes. A snapshot brings it back,
    /// unless the owner had left.
    pub fn forget(&mut self) -> Vec<Diff> {
        if !self.left {
            self.have = Position::default();
        }
        self.clear()
    }

    fn clear(&mut self) -> Vec<Diff> {
        let mut all = std::mem::take(&mut self.before);
        all.append(&mut self.endpoints);
        all.into_values()
            .map(|old| Diff {
                old: Some(old),
                new: None,
            })
            .collect()
    }

    fn up(&mut self, endpoint: Endpoint) -> Option<Diff> {
        let key = key(&endpoint);
        let old = self.before.remove(&key);
        let known = self.endpoints.len() + self.before.len();
        let full = known >= MAX_ENDPOINTS && !self.endpoints.contains_key(&key);
        if full || well_formed(&endpoint).is_err() {
            self.refused += 1;
            // It is no longer what it was, either.
            let old = old.or_else(|| self.endpoints.remove(&key));
            return old.map(|old| Diff {
                old: Some(old),
                new: None,
            });
        }
        let old = self.endpoints.insert(key, endpoint.clone()).or(old);
        (old.as_ref() != Some(&endpoint)).then_some(Diff {
            old,
            new: Some(endpoint),
        })
    }

    fn down(&mut self, key: &Key) -> Option<Diff> {
        let before = self.before.remove(key);
        let old = self.endpoints.remove(key).or(before)?;
        Some(Diff {
            old: Some(old),
            new: None,
        })
    }
}

#[cfg(test)]
mod tests;
