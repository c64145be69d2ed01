//! Inner frames, made and taken apart with etherparse.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, IpFragOffset,
    IpNumber, Ipv4Header, Ipv6Header, LaxNetSlice, LaxSlicedPacket, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice,
};
use overlay_common::wire::Mac;

use super::rig::mac;

pub const BROADCAST: Mac = [0xff; 6];

pub fn v4(last: u8) -> [u8; 4] {
    [10, 0, 0, last]
}

/// The link-local address of `mac(last)`.
pub fn v6(last: u8) -> [u8; 16] {
    [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x42, 0x0a, 0xff, 0xfe, 0, 0, last,
    ]
}

/// Ethernet, any type, any payload.
pub fn raw(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 packet from 10.0.0.`src`, with a header that may be changed.
pub fn ip4(
    (src, dst_mac, dst): (u8, Mac, [u8; 4]),
    protocol: IpNumber,
    payload: &[u8],
    change: impl FnOnce(&mut Ipv4Header),
) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut header = Ipv4Header::new(len, 64, protocol, v4(src), dst).unwrap();
    header.dont_fragment = true;
    change(&mut header);
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut frame = raw(mac(src), dst_mac, 0x0800, &[]);
    header.write_raw(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

pub fn udp4(src: u8, dst_mac: Mac, dst: [u8; 4], len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(src), dst_mac)
        .ipv4(v4(src), dst, 64)
        .udp(4000, 5000)
        .write(&mut frame, &vec![7; len])
        .unwrap();
    frame
}

/// A UDP datagram to the gateway's port 53.
pub fn dns4(src: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(src), mac(1))
        .ipv4(v4(src), v4(1), 64)
        .udp(4000, 53)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// A UDP datagram between link-local addresses.
pub fn udp6(src: u8, dst_mac: Mac, dst: [u8; 16], len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(src), dst_mac)
        .ipv6(v6(src), dst, 64)
        .udp(4000, 5000)
        .write(&mut frame, &vec![7; len])
        .unwrap();
    frame
}

/// An IPv6 packet from the link-local address of `src`, any payload behind the fixed header.
pub fn ip6(
    (src, dst_mac, dst): ([u8; 16], Mac, [u8; 16]),
    hops: u8,
    next: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: payload.len() as u16,
        next_header: IpNumber(next),
        hop_limit: hops,
        source: src,
        destination: dst,
        ..Ipv6Header::default()
    };
    let mut frame = raw(mac(11), dst_mac, 0x86dd, &[]);
    header.write(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

pub fn arp(operation: ArpOperation, src: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &mac(src),
        &sender,
        &[0; 6],
        &target,
    );
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(src), BROADCAST).arp(packet.unwrap());
    builder.write(&mut frame).unwrap();
    frame
}

pub fn solicited_node(target: [u8; 16]) -> ([u8; 16], Mac) {
    let [a, b, c] = [target[13], target[14], target[15]];
    let ip = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    (ip, [0x33, 0x33, 0xff, a, b, c])
}

/// A neighbour solicitation by the container with `mac(11)`.
pub fn solicitation(src: [u8; 16], hops: u8, target: [u8; 16], options: &[u8]) -> Vec<u8> {
    let (dst, dst_mac) = solicited_node(target);
    let payload = [&target[..], options].concat();
    let message = icmp6(src, dst, Icmpv6Type::NeighborSolicitation, &payload);
    ip6((src, dst_mac, dst), hops, 58, &message)
}

pub fn source_option(last: u8) -> Vec<u8> {
    [&[1, 1][..], &mac(last)].concat()
}

pub fn icmp6(src: [u8; 16], dst: [u8; 16], kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let header = kind.to_header(src, dst, payload).unwrap();
    let mut message = Vec::new();
    header.write(&mut message).unwrap();
    message.extend_from_slice(payload);
    message
}

pub fn icmp4(kind: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
    let header = etherparse::Icmpv4Header::with_checksum(kind, payload);
    let mut message = Vec::new();
    header.write(&mut message).unwrap();
    message.extend_from_slice(payload);
    message
}

/// What an ICMP message in a frame says; its checksums are right.
pub struct Icmp<T, A> {
    pub eth: (Mac, Mac),
    pub src: A,
    pub dst: A,
    pub kind: T,
    pub payload: Vec<u8>,
}

#[track_caller]
pub fn parse_icmp4(frame: &[u8]) -> Icmp<Icmpv4Type, [u8; 4]> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else {
        panic!("no IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(usize::from(header.total_len) + 14, frame.len());
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!("no ICMP")
    };
    let kind = icmp.header().icmp_type;
    assert_eq!(icmp.header().checksum, kind.calc_checksum(icmp.payload()));
    Icmp {
        eth: macs(frame),
        src: header.source,
        dst: header.destination,
        kind,
        payload: icmp.payload().to_vec(),
    }
}

#[track_caller]
pub fn parse_icmp6(frame: &[u8]) -> Icmp<Icmpv6Type, [u8; 16]> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = packet.net else {
        panic!("no IPv6")
    };
    let header = ip.header().to_header();
    assert_eq!(usize::from(header.payload_length) + 54, frame.len());
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
        panic!("no ICMPv6")
    };
    assert!(icmp.is_checksum_valid(header.source, header.destination));
    Icmp {
        eth: macs(frame),
        src: header.source,
        dst: header.destination,
        kind: icmp.icmp_type(),
        payload: icmp.payload().to_vec(),
    }
}

fn macs(frame: &[u8]) -> (Mac, Mac) {
    (
        *frame.first_chunk().unwrap(),
        *frame[6..].first_chunk().unwrap(),
    )
}

/// The first fragment of a datagram, or a later one.
pub fn fragment(src: u8, dst_mac: Mac, dst: [u8; 4], offset: u16, payload: &[u8]) -> Vec<u8> {
    ip4((src, dst_mac, dst), IpNumber::UDP, payload, |header| {
        header.dont_fragment = false;
        header.more_fragments = true;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    })
}

/// The TOS of an IPv4 frame whose header checksum is right.
#[track_caller]
pub fn tos4(frame: &[u8]) -> u8 {
    let packet = LaxSlicedPacket::from_ethernet(frame).unwrap();
    let Some(LaxNetSlice::Ipv4(ip)) = packet.net else {
        panic!("no IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    frame[15]
}
