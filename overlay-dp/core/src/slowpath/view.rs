//! The slow path's bytes and tables, as the verdicts want them.

use overlay_common::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::policy::PolicyEntry;
use overlay_common::service::FlowKey;
use overlay_common::verdict::neighbour::{parse_arp, parse_nd};
use overlay_common::verdict::{self, Frame};
use overlay_common::wire::{
    ARP_REQUEST, ETH_LEN, ETH_P_ARP, ETH_P_IPV6, ICMPV6_NS, Ip16, PROTO_ICMPV6, be16, map_v4,
};

use crate::tables::Tables;

/// A frame in memory.
pub(super) struct Bytes<'a> {
    bytes: &'a [u8],
    gso_size: u32,
}

impl<'a> Bytes<'a> {
    /// A frame whose own length counts.
    pub fn whole(bytes: &'a [u8]) -> Bytes<'a> {
        Bytes { bytes, gso_size: 0 }
    }

    /// A frame that may be one segment of a longer one whose outer headers it still has: their
    /// lengths are not checked, just as the fast path does not check a super-packet's.
    pub fn segment(bytes: &'a [u8]) -> Bytes<'a> {
        Bytes { bytes, gso_size: 1 }
    }
}

impl Frame for Bytes<'_> {
    fn read<const N: usize, R>(
        &self,
        offset: usize,
        take: impl FnOnce(&[u8; N]) -> R,
    ) -> Option<R> {
        self.bytes.get(offset..)?.first_chunk().map(take)
    }

    fn total_len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }
}

/// The tables while one frame is looked at.
pub(super) struct View<'a> {
    tables: &'a Tables,
    /// The address whose MAC the frame asks for.
    pub asked: Option<NeighbourKey>,
    /// The answer.
    pub answer: Option<&'a NeighbourEntry>,
}

impl<'a> View<'a> {
    /// For a frame on the network `vni`.
    pub fn new(tables: &'a Tables, vni: u32, inner: &[u8]) -> View<'a> {
        let asked = asked(&Bytes::whole(inner));
        View {
            tables,
            asked: asked.map(|ip| NeighbourKey::new(vni, ip)),
            answer: asked.and_then(|ip| tables.neighbour_entry(vni, ip)),
        }
    }
}

impl verdict::Tables for View<'_> {
    fn config(&self) -> Option<&Config> {
        Some(self.tables.config())
    }

    fn port(&self, ifindex: u32) -> Option<&PortEntry> {
        self.tables.port_entry(ifindex)
    }

    fn network(&self, vni: u32) -> Option<&NetworkEntry> {
        self.tables.network_entry(vni)
    }

    fn fdb(&self, key: &FdbKey) -> Option<&FdbEntry> {
        self.tables.fdb_entry(key)
    }

    /// A verdict looks up no other address than the one asked for.
    fn neighbour(&self, key: &NeighbourKey) -> Option<&NeighbourEntry> {
        self.answer.filter(|_| self.asked.as_ref() == Some(key))
    }

    fn vtep(&self, ip: &Ip16) -> Option<&VtepEntry> {
        self.tables.vtep_entry(ip)
    }

    fn policy(&self, port: u32) -> Option<&PolicyEntry> {
        self.tables.policy_entry(port)
    }

    /// Only the programs know: what may be an answer is judged by them once more, on its way to the
    /// port.
    fn has_begun(&self, _: &FlowKey) -> bool {
        true
    }
}

/// The address that an ARP request or a neighbour solicitation asks for.
fn asked(frame: &Bytes<'_>) -> Option<Ip16> {
    let [hi, lo] = frame.load(12)?;
    match be16(hi, lo) {
        ETH_P_ARP => {
            let arp = parse_arp(frame).ok()?;
            (arp.op == ARP_REQUEST).then_some(map_v4(arp.target_ip))
        }
        ETH_P_IPV6 => {
            let [next_header] = frame.load(ETH_LEN + 6)?;
            let nd = parse_nd(frame).filter(|_| next_header == PROTO_ICMPV6)?;
            (nd.icmp_type == ICMPV6_NS).then_some(nd.target)
        }
        _ => None,
    }
}
