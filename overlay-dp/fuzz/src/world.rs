//! What the frames of the targets are about.
//!
//! ```text
//!   a (port 1, 10.0.0.2) ─┐                              ┌─ r (10.0.0.3), a router (10.0.0.5)
//!                         ├─ 172.31.1.5 ─── 192.168.1.5 ─┘
//!   b (port 7, 10.0.0.4) ─┘       └──────── 192.168.1.8 ─── narrow (10.0.0.8, MTU 1000)
//!   gateway (10.0.0.1) and router on port 9, a service at 10.0.0.9
//! ```

use overlay_common::layout::{
    Config, EntranceEntry, FDB_BACKEND, FDB_ROUTER, FdbEntry, FdbKey, FlowKey, NeighbourEntry,
    NeighbourKey, NetworkEntry, PORT_BACKEND, PORT_INTERCEPT_DNS, PORT_ROUTER, PortEntry,
    VtepEntry,
};
use overlay_common::verdict::testing::Memory;
use overlay_common::wire::{Ip16, Mac, UNSPECIFIED, map_v4};

pub const VNI: u32 = 4096;
pub const A: u8 = 2;
pub const R: u8 = 3;
pub const B: u8 = 4;
pub const VTEP: [u8; 4] = [172, 31, 1, 5];
pub const VTEP_R: [u8; 4] = [192, 168, 1, 5];
pub const VTEP_NARROW: [u8; 4] = [192, 168, 1, 8];

pub const fn mac(last: u8) -> Mac {
    [2, 0x42, 10, 0, 0, last]
}

pub const fn ip4(last: u8) -> [u8; 4] {
    [10, 0, 0, last]
}

pub const fn ip6(last: u8) -> Ip16 {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// The same for an underlay of IPv6.
pub fn vtep6(ip: [u8; 4]) -> Ip16 {
    let [a, b, c, d] = ip;
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

pub fn tables(v6: bool) -> Memory {
    let vtep = |ip| if v6 { vtep6(ip) } else { map_v4(ip) };
    let mut tables = Memory {
        config: Some(Config {
            vtep: vtep(VTEP),
            punt_ifindex: 900,
            data_port: 4789,
            crypt_ifindex: 901,
            esp_port: 4500,
        }),
        ..Memory::default()
    };
    for (ifindex, last, flags) in [
        (1, A, PORT_INTERCEPT_DNS),
        (7, B, PORT_BACKEND),
        (9, 1, PORT_ROUTER),
    ] {
        tables.ports.insert(
            ifindex,
            PortEntry {
                vni: VNI,
                mtu: 1450,
                mac: mac(last),
                _zero: [0; 2],
                ip4: ip4(last),
                ip6: [ip6(last), UNSPECIFIED],
                flags,
                rate: 0,
                burst_ns: 0,
            },
        );
    }
    let network = NetworkEntry {
        net4: ip4(0),
        mask4: [255, 255, 255, 0],
        router: mac(6),
        ..NetworkEntry::closed(1450)
    };
    tables.networks.insert(VNI, network);
    for (last, place) in [
        (A, FdbEntry::local(1)),
        (B, FdbEntry::local(7).with(FDB_BACKEND)),
        (1, FdbEntry::gateway(9)),
        (6, FdbEntry::local(9).with(FDB_ROUTER)),
        (R, FdbEntry::remote(vtep(VTEP_R))),
        (5, FdbEntry::remote(vtep(VTEP_R)).with(FDB_ROUTER)),
        (8, FdbEntry::remote(vtep(VTEP_NARROW))),
        (9, FdbEntry::service()),
    ] {
        tables.fdb.insert(FdbKey::new(VNI, mac(last)), place);
        let entry = NeighbourEntry {
            mac: mac(last),
            _zero: [0; 2],
        };
        for ip in [map_v4(ip4(last)), ip6(last)] {
            tables.neighbours.insert(NeighbourKey::new(VNI, ip), entry);
        }
    }
    for (ip, mtu) in [(VTEP_R, 1450), (VTEP_NARROW, 1000)] {
        tables.vteps.insert(
            vtep(ip),
            VtepEntry {
                src_ip: vtep(VTEP),
                ifindex: 50,
                mtu,
                src_mac: [2; 6],
                dst_mac: [4; 6],
            },
        );
    }
    let flow = FlowKey::new(
        VNI,
        (map_v4(ip4(A)), [0, 80]),
        (map_v4([8, 8, 8, 8]), [0x9c, 0x40]),
        6,
    );
    let entrance = EntranceEntry {
        mac: mac(5),
        _zero: [0; 2],
    };
    tables.entrances.insert(flow, entrance);
    tables
}

fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [hi, lo] = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 2, hi, lo, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    let mut packet = [&head[..], &src, &dst, payload].concat();
    let mut header = [0; 20];
    header.copy_from_slice(&packet[..20]);
    let sum = !overlay_common::checksum::fold(overlay_common::checksum::sum(&header));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn ipv6(src: Ip16, dst: Ip16, next: u8, payload: &[u8]) -> Vec<u8> {
    let [hi, lo] = (payload.len() as u16).to_be_bytes();
    [
        &[0x60, 0x20, 0, 0, hi, lo, next, 255],
        &src[..],
        &dst,
        payload,
    ]
    .concat()
}

fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let [s0, s1] = src.to_be_bytes();
    let [d0, d1] = dst.to_be_bytes();
    let [l0, l1] = (8 + payload.len() as u16).to_be_bytes();
    [&[s0, s1, d0, d1, l0, l1, 0, 0], payload].concat()
}

/// What an endpoint may send to another.
pub fn inner(src: u8, dst: u8) -> Vec<Vec<u8>> {
    let (from, to) = (mac(src), mac(dst));
    let tcp = [
        &[0x9c, 0x40, 0, 80][..],
        &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0],
    ];
    let tcp = tcp.concat();
    let arp = |dst_ip: [u8; 4]| {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        [&head[..], &from, &ip4(src), &[0; 6], &dst_ip].concat()
    };
    let solicit = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &ip6(dst), &[1, 1], &from].concat();
    let echo = [8, 0, 0, 0, 0, 1, 0, 1, 7, 7, 7, 7];
    let query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";
    let mut first = ipv4(ip4(src), ip4(dst), 17, &udp(1, 2, &[9; 40]));
    first[6] = 0x20;
    vec![
        ethernet(
            to,
            from,
            0x0800,
            &ipv4(ip4(src), ip4(dst), 17, &udp(1, 2, b"hello")),
        ),
        ethernet(to, from, 0x0800, &ipv4(ip4(src), ip4(dst), 6, &tcp)),
        ethernet(to, from, 0x0800, &ipv4(ip4(src), ip4(dst), 1, &echo)),
        ethernet(to, from, 0x0800, &ipv4(ip4(src), [8, 8, 8, 8], 6, &tcp)),
        ethernet(to, from, 0x0800, &ipv4([8, 8, 8, 8], ip4(dst), 6, &tcp)),
        ethernet(
            to,
            from,
            0x0800,
            &ipv4(ip4(src), ip4(dst), 17, &udp(999, 53, query)),
        ),
        ethernet(to, from, 0x0800, &first),
        ethernet(to, from, 0x86dd, &ipv6(ip6(src), ip6(dst), 6, &tcp)),
        ethernet(to, from, 0x86dd, &ipv6(ip6(src), ip6(dst), 58, &solicit)),
        ethernet([0xff; 6], from, 0x0806, &arp(ip4(dst))),
        ethernet([0xff; 6], from, 0x0806, &arp(ip4(77))),
    ]
}

/// What an endpoint may say of its multicast groups, and say to one.
pub fn memberships(src: u8) -> Vec<Vec<u8>> {
    use overlay_common::checksum::fold;
    let (from, group4, all4) = (mac(src), [239, 1, 2, 3], [0x01, 0, 0x5e, 1, 2, 3]);
    let group6: Ip16 = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3];
    let sum = |bytes: &[u8]| -> u32 {
        let word =
            |word: &[u8]| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        bytes.chunks(2).map(word).sum()
    };
    let igmp = |message: &[u8]| {
        let mut message = message.to_vec();
        let sum = !fold(sum(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        ethernet(all4, from, 0x0800, &ipv4(ip4(src), group4, 2, &message))
    };
    let mld = |message: &[u8]| {
        let mut message = message.to_vec();
        let ends = sum(&ip6(src)) + sum(&group6) + message.len() as u32 + 58;
        let sum = !fold(u32::from(fold(sum(&message))) + u32::from(fold(ends)));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let alert = [58, 0, 5, 2, 0, 0, 1, 0];
        let packet = ipv6(ip6(src), group6, 0, &[&alert[..], &message].concat());
        ethernet([0x33, 0x33, 0, 1, 0, 3], from, 0x86dd, &packet)
    };
    let four = |head: [u8; 4], rest: &[u8]| [&head[..], &group4, rest].concat();
    let six = |head: [u8; 8], rest: &[u8]| [&head[..], &group6, rest].concat();
    let join4 = [&[0x22, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0][..], &group4].concat();
    let report4 = [&join4[..], &[3, 1, 0, 1], &group4, &[1; 8]].concat();
    let report6 = [
        &[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 1][..],
        &group6,
        &[1; 16],
    ]
    .concat();
    let to_all = ipv4(ip4(src), group4, 17, &udp(1, 2, b"to all of them"));
    vec![
        igmp(&four([0x11, 100, 0, 0], &[2, 125, 0, 0])),
        igmp(&four([0x12, 0, 0, 0], &[])),
        igmp(&four([0x16, 0, 0, 0], &[])),
        igmp(&four([0x17, 0, 0, 0], &[])),
        igmp(&report4),
        mld(&six([130, 0, 0, 0, 0, 9, 0, 0], &[2, 125, 0, 0])),
        mld(&six([131, 0, 0, 0, 0, 0, 0, 0], &[])),
        mld(&six([132, 0, 0, 0, 0, 0, 0, 0], &[])),
        mld(&report6),
        ethernet(all4, from, 0x0800, &to_all),
    ]
}

/// A frame in a tunnel from the VTEP `src` to `dst`.
pub fn vxlan(src: [u8; 4], dst: [u8; 4], tos: u8, inner: &[u8], v6: bool) -> Vec<u8> {
    let [_, a, b, c] = VNI.to_be_bytes();
    let datagram = udp(50_000, 4789, &[&[8, 0, 0, 0, a, b, c, 0], inner].concat());
    if v6 {
        let mut packet = ipv6(vtep6(src), vtep6(dst), 17, &datagram);
        packet[0] |= tos >> 4;
        packet[1] = tos << 4;
        return ethernet([2; 6], [4; 6], 0x86dd, &packet);
    }
    let mut packet = ipv4(src, dst, 17, &datagram);
    // One header byte more or less: so much the sum is less or more.
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]]));
    let sum = (sum + 0xffff + u32::from(packet[1]) - u32::from(tos)) % 0xffff;
    packet[1] = tos;
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    ethernet([2; 6], [4; 6], 0x0800, &packet)
}
