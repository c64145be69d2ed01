//! No bytes whatever make the slow path panic, or write a frame that is not one.

use std::time::Duration;

use etherparse::{ArpOperation, IcmpEchoHeader, Icmpv4Type, IpNumber};
use overlay_common::punt::Reason;
use overlay_core::tables::MapUpdate;
use proptest::prelude::*;

use super::packets::*;
use super::rig::*;

/// One frame of each sort.
fn inner_frames() -> Vec<Vec<u8>> {
    let echo = icmp4(
        Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 2 }),
        &[5; 33],
    );
    vec![
        arp(ArpOperation::REQUEST, 11, v4(11), v4(2)),
        arp(ArpOperation::REQUEST, 11, [0; 4], v4(99)),
        solicitation(v6(11), 255, v6(2), &source_option(11)),
        solicitation([0; 16], 255, v6(2), &[14, 1, 1, 2, 3, 4, 5, 6]),
        ip4((11, mac(1), v4(1)), IpNumber::ICMP, &echo, |_| {}),
        udp4(11, mac(1), v4(1), 20),
        dns4(11, b"who is it?"),
        udp4(11, mac(2), v4(2), 20),
        udp4(11, mac(3), v4(3), 1400),
        udp4(2, mac(11), v4(11), 20),
        udp4(2, BROADCAST, [255; 4], 20),
        udp4(11, BROADCAST, [255; 4], 20),
        udp6(11, mac(3), v6(3), 1400),
        ip6(
            (v6(11), mac(2), v6(2)),
            64,
            0,
            &[44, 0, 1, 4, 0, 0, 0, 0, 58, 0, 0, 1, 0, 0, 0, 1, 1, 0],
        ),
        raw(mac(11), mac(2), 0x88b5, &[1; 50]),
    ]
}

fn punted() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for inner in memberships(11) {
        all.push(from_port(11, 1, Reason::Flood, &inner));
    }
    for inner in memberships(2) {
        all.push(from_uplink(A, 0, Reason::Flood, &inner));
    }
    for inner in inner_frames() {
        for reason in Reason::ALL {
            all.push(from_port(11, 1, *reason, &inner));
            all.push(from_uplink(A, 1, *reason, &inner));
            all.push(from_uplink(A, 3, *reason, &inner));
        }
    }
    all
}

/// Whatever came in: something comes out or is counted, after a second at the latest, and maps only learn what the tables say.
fn check(rig: &mut Rig, frame: &[u8]) {
    let mut out = rig.handle(frame);
    let asked = out.queries.len() + out.refused;
    // What is said of groups goes to C, which is no host, at least.
    if out.sent.is_empty() && out.drops.is_empty() && asked == 0 {
        out = rig.later(Duration::from_secs(1));
        assert!(!out.drops.is_empty());
    }
    for update in out.updates {
        match update {
            MapUpdate::SetFdb(key, entry) => {
                assert_eq!(rig.tables.fdb_entry(&key), Some(&entry));
            }
            MapUpdate::SetVtep(ip, entry) => {
                assert_eq!(rig.tables.vtep_entry(&ip), Some(&entry));
            }
            MapUpdate::SetNeighbour(key, entry) => {
                assert_eq!(rig.tables.snapshot().neighbours.get(&key), Some(&entry));
            }
            other => panic!("{other:?} is not the slow path's to say"),
        }
    }
}

#[test]
fn cut_anywhere() {
    let mut rig = Rig::new();
    rig.multicast(None);
    for frame in punted() {
        for len in 0..=frame.len().min(200) {
            check(&mut rig, &frame[..len]);
        }
        check(&mut rig, &frame);
    }
}

#[test]
fn any_value_of_any_header_byte() {
    let mut rig = Rig::new();
    rig.multicast(None);
    for frame in punted() {
        for at in 0..frame.len().min(140) {
            for value in [0, 1, 0x0f, 0x45, 0x60, 0x7f, 0x80, 0xf0, 0xfe, 0xff] {
                let mut frame = frame.clone();
                frame[at] = value;
                check(&mut rig, &frame);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(frame in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&mut Rig::new(), &frame);
    }

    #[test]
    fn any_inner_bytes(
        inner in prop::collection::vec(any::<u8>(), 0..200),
        reason in 0..Reason::ALL.len(),
        dst in prop::sample::select(vec![mac(1), mac(2), mac(3), mac(11), BROADCAST]),
        tos in any::<u8>(),
        ethertype in prop::sample::select(vec![0x0800_u16, 0x0806, 0x86dd, 0x8100]),
    ) {
        let mut rig = Rig::new();
        let reason = Reason::ALL[reason];
        check(&mut rig, &from_port(11, 1, reason, &raw(mac(11), dst, ethertype, &inner)));
        check(&mut rig, &from_uplink(A, tos, reason, &raw(mac(2), dst, ethertype, &inner)));
    }

    #[test]
    fn mutated(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((0..130_usize, any::<u8>()), 1..6),
        len in 0..1600_usize,
    ) {
        let mut frame = which.get(&punted()).clone();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(len);
        let mut rig = Rig::new();
        rig.multicast(None);
        check(&mut rig, &frame);
    }
}
