//! VTEP echo: requests are answered in place, all else on VNI 0 is dropped; answers, which go to
//! another port, reach the kernel.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::echo::{self, Answer, Says};
use overlay_common::wire::Family;

use super::checks::*;
use super::frames::*;
use super::object::{Action, Beside, Hook, Object, UPLINK};
use super::world::*;

/// Where the request is sent from.
const ASKER_PORT: u16 = 40_000;
const NONCE: u64 = 0x1122_3344_5566_7788;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A request with that much padding and a UDP checksum that is right.
pub fn request(family: Family, padding: usize) -> Vec<u8> {
    let payload = [&echo::request(NONCE)[..], &vec![0xa5; padding]].concat();
    frame(family, &payload)
}

/// A checksum probe as it should arrive.
pub fn checksum_request(family: Family) -> Vec<u8> {
    frame(family, &echo::checksum_request(NONCE))
}

fn frame(family: Family, payload: &[u8]) -> Vec<u8> {
    match family {
        Family::V4 => {
            let mut datagram = summed_udp(VTEP_R, VTEP, payload);
            from_port(&mut datagram, ASKER_PORT);
            let packet = ipv4(VTEP_R, VTEP, 0x02, UDP, &datagram);
            eth(OWN_UPLINK, NEXT_HOP, IP, &packet)
        }
        Family::V6 => {
            let mut datagram = summed_udp6(VTEP_R, VTEP, payload);
            from_port(&mut datagram, ASKER_PORT);
            let packet = ipv6(vtep6(VTEP_R), vtep6(VTEP), 0x02, UDP, 64, &datagram);
            eth(OWN_UPLINK, NEXT_HOP, IP6, &packet)
        }
    }
}

/// Gives a datagram another source port; its checksum stays right.
fn from_port(datagram: &mut [u8], port: u16) {
    let old = u16::from_be_bytes([datagram[0], datagram[1]]);
    let sum = u16::from_be_bytes([datagram[6], datagram[7]]);
    let sum = overlay_common::checksum::update(sum, old, port);
    datagram[..2].copy_from_slice(&port.to_be_bytes());
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The message's place.
fn message(family: Family) -> usize {
    family.outer_len()
}

/// Checks all checksums of an answer; one that says that there was none has none.
#[track_caller]
fn is_answer(frame: &[u8], says: Says) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("no UDP");
    };
    let sum = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!((header.source, header.destination), (VTEP, VTEP_R));
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            udp.to_header().calc_checksum_ipv4(&header, udp.payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let ends = (vtep6(VTEP), vtep6(VTEP_R));
            assert_eq!((header.source, header.destination), ends);
            udp.to_header().calc_checksum_ipv6(&header, udp.payload())
        }
        _ => panic!("no IP"),
    };
    match says {
        Says::Unsound => assert_eq!(udp.checksum(), 0),
        Says::Here | Says::Sound => assert_eq!(udp.checksum(), sum.unwrap()),
    }
    assert_eq!(
        (udp.source_port(), udp.destination_port()),
        (4789, ASKER_PORT)
    );
    let nonce = NONCE;
    assert_eq!(echo::answer(udp.payload()), Some(Answer { nonce, says }));
}

#[test]
fn requests_are_answered_and_their_checksums_stay_right() {
    for family in FAMILIES {
        let Some(mut object) = Object::load(&tables_over(family)) else {
            return;
        };
        for padding in [0, 1, 100, 1400] {
            let frame = request(family, padding);
            for hook in UPLINK {
                let outcome = object.run(hook, &frame);
                assert_eq!(outcome.drops, [], "{hook:?}");
                assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
                assert_eq!(outcome.stats, [Stat::UplinkFrames, Stat::EchoReplies]);
                let answer = outcome.bytes;
                assert_eq!(answer.len(), frame.len());
                assert_eq!(answer[..6], NEXT_HOP);
                assert_eq!(answer[6..12], OWN_UPLINK);
                is_answer(&answer, Says::Here);
                let behind = message(family) + 4;
                assert_eq!(answer[behind..], frame[behind..]);
                // One without a UDP checksum stays without.
                let mut unsummed = frame.clone();
                let checksum = message(family) - 10;
                unsummed[checksum..checksum + 2].fill(0);
                let outcome = object.run(hook, &unsummed);
                assert_eq!(outcome.bytes[checksum..checksum + 2], [0, 0]);
                assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
            }
        }
    }
}

#[test]
fn checksum_probes_are_told_whether_they_add_up() {
    for family in FAMILIES {
        let Some(mut object) = Object::load(&tables_over(family)) else {
            return;
        };
        let good = checksum_request(family);
        let at = message(family);
        let sum = at - 10;
        let flipped = |at: usize| {
            let mut frame = good.clone();
            frame[at] ^= 0x10;
            frame
        };
        let mut unfinished = good.clone();
        // What the kernel leaves in the field: the sum of what is not in the datagram.
        let ends = match family {
            Family::V4 => &good[26..34],
            Family::V6 => &good[22..54],
        };
        let pseudo = ends
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let pseudo = overlay_common::checksum::fold(pseudo + 17 + 32);
        unfinished[sum..sum + 2].copy_from_slice(&pseudo.to_be_bytes());
        let wrong = [
            unfinished,
            flipped(sum),
            flipped(sum + 1),
            // The nonce is whatever it is, but not as it was sent.
            flipped(at + 8),
            flipped(at + 15),
            // Bytes that mean nothing are summed, too.
            flipped(at - 1),
        ];
        let cases = [(&good, true)]
            .into_iter()
            .chain(wrong.iter().map(|frame| (frame, false)));
        for (frame, adds_up) in cases {
            for hook in UPLINK {
                let outcome = object.run(hook, frame);
                assert_eq!(outcome.drops, [], "{hook:?}");
                assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
                assert_eq!(outcome.stats, [Stat::UplinkFrames, Stat::EchoReplies]);
                let answer = outcome.bytes;
                assert_eq!(answer.len(), frame.len());
                assert_eq!(answer[..6], NEXT_HOP);
                assert_eq!(answer[at + 4..], frame[at + 4..]);
                if adds_up {
                    is_answer(&answer, Says::Sound);
                } else if hook.is_xdp() {
                    assert_eq!(answer[at..at + 4], echo::UNSOUND);
                    assert_eq!(answer[sum..sum + 2], [0, 0]);
                    assert_eq!(answer[sum - 6..sum - 4], frame[sum - 4..sum - 2]);
                } else {
                    // The note is beside it, and goes back with it.
                    assert_eq!(answer[at..at + 4], [0, 0, 0, 2]);
                    assert_eq!(answer[sum..sum + 2], frame[sum..sum + 2]);
                }
            }
        }
        // The kernel takes what says so.
        is_answer(&object.run(Hook::UplinkXdp, &wrong[0]).bytes, Says::Unsound);
    }
}

#[test]
fn checksum_probes_of_other_lengths_or_without_a_checksum_are_dropped() {
    for family in FAMILIES {
        let Some(mut object) = Object::load(&tables_over(family)) else {
            return;
        };
        let at = message(family);
        let mut unsummed = checksum_request(family);
        unsummed[at - 10..at - 8].fill(0);
        let longer = |by| {
            frame(
                family,
                &[&echo::checksum_request(NONCE)[..], &vec![0; by]].concat(),
            )
        };
        let cut = frame(family, &echo::checksum_request(NONCE)[..23]);
        let shortest = frame(family, &echo::checksum_request(NONCE)[..22]);
        for malformed in [unsummed, longer(1), longer(2), longer(1400), cut, shortest] {
            drops(&mut object, &UPLINK, DropReason::MalformedEcho, &malformed);
        }
        let good = checksum_request(family);
        drops(
            &mut object,
            &UPLINK,
            DropReason::OuterLength,
            &good[..good.len() - 1],
        );
        drops(
            &mut object,
            &UPLINK,
            DropReason::MalformedEcho,
            &[&good[..], &[0]].concat(),
        );
    }
}

#[test]
fn answers_are_the_kernels() {
    for family in FAMILIES {
        let Some(mut object) = Object::load(&tables_over(family)) else {
            return;
        };
        let mut frame = request(family, 40);
        let at = message(family);
        frame[at..at + 4].copy_from_slice(&[0, 0, 0, 1]);
        // To the port that asked.
        frame[at - 14..at - 12].copy_from_slice(&ASKER_PORT.to_be_bytes());
        for hook in UPLINK {
            let outcome = object.run(hook, &frame);
            assert_eq!(outcome.action, Action::Pass, "{hook:?}");
            assert_eq!(outcome.bytes, frame);
            assert_eq!((outcome.drops, outcome.stats), (vec![], vec![]));
        }
    }
}

#[test]
fn all_else_on_vni_0_is_dropped() {
    for family in FAMILIES {
        let Some(mut object) = Object::load(&tables_over(family)) else {
            return;
        };
        let good = request(family, 40);
        let edit = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            if family == Family::V4 {
                fix_ipv4_checksum(&mut frame[14..]);
            }
            frame
        };
        let mut drop = |reason, frame: &[u8]| drops(&mut object, &UPLINK, reason, frame);
        let (at, source, ip_len) = match family {
            Family::V4 => (50, 26, 16),
            Family::V6 => (70, 22, 18),
        };
        let udp_len = at - 12;
        // For requests and answers alike: who does not belong to the cluster learns nothing.
        for words in [[0, 1, 0, 0], [0, 0, 0, 1]] {
            let mut frame = edit(source, &[9, 9, 9, 9]);
            frame[at..at + 4].copy_from_slice(&words);
            drop(DropReason::UnknownVtep, &frame);
        }
        let of = |at: usize| u16::from_be_bytes([good[at], good[at + 1]]);
        let cut = |by: usize| {
            // Headers that agree with what is left.
            let mut frame = edit(ip_len, &(of(ip_len) - by as u16).to_be_bytes());
            let len = (of(udp_len) - by as u16).to_be_bytes();
            frame[udp_len..udp_len + 2].copy_from_slice(&len);
            if family == Family::V4 {
                fix_ipv4_checksum(&mut frame[14..]);
            }
            frame.truncate(good.len() - by);
            frame
        };
        for malformed in [
            edit(at, &[0, 0, 0, 1]),
            edit(at, &[0, 0, 0, 0]),
            edit(at, &[0, 1, 0, 1]),
            edit(at, &[0, 2, 0, 0]),
            edit(at, &[0, 3, 0, 0]),
            edit(at, &[0, 0, 0, 2]),
            edit(at, &[0, 0, 0, 3]),
            edit(at, &[1, 0, 0, 0]),
            edit(at + 4, b"OVLF"),
            edit(0, &BROADCAST),
            edit(udp_len, &(of(udp_len) - 1).to_be_bytes()),
            [&good[..], &[0]].concat(),
            cut(41),
            cut(42),
        ] {
            drop(DropReason::MalformedEcho, &malformed);
        }
        drop(DropReason::OuterLength, &good[..good.len() - 1]);
        let beside = Beside { gso_size: 30 };
        let outcome = object.run_with(Hook::UplinkTc, &good, beside).unwrap();
        assert_eq!(outcome.drops, [DropReason::MalformedEcho], "a super-packet");
    }
}
