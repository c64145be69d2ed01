//! VTEP echo: requests are answered in place, answers reach the kernel, all else on VNI 0 is
//! dropped.

use etherparse::{SlicedPacket, TransportSlice};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::echo;

use super::checks::*;
use super::frames::*;
use super::object::{Action, Beside, Hook, UPLINK};
use super::world::*;
use crate::object;

const NONCE: u64 = 0x1122_3344_5566_7788;

/// A request with that much padding, with a UDP checksum that is right, from port 4789.
fn request(padding: usize) -> Vec<u8> {
    let payload = [&echo::request(NONCE)[..], &vec![0xa5; padding]].concat();
    eth(
        OWN_UPLINK,
        NEXT_HOP,
        IP,
        &ipv4(VTEP_R, VTEP, 0x02, UDP, &summed_udp(VTEP_R, VTEP, &payload)),
    )
}

#[test]
fn requests_are_answered_and_their_checksums_stay_right() {
    let mut object = object!();
    for padding in [0, 1, 100, 1447] {
        let frame = request(padding);
        for hook in UPLINK {
            let outcome = object.run(hook, &frame);
            assert_eq!(outcome.drops, [], "{hook:?}");
            assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
            assert_eq!(outcome.stats, [Stat::UplinkFrames, Stat::EchoReplies]);
            let answer = outcome.bytes;
            assert_eq!(answer.len(), frame.len());
            assert_eq!(answer[..6], NEXT_HOP);
            assert_eq!(answer[6..12], OWN_UPLINK);
            let packet = SlicedPacket::from_ethernet(&answer).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else {
                panic!("no IPv4");
            };
            let header = ip.header().to_header();
            assert_eq!((header.source, header.destination), (VTEP, VTEP_R));
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let Some(TransportSlice::Udp(udp)) = &packet.transport else {
                panic!("no UDP");
            };
            assert_eq!((udp.source_port(), udp.destination_port()), (4789, 4789));
            let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
            assert_eq!(udp.checksum(), sum.unwrap(), "{hook:?} {padding}");
            assert_eq!(echo::answer(udp.payload()), Some(NONCE));
            assert_eq!(udp.payload()[24..], frame[66..], "the padding");
        }
    }
}

#[test]
fn answers_are_the_kernels() {
    let mut object = object!();
    let mut frame = request(40);
    frame[50..54].copy_from_slice(&[0, 0, 0, 1]);
    for hook in UPLINK {
        let outcome = object.run(hook, &frame);
        assert_eq!(outcome.action, Action::Pass, "{hook:?}");
        assert_eq!(outcome.bytes, frame);
        assert_eq!((outcome.drops, outcome.stats), (vec![], vec![]));
    }
}

#[test]
fn all_else_on_vni_0_is_dropped() {
    let mut object = object!();
    let good = request(40);
    let edit = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        fix_ipv4_checksum(&mut frame[14..]);
        frame
    };
    let mut drop = |reason, frame: &[u8]| drops(&mut object, &UPLINK, reason, frame);
    // For requests and answers alike: who does not belong to the cluster learns nothing.
    for words in [[0, 1, 0, 0], [0, 0, 0, 1]] {
        let mut frame = edit(26, &[9, 9, 9, 9]);
        frame[50..54].copy_from_slice(&words);
        drop(DropReason::UnknownVtep, &frame);
    }
    let ip_len = (good.len() - 14) as u16;
    for malformed in [
        edit(34, &4790_u16.to_be_bytes()),
        edit(50, &[0, 0, 0, 0]),
        edit(50, &[0, 1, 0, 1]),
        edit(50, &[0, 2, 0, 0]),
        edit(50, &[1, 0, 0, 0]),
        edit(54, b"OVLF"),
        edit(0, &BROADCAST),
        edit(38, &(ip_len - 21).to_be_bytes()),
        [&good[..], &[0]].concat(),
        {
            // Headers that agree with a message one byte short.
            let mut frame = edit(16, &51_u16.to_be_bytes());
            frame[38..40].copy_from_slice(&31_u16.to_be_bytes());
            fix_ipv4_checksum(&mut frame[14..]);
            frame.truncate(65);
            frame
        },
    ] {
        let reason = DropReason::MalformedEcho;
        drop(reason, &malformed);
    }
    drop(DropReason::OuterLength, &good[..good.len() - 1]);
    let beside = Beside { gso_size: 30 };
    let outcome = object.run_with(Hook::UplinkTc, &good, beside).unwrap();
    assert_eq!(outcome.drops, [DropReason::MalformedEcho], "a super-packet");
}
