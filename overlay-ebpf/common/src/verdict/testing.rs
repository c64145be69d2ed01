//! Frames and tables in plain memory.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

use super::{Frame, Tables};
use crate::layout::{
    Config, EntranceEntry, FdbEntry, FdbKey, FlowKey, NeighbourEntry, NeighbourKey, NetworkEntry,
    PortEntry, VtepEntry,
};
use crate::policy::PolicyEntry;
use crate::service;
use crate::wire::Ip16;

/// A frame in a slice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slice<'a> {
    /// All its bytes, Ethernet header first.
    pub bytes: &'a [u8],
    /// What [`Frame::gso_size`] says.
    pub gso_size: u32,
    /// What [`Frame::has_vlan_aside`] says.
    pub vlan_aside: bool,
    /// What [`Frame::may_have_sum_aside`] says.
    pub sum_aside: bool,
}

impl<'a> Slice<'a> {
    /// A frame as it is on the wire.
    pub fn new(bytes: &'a [u8]) -> Self {
        Slice {
            bytes,
            ..Slice::default()
        }
    }
}

impl Frame for Slice<'_> {
    fn read<const N: usize, R>(
        &self,
        offset: usize,
        take: impl FnOnce(&[u8; N]) -> R,
    ) -> Option<R> {
        self.bytes.get(offset..)?.first_chunk().map(take)
    }

    fn total_len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn has_vlan_aside(&self) -> bool {
        self.vlan_aside
    }

    fn may_have_sum_aside(&self) -> bool {
        self.sum_aside
    }
}

/// Tables in hash maps.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What is true for the whole host.
    pub config: Option<Config>,
    /// By ifindex.
    pub ports: HashMap<u32, PortEntry>,
    /// By VNI.
    pub networks: HashMap<u32, NetworkEntry>,
    /// Where MACs are.
    pub fdb: HashMap<FdbKey, FdbEntry>,
    /// The MACs of addresses.
    pub neighbours: HashMap<NeighbourKey, NeighbourEntry>,
    /// By address.
    pub vteps: HashMap<Ip16, VtepEntry>,
    /// Through whose router flows came in.
    pub entrances: HashMap<FlowKey, EntranceEntry>,
    /// What was noted of that since, the latest last.
    pub noted: RefCell<Vec<(FlowKey, EntranceEntry)>>,
    /// Who may reach endpoints, by ifindex.
    pub policies: HashMap<u32, PolicyEntry>,
    /// What policed endpoints have begun.
    pub begun: RefCell<HashSet<service::FlowKey>>,
}

impl Tables for Memory {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn port(&self, ifindex: u32) -> Option<&PortEntry> {
        self.ports.get(&ifindex)
    }

    fn network(&self, vni: u32) -> Option<&NetworkEntry> {
        self.networks.get(&vni)
    }

    fn fdb(&self, key: &FdbKey) -> Option<&FdbEntry> {
        self.fdb.get(key)
    }

    fn neighbour(&self, key: &NeighbourKey) -> Option<&NeighbourEntry> {
        self.neighbours.get(key)
    }

    fn vtep(&self, ip: &Ip16) -> Option<&VtepEntry> {
        self.vteps.get(ip)
    }

    fn entrance(&self, flow: &FlowKey) -> Option<&EntranceEntry> {
        self.entrances.get(flow)
    }

    fn set_entrance(&self, flow: &FlowKey, entry: &EntranceEntry) {
        self.noted.borrow_mut().push((*flow, *entry));
    }

    fn policy(&self, port: u32) -> Option<&PolicyEntry> {
        self.policies.get(&port)
    }

    fn has_begun(&self, flow: &service::FlowKey) -> bool {
        self.begun.borrow().contains(flow)
    }

    fn set_begun(&self, flow: &service::FlowKey) {
        self.begun.borrow_mut().insert(*flow);
    }
}
