use etherparse::IpNumber;
use overlay_common::counters::DropReason;
use overlay_common::layout::{FdbEntry, FdbKey};
use overlay_common::outer::{mix, source_port};
use overlay_common::punt::Reason;
use overlay_common::wire::map_v4;
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

#[test]
fn a_destination_that_only_the_map_lacks() {
    let mut rig = Rig::new();
    let frame = udp4(11, mac(2), v4(2), 1422);
    let out = rig.port(Reason::UnknownDestination, &frame);
    let key = FdbKey::new(1, mac(2));
    let entry = FdbEntry::remote(map_v4(A));
    assert_eq!(out.updates, [MapUpdate::SetFdb(key, entry)]);
    let sent = out.only();
    assert_eq!((sent.to, sent.vni, &sent.inner), (To::Vtep(A), 1, &frame));
    // The flow hash of the fast path.
    let addresses = mix(u32::from_ne_bytes(v4(11)), u32::from_ne_bytes(v4(2)));
    let ports = u32::from_ne_bytes([0x0f, 0xa0, 0x13, 0x88]);
    assert_eq!(sent.src_port, source_port(mix(mix(addresses, 17), ports)));

    let frame = udp4(11, mac(12), v4(12), 10);
    let out = rig.port(Reason::UnknownDestination, &frame);
    let key = FdbKey::new(1, mac(12));
    assert_eq!(out.updates, [MapUpdate::SetFdb(key, FdbEntry::local(12))]);
    let sent = out.only();
    assert_eq!((sent.to, sent.vni, sent.inner), (To::Port(12), 1, frame));
}

#[test]
fn a_destination_that_nobody_has() {
    let mut rig = Rig::new();
    let frame = udp4(11, mac(99), v4(99), 10);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::UnknownDestination);
    // On another network somebody has it.
    let frame = udp4(11, mac(21), v4(21), 10);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::UnknownDestination);
    let frame = udp4(11, mac(11), v4(11), 10);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::Hairpin);
}

#[test]
fn next_hops() {
    let mut rig = Rig::new();
    let frame = udp4(11, mac(2), v4(2), 10);
    let out = rig.port(Reason::Unresolved, &frame);
    let [MapUpdate::SetVtep(vtep, entry)] = out.updates[..] else {
        panic!("{:?}", out.updates)
    };
    assert_eq!((vtep, entry.ifindex), (map_v4(A), 2));
    assert_eq!(out.only().inner, frame);

    let frame = udp4(11, mac(5), v4(5), 10);
    rig.port(Reason::Unresolved, &frame)
        .dropped(DropReason::Unresolved);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::Unresolved);
}

#[test]
fn what_the_hook_cannot_encapsulate() {
    let mut rig = Rig::new();
    let odd = raw(mac(11), mac(2), 0x88b5, &[5; 64]);
    let sent = rig.port(Reason::CantEncap, &odd).only();
    assert_eq!((sent.to, sent.tos, sent.inner), (To::Vtep(A), 0, odd));
    let tunnel = ip4((11, mac(4), v4(4)), IpNumber::IPV4, &[0x45; 60], |header| {
        header.dscp = 10.try_into().unwrap();
    });
    let out = rig.port(Reason::CantEncap, &tunnel);
    assert_eq!(out.updates, []);
    let sent = out.only();
    assert_eq!((sent.to, sent.tos, sent.inner), (To::Vtep(C), 40, tunnel));
}

#[test]
fn what_is_from_nobody_is_dropped() {
    let mut rig = Rig::new();
    let frame = udp4(11, mac(2), v4(2), 10);
    let unknown = from_port(99, 1, Reason::UnknownDestination, &frame);
    rig.handle(&unknown).dropped(DropReason::UnknownPort);
    let elsewhere = from_port(11, 2, Reason::UnknownDestination, &frame);
    rig.handle(&elsewhere).dropped(DropReason::UnknownVni);
    // The ifindex belongs to another container by now.
    let other = from_port(12, 1, Reason::UnknownDestination, &frame);
    rig.handle(&other).dropped(DropReason::SpoofedMac);
    let mut spoofed = udp4(12, mac(2), v4(2), 10);
    spoofed[6..12].copy_from_slice(&mac(11));
    rig.port(Reason::UnknownDestination, &spoofed)
        .dropped(DropReason::SpoofedIp);
    rig.tables.port_down(11);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::UnknownPort);
}

#[test]
fn tags_are_dropped() {
    let frame = raw(mac(11), BROADCAST, 0x8100, &[0; 60]);
    Rig::new()
        .port(Reason::Flood, &frame)
        .dropped(DropReason::InnerVlan);
}

#[test]
fn what_is_not_for_the_agent_is_dropped() {
    let mut rig = Rig::new();
    let frame = from_port(11, 1, Reason::Flood, &udp4(11, BROADCAST, [255; 4], 10));
    for (at, value) in [
        (0, 0x33),
        (4, 3),
        (4, 4),
        (4, 9),
        (5, 0),
        (5, 99),
        (12, 0x86),
    ] {
        let mut frame = frame.clone();
        frame[at] = value;
        rig.handle(&frame).dropped(DropReason::NotPunted);
    }
    for len in 14..64 {
        rig.handle(&frame[..len]).dropped(DropReason::Truncated);
    }
}
