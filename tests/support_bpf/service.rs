//! A service's own address: a backend's goes in, and comes out of its answers again, with every
//! checksum right.

use std::collections::HashMap;

use etherparse::{TcpHeader, UdpHeader};
use overlay_common::counters::Stat;
use overlay_common::layout::{FDB_BACKEND, FdbEntry, FdbKey, PORT_BACKEND, names};
use overlay_common::punt::{Kind, Reason};
use overlay_common::service::{Peer, SLOTS, SlotKey};
use overlay_common::verdict::testing::Memory;
use overlay_common::wire::{Ip16, Mac, map_v4};

use super::checks::*;
use super::frames::*;
use super::object::{Action, Hook, Object, PORT, UPLINK};
use super::world::*;

const VIP: Ip4 = [10, 0, 0, 200];

/// A packet whose checksums are right: what it carries, and of which family it is.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Tcp4,
    Udp4,
    /// UDP may go without.
    Unsummed4,
    Tcp6,
    Udp6,
}

const PACKETS: [Packet; 5] = [
    Packet::Tcp4,
    Packet::Udp4,
    Packet::Unsummed4,
    Packet::Tcp6,
    Packet::Udp6,
];

impl Packet {
    fn frame(
        self,
        (src_mac, src): (Mac, Ip4),
        (dst_mac, dst): (Mac, Ip4),
        ports: (u16, u16),
    ) -> Vec<u8> {
        let data = b"seven b";
        let tcp = |sum: &dyn Fn(&TcpHeader) -> u16| {
            let mut header = TcpHeader::new(ports.0, ports.1, 7, 65_000);
            header.syn = true;
            header.checksum = sum(&header);
            [&header.to_bytes()[..], data].concat()
        };
        let udp = |sum: &dyn Fn(&UdpHeader) -> u16| {
            let mut header = UdpHeader {
                source_port: ports.0,
                destination_port: ports.1,
                length: 8 + data.len() as u16,
                checksum: 0,
            };
            header.checksum = sum(&header);
            [&header.to_bytes()[..], data].concat()
        };
        let (src6, dst6) = (ip6(src), ip6(dst));
        let (ethertype, packet) = match self {
            Packet::Tcp4 => {
                let tcp = tcp(&|h| h.calc_checksum_ipv4_raw(src, dst, data).unwrap());
                (IP, ipv4(src, dst, 0, TCP, &tcp))
            }
            Packet::Udp4 => {
                let udp = udp(&|h| h.calc_checksum_ipv4_raw(src, dst, data).unwrap());
                (IP, ipv4(src, dst, 0, UDP, &udp))
            }
            Packet::Unsummed4 => (IP, ipv4(src, dst, 0, UDP, &udp(&|_| 0))),
            Packet::Tcp6 => {
                let tcp = tcp(&|h| h.calc_checksum_ipv6_raw(src6, dst6, data).unwrap());
                (IP6, ipv6(src6, dst6, 0, TCP, 64, &tcp))
            }
            Packet::Udp6 => {
                let udp = udp(&|h| h.calc_checksum_ipv6_raw(src6, dst6, data).unwrap());
                (IP6, ipv6(src6, dst6, 0, UDP, 64, &udp))
            }
        };
        eth(dst_mac, src_mac, ethertype, &packet)
    }
}

fn end(ip: Ip4) -> (Mac, Ip4) {
    (mac(ip), ip)
}

/// The world with a service whose only backend is `backend`.
fn object(backend: Option<Ip4>) -> Option<Object> {
    let mut tables: Memory = tables();
    let mut flag = |ip: Ip4, change: &dyn Fn(FdbEntry) -> FdbEntry| {
        let key = FdbKey::new(VNI, mac(ip));
        let entry = tables.fdb.get(&key).copied().unwrap_or(FdbEntry::service());
        tables.fdb.insert(key, change(entry));
    };
    flag(VIP, &|entry| entry);
    for ip in [R, B] {
        flag(ip, &|entry| entry.with(FDB_BACKEND));
    }
    for (ifindex, port) in &mut tables.ports {
        port.ip6[0] = ip6(if *ifindex == PORT_A { A } else { B });
    }
    tables.ports.get_mut(&PORT_B).unwrap().flags = PORT_BACKEND;
    let mut object = Object::load(&tables)?;
    if let Some(backend) = backend {
        let vips: [(Ip16, Ip16); 2] = [(map_v4(VIP), map_v4(backend)), (ip6(VIP), ip6(backend))];
        let mut slots = HashMap::new();
        for (vip, ip) in vips {
            for slot in 0..SLOTS {
                let peer = Peer {
                    ip,
                    mac: mac(backend),
                    _zero: [0; 2],
                };
                slots.insert(SlotKey::new(VNI, vip, slot), peer);
            }
        }
        object.insert(names::SLOTS, &slots);
    }
    Some(object)
}

#[test]
fn a_far_backend_gets_it_and_its_answer_comes_from_the_service() {
    let Some(mut object) = object(Some(R)) else {
        return;
    };
    for packet in PACKETS {
        for (port, uplink) in PORT.into_iter().zip(UPLINK) {
            let what = format!("{packet:?} {port:?}");
            let asked = packet.frame(end(A), end(VIP), (1000, 80));
            let outcome = object.run(port, &asked);
            assert_eq!(
                outcome.stats,
                [Stat::PortFrames, Stat::Encapsulated, Stat::Balanced],
                "{what}"
            );
            let expected = packet.frame(end(A), end(R), (1000, 80));
            assert_eq!(outcome.bytes[50..], expected, "{what}");
            let answer = packet.frame(end(R), end(A), (80, 1000));
            let outcome = object.run(uplink, &from_r(&answer));
            assert_eq!(
                outcome.stats,
                [Stat::UplinkFrames, Stat::Decapsulated],
                "{what}"
            );
            assert_eq!(
                outcome.bytes,
                packet.frame(end(VIP), end(A), (80, 1000)),
                "{what}"
            );
            // What it sends of itself stays its own.
            let other = packet.frame(end(R), end(A), (81, 1000));
            assert_eq!(object.run(uplink, &from_r(&other)).bytes, other, "{what}");
        }
    }
}

#[test]
fn a_backend_on_the_same_host_and_one_that_asks_itself() {
    let Some(mut object) = object(Some(B)) else {
        return;
    };
    for packet in PACKETS {
        for hook in PORT {
            let asked = packet.frame(end(A), end(VIP), (1000, 80));
            let outcome = object.run(hook, &asked);
            assert_eq!(
                outcome.stats,
                [Stat::PortFrames, Stat::Switched, Stat::Balanced]
            );
            assert_eq!(outcome.bytes, packet.frame(end(A), end(B), (1000, 80)));
        }
    }
    let Some(mut object) = self::object(Some(A)) else {
        return;
    };
    for packet in PACKETS {
        for hook in PORT {
            let asked = packet.frame(end(A), end(VIP), (1000, 80));
            let outcome = object.run(hook, &asked);
            assert_eq!(outcome.action, Action::Redirect, "{packet:?} {hook:?}");
            assert_eq!(outcome.bytes, packet.frame(end(VIP), end(A), (1000, 80)));
            let answer = packet.frame(end(A), end(VIP), (80, 1000));
            let outcome = object.run(hook, &answer);
            assert_eq!(outcome.bytes, packet.frame(end(VIP), end(A), (80, 1000)));
        }
    }
}

#[test]
fn what_no_backend_can_have_is_the_agents() {
    let Some(mut object) = object(None) else {
        return;
    };
    let ping = eth(mac(VIP), mac(A), IP, &ipv4(A, VIP, 0, ICMP, &echo()));
    let asked = Packet::Tcp4.frame(end(A), end(VIP), (1000, 80));
    let cut = eth(mac(VIP), mac(A), IP, &ipv4(A, VIP, 0, UDP, &[0; 3]));
    for frame in [ping, asked, cut] {
        for hook in PORT {
            let outcome = object.run(hook, &frame);
            assert_eq!(punted(&outcome, Kind::FromPort, Reason::NoBackend), frame);
        }
    }
    // Nobody is behind a service's MAC: what claims to come from it is a lie.
    let inner = Packet::Udp4.frame(end(VIP), end(A), (80, 1000));
    for hook in UPLINK {
        assert_eq!(object.run(hook, &from_r(&inner)).action, Action::Drop);
    }
    let mut from_nowhere = vxlan6(VTEP_R, VTEP, 0, VNI, &inner);
    from_nowhere[22..38].fill(0);
    for hook in [Hook::UplinkXdp, Hook::UplinkTc] {
        assert_ne!(object.run(hook, &from_nowhere).action, Action::Redirect);
    }
}
