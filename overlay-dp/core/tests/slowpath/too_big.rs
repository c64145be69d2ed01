use std::time::Duration;

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpNumber, icmpv4};
use overlay_common::counters::DropReason;
use overlay_common::punt::{Reason, TOO_BIG_KEEP};
use proptest::prelude::*;

use super::packets::*;
use super::rig::*;

/// What is left of a frame that was too big.
fn cut(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(TOO_BIG_KEEP as usize)]
}

#[track_caller]
fn check_v4(out: Out, frame: &[u8], mtu: u32) {
    assert_eq!(out.updates, []);
    let sent = out.only();
    assert_eq!(sent.to, To::Port(11));
    let error = parse_icmp4(&sent.inner);
    assert_eq!(error.eth, (mac(11), mac(1)));
    assert_eq!((error.src, error.dst), (v4(1), v4(11)));
    let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded {
        next_hop_mtu: mtu as u16,
    };
    assert_eq!(error.kind, Icmpv4Type::DestinationUnreachable(needed));
    // All of RFC 1812's 576 bytes.
    assert_eq!(error.payload, frame[14..14 + 548]);
    assert_eq!(sent.inner.len(), 14 + 576);
}

#[test]
fn an_ipv4_sender_is_told() {
    let mut rig = Rig::new();
    for allowed in [false, true] {
        let frame = ip4((11, mac(2), v4(2)), IpNumber::UDP, &[7; 1500], |header| {
            header.dont_fragment = !allowed;
        });
        check_v4(rig.port(Reason::TooBig, cut(&frame)), &frame, MTU);
    }
    // The way to B is narrower. Nobody knows where D's mail goes, or a neighbour's.
    for (last, mtu) in [(3, B_MTU), (5, MTU), (12, MTU), (99, MTU)] {
        let frame = udp4(11, mac(last), v4(last), 1500);
        check_v4(rig.port(Reason::TooBig, cut(&frame)), &frame, mtu);
    }
}

#[test]
fn a_whole_frame_that_turns_out_too_big() {
    let mut rig = Rig::new();
    // 1300 bytes fit, 1301 do not.
    let fits = udp4(11, mac(3), v4(3), 1300 - 28);
    assert_eq!(
        rig.port(Reason::UnknownDestination, &fits).only().to,
        To::Vtep(B)
    );
    let frame = udp4(11, mac(3), v4(3), 1301 - 28);
    check_v4(rig.port(Reason::UnknownDestination, &frame), &frame, B_MTU);
    // Whatever was cut is never sent, even if it would fit by now.
    let frame = cut(&frame);
    check_v4(rig.port(Reason::TooBig, frame), frame, B_MTU);
}

#[test]
fn a_short_frame_is_quoted_whole() {
    let frame = udp4(11, mac(2), v4(2), 100);
    let sent = Rig::new().port(Reason::TooBig, &frame).only();
    assert_eq!(parse_icmp4(&sent.inner).payload, frame[14..]);
}

#[test]
fn of_what_nobody_is_told() {
    let mut rig = Rig::new();
    let unreachable = icmp4(
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
        &[1; 1500],
    );
    let error = ip4((11, mac(2), v4(2)), IpNumber::ICMP, &unreachable, |_| {});
    let later = fragment(11, mac(2), v4(2), 10, &[1; 1500]);
    let broadcast = udp4(11, BROADCAST, [255; 4], 1500);
    let group = udp4(11, mac(2), [239, 1, 2, 3], 1500);
    let short = &udp4(11, mac(2), v4(2), 1500)[..14 + 27];
    let odd = raw(mac(11), mac(2), 0x88b5, &[1; 1500]);
    for frame in [&error[..], &later, &broadcast, &group, short, &odd] {
        rig.port(Reason::TooBig, cut(frame))
            .dropped(DropReason::PuntTooBig);
    }
    // But of a query and a first fragment he is.
    let query = icmp4(
        Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 1 }),
        &[1; 1500],
    );
    let query = ip4((11, mac(2), v4(2)), IpNumber::ICMP, &query, |_| {});
    check_v4(rig.port(Reason::TooBig, cut(&query)), &query, MTU);
    let first = fragment(11, mac(2), v4(2), 0, &[1; 1500]);
    check_v4(rig.port(Reason::TooBig, cut(&first)), &first, MTU);
    // Nor who is behind another VTEP: the programs never say so.
    let out = rig.uplink(Reason::TooBig, A, &udp4(2, mac(11), v4(11), 20));
    out.dropped(DropReason::PuntTooBig);
}

#[track_caller]
fn check_v6(out: Out, frame: &[u8], mtu: u32) {
    let sent = out.only();
    let error = parse_icmp6(&sent.inner);
    assert_eq!(error.eth, (mac(11), mac(1)));
    // The gateway's MAC makes its address.
    assert_eq!((error.src, error.dst), (v6(1), v6(11)));
    assert_eq!(error.kind, Icmpv6Type::PacketTooBig { mtu });
    assert_eq!(error.payload, frame[14..]);
    assert!(sent.inner.len() <= 14 + 1280);
}

#[test]
fn an_ipv6_sender_is_told() {
    let mut rig = Rig::new();
    let frame = udp6(11, mac(2), v6(2), 1500);
    check_v6(rig.port(Reason::TooBig, cut(&frame)), cut(&frame), MTU);
    let frame = udp6(11, mac(3), v6(3), 1500);
    check_v6(rig.port(Reason::TooBig, cut(&frame)), cut(&frame), B_MTU);
    // A whole frame: as much as 1280 bytes hold.
    let frame = udp6(11, mac(3), v6(3), 1400);
    let out = rig.port(Reason::UnknownDestination, &frame);
    check_v6(out, &frame[..14 + 1232], B_MTU);
    // RFC 4443 section 2.4 e.3: even when it goes to a group.
    let (group, group_mac) = solicited_node(v6(2));
    let frame = udp6(11, group_mac, group, 1500);
    check_v6(rig.port(Reason::TooBig, cut(&frame)), cut(&frame), MTU);
}

#[test]
fn ipv6_errors_and_what_may_be_one() {
    let mut rig = Rig::new();
    let mut send = |next: u8, payload: &[u8]| {
        let payload = [payload, &[0; 1500]].concat();
        let frame = ip6((v6(11), mac(2), v6(2)), 64, next, &payload);
        rig.port(Reason::TooBig, cut(&frame))
    };
    let options = [58, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let first = [58, 0, 0, 1, 0, 0, 0, 9];
    let later = [58, 0, 0, 9, 0, 0, 0, 9];
    for (next, headers) in [
        (58, &[][..]),
        (0, &options),
        (60, &options),
        (43, &options),
        (51, &authentication),
        (44, &first),
    ] {
        let with = |kind: u8| [headers, &[kind, 0]].concat();
        for error in [1, 2, 3, 4, 127] {
            send(next, &with(error)).dropped(DropReason::PuntTooBig);
        }
        assert_eq!(send(next, &with(128)).sent.len(), 1, "{next}");
    }
    send(58, &[137, 0]).dropped(DropReason::PuntTooBig);
    send(44, &later).dropped(DropReason::PuntTooBig);
    let of_udp = [17, 0, 0, 9, 0, 0, 0, 9];
    assert_eq!(send(44, &of_udp).sent.len(), 1);
    // Headers without end: whoever gives up first, nobody is told.
    assert_eq!(send(0, &[0; 600]).sent.len(), 0);
    assert_eq!(send(51, &[51; 600]).sent.len(), 0);
}

#[test]
fn not_too_often() {
    let mut rig = Rig::new();
    let frame = udp4(11, mac(2), v4(2), 1500);
    let told = |rig: &mut Rig| rig.port(Reason::TooBig, cut(&frame)).sent.len();
    assert_eq!((0..500).map(|_| told(&mut rig)).sum::<usize>(), 101);
    rig.port(Reason::TooBig, cut(&frame))
        .dropped(DropReason::PuntTooBig);
    let other = udp4(12, mac(2), v4(2), 1500);
    let other = from_port(12, 1, Reason::TooBig, cut(&other));
    assert_eq!(rig.handle(&other).sent.len(), 1);
    rig.now += Duration::from_millis(10);
    assert_eq!((0..500).map(|_| told(&mut rig)).sum::<usize>(), 10);
}

proptest! {
    /// However it was cut, it is quoted with its header and eight bytes, or not at all.
    #[test]
    fn any_length(len in 0..700_usize, v6 in any::<bool>()) {
        let frame = if v6 { udp6(11, mac(2), super::packets::v6(2), 700) } else { udp4(11, mac(2), v4(2), 700) };
        let out = Rig::new().handle(&from_port(11, 1, Reason::TooBig, &frame[..len]));
        for sent in &out.sent {
            if v6 {
                prop_assert_eq!(parse_icmp6(&sent.inner).payload.len(), len - 14);
            } else {
                prop_assert_eq!(parse_icmp4(&sent.inner).payload.len(), (len - 14).min(548));
            }
        }
        prop_assert_eq!(out.sent.len() + out.drops.len(), 1);
        prop_assert!(out.sent.len() == 1 || len < 14 + 40 + 8);
    }
}
