//! Questions about names, and the gateways of a network of two families.

use std::time::Duration;

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpNumber, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, icmpv6,
};
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;
use overlay_core::slowpath::Asker;

use super::packets::*;
use super::rig::*;

const GATEWAY6: [u8; 16] = [0xfd, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CONTAINER6: [u8; 16] = [0xfd, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41];

/// What port 41's container sends its gateway.
fn from_41(rig: &mut Rig, frame: &[u8]) -> Out {
    rig.handle(&from_port(41, 4, Reason::UnknownDestination, frame))
}

fn dns6(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(41), mac(1))
        .ipv6(CONTAINER6, GATEWAY6, 64)
        .udp(4001, 53)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

#[track_caller]
fn asked(out: Out, payload: &[u8]) -> Asker {
    assert!(out.sent.is_empty() && out.drops.is_empty());
    let [(asker, asked)] = &out.queries[..] else {
        panic!("{:?}", out.queries)
    };
    assert_eq!(asked, payload);
    *asker
}

/// Ports and payload of a datagram whose checksum is right.
fn datagram(frame: &[u8]) -> (u16, u16, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("no UDP")
    };
    let (header, payload) = (udp.to_header(), udp.payload());
    let checksum = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert!(ip.dont_fragment && ip.time_to_live == 64);
            header.calc_checksum_ipv4(&ip, payload)
        }
        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), payload),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    assert_eq!(header.checksum, checksum.unwrap());
    assert_ne!(header.checksum, 0);
    (
        header.source_port,
        header.destination_port,
        payload.to_vec(),
    )
}

#[test]
fn an_ipv4_query_is_handed_out_and_its_answer_sent() {
    let mut rig = Rig::new();
    let asker = asked(
        rig.port(Reason::UnknownDestination, &dns4(11, b"who?")),
        b"who?",
    );
    assert_eq!((asker.ifindex(), asker.vni().get()), (11, 1));
    for payload in [&b""[..], b"it is me", &[7; 1232]] {
        let mut out = Out::default();
        asker.answer(&rig.tables, payload, &mut out);
        let sent = out.only();
        assert_eq!((&sent.to, sent.vni), (&To::Port(11), 1));
        assert_eq!(sent.inner[..12], [mac(11), mac(1)].concat()[..]);
        assert_eq!(sent.inner[26..34], [v4(1), v4(11)].concat()[..]);
        assert_eq!(datagram(&sent.inner), (53, 4000, payload.to_vec()));
    }
}

#[test]
fn what_a_port_asks_of_other_resolvers_is_answered_in_their_name() {
    let mut rig = Rig::new();
    let mut frame = dns4(11, b"who?");
    // The destination, with checksums to match; the UDP one may be none.
    let resolver = [127, 0, 0, 11];
    let ip = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    let ip = etherparse::Ipv4Header {
        destination: resolver,
        header_checksum: 0,
        ..ip
    };
    let sum = ip.calc_header_checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[30..34].copy_from_slice(&resolver);
    frame[40..42].fill(0);
    rig.port(Reason::UnknownDestination, &frame)
        .dropped(DropReason::UnknownDestination);
    let options = overlay_core::tables::PortOptions {
        flags: overlay_common::layout::PORT_INTERCEPT_DNS,
        limit: None,
    };
    rig.tables
        .port_up_with(11, &endpoint(1, 11), options)
        .unwrap();
    let asker = asked(rig.port(Reason::UnknownDestination, &frame), b"who?");
    let mut out = Out::default();
    asker.answer(&rig.tables, b"it is me", &mut out);
    let sent = out.only();
    assert_eq!(sent.inner[..12], [mac(11), mac(1)].concat()[..]);
    assert_eq!(sent.inner[26..34], [resolver, v4(11)].concat()[..]);
    assert_eq!(datagram(&sent.inner), (53, 4000, b"it is me".to_vec()));
}

#[test]
fn an_ipv6_query_is_handed_out_and_its_answer_sent() {
    let mut rig = Rig::new();
    let asker = asked(from_41(&mut rig, &dns6(b"who?")), b"who?");
    let mut out = Out::default();
    asker.answer(&rig.tables, b"it is me", &mut out);
    let sent = out.only();
    assert_eq!((&sent.to, sent.vni), (&To::Port(41), 4));
    assert_eq!(sent.inner[22..54], [GATEWAY6, CONTAINER6].concat()[..]);
    assert_eq!(datagram(&sent.inner), (53, 4001, b"it is me".to_vec()));
}

#[test]
fn no_answer_has_the_checksum_that_means_none() {
    let mut rig = Rig::new();
    let asker = asked(rig.port(Reason::UnknownDestination, &dns4(11, b"?")), b"?");
    // Some two bytes make the sum 0xffff, whatever the rest.
    for word in 0..=u16::MAX {
        let mut out = Out::default();
        asker.answer(&rig.tables, &word.to_be_bytes(), &mut out);
        datagram(&out.only().inner);
    }
}

#[test]
fn what_is_damaged_is_dropped() {
    let mut rig = Rig::new();
    // Source port 0, checksum, payload.
    for at in [34, 40, 43] {
        let mut frame = dns4(11, b"who?");
        frame[at] ^= 1;
        rig.port(Reason::UnknownDestination, &frame)
            .dropped(DropReason::InnerHeader);
    }
    let mut longer = dns4(11, b"who?");
    longer[39] += 1;
    rig.port(Reason::UnknownDestination, &longer)
        .dropped(DropReason::Truncated);
    // No checksum is one over IPv4 alone.
    let mut without = dns4(11, b"who?");
    without[40..42].fill(0);
    asked(rig.port(Reason::UnknownDestination, &without), b"who?");
    let mut without = dns6(b"who?");
    without[60..62].fill(0);
    from_41(&mut rig, &without).dropped(DropReason::InnerHeader);
}

#[test]
fn an_answer_for_a_port_that_is_another_ones_now_is_dropped() {
    let mut rig = Rig::new();
    let asker = asked(rig.port(Reason::UnknownDestination, &dns4(11, b"?")), b"?");
    rig.tables.port_down(11);
    for again in [None, Some(endpoint(1, 13)), Some(endpoint(2, 11))] {
        if let Some(endpoint) = again {
            rig.tables.port_up(11, &endpoint).unwrap();
        }
        let mut out = Out::default();
        asker.answer(&rig.tables, b"!", &mut out);
        out.dropped(DropReason::UnknownPort);
    }
}

#[test]
fn a_container_that_asks_too_much_is_refused_alone() {
    let mut rig = Rig::new();
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..1000 {
        let out = rig.port(Reason::UnknownDestination, &dns4(11, b"?"));
        answered += out.queries.len();
        refused += out.refused;
    }
    assert_eq!((answered, refused), (501, 499));
    let other = from_port(12, 1, Reason::UnknownDestination, &dns4(12, b"?"));
    asked(rig.handle(&other), b"?");
    rig.now += Duration::from_secs(1);
    asked(rig.port(Reason::UnknownDestination, &dns4(11, b"?")), b"?");
}

#[test]
fn both_gateways_of_a_network_answer_for_themselves() {
    let mut rig = Rig::new();
    let echo = IcmpEchoHeader { id: 1, seq: 2 };
    let message = icmp6(CONTAINER6, GATEWAY6, Icmpv6Type::EchoRequest(echo), b"x");
    let mut ping = ip6((CONTAINER6, mac(1), GATEWAY6), 64, 58, &message);
    ping[6..12].copy_from_slice(&mac(41));
    let reply = parse_icmp6(&from_41(&mut rig, &ping).only().inner);
    assert_eq!((reply.src, reply.dst), (GATEWAY6, CONTAINER6));
    assert_eq!(reply.kind, Icmpv6Type::EchoReply(echo));

    let message = icmp4(Icmpv4Type::EchoRequest(echo), b"x");
    let ping = ip4((41, mac(1), v4(1)), IpNumber::ICMP, &message, |_| {});
    let reply = parse_icmp4(&from_41(&mut rig, &ping).only().inner);
    assert_eq!((reply.src, reply.dst), (v4(1), v4(41)));

    let mut closed = dns6(b"x");
    closed[57] = 54;
    let error = parse_icmp6(&from_41(&mut rig, &closed).only().inner);
    let port = icmpv6::DestUnreachableCode::Port;
    assert_eq!(error.kind, Icmpv6Type::DestinationUnreachable(port));
    assert_eq!(error.src, GATEWAY6);
}

#[test]
fn both_gateways_are_in_the_neighbour_map() {
    let rig = Rig::new();
    let neighbours = rig.tables.snapshot().neighbours;
    let map_v4 = overlay_common::wire::map_v4;
    for ip in [map_v4(v4(1)), GATEWAY6] {
        let key = overlay_common::layout::NeighbourKey::new(4, ip);
        assert_eq!(neighbours.get(&key).map(|entry| entry.mac), Some(mac(1)));
    }
}

#[test]
fn what_is_too_big_is_told_from_the_gateway_of_its_family() {
    let mut rig = Rig::new();
    let mut frame = ip6((CONTAINER6, mac(77), GATEWAY6), 64, 17, &[0; 1500]);
    frame[6..12].copy_from_slice(&mac(41));
    let out = rig.handle(&from_port(41, 4, Reason::TooBig, &frame));
    let error = parse_icmp6(&out.only().inner);
    assert_eq!((error.src, error.dst), (GATEWAY6, CONTAINER6));
}
