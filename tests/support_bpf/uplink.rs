//! Frames from the underlay.

use overlay_common::counters::{DropReason, Stat};
use overlay_common::punt::{self, Kind, Reason};

use super::checks::*;
use super::frames::*;
use super::object::{Action, Hook, Outcome, UPLINK};
use super::world::*;
use crate::object;

#[test]
fn inner_frames_reach_their_port() {
    let mut object = object!();
    let mut short = eth(mac(A), mac(R), 0x88b5, &[1, 2, 3]);
    for inner in [
        inner_to_a(),
        eth(
            mac(B),
            mac(R),
            IP6,
            &ipv6(ip6(R), ip6(B), 0, UDP, 64, &[0; 8]),
        ),
        eth(mac(A), mac(R), ARP, &arp(2, mac(R), R, mac(A), A)),
    ] {
        sends(
            &mut object,
            &UPLINK,
            Stat::Decapsulated,
            &from_r(&inner),
            &inner,
        );
    }
    sends(
        &mut object,
        &[Hook::UplinkXdp],
        Stat::Decapsulated,
        &from_r(&short),
        &short,
    );
    // The kernel shrinks no skb below 34 bytes, so a tiny frame arrives padded.
    let frame = from_r(&short);
    short.resize(34, 0);
    sends(
        &mut object,
        &[Hook::UplinkTc],
        Stat::Decapsulated,
        &frame,
        &short,
    );
}

#[test]
fn what_need_not_be_right_is_ignored() {
    let mut object = object!();
    let inner = inner_to_a();
    // Reserved bits and bytes of the VXLAN header; any UDP checksum; any source port, MACs, TTL.
    let good = from_r(&inner);
    for (at, values) in [
        (42, &[0x09_u8, 0xff, 0x88][..]),
        (43, &[0xff]),
        (45, &[1]),
        (49, &[0xff]),
        (40, &[0x12, 0xff]),
        (41, &[0x34]),
        (34, &[0, 0xff]),
        (0, &[0xff]),
    ] {
        for &value in values {
            let mut frame = good.clone();
            frame[at] = value;
            sends(&mut object, &UPLINK, Stat::Decapsulated, &frame, &inner);
        }
    }
    // Bytes behind the outer packet stay behind the inner frame.
    let padded = [&good[..], &[0xee; 6]].concat();
    let expected = [&inner[..], &[0xee; 6]].concat();
    sends(&mut object, &UPLINK, Stat::Decapsulated, &padded, &expected);
}

/// RFC 6040, figure 4: rows by the inner codepoint, columns by the outer one, both as 0 Not-ECT,
/// 1 ECT(1), 2 ECT(0), 3 CE. `None` is a drop.
const ECN: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

#[test]
fn ecn_is_combined_as_rfc_6040_says() {
    let mut object = object!();
    for inner in 0..4_u8 {
        for outer in 0..4_u8 {
            let expected = ECN[usize::from(inner)][usize::from(outer)];
            for version in [4, 6] {
                let class = 0xb8;
                let build = |ecn: u8| match version {
                    4 => {
                        let packet = ipv4(R, A, class | ecn, UDP, &udp(1, 2, &[7; 9]));
                        eth(mac(A), mac(R), IP, &packet)
                    }
                    _ => {
                        let packet = ipv6(ip6(R), ip6(A), class | ecn, UDP, 64, &[7; 9]);
                        eth(mac(A), mac(R), IP6, &packet)
                    }
                };
                let frame = vxlan(VTEP_R, VTEP, 0x28 | outer, VNI, &build(inner));
                match expected {
                    Some(ecn) => {
                        let stat = Stat::Decapsulated;
                        sends(&mut object, &UPLINK, stat, &frame, &build(ecn));
                    }
                    None => drops(&mut object, &UPLINK, DropReason::EcnIllegal, &frame),
                }
            }
        }
    }
    // What is not IP has no ECN field to break.
    let inner = eth(mac(A), mac(R), 0x88b5, &[0xff; 40]);
    let frame = vxlan(VTEP_R, VTEP, 3, VNI, &inner);
    sends(&mut object, &UPLINK, Stat::Decapsulated, &frame, &inner);
}

#[test]
fn what_is_not_ours_passes() {
    let mut object = object!();
    let good = from_r(&inner_to_a());
    let edit = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        fix_ipv4_checksum(&mut frame[14..]);
        frame
    };
    let options = {
        let mut ip = ipv4(VTEP_R, VTEP, 0, UDP, &[0; 60]);
        ip[0] = 0x46;
        eth([2; 6], [4; 6], IP, &ip)
    };
    let outer_ip = &good[14..];
    for frame in [
        edit(37, 0xb6), // port 4790
        edit(33, 6),    // another destination
        edit(23, TCP),
        eth([2; 6], [4; 6], IP, &fragment(outer_ip.to_vec(), 0x2000)),
        eth([2; 6], [4; 6], IP, &fragment(outer_ip.to_vec(), 0x0010)),
        options,
        eth(
            [2; 6],
            [4; 6],
            IP6,
            &ipv6(ip6(R), ip6(A), 0, UDP, 64, &udp(1, 4789, &[0; 60])),
        ),
        eth(BROADCAST, [4; 6], ARP, &arp_request([4; 6], VTEP_R, VTEP)),
        eth([2; 6], [4; 6], 0x8100, &[&[0, 5, 8, 0], outer_ip].concat()),
        eth([2; 6], [4; 6], 0x88cc, &[0; 30]),
    ] {
        for hook in UPLINK {
            let outcome = object.run(hook, &frame);
            let expected = Outcome {
                action: Action::Pass,
                bytes: frame.clone(),
                drops: vec![],
                stats: vec![],
            };
            assert_eq!(outcome, expected, "{hook:?}");
        }
    }
}

#[test]
fn malformed_vxlan_is_dropped_and_counted() {
    let mut object = object!();
    let inner = inner_to_a();
    let good = from_r(&inner);
    let mut drop = |reason, frame: &[u8]| drops(&mut object, &UPLINK, reason, frame);
    let edit = |changes: &[(usize, u8)]| {
        let mut frame = good.clone();
        for &(at, value) in changes {
            frame[at] = value;
        }
        frame
    };
    let long = |at: usize, len: u16| {
        let [l0, l1] = len.to_be_bytes();
        let mut frame = edit(&[(at, l0), (at + 1, l1)]);
        fix_ipv4_checksum(&mut frame[14..]);
        frame
    };
    let ip_len = (good.len() - 14) as u16;
    for wrong in [ip_len + 1, 0, 19, 20, 57, 0xffff] {
        drop(DropReason::OuterLength, &long(16, wrong));
    }
    for wrong in [ip_len - 20 + 1, 0, 7, 16, 29, 0xffff] {
        drop(DropReason::OuterLength, &long(38, wrong));
    }
    drop(DropReason::OuterChecksum, &edit(&[(24, good[24] ^ 1)]));
    drop(DropReason::OuterChecksum, &edit(&[(22, 63)]));
    drop(DropReason::VxlanFlags, &edit(&[(42, 0)]));
    drop(DropReason::VxlanFlags, &edit(&[(42, 0xf7)]));

    let from = |vtep: Ip4, vni: u32, inner: &[u8]| vxlan(vtep, VTEP, 0, vni, inner);
    drop(DropReason::UnknownVtep, &from([9, 9, 9, 9], VNI, &inner));
    drop(DropReason::UnknownVtep, &from(VTEP_LOST, VNI, &inner));
    drop(DropReason::UnknownVni, &from(VTEP_R, VNI + 1, &inner));
    drop(DropReason::MalformedEcho, &from(VTEP_R, 0, &inner));

    let inner = |dst, src, ethertype| from_r(&eth(dst, src, ethertype, &[0; 40]));
    drop(
        DropReason::WrongVtep,
        &from(VTEP_NARROW, VNI, &inner_to_a()),
    );
    drop(DropReason::WrongVtep, &inner(mac(B), mac(A), IP));
    drop(DropReason::InnerSource, &inner(mac(A), [0; 6], IP));
    drop(DropReason::InnerSource, &inner(mac(A), BROADCAST, IP));
    drop(DropReason::InnerVlan, &inner(mac(A), mac(R), 0x8100));
    drop(DropReason::InnerVlan, &inner(mac(A), mac(R), 0x88a8));
    drop(DropReason::NotLocal, &inner(mac(NARROW), mac(R), IP));
}

#[test]
fn uplink_punts_keep_the_senders_headers() {
    let mut object = object!();
    let inner = |dst, src| eth(dst, src, IP, &ipv4(R, A, 0, UDP, &[0; 40]));
    for (inner, why) in [
        (inner(BROADCAST, mac(R)), Reason::Flood),
        (inner([1, 0, 0x5e, 0, 0, 1], mac(R)), Reason::Flood),
        (inner(mac(A), mac(NOBODY)), Reason::UnknownSource),
        (inner(mac(NOBODY), mac(R)), Reason::UnknownDestination),
    ] {
        let frame = from_r(&inner);
        for hook in UPLINK {
            let outcome = object.run(hook, &frame);
            assert_eq!(punted(&outcome, Kind::FromUplink, why), inner);
            assert_eq!(outcome.bytes[14..], frame[14..]);
            assert_eq!(outcome.stats, [Stat::UplinkFrames, Stat::Punted]);
        }
    }
    let huge = from_r(
        &inner(BROADCAST, mac(R))
            .iter()
            .copied()
            .chain([0; 3400])
            .collect::<Vec<_>>(),
    );
    let largest = &huge[..(punt::MTU + 14) as usize];
    let fits = vxlan(VTEP_R, VTEP, 0, VNI, &largest[50..]);
    let too_long = vxlan(VTEP_R, VTEP, 0, VNI, &huge[50..=largest.len()]);
    for hook in UPLINK {
        let outcome = object.run(hook, &fits);
        assert_eq!(
            punted(&outcome, Kind::FromUplink, Reason::Flood),
            &fits[50..]
        );
    }
    drops(&mut object, &UPLINK, DropReason::PuntTooBig, &too_long);
}
