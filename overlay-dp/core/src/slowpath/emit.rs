//! Writing frames for the punt link: a marker, the outer headers, the inner frame.

use overlay_common::checksum;
use overlay_common::layout::VtepEntry;
use overlay_common::outer::{Meta, OuterV4, OuterV6};
use overlay_common::punt::{self, Kind};
use overlay_common::verdict::EcnRewrite;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, Ip16, Mac};

use super::Output;
use crate::tables::Tables;

/// Where frames go, and what their headers are made from.
pub(super) struct Sink<'a, O> {
    pub tables: &'a Tables,
    pub out: &'a mut O,
}

impl<O: Output> Sink<'_, O> {
    /// Sends an inner frame, with what ECN makes of it, to a port.
    pub fn send_to_port(&mut self, ifindex: u32, vni: u32, inner: &[u8], ecn: Option<EcnRewrite>) {
        self.write_to_port(ifindex, vni, inner.len(), |frame| {
            frame.copy_from_slice(inner);
            if let Some(ecn) = ecn {
                rewrite(frame, ecn);
            }
        });
    }

    /// Has `write` fill an inner frame of `len` bytes for a port.
    pub fn write_to_port(
        &mut self,
        ifindex: u32,
        vni: u32,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let marker = punt::encode(Kind::ToPort, None, ifindex, ETH_P_IP);
        let outer = OuterV4::punted(self.tables.config(), marker, vni);
        self.write(outer.to_bytes(length(len)), len, write);
    }

    /// Sends an inner frame to a VTEP. Who asks has looked whether its next hop is resolved.
    pub fn send_to_vtep(
        &mut self,
        vtep: &VtepEntry,
        dst: &Ip16,
        meta: Meta,
        vni: u32,
        inner: &[u8],
    ) {
        let config = self.tables.config();
        let len = inner.len();
        let copy = |frame: &mut [u8]| frame.copy_from_slice(inner);
        match Family::of(dst) {
            Family::V4 => {
                let (dst_mac, src_mac) = marked(vtep.ifindex, ETH_P_IP);
                let outer = OuterV4 {
                    dst_mac,
                    src_mac,
                    ..OuterV4::to_vtep(config, vtep, dst, meta, vni)
                };
                self.write(outer.to_bytes(length(len)), len, copy);
            }
            Family::V6 => {
                let (dst_mac, src_mac) = marked(vtep.ifindex, ETH_P_IPV6);
                let outer = OuterV6 {
                    dst_mac,
                    src_mac,
                    ..OuterV6::to_vtep(config, vtep, dst, meta, vni)
                };
                self.write(outer.to_bytes(length(len)), len, copy);
            }
        }
    }

    fn write<const N: usize>(
        &mut self,
        header: [u8; N],
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        self.out.frame(N + len, |frame| {
            if let Some((head, inner)) = frame.split_first_chunk_mut() {
                *head = header;
                write(inner);
            }
        });
    }
}

/// The marker of a frame to a VTEP, as outer destination and source address.
fn marked(ifindex: u32, ethertype: u16) -> (Mac, Mac) {
    let marker = punt::encode(Kind::ToVtep, None, ifindex, ethertype);
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = marker;
    ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5])
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn rewrite(inner: &mut [u8], ecn: EcnRewrite) {
    if let Some(byte) = inner.get_mut(ETH_LEN + 1) {
        *byte = ecn.byte1;
    }
    if let (Some(place), Some(checksum)) = (inner.get_mut(ETH_LEN + 10..ETH_LEN + 12), ecn.checksum)
    {
        place.copy_from_slice(&checksum);
    }
}

/// The VNI in outer headers.
pub(super) fn vni<const N: usize>(outer: &[u8; N]) -> u32 {
    u32::from_be_bytes([0, outer[N - 4], outer[N - 3], outer[N - 2]])
}

/// The sum of bytes as 16-bit words (RFC 1071), a last odd one padded with zero.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let (words, last) = bytes.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    sum + last.first().map_or(0, |byte| u32::from(*byte) << 8)
}

/// The checksum of bytes, to which `sum` is added.
pub(super) fn checksum(bytes: &[u8], pseudo_header: u32) -> u16 {
    let sum = u32::from(checksum::fold(sum(bytes)));
    !checksum::fold(sum + u32::from(checksum::fold(pseudo_header)))
}
