//! IPv6 outside: what differs from IPv4.

use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::punt::{self, Kind, Marker, Reason};
use overlay_common::wire::Family;

use super::checks::*;
use super::frames::*;
use super::object::{Action, Hook, Object, Outcome, PORT, UPLINK};
use super::world::*;

fn load() -> Option<Object> {
    Object::load(&tables_over(Family::V6))
}

fn from_r6(class: u8, inner: &[u8]) -> Vec<u8> {
    vxlan6(VTEP_R, VTEP, class, VNI, inner)
}

/// Traffic class, flow label and source port of an encapsulated frame.
#[track_caller]
fn encapsulated6(outcome: &Outcome, inner: &[u8]) -> (u8, u32, u16) {
    assert_eq!(outcome.drops, []);
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(outcome.stats, [Stat::PortFrames, Stat::Encapsulated]);
    assert_eq!(outcome.bytes[..6], NEXT_HOP);
    assert_eq!(outcome.bytes[6..12], OWN_UPLINK);
    let packet = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("no IPv6 outside");
    };
    let header = ip.header().to_header();
    assert_eq!(header.source, vtep6(VTEP));
    assert_eq!(header.destination, vtep6(VTEP_R));
    assert_eq!(header.next_header, IpNumber::UDP);
    assert_eq!(header.hop_limit, 64);
    assert_eq!(usize::from(header.payload_length), 16 + inner.len());
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("no UDP outside");
    };
    assert_eq!(udp.destination_port(), 4789);
    assert!((49152..=65535).contains(&udp.source_port()));
    assert_eq!(udp.checksum(), 0);
    assert_eq!(usize::from(udp.length()), 16 + inner.len());
    let [_, v0, v1, v2] = VNI.to_be_bytes();
    assert_eq!(udp.payload()[..8], [8, 0, 0, 0, v0, v1, v2, 0]);
    assert_eq!(&udp.payload()[8..], inner);
    let label = header.flow_label.value();
    (header.traffic_class, label, udp.source_port())
}

#[test]
fn known_unicast_is_encapsulated() {
    let Some(mut object) = load() else { return };
    let v4 = |tos| to(R, &ipv4(A, R, tos, TCP, &tcp(1, 2, &[7; 30])));
    let v6 = |class| {
        let packet = ipv6(ip6(A), ip6(R), class, TCP, 64, &tcp(1, 2, &[7; 30]));
        eth(mac(R), mac(A), IP6, &packet)
    };
    for hook in PORT {
        for class in [0, 1, 2, 3, 0xb8, 0xba] {
            for frame in [v4(class), v6(class)] {
                let outcome = object.run(hook, &frame);
                assert_eq!(encapsulated6(&outcome, &frame).0, class, "{hook:?}");
            }
        }
        // Label and port are the flow's, and both tell flows apart.
        let mut labels = Vec::new();
        for port in 1..=100 {
            let of = |bytes: &[u8]| to(R, &ipv4(A, R, 0, TCP, &tcp(port, 2, bytes)));
            let (_, label, source) = encapsulated6(&object.run(hook, &of(&[1])), &of(&[1]));
            let again = encapsulated6(&object.run(hook, &of(&[2; 99])), &of(&[2; 99]));
            assert_eq!(again, (0, label, source));
            assert_ne!(label, 0);
            labels.push(label);
        }
        labels.sort_unstable();
        labels.dedup();
        assert!(labels.len() > 95, "{hook:?}: {} of 100", labels.len());
    }
}

#[test]
fn inner_frames_reach_their_port() {
    let Some(mut object) = load() else { return };
    let stat = Stat::Decapsulated;
    let sixth = ipv6(ip6(R), ip6(B), 0, UDP, 64, &[0; 8]);
    for inner in [inner_to_a(), eth(mac(B), mac(R), IP6, &sixth)] {
        sends(&mut object, &UPLINK, stat, &from_r6(0, &inner), &inner);
    }
    // Shorter than an IPv6 header.
    let arp = eth(mac(A), mac(R), ARP, &arp(2, mac(R), R, mac(A), A));
    let tiny = eth(mac(A), mac(R), IP, &ipv4(R, A, 0, UDP, &udp(1, 2, &[])));
    for inner in [arp, tiny] {
        let frame = from_r6(0, &inner);
        sends(&mut object, &UPLINK, stat, &frame, &inner);
    }
    // Any UDP checksum, hop limit, flow label and source port.
    let inner = inner_to_a();
    for (at, value) in [
        (60, 0x12),
        (21, 1),
        (16, 0xff),
        (54, 1),
        (69, 0xff),
        (63, 1),
    ] {
        let mut frame = from_r6(0, &inner);
        frame[at] = value;
        sends(&mut object, &UPLINK, stat, &frame, &inner);
    }
}

#[test]
fn ecn_is_combined() {
    let Some(mut object) = load() else { return };
    let inner4 = |ecn: u8| eth(mac(A), mac(R), IP, &ipv4(R, A, 0xb8 | ecn, UDP, &[7; 30]));
    let inner6 = |ecn: u8| {
        let packet = ipv6(ip6(R), ip6(A), 0xb8 | ecn, UDP, 64, &[7; 30]);
        eth(mac(A), mac(R), IP6, &packet)
    };
    let stat = Stat::Decapsulated;
    // Inner, outer, result (RFC 6040 figure 4).
    for (inner, outer, result) in [(2, 3, 3), (1, 3, 3), (2, 1, 1), (1, 2, 1), (0, 2, 0)] {
        for build in [&inner4 as &dyn Fn(u8) -> Vec<u8>, &inner6] {
            let frame = from_r6(0x20 | outer, &build(inner));
            sends(&mut object, &UPLINK, stat, &frame, &build(result));
        }
    }
    for inner in [inner4(0), inner6(0)] {
        let frame = from_r6(3, &inner);
        drops(&mut object, &UPLINK, DropReason::EcnIllegal, &frame);
    }
}

#[test]
fn malformed_frames_are_dropped_and_foreign_ones_pass() {
    let Some(mut object) = load() else { return };
    let inner = inner_to_a();
    let good = from_r6(0, &inner);
    let edit = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for frame in [
        edit(57, &[0xb6]),          // port 4790
        edit(53, &[6]),             // another destination
        edit(20, &[TCP]),           // or an extension header
        edit(20, &[44]),            // a fragment
        edit(14, &[0x50]),          // no IPv6
        good[..60].to_vec(),        // cut before it is known to be ours
        from_r(&inner),             // over IPv4, which is not this cluster's underlay
        edit(12, &[0x81, 0, 0, 5]), // a VLAN's
    ] {
        for hook in UPLINK {
            let outcome = object.run(hook, &frame);
            assert_eq!(outcome.action, Action::Pass, "{hook:?}");
            assert_eq!(outcome.bytes, frame);
            assert_eq!((outcome.drops, outcome.stats), (vec![], vec![]));
        }
    }
    let mut drop = |reason, frame: &[u8]| drops(&mut object, &UPLINK, reason, frame);
    let payload = (good.len() - 54) as u16;
    for wrong in [payload + 1, payload - 1, 0, 29, 0xffff] {
        drop(DropReason::OuterLength, &edit(18, &wrong.to_be_bytes()));
    }
    for wrong in [payload + 1, 0, 7, 29, 0xffff] {
        drop(DropReason::OuterLength, &edit(58, &wrong.to_be_bytes()));
    }
    for len in 62..84 {
        drop(DropReason::OuterLength, &good[..len]);
    }
    drop(DropReason::VxlanFlags, &edit(62, &[0xf7]));
    drop(DropReason::UnknownVtep, &edit(37, &[99]));
    drop(DropReason::UnknownVni, &edit(66, &[0xff]));
    let narrow = vxlan6(VTEP_NARROW, VTEP, 0, VNI, &inner);
    drop(DropReason::WrongVtep, &narrow);
}

#[test]
fn punts_are_marked_and_carry_the_inner_frame() {
    let Some(mut object) = load() else { return };
    // From ports the punt link's own headers are IPv4 all the same.
    let frame = udp_to(NOBODY);
    for hook in PORT {
        let outcome = object.run(hook, &frame);
        let why = Reason::UnknownDestination;
        assert_eq!(punted(&outcome, Kind::FromPort, why), frame);
    }
    // From the uplink the sender's are kept.
    let inner = eth(BROADCAST, mac(R), IP, &ipv4(R, A, 0, UDP, &[0; 40]));
    let frame = from_r6(0, &inner);
    for hook in UPLINK {
        let outcome = object.run(hook, &frame);
        assert_eq!(outcome.stats, [Stat::UplinkFrames, Stat::Punted]);
        let marker = Marker {
            kind: Kind::FromUplink,
            reason: Some(Reason::Flood),
            ifindex: PORT_A,
        };
        let head = outcome.bytes.first_chunk().unwrap();
        assert_eq!(punt::decode(head), Some(marker));
        assert_eq!(punt::ethertype(head), IP6);
        assert_eq!(outcome.bytes[14..], frame[14..]);
    }
}

#[test]
fn the_agents_frames_go_to_vteps_and_ports() {
    let Some(mut object) = load() else { return };
    let agent = [Hook::AgentTc];
    for inner in [inner_to_a(), udp_to(R)] {
        let frame = from_agent(Kind::ToPort, PORT_B, VTEP, &inner);
        sends(&mut object, &agent, Stat::AgentToPort, &frame, &inner);
        let frame = to_vtep6(VTEP_R, &inner);
        let expected = eth(NEXT_HOP, OWN_UPLINK, IP6, &frame[14..]);
        sends(&mut object, &agent, Stat::AgentToVtep, &frame, &expected);
    }
    let unresolved = to_vtep6(VTEP_UNRESOLVED, &inner_to_a());
    drops(&mut object, &agent, DropReason::Unresolved, &unresolved);
    let lost = to_vtep6(VTEP_LOST, &inner_to_a());
    drops(&mut object, &agent, DropReason::UnknownVtep, &lost);
    let mut to_port = to_vtep6(VTEP_R, &inner_to_a());
    to_port[4] = Kind::ToPort as u8;
    drops(&mut object, &agent, DropReason::NotPunted, &to_port);
}
