//! Frames that a container sends.

use overlay_common::counters::{DropReason, Stat};
use overlay_common::punt::{self, Kind, Reason};

use super::checks::*;
use super::frames::*;
use super::object::{Action, Beside, Hook, Object, PORT, UPLINK};
use super::world::*;
use crate::object;

#[test]
fn known_unicast_is_encapsulated() {
    let mut object = object!();
    let packets = [
        ipv4(A, R, 0, TCP, &tcp(40_000, 80, b"GET")),
        ipv4(A, R, 0, UDP, &udp(40_000, 53, b"?")),
        ipv4(A, R, 0, ICMP, &echo()),
        ipv4(A, R, 0, 132, &[0; 12]),
        ipv4(A, R, 0, UDP, &[0; 1430]),
        fragment(ipv4(A, R, 0, UDP, &[1; 64]), 0x2000),
        fragment(ipv4(A, R, 0, UDP, &[2; 64]), 0x2008),
        fragment(ipv4(A, R, 0, UDP, &[3; 8]), 0x0010),
    ];
    for hook in PORT {
        for packet in &packets {
            let frame = to(R, packet);
            encapsulated(&object.run(hook, &frame), &frame);
        }
        for payload in [
            tcp(1, 2, b"x"),
            udp(1, 2, b""),
            vec![128, 0, 0, 0, 0, 0, 0, 0],
        ] {
            for next in [TCP, UDP, ICMP6, 44] {
                let packet = ipv6(ip6(A), ip6(R), 0, next, 64, &payload);
                let frame = eth(mac(R), mac(A), IP6, &packet);
                encapsulated(&object.run(hook, &frame), &frame);
            }
        }
    }
    // Not IP: XDP needs no help of the kernel, tcx has to leave it to the agent.
    let frame = eth(mac(R), mac(A), 0x88b5, &[0; 50]);
    encapsulated(&object.run(Hook::PortXdp, &frame), &frame);
    let outcome = object.run(Hook::PortTc, &frame);
    assert_eq!(punted(&outcome, Kind::FromPort, Reason::CantEncap), frame);
}

#[test]
fn source_port_is_the_flows() {
    let mut object = object!();
    let mut port = |packet: Vec<u8>| {
        let frame = to(R, &packet);
        let [xdp, tc] = PORT.map(|hook| encapsulated(&object.run(hook, &frame), &frame).src_port);
        assert_eq!(xdp, tc);
        xdp
    };
    let first = port(ipv4(A, R, 0, TCP, &tcp(40_000, 80, b"one")));
    assert_eq!(
        port(ipv4(A, R, 8, TCP, &tcp(40_000, 80, b"two, longer"))),
        first
    );
    let flows: std::collections::HashSet<_> = (0..64)
        .map(|n| port(ipv4(A, R, 0, TCP, &tcp(40_000 + n, 80, b""))))
        .collect();
    assert!(flows.len() > 60, "64 flows share {} ports", flows.len());
    // All fragments of a datagram alike, though only the first has ports.
    let datagram = |field, data: &[u8]| fragment(ipv4(A, R, 0, UDP, data), field);
    let first = port(datagram(0x2000, &udp(7, 8, &[0; 56])));
    assert_eq!(port(datagram(0x2008, &[9; 64])), first);
    assert_eq!(port(datagram(0x0010, &[9; 3])), first);
}

#[test]
fn dscp_and_ecn_are_copied_out() {
    let mut object = object!();
    for hook in PORT {
        for tos in 0..=255 {
            let frame = to(R, &ipv4(A, R, tos, UDP, &udp(1, 2, b"")));
            assert_eq!(encapsulated(&object.run(hook, &frame), &frame).tos, tos);
            let packet = ipv6(ip6(A), ip6(R), tos, UDP, 64, &udp(1, 2, b""));
            let frame = eth(mac(R), mac(A), IP6, &packet);
            assert_eq!(encapsulated(&object.run(hook, &frame), &frame).tos, tos);
        }
    }
}

#[test]
fn arp_requests_are_answered() {
    let mut object = object!();
    let padding = [0; 18];
    for hook in PORT {
        // Broadcast, the unicast that checks reachability, and a probe before use of the address.
        for (dst, sender) in [(BROADCAST, A), (mac(R), A), (BROADCAST, [0; 4])] {
            for padding in [&padding[..], &[]] {
                let request = arp_request(mac(A), sender, R);
                let frame = eth(dst, mac(A), ARP, &[&request[..], padding].concat());
                let outcome = object.run(hook, &frame);
                let answer = arp(2, mac(R), R, mac(A), sender);
                let expected = eth(mac(A), mac(R), ARP, &[&answer[..], padding].concat());
                assert_eq!(outcome.bytes, expected, "{hook:?}");
                assert_eq!(outcome.stats, [Stat::PortFrames, Stat::ArpReplies]);
                assert_eq!(outcome.drops, []);
                assert_eq!(outcome.action, Action::Redirect);
            }
        }
        for (target, why) in [
            (NOBODY, Reason::UnknownNeighbour),
            (A, Reason::UnknownNeighbour),
        ] {
            let frame = eth(BROADCAST, mac(A), ARP, &arp_request(mac(A), A, target));
            let outcome = object.run(hook, &frame);
            assert_eq!(punted(&outcome, Kind::FromPort, why), frame);
        }
        let announcement = eth(BROADCAST, mac(A), ARP, &arp(2, mac(A), A, mac(A), A));
        let outcome = object.run(hook, &announcement);
        assert_eq!(
            punted(&outcome, Kind::FromPort, Reason::Flood),
            announcement
        );
    }
}

#[test]
fn neighbour_solicitations_are_answered() {
    let mut object = object!();
    let group = |ip: [u8; 16]| {
        let mut g = [0; 16];
        g[..2].copy_from_slice(&[0xff, 2]);
        g[11..14].copy_from_slice(&[1, 0xff, ip[13]]);
        g[14..].copy_from_slice(&ip[14..]);
        g
    };
    let group_mac = |g: [u8; 16]| [0x33, 0x33, g[12], g[13], g[14], g[15]];
    for hook in PORT {
        for (src, target) in [(ip6(A), ip6(R)), (link_local(A), link_local(R))] {
            for (dst, dst_mac) in [(group(target), group_mac(group(target))), (target, mac(R))] {
                let ns = nd(135, src, dst, target, 1, mac(A));
                let outcome = object.run(hook, &eth(dst_mac, mac(A), IP6, &ns));
                let mut na = nd(136, target, src, target, 2, mac(R));
                na[44] = 0x60;
                let checksum = icmp6_checksum(target, src, &na[40..]);
                na[42..44].copy_from_slice(&checksum.to_be_bytes());
                assert_eq!(outcome.bytes, eth(mac(A), mac(R), IP6, &na), "{hook:?}");
                assert_eq!(outcome.stats, [Stat::PortFrames, Stat::NdReplies]);
                assert_eq!(outcome.drops, []);
            }
        }
        // Unknown, own (duplicate address detection), and one that came through a router.
        let own = group(ip6(A));
        let mut routed = nd(135, ip6(A), group(ip6(R)), ip6(R), 1, mac(A));
        routed[7] = 254;
        for ns in [
            nd(135, ip6(A), group(ip6(NOBODY)), ip6(NOBODY), 1, mac(A)),
            nd(135, [0; 16], own, ip6(A), 1, mac(A)),
            routed,
        ] {
            let dst = group_mac(ns[24..40].try_into().unwrap());
            let frame = eth(dst, mac(A), IP6, &ns);
            let outcome = object.run(hook, &frame);
            assert_eq!(
                punted(&outcome, Kind::FromPort, Reason::UnknownNeighbour),
                frame
            );
        }
    }
}

#[test]
fn local_to_local_is_switched_as_it_is() {
    let mut object = object!();
    for frame in [
        udp_to(B),
        eth(mac(B), mac(A), 0x88b5, &[1; 20]),
        eth(mac(B), mac(A), ARP, &arp(2, mac(A), A, mac(B), B)),
    ] {
        sends(&mut object, &PORT, Stat::Switched, &frame, &frame);
    }
}

#[test]
fn what_the_tables_cant_decide_is_punted() {
    let mut object = object!();
    let multicast = [1, 0, 0x5e, 0, 0, 0xfb];
    let dhcp = ipv4(A, [255; 4], 0, UDP, &udp(68, 67, &[0; 240]));
    let cases = [
        (eth(BROADCAST, mac(A), IP, &dhcp), Reason::Flood),
        (eth(multicast, mac(A), IP, &dhcp), Reason::Flood),
        (udp_to(NOBODY), Reason::UnknownDestination),
        (udp_to(UNRESOLVED), Reason::Unresolved),
        (udp_to(LOST), Reason::Unresolved),
    ];
    for hook in PORT {
        for (frame, why) in &cases {
            let outcome = object.run(hook, frame);
            assert_eq!(punted(&outcome, Kind::FromPort, *why), frame);
        }
    }
}

#[test]
fn too_big_is_punted_cut() {
    let mut object = object!();
    for hook in PORT {
        for (ip, largest) in [(R, MTU), (B, MTU), (NARROW, 1000)] {
            let packet = |len: u32| to(ip, &ipv4(A, ip, 0, UDP, &vec![5; len as usize - 20]));
            let outcome = object.run(hook, &packet(largest));
            assert_eq!(outcome.drops, []);
            assert_ne!(outcome.stats.last(), Some(&Stat::Punted), "{hook:?} {ip:?}");
            let frame = packet(largest + 1);
            let outcome = object.run(hook, &frame);
            let inner = punted(&outcome, Kind::FromPort, Reason::TooBig);
            assert_eq!(inner, &frame[..punt::TOO_BIG_KEEP as usize]);
        }
    }
}

#[test]
fn ports_drop_what_is_not_theirs() {
    let mut object = object!();
    let mut drop = |reason, frame: &[u8]| drops(&mut object, &PORT, reason, frame);
    let udp = udp(1, 2, b"");
    let good = ipv4(A, R, 0, UDP, &udp);
    let good6 = ipv6(ip6(A), ip6(R), 0, UDP, 64, &udp);

    drop(DropReason::SpoofedMac, &eth(mac(R), mac(B), IP, &good));
    drop(DropReason::SpoofedMac, &eth(BROADCAST, [0; 6], IP, &good));
    drop(DropReason::SpoofedIp, &to(R, &ipv4(B, R, 0, UDP, &udp)));
    drop(
        DropReason::SpoofedIp,
        &to(R, &ipv4([0; 4], R, 0, UDP, &udp)),
    );
    for src in [ip6(B), link_local(B), [0; 16]] {
        let packet = ipv6(src, ip6(R), 0, UDP, 64, &udp);
        drop(DropReason::SpoofedIp, &eth(mac(R), mac(A), IP6, &packet));
    }
    for claim in [
        arp(1, mac(B), A, [0; 6], R),
        arp(1, mac(A), B, [0; 6], R),
        arp(2, mac(A), B, mac(R), R),
        arp(2, mac(B), A, mac(R), R),
        arp(2, mac(A), [0; 4], mac(R), R),
    ] {
        let frame = eth(BROADCAST, mac(A), ARP, &claim);
        drop(DropReason::SpoofedNeighbour, &frame);
    }
    let na = nd(136, ip6(A), ip6(R), ip6(B), 2, mac(A));
    drop(DropReason::SpoofedNeighbour, &eth(mac(R), mac(A), IP6, &na));
    for tag in [0x8100, 0x88a8] {
        let tagged = [&[0, 5][..], &IP.to_be_bytes(), &good].concat();
        drop(DropReason::InnerVlan, &eth(mac(R), mac(A), tag, &tagged));
    }
    let with = |packet: &[u8], first: u8| [&[first], &packet[1..]].concat();
    drop(DropReason::InnerHeader, &to(R, &with(&good, 0x65)));
    drop(DropReason::InnerHeader, &to(R, &with(&good, 0x44)));
    let frame = eth(mac(R), mac(A), IP6, &with(&good6, 0x45));
    drop(DropReason::InnerHeader, &frame);
    let mut odd = arp_request(mac(A), A, R);
    odd[1] = 6;
    let frame = eth(BROADCAST, mac(A), ARP, &odd);
    drop(DropReason::InnerHeader, &frame);
    // An advertisement behind options, and options that could hide one; then what may be there.
    let options = |next: u8, len: u8| [&[next, len, 5, 2, 0, 0, 1, 0][..], &na[40..]].concat();
    let behind = |kind: u8, payload: &[u8]| {
        let packet = ipv6(ip6(A), ip6(R), 0, kind, 255, payload);
        eth(mac(R), mac(A), IP6, &packet)
    };
    for kind in [0, 43, 60] {
        let frame = behind(kind, &options(ICMP6, 0));
        drop(DropReason::SpoofedNeighbour, &frame);
        for (next, len) in [(ICMP6, 1), (0, 0), (60, 0)] {
            let frame = behind(kind, &options(next, len));
            drop(DropReason::InnerHeader, &frame);
        }
    }
    drop(DropReason::Hairpin, &to(A, &ipv4(A, A, 0, UDP, &udp)));
    for (next, message) in [(ICMP6, [143; 8]), (UDP, [136; 8])] {
        let frame = behind(0, &[&options(next, 0)[..8], &message].concat());
        for hook in PORT {
            encapsulated(&object.run(hook, &frame), &frame);
        }
    }
}

#[test]
fn super_packets_count_by_their_segments() {
    let mut object = object!();
    let frame = to(R, &ipv4(A, R, 0, TCP, &tcp(1, 2, &[0; 3000])));
    let mut run = |frame: &[u8], gso_size| {
        let beside = Beside { gso_size };
        object.run_with(Hook::PortTc, frame, beside).unwrap()
    };
    // (A super-packet under test is of no kind, and the kernel can't encapsulate that.)
    punted(&run(&frame, MTU - 40), Kind::FromPort, Reason::CantEncap);
    punted(&run(&frame, MTU - 39), Kind::FromPort, Reason::TooBig);
    let frame = to(NOBODY, &ipv4(A, NOBODY, 0, TCP, &tcp(1, 2, &[0; 3600])));
    let outcome = run(&frame, 1400);
    assert_eq!(
        punted(&outcome, Kind::FromPort, Reason::UnknownDestination),
        frame
    );
}

#[test]
fn ports_the_agent_has_not_set_up_are_closed() {
    let mut empty = tables();
    empty.ports.clear();
    let Some(mut object) = Object::load(&empty) else {
        return;
    };
    drops(&mut object, &PORT, DropReason::UnknownPort, &udp_to(R));
}

#[test]
fn without_configuration_nothing_is_guessed() {
    let mut early = tables();
    early.config = None;
    let Some(mut object) = Object::load(&early) else {
        return;
    };
    for frame in [udp_to(R), udp_to(NOBODY)] {
        drops(&mut object, &PORT, DropReason::UnknownPort, &frame);
    }
    for hook in UPLINK {
        let outcome = object.run(hook, &from_r(&inner_to_a()));
        assert_eq!(outcome.action, Action::Pass);
    }
}
