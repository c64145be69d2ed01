use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Options, PacketBuilder, icmpv4, icmpv6,
};
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;

use super::packets::*;
use super::rig::*;

const ECHO: IcmpEchoHeader = IcmpEchoHeader { id: 77, seq: 3 };
/// Of network 3: its gateway fd00::1 and its container.
const GATEWAY6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const GATEWAY6_MAC: [u8; 6] = [2, 0x42, 0, 0, 0, 1];
const CONTAINER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];

fn ping(payload: &[u8]) -> Vec<u8> {
    let message = icmp4(Icmpv4Type::EchoRequest(ECHO), payload);
    ip4((11, mac(1), v4(1)), IpNumber::ICMP, &message, |header| {
        header.dscp = 10.try_into().unwrap();
    })
}

#[test]
fn answers_ping() {
    let mut rig = Rig::new();
    for payload in [&[][..], &[1, 2, 3], &[9; 1422]] {
        let sent = rig.port(Reason::UnknownDestination, &ping(payload)).only();
        assert_eq!((&sent.to, sent.inner[15]), (&To::Port(11), 40));
        let reply = parse_icmp4(&sent.inner);
        assert_eq!(reply.eth, (mac(11), mac(1)));
        assert_eq!((reply.src, reply.dst), (v4(1), v4(11)));
        assert_eq!(reply.kind, Icmpv4Type::EchoReply(ECHO));
        assert_eq!(reply.payload, payload);
    }
}

#[test]
fn options_and_padding_are_left_out() {
    let message = icmp4(Icmpv4Type::EchoRequest(ECHO), &[1]);
    let mut frame = ip4((11, mac(1), v4(1)), IpNumber::ICMP, &message, |header| {
        header.options = Ipv4Options::from([1, 1, 1, 0]);
    });
    frame.extend_from_slice(&[0xee; 9]);
    let reply = Rig::new().port(Reason::UnknownDestination, &frame).only();
    assert_eq!(parse_icmp4(&reply.inner).payload, [1]);
}

#[test]
fn what_is_damaged_is_dropped() {
    let mut rig = Rig::new();
    for at in [18, 38, 43] {
        let mut frame = ping(&[1, 2, 3]);
        frame[at] ^= 1;
        rig.port(Reason::UnknownDestination, &frame)
            .dropped(DropReason::InnerHeader);
    }
    let frame = ping(&[1, 2, 3]);
    let cut = &frame[..frame.len() - 1];
    rig.port(Reason::UnknownDestination, cut)
        .dropped(DropReason::Truncated);
}

#[test]
fn has_no_udp_ports() {
    let frame = udp4(11, mac(1), v4(1), 30);
    let sent = Rig::new().port(Reason::UnknownDestination, &frame).only();
    let error = parse_icmp4(&sent.inner);
    let port = icmpv4::DestUnreachableHeader::Port;
    assert_eq!(error.kind, Icmpv4Type::DestinationUnreachable(port));
    assert_eq!((error.src, error.dst), (v4(1), v4(11)));
    assert_eq!(error.payload, frame[14..]);
}

#[test]
fn takes_nothing_else() {
    let mut rig = Rig::new();
    let mut tcp = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(11), mac(1)).ipv4(v4(11), v4(1), 64);
    builder.tcp(1, 2, 3, 4).syn().write(&mut tcp, &[]).unwrap();
    let routed = udp4(11, mac(1), [8, 8, 8, 8], 30);
    let fragment = fragment(11, mac(1), v4(1), 0, &[1; 64]);
    let timestamp = icmp4(Icmpv4Type::EchoReply(ECHO), &[]);
    let reply = ip4((11, mac(1), v4(1)), IpNumber::ICMP, &timestamp, |_| {});
    let v6 = udp6(11, mac(1), v6(1), 30);
    let odd = raw(mac(11), mac(1), 0x88b5, &[1; 50]);
    for frame in [tcp, routed, fragment, reply, v6, odd] {
        rig.port(Reason::UnknownDestination, &frame)
            .dropped(DropReason::UnknownDestination);
    }
}

fn from_container6(rig: &mut Rig, next: u8, message: &[u8]) -> Out {
    let mut frame = ip6((CONTAINER6, GATEWAY6_MAC, GATEWAY6), 64, next, message);
    frame[6..12].copy_from_slice(&mac(31));
    rig.handle(&from_port(31, 3, Reason::UnknownDestination, &frame))
}

#[test]
fn answers_ping_of_its_ipv6_address() {
    let mut rig = Rig::new();
    for payload in [&[][..], &[1, 2, 3], &[0xff; 1400]] {
        let message = icmp6(CONTAINER6, GATEWAY6, Icmpv6Type::EchoRequest(ECHO), payload);
        let sent = from_container6(&mut rig, 58, &message).only();
        assert_eq!((&sent.to, sent.vni), (&To::Port(31), 3));
        let reply = parse_icmp6(&sent.inner);
        assert_eq!(reply.eth, (mac(31), GATEWAY6_MAC));
        assert_eq!((reply.src, reply.dst), (GATEWAY6, CONTAINER6));
        assert_eq!(reply.kind, Icmpv6Type::EchoReply(ECHO));
        assert_eq!(reply.payload, payload);
    }
    let mut message = icmp6(CONTAINER6, GATEWAY6, Icmpv6Type::EchoRequest(ECHO), &[1]);
    message[2] ^= 1;
    from_container6(&mut rig, 58, &message).dropped(DropReason::InnerHeader);
}

#[test]
fn has_no_udp_ports_on_ipv6() {
    let datagram = [&[0x0f, 0xa0, 0, 54, 0, 12, 1, 1][..], &[9; 4]].concat();
    let sent = from_container6(&mut Rig::new(), 17, &datagram).only();
    let error = parse_icmp6(&sent.inner);
    let port = icmpv6::DestUnreachableCode::Port;
    assert_eq!(error.kind, Icmpv6Type::DestinationUnreachable(port));
    assert_eq!(error.payload.len(), 40 + 12);
}
