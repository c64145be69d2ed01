//! Outer headers come off.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_xdp_adjust_head};
use overlay_common::counters::DropReason;
use overlay_common::verdict::{EcnRewrite, Frame};
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, be16};

use crate::packet::{Packet, Skb, Xdp};

/// Taking the outer headers off.
pub trait Decap: Packet {
    fn decap(&mut self, family: Family) -> Result<(), DropReason>;
}

/// Writes what ECN makes of the inner header, while the outer ones are still there.
#[inline(always)]
pub fn rewrite_ecn<P: Packet>(
    packet: &mut P,
    family: Family,
    ecn: EcnRewrite,
) -> Result<(), DropReason> {
    let inner_ip = family.outer_len() + ETH_LEN;
    packet.store(inner_ip + 1, &[ecn.byte1])?;
    match ecn.checksum {
        Some(checksum) => packet.store(inner_ip + 10, &checksum),
        None => Ok(()),
    }
}

impl Decap for Xdp {
    #[inline(always)]
    fn decap(&mut self, family: Family) -> Result<(), DropReason> {
        let outer_len = family.outer_len();
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if unsafe { bpf_xdp_adjust_head(self.ctx, outer_len as i32) } != 0 {
            return Err(DropReason::Helper);
        }
        self.len -= outer_len as u32;
        Ok(())
    }
}

impl Decap for Skb {
    #[inline(always)]
    fn decap(&mut self, family: Family) -> Result<(), DropReason> {
        let outer_len = family.outer_len();
        // The kernel takes bytes off behind the Ethernet header only, and only while a whole
        // (outer) IP header's worth stays; a frame shorter than that is not IP or has hardly any
        // payload, and padding it is what an Ethernet would do.
        let kept = match family {
            Family::V4 => IPV4_LEN,
            Family::V6 => IPV6_LEN,
        };
        let smallest = (outer_len + ETH_LEN + kept) as u32;
        let eth: [u8; ETH_LEN] = self.load(outer_len).ok_or(DropReason::Helper)?;
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if self.total_len() < smallest && unsafe { bpf_skb_change_tail(self.ctx, smallest, 0) } != 0
        {
            return Err(DropReason::Helper);
        }
        // The kernel must know the protocol that is left, or it drops super-packets of another one
        // than is outside. Before 6.3 it does not know these flags: there they are lost, but only a
        // veth brings such here.
        let fixed = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        let other = match (family, be16(eth[12], eth[13])) {
            (Family::V4, ETH_P_IPV6) => u64::from(BPF_F_ADJ_ROOM_DECAP_L3_IPV6),
            (Family::V6, ETH_P_IP) => u64::from(BPF_F_ADJ_ROOM_DECAP_L3_IPV4),
            _ => 0,
        };
        if other != 0 && shrink(self, outer_len, fixed | other).is_ok() {
            return self.store(0, &eth);
        }
        shrink(self, outer_len, fixed)?;
        self.store(0, &eth)
    }
}

/// Takes the bytes off behind the Ethernet header; when that fails, nothing has changed.
#[inline(always)]
fn shrink(packet: &mut Skb, outer_len: usize, flags: u64) -> Result<(), DropReason> {
    let delta = -(outer_len as i32);
    // SAFETY: `ctx` is the program's own context; no packet pointer is held.
    match unsafe { bpf_skb_adjust_room(packet.ctx, delta, BPF_ADJ_ROOM_MAC, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::Helper),
    }
}
