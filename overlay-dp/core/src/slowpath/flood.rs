//! Broadcast and multicast: a copy for every port of the network, and from a port also for every
//! VTEP with an endpoint in it. What came from a VTEP never goes to another one: it has sent each
//! its own copy.

use overlay_common::checksum;
use overlay_common::counters::DropReason;
use overlay_common::outer::{Meta, decap_ecn, mix};
use overlay_common::verdict::EcnRewrite;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, be16};

use super::Output;
use super::emit::Sink;
use super::port::FromPort;

impl FromPort<'_> {
    pub fn flood(&self, sink: &mut Sink<'_, impl Output>) {
        let vni = self.port.vni;
        for ifindex in self.tables.flood_ports(vni) {
            if ifindex != self.ifindex {
                sink.send_to_port(ifindex, vni, self.inner, None);
            }
        }
        let meta = meta(self.ethertype, self.inner);
        for (dst, vtep) in self.tables.flood_vteps(vni) {
            if vtep.ifindex == 0 {
                sink.out.drop(DropReason::Unresolved);
            } else if self.inner.len() - ETH_LEN > self.port.mtu_to(vtep) as usize {
                sink.out.drop(DropReason::PuntTooBig);
            } else {
                sink.send_to_vtep(vtep, dst, meta, vni, self.inner);
            }
        }
    }
}

/// Gives a frame that came in on the uplink to all ports of its network.
pub(super) fn from_uplink(
    vni: u32,
    inner: &[u8],
    outer_tos: u8,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let ecn = ecn(inner, outer_tos)?;
    let tables = sink.tables;
    for ifindex in tables.flood_ports(vni) {
        sink.send_to_port(ifindex, vni, inner, ecn);
    }
    Ok(())
}

/// TOS and a hash of the addresses. (Ports would take the fragments of one datagram apart.)
fn meta(ethertype: u16, inner: &[u8]) -> Meta {
    let packet = inner.get(ETH_LEN..).unwrap_or_default();
    let (tos, addresses) = match (ethertype, packet) {
        (ETH_P_IP, [_, tos, ..]) => (*tos, packet.get(12..20)),
        (ETH_P_IPV6, [a, b, ..]) => ((a << 4) | (b >> 4), packet.get(8..40)),
        _ => (0, None),
    };
    let (words, _) = addresses.unwrap_or_default().as_chunks::<4>();
    let add = |hash, word: &[u8; 4]| mix(hash, u32::from_ne_bytes(*word));
    Meta {
        tos,
        hash: words.iter().fold(0, add),
    }
}

/// What RFC 6040 makes of the inner header; `None` when it stays as it is.
fn ecn(inner: &[u8], outer_tos: u8) -> Result<Option<EcnRewrite>, DropReason> {
    let Some((eth, packet)) = inner.split_first_chunk::<ETH_LEN>() else {
        return Ok(None);
    };
    let combine = |tos| decap_ecn(tos, outer_tos).ok_or(DropReason::EcnIllegal);
    let (old, new, checksum) = match (be16(eth[12], eth[13]), packet) {
        (ETH_P_IP, [b0, b1, _, _, _, _, _, _, _, _, c0, c1, ..]) => {
            let new = (b1 & !3) | combine(*b1)?;
            let sum = checksum::update(be16(*c0, *c1), be16(*b0, *b1), be16(*b0, new));
            (*b1, new, Some(sum.to_be_bytes()))
        }
        (ETH_P_IPV6, [_, b1, ..]) => (*b1, (b1 & !0x30) | (combine(b1 >> 4)? << 4), None),
        _ => return Ok(None),
    };
    Ok((new != old).then_some(EcnRewrite {
        byte1: new,
        checksum,
    }))
}
