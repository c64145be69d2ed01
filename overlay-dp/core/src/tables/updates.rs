//! The tables as BPF maps: their content and its changes.

use std::collections::{HashMap, VecDeque};

use overlay_common::layout::{
    FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::policy::PolicyEntry;
use overlay_common::service::{Peer, SlotKey};
use overlay_common::wire::Ip16;

/// One change of one BPF map. To delete what is not there is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the map operation that its name says")]
pub enum MapUpdate {
    SetPort(u32, PortEntry),
    DelPort(u32),
    SetNetwork(u32, NetworkEntry),
    DelNetwork(u32),
    SetFdb(FdbKey, FdbEntry),
    DelFdb(FdbKey),
    SetNeighbour(NeighbourKey, NeighbourEntry),
    DelNeighbour(NeighbourKey),
    SetVtep(Ip16, VtepEntry),
    DelVtep(Ip16),
    SetSlot(SlotKey, Peer),
    DelSlot(SlotKey),
    SetPolicy(u32, Box<PolicyEntry>),
    DelPolicy(u32),
}

/// The whole content of each BPF map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapContents {
    /// By ifindex.
    pub ports: HashMap<u32, PortEntry>,
    /// By VNI.
    pub networks: HashMap<u32, NetworkEntry>,
    /// Where MACs are.
    pub fdb: HashMap<FdbKey, FdbEntry>,
    /// The MACs of addresses.
    pub neighbours: HashMap<NeighbourKey, NeighbourEntry>,
    /// How to reach VTEPs.
    pub vteps: HashMap<Ip16, VtepEntry>,
    /// Which backend has which slot of a service's table.
    pub slots: HashMap<SlotKey, Peer>,
    /// Who may reach the endpoints behind ports, by ifindex.
    pub policies: HashMap<u32, PolicyEntry>,
}

/// Room for so many updates is kept.
const ROOM: usize = 4096;

/// Updates that wait to be carried out.
#[derive(Debug, Default)]
pub(super) struct Updates {
    queue: VecDeque<MapUpdate>,
    taken: u64,
}

impl Updates {
    pub fn push(&mut self, update: MapUpdate) {
        self.queue.push_back(update);
    }

    pub fn extend(&mut self, updates: impl Iterator<Item = MapUpdate>) {
        self.queue.extend(updates);
    }

    pub fn pop(&mut self) -> Option<MapUpdate> {
        let Some(update) = self.queue.pop_front() else {
            // A large network that was attached leaves more room than is soon needed again.
            if self.queue.capacity() > ROOM {
                self.queue = VecDeque::new();
            }
            return None;
        };
        self.taken += 1;
        Some(update)
    }

    /// How many there ever were.
    pub fn queued(&self) -> u64 {
        self.taken + self.queue.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_was_needed_once_is_given_back() {
        let mut updates = Updates::default();
        updates.extend((0..100_000).map(MapUpdate::DelPort));
        while updates.pop().is_some() {}
        assert!(updates.queue.capacity() <= ROOM);
        assert_eq!(updates.queued(), 100_000);
        updates.push(MapUpdate::DelPort(1));
        assert_eq!(updates.pop(), Some(MapUpdate::DelPort(1)));
        assert_eq!(updates.queued(), 100_001);
    }
}
