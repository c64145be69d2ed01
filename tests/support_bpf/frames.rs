//! Frames, put together layer by layer.

use etherparse::{Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use overlay_common::wire::{ARP_REQUEST, Ip16, Mac};

use super::world::vtep6;

pub type Ip4 = [u8; 4];

pub const UDP: u8 = 17;
pub const TCP: u8 = 6;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;

pub fn eth(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

/// `id` and `fragment` (flags and offset) as they are on the wire.
pub fn ipv4(src: Ip4, dst: Ip4, tos: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(length, 64, IpNumber(protocol), src, dst).unwrap();
    header.dscp = (tos >> 2).try_into().unwrap();
    header.ecn = (tos & 3).try_into().unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], payload].concat()
}

/// A packet with its flags-and-offset field set to `field`.
pub fn fragment(mut ip: Vec<u8>, field: u16) -> Vec<u8> {
    ip[6..8].copy_from_slice(&field.to_be_bytes());
    fix_ipv4_checksum(&mut ip);
    ip
}

pub fn fix_ipv4_checksum(ip: &mut [u8]) {
    let (mut header, _) = Ipv4Header::from_slice(ip).unwrap();
    header.header_checksum = header.calc_header_checksum();
    ip[..20].copy_from_slice(&header.to_bytes()[..20]);
}

pub fn ipv6(src: Ip16, dst: Ip16, class: u8, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        traffic_class: class,
        payload_length: u16::try_from(payload.len()).unwrap(),
        next_header: IpNumber(next),
        hop_limit: hops,
        source: src,
        destination: dst,
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], payload].concat()
}

pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader {
        source_port: src,
        destination_port: dst,
        length: u16::try_from(8 + payload.len()).unwrap(),
        checksum: 0,
    };
    [&header.to_bytes()[..], payload].concat()
}

/// A datagram between VXLAN ports with its checksum.
pub fn summed_udp(src: Ip4, dst: Ip4, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader::with_ipv4_checksum(4789, 4789, &ip_header(src, dst), payload).unwrap();
    [&header.to_bytes()[..], payload].concat()
}

/// The same over IPv6.
pub fn summed_udp6(src: Ip4, dst: Ip4, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv6Header {
        source: vtep6(src),
        destination: vtep6(dst),
        ..Ipv6Header::default()
    };
    let header = UdpHeader::with_ipv6_checksum(4789, 4789, &ip, payload).unwrap();
    [&header.to_bytes()[..], payload].concat()
}

fn ip_header(src: Ip4, dst: Ip4) -> Ipv4Header {
    Ipv4Header::new(0, 64, IpNumber(UDP), src, dst).unwrap()
}

pub fn tcp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader::new(src, dst, 1, 65_000);
    [&header.to_bytes()[..], payload].concat()
}

pub fn echo() -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 1, 0, 1][..], &[0x55; 56]].concat()
}

pub fn arp(op: u16, src_mac: Mac, src_ip: Ip4, dst_mac: Mac, dst_ip: Ip4) -> Vec<u8> {
    [
        &[0, 1, 8, 0, 6, 4][..],
        &op.to_be_bytes(),
        &src_mac,
        &src_ip,
        &dst_mac,
        &dst_ip,
    ]
    .concat()
}

pub fn arp_request(src_mac: Mac, src_ip: Ip4, dst_ip: Ip4) -> Vec<u8> {
    arp(ARP_REQUEST, src_mac, src_ip, [0; 6], dst_ip)
}

/// A neighbour solicitation (135) or advertisement (136) with a link-layer address option of
/// `option` kind, in an IPv6 packet.
pub fn nd(kind: u8, src: Ip16, dst: Ip16, target: Ip16, option: u8, mac: Mac) -> Vec<u8> {
    let mut message = [
        &[kind, 0, 0, 0, 0, 0, 0, 0][..],
        &target,
        &[option, 1],
        &mac,
    ]
    .concat();
    let checksum = icmp6_checksum(src, dst, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    ipv6(src, dst, 0, ICMP6, 255, &message)
}

/// What the checksum field of `message`, now anything, ought to be.
pub fn icmp6_checksum(src: Ip16, dst: Ip16, message: &[u8]) -> u16 {
    let bytes5to8 = message[4..8].try_into().unwrap();
    Icmpv6Type::Unknown {
        type_u8: message[0],
        code_u8: message[1],
        bytes5to8,
    }
    .calc_checksum(src, dst, &message[8..])
    .unwrap()
}

/// An inner frame with a VXLAN stack in front of it.
pub fn vxlan(src: Ip4, dst: Ip4, tos: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let header = [8, 0, 0, 0, v0, v1, v2, 0];
    let datagram = udp(50_000, 4789, &[&header, inner].concat());
    let ip = ipv4(src, dst, tos, UDP, &datagram);
    eth([2; 6], [4; 6], 0x0800, &ip)
}

/// The same over IPv6, from an address of [`super::world::vtep6`] to another.
pub fn vxlan6(src: Ip4, dst: Ip4, class: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let header = [8, 0, 0, 0, v0, v1, v2, 0];
    let datagram = udp(50_000, 4789, &[&header, inner].concat());
    let ip = ipv6(vtep6(src), vtep6(dst), class, UDP, 64, &datagram);
    eth([2; 6], [4; 6], 0x86dd, &ip)
}
