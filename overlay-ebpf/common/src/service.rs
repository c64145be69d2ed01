//! A service's virtual address (VIP): which backend a connection goes to, and how its answers get
//! the VIP back as their source.
//!
//! Both happen on the client's host. A frame to the VIP's MAC gets the addresses of a backend, and
//! is decided about again, as a frame to that one. A frame from a backend gets the VIP as its source
//! if it belongs to such a connection. The backends know nothing of it.
//!
//! A connection stays with its backend while that exists, whatever others come and go. A new one
//! gets the backend of its slot in the VIP's table, which the agent writes (consistent hashing).
//! Like the verdicts, all this is without a packet pointer or a map in sight.

use crate::layout::{FdbKey, pod};
use crate::outer::mix;
use crate::verdict::{Frame, Tables};
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, Ip16, Mac, PROTO_TCP, PROTO_UDP,
    be16, mac_eq, map_v4, words,
};

/// Slots in the table of a VIP: a prime number, so that all orders of the slots are complete.
pub const SLOTS: u32 = 1021;

/// Names one slot of a VIP's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    vni: u32,
    slot: u32,
    vip: Ip16,
}
pod!(SlotKey, 24);

impl SlotKey {
    /// The slot of the VIP on the network `vni` (host order).
    #[inline(always)]
    pub const fn new(vni: u32, vip: Ip16, slot: u32) -> SlotKey {
        SlotKey { vni, slot, vip }
    }

    /// The network, host order.
    pub const fn vni(&self) -> u32 {
        self.vni
    }

    /// The VIP.
    pub const fn vip(&self) -> Ip16 {
        self.vip
    }

    /// The slot.
    pub const fn slot(&self) -> u32 {
        self.slot
    }
}

/// Whom a frame is to be addressed to, or to come from, instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub ip: Ip16,
    /// Its MAC.
    pub mac: Mac,
    /// Zero.
    pub _zero: [u8; 2],
}
pod!(Peer, 24);

/// Names the packets of one connection in one direction, as they are before they are changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The network, host order.
    pub vni: u32,
    /// TCP or UDP.
    pub protocol: u32,
    /// Source address.
    pub src: Ip16,
    /// Destination address.
    pub dst: Ip16,
    /// Source and destination port, as on the wire.
    pub ports: [u8; 4],
}
pod!(FlowKey, 44);

/// A packet of a connection, as it lies in an Ethernet frame.
pub struct Flow {
    /// Which connection, and which direction.
    pub key: FlowKey,
    /// Of its IP header.
    pub family: Family,
}

impl Flow {
    /// The connection of the frame; `None` when it is neither TCP nor UDP, is a fragment, or has
    /// IP options or extension headers.
    #[inline(always)]
    pub fn of<F: Frame>(frame: &F, vni: u32) -> Option<Flow> {
        let [t0, t1] = frame.load(ETH_LEN - 2)?;
        let (family, protocol, src, dst) = match be16(t0, t1) {
            ETH_P_IP => {
                let h: [u8; IPV4_LEN] = frame.load(ETH_LEN)?;
                if h[0] != 0x45 || be16(h[6], h[7]) & 0x3fff != 0 {
                    return None;
                }
                let src = map_v4([h[12], h[13], h[14], h[15]]);
                (Family::V4, h[9], src, map_v4([h[16], h[17], h[18], h[19]]))
            }
            ETH_P_IPV6 => {
                let [protocol] = frame.load(ETH_LEN + 6)?;
                let src = frame.load(ETH_LEN + 8)?;
                (Family::V6, protocol, src, frame.load(ETH_LEN + 24)?)
            }
            _ => return None,
        };
        if protocol != PROTO_TCP && protocol != PROTO_UDP {
            return None;
        }
        let key = FlowKey {
            vni,
            protocol: protocol as u32,
            src,
            dst,
            ports: frame.load(l4_at(family))?,
        };
        Some(Flow { key, family })
    }
}

/// Where the TCP or UDP header of a [`Flow`]'s frame is.
#[inline(always)]
pub const fn l4_at(family: Family) -> usize {
    match family {
        Family::V4 => ETH_LEN + IPV4_LEN,
        Family::V6 => ETH_LEN + IPV6_LEN,
    }
}

/// What is remembered of connections, and which backends there are.
pub trait Connections {
    /// Who has this slot.
    fn slot(&self, key: &SlotKey) -> Option<&Peer>;
    /// What is remembered of packets like this.
    fn flow(&self, key: &FlowKey) -> Option<&Peer>;
    /// Remembers it, in place of whatever was, or of what has been idle longest.
    fn remember(&self, key: &FlowKey, peer: &Peer);
}

/// The backend for a frame from `from` to the VIP with the MAC `vip_mac`; `None` when there is none.
///
/// It may be the sender itself. Then the frame goes back with source and destination exchanged: so
/// a backend that was given its own connection takes it for the VIP's, and answers the VIP, which
/// brings that back in the same way.
#[inline(always)]
pub fn choose<'c, T: Tables, C: Connections>(
    flow: &FlowKey,
    from: &Mac,
    vip_mac: &Mac,
    tables: &T,
    connections: &'c C,
) -> Option<&'c Peer> {
    if let Some(peer) = connections.flow(flow)
        && is_backend(tables, flow.vni, &peer.mac)
    {
        return Some(peer);
    }
    // The answer to what came back: the VIP is its client's.
    let answered = FlowKey {
        ports: turned(flow.ports),
        ..*flow
    };
    if let Some(peer) = connections.flow(&answered)
        && mac_eq(&peer.mac, from)
    {
        return Some(peer);
    }
    let slot = SlotKey::new(flow.vni, flow.dst, hash(flow) % SLOTS);
    let peer = connections.slot(&slot)?;
    connections.remember(flow, peer);
    if !mac_eq(&peer.mac, from) {
        let answer = FlowKey {
            src: peer.ip,
            dst: flow.src,
            ports: turned(flow.ports),
            ..*flow
        };
        let vip = Peer {
            ip: flow.dst,
            mac: *vip_mac,
            _zero: [0; 2],
        };
        connections.remember(&answer, &vip);
    }
    Some(peer)
}

/// True while the MAC is that of an endpoint that belongs to a service.
#[inline(always)]
fn is_backend<T: Tables>(tables: &T, vni: u32, mac: &Mac) -> bool {
    match tables.fdb(&FdbKey::new(vni, *mac)) {
        Some(entry) => entry.is_backend(),
        None => false,
    }
}

/// The ports of the packets the other way.
#[inline(always)]
const fn turned([a, b, c, d]: [u8; 4]) -> [u8; 4] {
    [c, d, a, b]
}

/// Spreads connections over the slots.
#[inline(always)]
fn hash(flow: &FlowKey) -> u32 {
    let [a, b, c, d] = words(&flow.src);
    let hash = mix(mix(mix(mix(flow.protocol, a), b), c), d);
    mix(hash, u32::from_ne_bytes(flow.ports))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::vec::Vec;

    use super::*;
    use crate::layout::{FDB_BACKEND, FdbEntry};
    use crate::verdict::testing::{Memory, Slice};

    const VNI: u32 = 4096;
    const CLIENT: Mac = [2, 0x42, 10, 0, 0, 2];
    const VIP: [u8; 4] = [10, 0, 0, 9];
    const VIP_MAC: Mac = [2, 0x42, 10, 0, 0, 9];

    #[derive(Default)]
    struct Host {
        tables: Memory,
        slots: HashMap<SlotKey, Peer>,
        /// Leaked: a reference must outlive the next change, as it does in the kernel.
        flows: RefCell<HashMap<FlowKey, &'static Peer>>,
    }

    impl Connections for Host {
        fn slot(&self, key: &SlotKey) -> Option<&Peer> {
            self.slots.get(key)
        }

        fn flow(&self, key: &FlowKey) -> Option<&Peer> {
            self.flows.borrow().get(key).copied()
        }

        fn remember(&self, key: &FlowKey, peer: &Peer) {
            let peer = std::boxed::Box::leak(std::boxed::Box::new(*peer));
            self.flows.borrow_mut().insert(*key, peer);
        }
    }

    impl Host {
        /// Its VIP has these backends, in turn.
        fn set_backends(&mut self, backends: &[u8]) {
            self.slots.clear();
            self.tables.fdb.clear();
            for last in backends {
                let key = FdbKey::new(VNI, peer(*last).mac);
                let entry = FdbEntry::remote(map_v4([192, 0, 2, *last]));
                self.tables.fdb.insert(key, entry.with(FDB_BACKEND));
            }
            for (slot, last) in (0..SLOTS).zip(backends.iter().cycle()) {
                let key = SlotKey::new(VNI, map_v4(VIP), slot);
                self.slots.insert(key, peer(*last));
            }
        }

        fn choose(&self, flow: &FlowKey, from: &Mac) -> Option<Peer> {
            choose(flow, from, &VIP_MAC, &self.tables, self).copied()
        }
    }

    fn peer(last: u8) -> Peer {
        Peer {
            ip: map_v4([10, 0, 0, last]),
            mac: [2, 0x42, 10, 0, 0, last],
            _zero: [0; 2],
        }
    }

    fn to_vip(port: u16) -> FlowKey {
        let [a, b] = port.to_be_bytes();
        FlowKey {
            vni: VNI,
            protocol: u32::from(PROTO_TCP),
            src: map_v4([10, 0, 0, 2]),
            dst: map_v4(VIP),
            ports: [a, b, 0, 80],
        }
    }

    #[test]
    fn a_connection_stays_with_its_backend_and_its_answers_come_from_the_vip() {
        let mut host = Host::default();
        host.set_backends(&[3, 4, 5]);
        let first: Vec<_> = (1000..1300)
            .map(|port| host.choose(&to_vip(port), &CLIENT))
            .collect();
        for last in [3, 4, 5] {
            let share = first.iter().filter(|c| **c == Some(peer(last)));
            assert!(share.count() > 50, "backend {last}");
        }
        host.set_backends(&[5, 6, 7, 8, 3, 4]);
        let again = (1000..1300).map(|port| host.choose(&to_vip(port), &CLIENT));
        assert!(again.eq(first.iter().copied()));
        // What the first connection's backend answers has the VIP's address.
        let Some(backend) = first[0] else {
            panic!("{:?}", first[0]);
        };
        let answer = FlowKey {
            src: backend.ip,
            dst: to_vip(1000).src,
            ports: turned(to_vip(1000).ports),
            ..to_vip(1000)
        };
        let vip = host.flow(&answer).copied();
        assert_eq!(
            vip.map(|vip| (vip.ip, vip.mac)),
            Some((map_v4(VIP), VIP_MAC))
        );
    }

    #[test]
    fn a_connection_whose_backend_is_gone_gets_another() {
        let mut host = Host::default();
        host.set_backends(&[3]);
        assert_eq!(host.choose(&to_vip(1), &CLIENT), Some(peer(3)));
        host.set_backends(&[4]);
        assert_eq!(host.choose(&to_vip(1), &CLIENT), Some(peer(4)));
        // Somebody else has its address now, who is no backend.
        host.set_backends(&[5]);
        let key = FdbKey::new(VNI, peer(4).mac);
        let stranger = FdbEntry::remote(map_v4([192, 0, 2, 4]));
        host.tables.fdb.insert(key, stranger);
        assert_eq!(host.choose(&to_vip(1), &CLIENT), Some(peer(5)));
        host.set_backends(&[]);
        assert_eq!(host.choose(&to_vip(1), &CLIENT), None);
    }

    #[test]
    fn a_backend_can_be_its_own_client() {
        let mut host = Host::default();
        host.set_backends(&[2]);
        let there = to_vip(40000);
        assert_eq!(host.choose(&there, &CLIENT), Some(peer(2)));
        // It sees the VIP as the client, and answers it.
        let answer = FlowKey {
            ports: turned(there.ports),
            ..there
        };
        assert_eq!(host.choose(&answer, &CLIENT), Some(peer(2)));
        assert_eq!(host.choose(&there, &CLIENT), Some(peer(2)));
    }

    #[test]
    fn only_whole_tcp_and_udp_packets_are_of_a_connection() {
        let mut frame = std::vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = PROTO_UDP;
        frame[26..30].copy_from_slice(&[10, 0, 0, 2]);
        frame[30..34].copy_from_slice(&VIP);
        frame[34..38].copy_from_slice(&[0x9c, 0x40, 0, 53]);
        let flow = Flow::of(&Slice::new(&frame), VNI).map(|flow| flow.key);
        let expected = FlowKey {
            protocol: u32::from(PROTO_UDP),
            ports: [0x9c, 0x40, 0, 53],
            ..to_vip(1)
        };
        assert_eq!(flow, Some(expected));
        assert!(Flow::of(&Slice::new(&frame[..37]), VNI).is_none());
        for (at, value) in [(23, 1), (20, 0x20), (21, 1), (14, 0x46), (12, 0x86)] {
            let mut other = frame.clone();
            other[at] = value;
            assert!(Flow::of(&Slice::new(&other), VNI).is_none(), "byte {at}");
        }
        let mut v6 = std::vec![0; 62];
        v6[12..14].copy_from_slice(&[0x86, 0xdd]);
        v6[20] = PROTO_TCP;
        v6[22..54].fill(7);
        v6[54..58].copy_from_slice(&[1, 2, 3, 4]);
        let flow = Flow::of(&Slice::new(&v6), VNI);
        assert!(flow.is_some_and(|f| f.key.src == [7; 16] && f.key.ports == [1, 2, 3, 4]));
    }
}
