//! The outer headers of a VXLAN frame (RFC 7348 section 5) and what goes between inner and
//! outer: ECN (RFC 6040), DSCP, flow entropy.
//!
//! The UDP checksum is 0 over IPv6, too, as RFC 6935 allows tunnels: BPF can't sum a super-packet
//! whose segments do not exist yet. What that gives up (RFC 6936 section 3) is covered otherwise:
//! a packet whose addresses or ports were corrupted is for no VTEP, from no known one or for no
//! known VNI, and what is inside has checksums of its own. A Linux vxlan device takes such packets
//! with `udp6zerocsumrx` only; received are both kinds.

use crate::checksum;
use crate::layout::{Config, VtepEntry};
use crate::punt;
use crate::wire::{
    ETH_P_IP, ETH_P_IPV6, Ip16, Mac, OUTER_V4_LEN, OUTER_V6_LEN, PROTO_UDP, UDP_LEN,
    VXLAN_FLAG_VNI, VXLAN_LEN, half, unmap_v4,
};

/// What is behind the outer Ethernet header of a frame with IPv4 outside.
const BEHIND_ETH: usize = OUTER_V4_LEN - 14;

/// What an outer IPv4 header stack is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterV4 {
    /// Outer destination MAC.
    pub dst_mac: Mac,
    /// Outer source MAC.
    pub src_mac: Mac,
    /// Outer source address.
    pub src: [u8; 4],
    /// Outer destination address.
    pub dst: [u8; 4],
    /// TOS byte: DSCP and ECN of the inner packet.
    pub tos: u8,
    /// UDP source port, from [`source_port`].
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// The network, 24 bits, host order.
    pub vni: u32,
}

impl OuterV4 {
    /// The headers of a frame to `vtep` at the address `dst`.
    #[inline(always)]
    pub fn to_vtep(config: &Config, vtep: &VtepEntry, dst: &Ip16, meta: Meta, vni: u32) -> OuterV4 {
        OuterV4 {
            dst_mac: vtep.dst_mac,
            src_mac: vtep.src_mac,
            src: unmap_v4(&vtep.src_ip),
            dst: unmap_v4(dst),
            tos: meta.tos,
            src_port: source_port(meta.hash),
            dst_port: config.data_port,
            vni,
        }
    }

    /// The headers of a frame that goes to the agent: `marker` first, from this host's VTEP to
    /// itself. Over an IPv6 underlay, too, it looks so, with the last four bytes of the address:
    /// it never leaves the host.
    #[inline(always)]
    pub fn punted(config: &Config, marker: [u8; 14], vni: u32) -> OuterV4 {
        let vtep = unmap_v4(&config.vtep);
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = marker;
        OuterV4 {
            dst_mac: [d0, d1, d2, d3, d4, d5],
            src_mac: [s0, s1, s2, s3, s4, s5],
            src: vtep,
            dst: vtep,
            tos: 0,
            src_port: source_port(0),
            dst_port: config.data_port,
            vni,
        }
    }

    /// The bytes in front of an inner frame of `inner_len` bytes: Ethernet 14, IPv4 20 (DF, TTL
    /// 64, no options), UDP 8 (checksum 0, as RFC 7348 asks on IPv4), VXLAN 8.
    #[inline(always)]
    pub fn to_bytes(&self, inner_len: u32) -> [u8; OUTER_V4_LEN] {
        let udp_len = udp_len(inner_len);
        let (dm, sm) = (&self.dst_mac, &self.src_mac);
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        // As they lie in memory, two bytes each: of single ones a BPF program would have to put
        // every word together.
        let ip = [
            u16::from_ne_bytes([0x45, self.tos]),
            udp_len.wrapping_add(20).to_be(),
            0,
            0x4000_u16.to_be(), // don't fragment
            u16::from_ne_bytes([64, PROTO_UDP]),
            half(&self.src, 0),
            half(&self.src, 2),
            half(&self.dst, 0),
            half(&self.dst, 2),
        ];
        let sum = ip.iter().fold(0, |sum, word| sum + *word as u32);
        let halves = [
            half(dm, 0),
            half(dm, 2),
            half(dm, 4),
            half(sm, 0),
            half(sm, 2),
            half(sm, 4),
            ETH_P_IP.to_be(),
            ip[0],
            ip[1],
            ip[2],
            ip[3],
            ip[4],
            !checksum::fold(sum),
            ip[5],
            ip[6],
            ip[7],
            ip[8],
            self.src_port.to_be(),
            self.dst_port.to_be(),
            udp_len.to_be(),
            0,
            u16::from_ne_bytes([VXLAN_FLAG_VNI, 0]),
            0,
            u16::from_ne_bytes([v0, v1]),
            u16::from_ne_bytes([v2, 0]),
        ];
        let mut bytes = [0; OUTER_V4_LEN];
        let (pairs, _) = bytes.as_chunks_mut();
        let mut i = 0;
        while i < halves.len() {
            pairs[i] = halves[i].to_ne_bytes();
            i += 1;
        }
        bytes
    }
}

/// What an outer IPv6 header stack is made from. It borrows the addresses: a copy of them is more
/// than a BPF program's registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterV6<'a> {
    /// Outer destination MAC.
    pub dst_mac: Mac,
    /// Outer source MAC.
    pub src_mac: Mac,
    /// Outer source address.
    pub src: &'a Ip16,
    /// Outer destination address.
    pub dst: &'a Ip16,
    /// Traffic class: DSCP and ECN of the inner packet.
    pub tos: u8,
    /// From [`flow_label`].
    pub flow_label: u32,
    /// UDP source port, from [`source_port`].
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// The network, 24 bits, host order.
    pub vni: u32,
}

impl<'a> OuterV6<'a> {
    /// The headers of a frame to `vtep` at the address `dst`.
    #[inline(always)]
    pub fn to_vtep(
        config: &Config,
        vtep: &'a VtepEntry,
        dst: &'a Ip16,
        meta: Meta,
        vni: u32,
    ) -> OuterV6<'a> {
        OuterV6 {
            dst_mac: vtep.dst_mac,
            src_mac: vtep.src_mac,
            src: &vtep.src_ip,
            dst,
            tos: meta.tos,
            flow_label: flow_label(meta.hash),
            src_port: source_port(meta.hash),
            dst_port: config.data_port,
            vni,
        }
    }

    /// The bytes in front of an inner frame of `inner_len` bytes: Ethernet 14, IPv6 40 (hop limit
    /// 64, no extensions), UDP 8 (checksum 0), VXLAN 8. They are [`OuterV6::head`], source and
    /// destination address, and [`OuterV6::tail`].
    pub fn to_bytes(&self, inner_len: u32) -> [u8; OUTER_V6_LEN] {
        let mut bytes = [0; OUTER_V6_LEN];
        bytes[..22].copy_from_slice(&self.head(inner_len));
        bytes[22..38].copy_from_slice(self.src);
        bytes[38..54].copy_from_slice(self.dst);
        bytes[54..].copy_from_slice(&self.tail(inner_len));
        bytes
    }

    /// What is in front of the addresses.
    #[inline(always)]
    #[rustfmt::skip]
    pub fn head(&self, inner_len: u32) -> [u8; 22] {
        let [l0, l1] = udp_len(inner_len).to_be_bytes();
        let [t0, t1] = ETH_P_IPV6.to_be_bytes();
        let first = 6 << 28 | (self.tos as u32) << 20 | self.flow_label;
        let [f0, f1, f2, f3] = first.to_be_bytes();
        let (dm, sm) = (self.dst_mac, self.src_mac);
        [
            dm[0], dm[1], dm[2], dm[3], dm[4], dm[5], sm[0], sm[1], sm[2], sm[3], sm[4], sm[5],
            t0, t1, f0, f1, f2, f3, l0, l1, PROTO_UDP, 64,
        ]
    }

    /// What is behind the addresses.
    #[inline(always)]
    #[rustfmt::skip]
    pub fn tail(&self, inner_len: u32) -> [u8; 16] {
        let [l0, l1] = udp_len(inner_len).to_be_bytes();
        let [sp0, sp1] = self.src_port.to_be_bytes();
        let [dp0, dp1] = self.dst_port.to_be_bytes();
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        [sp0, sp1, dp0, dp1, l0, l1, 0, 0, VXLAN_FLAG_VNI, 0, 0, 0, v0, v1, v2, 0]
    }
}

/// The UDP length in front of an inner frame.
#[inline(always)]
const fn udp_len(inner_len: u32) -> u16 {
    ((UDP_LEN + VXLAN_LEN) as u32 + inner_len) as u16
}

/// What the inner packet contributes to its outer header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The inner TOS or traffic class byte; 0 when the inner frame is not IP.
    pub tos: u8,
    /// The flow hash.
    pub hash: u32,
}

/// The UDP source port for a flow: 49152 to 65535 (RFC 7348 section 5).
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    let mixed = hash ^ (hash >> 16);
    0xc000 | (mixed & 0x3fff) as u16
}

/// The IPv6 flow label for a flow (RFC 6438): 20 bits, never 0, which would mean none.
#[inline(always)]
pub const fn flow_label(hash: u32) -> u32 {
    let label = hash >> 12;
    if label == 0 { 1 } else { label }
}

/// Mixes one more word into a flow hash. (A multiply-and-xor-shift round; the constant is
/// 2^32 divided by the golden ratio.)
#[inline(always)]
pub const fn mix(hash: u32, word: u32) -> u32 {
    let h = (hash ^ word).wrapping_mul(0x9e37_79b9);
    h ^ (h >> 15)
}

/// The inner ECN field after decapsulation (RFC 6040 section 4.2, figure 4), or `None` when the
/// packet must be dropped.
#[inline(always)]
pub const fn decap_ecn(inner_tos: u8, outer_tos: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    let inner = inner_tos & 3;
    match (inner, outer_tos & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT0, ECT1) => Some(ECT1),
        _ => Some(inner),
    }
}

const _: () = assert!(OUTER_V4_LEN == 50 && BEHIND_ETH == 36 && punt::MTU > 1500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rfc_7348() {
        let outer = OuterV4 {
            dst_mac: [1, 2, 3, 4, 5, 6],
            src_mac: [7, 8, 9, 10, 11, 12],
            src: [172, 31, 1, 5],
            dst: [192, 168, 1, 5],
            tos: 0xb9,
            src_port: 0xc001,
            dst_port: 4789,
            vni: 0x123456,
        };
        let b = outer.to_bytes(100);
        assert_eq!(&b[..14], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0]);
        let ip: [u8; 20] = b[14..34].try_into().unwrap();
        assert_eq!(checksum::fold(checksum::sum(&ip)), 0xffff);
        assert_eq!(
            (ip[0], ip[1], u16::from_be_bytes([ip[2], ip[3]])),
            (0x45, 0xb9, 136)
        );
        assert_eq!((ip[6], ip[8], ip[9]), (0x40, 64, 17));
        assert_eq!(&b[34..42], &[0xc0, 1, 0x12, 0xb5, 0, 116, 0, 0]);
        assert_eq!(&b[42..], &[8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn bytes_over_ipv6() {
        let (src, dst) = ([0xfd; 16], core::array::from_fn(|i| i as u8));
        let outer = OuterV6 {
            dst_mac: [1, 2, 3, 4, 5, 6],
            src_mac: [7, 8, 9, 10, 11, 12],
            src: &src,
            dst: &dst,
            tos: 0xb9,
            flow_label: 0xabcde,
            src_port: 0xc001,
            dst_port: 4789,
            vni: 0x123456,
        };
        let b = outer.to_bytes(100);
        assert_eq!(b[..14], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd]);
        assert_eq!(b[14..22], [0x6b, 0x9a, 0xbc, 0xde, 0, 116, 17, 64]);
        assert_eq!(b[22..38], src);
        assert_eq!(b[38..54], dst);
        assert_eq!(b[54..62], [0xc0, 1, 0x12, 0xb5, 0, 116, 0, 0]);
        assert_eq!(b[62..], [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!((flow_label(0xfff), flow_label(u32::MAX)), (1, 0xfffff));
    }

    #[test]
    fn source_ports_stay_in_the_dynamic_range_and_spread() {
        let mut seen = [false; 0x4000];
        for flow in 0..65536_u32 {
            let port = source_port(mix(mix(0, 0x0a00_0002), flow));
            assert!(port >= 49152);
            seen[usize::from(port & 0x3fff)] = true;
        }
        assert!(seen.iter().filter(|s| **s).count() > 15_000);
    }

    /// RFC 6040 figure 4, row by row: inner, then outer Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn ecn_table() {
        let rows = [
            (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
            (0b10, [Some(0b10), Some(0b10), Some(0b01), Some(0b11)]),
            (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
            (0b11, [Some(0b11), Some(0b11), Some(0b11), Some(0b11)]),
        ];
        for (inner, results) in rows {
            for (outer, expected) in [0b00, 0b10, 0b01, 0b11].into_iter().zip(results) {
                assert_eq!(
                    decap_ecn(0xb8 | inner, 0x20 | outer),
                    expected,
                    "{inner:02b} {outer:02b}"
                );
            }
        }
    }
}
