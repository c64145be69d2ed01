//! This host's own logs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use overlay_core::model::{Endpoint, Vni};
use overlay_core::multicast::Group;

use super::{ByName, MAX_BYTES, MAX_ENDPOINTS, cost};
use crate::wire::{Change, Position};

/// So many changes back, a follower gets changes and not a snapshot.
pub(super) const RECENT: usize = 256;

#[derive(Default)]
struct OwnLog {
    seq: u64,
    /// The number of its last move, see [`OwnLogs::moves`].
    moved: u64,
    endpoints: BTreeSet<ByName>,
    /// `None` until it was said which have members.
    groups: Option<Arc<[Group]>>,
    /// The last ones; the newest has the number `seq`.
    recent: VecDeque<Change>,
}

/// This host's own endpoints.
pub struct OwnLogs {
    incarnation: u64,
    settled: bool,
    logs: BTreeMap<Vni, OwnLog>,
    count: usize,
    bytes: usize,
    moves: u64,
    /// The last move of each log.
    moved: BTreeMap<u64, Vni>,
    /// The move at which all logs settled.
    settled_at: u64,
}

/// What brings a follower of one log up to date.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    Changes {
        first: u64,
        changes: Vec<Change>,
    },
    Snapshot {
        settled: bool,
        endpoints: Vec<Arc<Endpoint>>,
        groups: Option<Arc<[Group]>>,
    },
}

impl OwnLogs {
    /// `incarnation` is at least 1, and higher than at any earlier start.
    pub fn new(incarnation: u64) -> OwnLogs {
        OwnLogs {
            incarnation,
            settled: false,
            logs: BTreeMap::new(),
            count: 0,
            bytes: 0,
            moves: 0,
            moved: BTreeMap::new(),
            settled_at: 0,
        }
    }

    /// Where a log is. One that was never written to is settled, at most.
    pub fn position(&self, vni: Vni) -> Position {
        let seq = self
            .logs
            .get(&vni)
            .map_or(self.settled.into(), |log| log.seq);
        Position {
            incarnation: self.incarnation,
            seq,
        }
    }

    /// This host's endpoints in one network.
    pub fn endpoints(&self, vni: Vni) -> impl Iterator<Item = &Endpoint> {
        let log = self.logs.get(&vni).into_iter();
        log.flat_map(|log| log.endpoints.iter().map(|endpoint| &*endpoint.0))
    }

    /// This host's endpoint of this name in one network.
    pub fn named(&self, vni: Vni, name: &str) -> Option<&Endpoint> {
        let found = self.logs.get(&vni)?.endpoints.get(name)?;
        Some(&found.0)
    }

    /// The networks in which this host has endpoints.
    pub fn networks(&self) -> impl Iterator<Item = Vni> {
        let used = self
            .logs
            .iter()
            .filter(|(_, log)| !log.endpoints.is_empty());
        used.map(|(vni, _)| *vni)
    }

    /// Whether the others would take no more.
    pub fn is_full(&self) -> bool {
        self.count >= MAX_ENDPOINTS || self.bytes > MAX_BYTES - MAX_BYTES / 16
    }

    /// False when it is published as it is, already.
    pub fn publish(&mut self, endpoint: Endpoint) -> bool {
        let (vni, endpoint) = (endpoint.vni, Arc::new(endpoint));
        let log = self.log(vni);
        let before = log.endpoints.replace(ByName(endpoint.clone()));
        if before.as_ref().is_some_and(|before| before.0 == endpoint) {
            return false;
        }
        self.count += usize::from(before.is_none());
        self.bytes += cost(&endpoint);
        self.bytes -= before.map_or(0, |before| cost(&before.0));
        self.push(vni, Change::Up(endpoint));
        true
    }

    /// Also of one that was published before a restart only.
    pub fn withdraw(&mut self, vni: Vni, name: &str) {
        let settled = self.settled;
        let held = self.log(vni).endpoints.take(name);
        self.count -= usize::from(held.is_some());
        self.bytes -= held.as_ref().map_or(0, |held| cost(&held.0));
        if held.is_some() || !settled {
            self.push(vni, Change::Down(name.to_owned()));
        }
    }

    /// Says which groups have members in a network. False when that was said already.
    pub fn set_groups(&mut self, vni: Vni, groups: &BTreeSet<Group>) -> bool {
        let log = self.log(vni);
        let said = log.groups.as_ref();
        if said.is_some_and(|said| said.iter().eq(groups)) {
            return false;
        }
        let groups: Arc<[Group]> = groups.iter().copied().collect();
        log.groups = Some(Arc::clone(&groups));
        // What was said before is of no use to who hears this: only one list is kept.
        for change in &mut log.recent {
            if let Change::Groups(before) = change {
                *before = Arc::clone(&groups);
            }
        }
        self.push(vni, Change::Groups(groups));
        true
    }

    /// What was said last of a network's groups.
    pub fn groups(&self, vni: Vni) -> impl Iterator<Item = Group> {
        let log = self.logs.get(&vni).into_iter();
        let groups = log.flat_map(|log| log.groups.iter());
        groups.flat_map(|groups| groups.iter().copied())
    }

    /// The networks in which groups were said to have members.
    pub fn networks_with_groups(&self) -> impl Iterator<Item = Vni> {
        let some = |log: &OwnLog| log.groups.as_ref().is_some_and(|g| !g.is_empty());
        let logs = self.logs.iter().filter(move |(_, log)| some(log));
        logs.map(|(vni, _)| *vni)
    }

    /// All that outlived a restart is published again. False when it was settled already.
    pub fn settle(&mut self) -> bool {
        if self.settled {
            return false;
        }
        let written: Vec<Vni> = self.logs.keys().copied().collect();
        for vni in written {
            self.push(vni, Change::Settled);
        }
        self.settled = true;
        self.moves += 1;
        self.settled_at = self.moves;
        true
    }

    fn log(&mut self, vni: Vni) -> &mut OwnLog {
        let settled = self.settled;
        self.logs.entry(vni).or_insert_with(|| OwnLog {
            seq: settled.into(),
            recent: settled.then_some(Change::Settled).into_iter().collect(),
            ..OwnLog::default()
        })
    }

    fn push(&mut self, vni: Vni, change: Change) {
        self.moves += 1;
        let moves = self.moves;
        let log = self.log(vni);
        let before = std::mem::replace(&mut log.moved, moves);
        log.seq += 1;
        log.recent.push_back(change);
        if log.recent.len() > RECENT {
            log.recent.pop_front();
        }
        self.moved.remove(&before);
        self.moved.insert(moves, vni);
    }

    /// Rises with every change of any log.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    /// The logs that changed after move `seen`; `None` for all.
    pub(crate) fn moved_since(&self, seen: u64) -> Option<impl Iterator<Item = Vni>> {
        (self.settled_at <= seen).then(|| self.moved.range(seen + 1..).map(|(_, vni)| *vni))
    }

    pub(crate) fn since(&self, vni: Vni, have: Position) -> News {
        let Position { incarnation, seq } = self.position(vni);
        let behind = seq
            .checked_sub(have.seq)
            .filter(|_| have.incarnation == incarnation);
        let log = self.logs.get(&vni);
        let recent = log.map_or(0, |log| log.recent.len() as u64);
        match (behind, log) {
            (Some(0), _) => News::Nothing,
            (Some(behind), Some(log)) if behind <= recent => News::Changes {
                first: have.seq + 1,
                changes: log
                    .recent
                    .iter()
                    .skip((recent - behind) as usize)
                    .cloned()
                    .collect(),
            },
            // The one change of a log that was never written to.
            (Some(_), None) => News::Changes {
                first: 1,
                changes: vec![Change::Settled],
            },
            _ => News::Snapshot {
                settled: self.settled,
                endpoints: log.map_or_else(Vec::new, |log| {
                    log.endpoints.iter().map(|e| e.0.clone()).collect()
                }),
                groups: log.and_then(|log| log.groups.clone()),
            },
        }
    }
}
