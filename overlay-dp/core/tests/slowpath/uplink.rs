use std::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::layout::{FdbEntry, FdbKey};
use overlay_common::punt::Reason;
use overlay_common::wire::map_v4;
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

#[test]
fn an_unknown_source() {
    let mut rig = Rig::new();
    let frame = udp4(2, mac(11), v4(11), 10);
    let out = rig.uplink(Reason::UnknownSource, A, &frame);
    let update = MapUpdate::SetFdb(FdbKey::new(1, mac(2)), FdbEntry::remote(map_v4(A)));
    assert_eq!(out.updates, [update]);
    let sent = out.only();
    assert_eq!((sent.to, sent.inner), (To::Port(11), frame.clone()));

    rig.uplink(Reason::UnknownSource, B, &frame)
        .dropped(DropReason::WrongVtep);
    let own = udp4(12, mac(11), v4(11), 10);
    rig.uplink(Reason::UnknownSource, A, &own)
        .dropped(DropReason::WrongVtep);
    let stranger = udp4(99, mac(11), v4(11), 10);
    rig.uplink(Reason::UnknownSource, A, &stranger).nothing();
    rig.later(Duration::from_secs(1))
        .dropped(DropReason::UnknownSource);
    let gateway = udp4(1, mac(11), v4(11), 10);
    rig.uplink(Reason::UnknownSource, A, &gateway).nothing();
    rig.later(Duration::from_secs(1))
        .dropped(DropReason::UnknownSource);
    let mut group = frame;
    group[6] |= 1;
    rig.uplink(Reason::UnknownSource, A, &group)
        .dropped(DropReason::InnerSource);
}

#[test]
fn a_static_source() {
    let frame = udp4(4, mac(11), v4(11), 10);
    let out = Rig::new().uplink(Reason::UnknownSource, C, &frame);
    assert_eq!(out.only().to, To::Port(11));
}

#[test]
fn an_unknown_destination() {
    let mut rig = Rig::new();
    let frame = udp4(2, mac(12), v4(12), 10);
    let out = rig.uplink(Reason::UnknownDestination, A, &frame);
    let update = MapUpdate::SetFdb(FdbKey::new(1, mac(12)), FdbEntry::local(12));
    assert_eq!(out.updates, [update]);
    assert_eq!(out.only().to, To::Port(12));
    for (last, reason) in [
        (99, DropReason::UnknownDestination),
        (1, DropReason::UnknownDestination),
        (3, DropReason::NotLocal),
    ] {
        let frame = udp4(2, mac(last), v4(last), 10);
        rig.uplink(Reason::UnknownDestination, A, &frame)
            .dropped(reason);
    }
}

#[test]
fn outer_headers_are_checked() {
    let mut rig = Rig::new();
    let inner = udp4(2, mac(11), v4(11), 10);
    rig.uplink(Reason::UnknownSource, [192, 0, 2, 99], &inner)
        .dropped(DropReason::UnknownVtep);
    let frame = from_uplink(A, 0, Reason::UnknownSource, &inner);
    for (at, value, reason) in [
        (14, 0x46, DropReason::NotPunted),
        (23, 6, DropReason::NotPunted),
        (30, 1, DropReason::NotPunted),
        (36, 1, DropReason::NotPunted),
        (24, 1, DropReason::OuterChecksum),
        (42, 0, DropReason::VxlanFlags),
        (48, 9, DropReason::UnknownVni),
    ] {
        let mut frame = frame.clone();
        frame[at] = value;
        rig.handle(&frame).dropped(reason);
    }
    // Its lengths are another packet's when the kernel has cut it.
    let mut frame = frame.clone();
    frame[38..40].copy_from_slice(&60_000_u16.to_be_bytes());
    assert_eq!(rig.handle(&frame).only().inner, inner);
}

#[test]
fn congestion_met_on_the_way() {
    let mut rig = Rig::new();
    let mut inner = udp4(2, mac(11), v4(11), 10);
    let frame = from_uplink(A, 3, Reason::UnknownDestination, &inner);
    rig.handle(&frame).dropped(DropReason::EcnIllegal);
    inner[15] |= 2;
    // One's complement: the word grew by two.
    let sum = u16::from_be_bytes([inner[24], inner[25]]) - 2;
    inner[24..26].copy_from_slice(&sum.to_be_bytes());
    let frame = from_uplink(A, 3, Reason::UnknownDestination, &inner);
    assert_eq!(tos4(&rig.handle(&frame).only().inner), 3);
}
