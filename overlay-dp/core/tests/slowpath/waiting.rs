//! Frames that come before gossip has told of who sent them, or of whom they ask for.

use std::time::Duration;

use etherparse::ArpOperation;
use overlay_common::counters::DropReason;
use overlay_common::layout::{FdbEntry, FdbKey};
use overlay_common::punt::Reason;
use overlay_common::wire::map_v4;
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

const MOMENT: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);

fn news(rig: &mut Rig, last: u8) {
    rig.tables
        .endpoint_up(A.into(), &endpoint(1, last))
        .unwrap();
}

#[test]
fn a_question_is_answered_when_the_answer_is_known() {
    let mut rig = Rig::new();
    let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(50));
    assert!(!rig.port(Reason::UnknownNeighbour, &request).sent.is_empty());
    let solicitation = solicitation(v6(11), 255, v6(50), &source_option(11));
    let out = rig.port(Reason::UnknownNeighbour, &solicitation);
    assert!(!out.sent.is_empty() && rig.slow.is_waiting());
    // News of another change nothing.
    news(&mut rig, 51);
    rig.later(MOMENT).nothing();
    news(&mut rig, 50);
    let out = rig.later(MOMENT);
    assert_eq!(out.drops, []);
    let to: Vec<&To> = out.sent.iter().map(|sent| &sent.to).collect();
    assert_eq!(to, [&To::Port(11); 2]);
    for sent in &out.sent {
        assert_eq!(sent.inner[6..12], mac(50));
    }
    // Once.
    assert!(!rig.slow.is_waiting());
    rig.later(MOMENT).nothing();
}

#[test]
fn nobody_answers_after_a_second() {
    let mut rig = Rig::new();
    let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(50));
    rig.port(Reason::UnknownNeighbour, &request);
    // It was flooded, and is no loss.
    rig.later(SECOND).nothing();
    assert!(!rig.slow.is_waiting());
    news(&mut rig, 50);
    rig.later(MOMENT).nothing();
}

#[test]
fn an_answered_question_is_not_kept() {
    let mut rig = Rig::new();
    for last in [2, 11] {
        let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(last));
        rig.port(Reason::UnknownNeighbour, &request);
        assert!(!rig.slow.is_waiting());
    }
}

#[test]
fn a_sender_becomes_known() {
    let mut rig = Rig::new();
    let frame = udp4(50, mac(11), v4(11), 10);
    rig.uplink(Reason::UnknownSource, A, &frame).nothing();
    rig.uplink(Reason::UnknownSource, B, &frame).nothing();
    news(&mut rig, 50);
    let out = rig.later(MOMENT);
    let update = MapUpdate::SetFdb(FdbKey::new(1, mac(50)), FdbEntry::remote(map_v4(A)));
    assert_eq!(out.updates, [update]);
    // It is behind A, and B has lied.
    assert_eq!(out.drops, [DropReason::WrongVtep]);
    assert_eq!(out.sent.len(), 1);
    assert_eq!(
        (&out.sent[0].to, &out.sent[0].inner),
        (&To::Port(11), &frame)
    );
}

#[test]
fn what_is_too_long_is_dropped_at_once() {
    let frame = udp4(50, mac(11), v4(11), 1000);
    Rig::new()
        .uplink(Reason::UnknownSource, A, &frame)
        .dropped(DropReason::UnknownSource);
}

#[test]
fn one_sender_takes_no_room_from_others() {
    let mut rig = Rig::new();
    let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(50));
    rig.port(Reason::UnknownNeighbour, &request);
    let mut lost = 0;
    for round in 0..200 {
        let frame = udp4(100 + round % 100, mac(11), v4(11), 10);
        lost += rig.uplink(Reason::UnknownSource, A, &frame).drops.len();
    }
    assert_eq!(lost, 192);
    news(&mut rig, 50);
    assert_eq!(rig.later(MOMENT).sent.len(), 1);
    assert_eq!(rig.later(SECOND).drops.len(), 8);
}
