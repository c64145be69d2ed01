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

/// The MAC of a group (RFC 1112 section 6.4, RFC 2464 section 7).
pub fn group_mac(group: std::net::IpAddr) -> Mac {
    match group {
        std::net::IpAddr::V4(ip) => {
            let [_, b, c, d] = ip.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        std::net::IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

/// An IGMP message, its checksum made.
pub fn igmp(src: u8, dst: [u8; 4], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = etherparse::checksum::u32_16bit_word::add_slice(0, &message);
    let sum = etherparse::checksum::u32_16bit_word::ones_complement(sum);
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    let to = (src, group_mac(dst.into()), dst);
    ip4(to, IpNumber::IGMP, &message, |header| {
        header.time_to_live = 1;
    })
}

/// A packet with an MLD message behind a router alert, its checksum made.
pub fn mld(src: u8, from: [u8; 16], dst: [u8; 16], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let len = message.len() as u16;
    let pseudo = [&from[..], &dst, &[0, 0], &len.to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = etherparse::checksum::u32_16bit_word::add_slice(0, &pseudo);
    let sum = etherparse::checksum::u32_16bit_word::add_slice(sum, &message);
    let sum = etherparse::checksum::u32_16bit_word::ones_complement(sum);
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    let payload = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &message].concat();
    let mut frame = ip6((from, group_mac(dst.into()), dst), 1, 0, &payload);
    frame[6..12].copy_from_slice(&mac(src));
    frame
}

pub const GROUP4: [u8; 4] = [239, 1, 2, 3];
pub const GROUP6: [u8; 16] = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3];

/// One of each kind of message about groups, and something for a group.
pub fn memberships(src: u8) -> Vec<Vec<u8>> {
    let v2 = |kind: u8| igmp(src, GROUP4, &[&[kind, 0, 0, 0][..], &GROUP4].concat());
    let v1 = |kind: u8| {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat();
        mld(src, v6(src), GROUP6, &message)
    };
    vec![
        v2(0x11),
        v2(0x12),
        v2(0x16),
        v2(0x17),
        report3(src, &[(4, GROUP4, 0), (3, [239, 9, 9, 9], 2)]),
        v1(130),
        v1(131),
        v1(132),
        report_mld(src, &[(4, GROUP6, 0), (1, GROUP6, 3)]),
        udp4(src, group_mac(GROUP4.into()), GROUP4, 20),
        udp6(src, group_mac(GROUP6.into()), GROUP6, 20),
    ]
}

/// An IGMPv3 report: of each record the type, the group, and how many sources.
pub fn report3(src: u8, records: &[(u8, [u8; 4], u16)]) -> Vec<u8> {
    let [n0, n1] = (records.len() as u16).to_be_bytes();
    let mut message = vec![0x22, 0, 0, 0, 0, 0, n0, n1];
    for (kind, group, sources) in records {
        let [s0, s1] = sources.to_be_bytes();
        message.extend([&[*kind, 0, s0, s1][..], group].concat());
        message.extend(vec![10; usize::from(*sources) * 4]);
    }
    igmp(src, [224, 0, 0, 22], &message)
}

/// An MLDv2 report.
pub fn report_mld(src: u8, records: &[(u8, [u8; 16], u16)]) -> Vec<u8> {
    let [n0, n1] = (records.len() as u16).to_be_bytes();
    let mut message = vec![143, 0, 0, 0, 0, 0, n0, n1];
    for (kind, group, sources) in records {
        let [s0, s1] = sources.to_be_bytes();
        message.extend([&[*kind, 0, s0, s1][..], group].concat());
        message.extend(vec![0x20; usize::from(*sources) * 16]);
    }
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    mld(src, v6(src), routers, &message)
}
