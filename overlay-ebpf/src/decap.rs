//! Outer headers come off.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_xdp_adjust_head};
use overlay_common::counters::DropReason;
use overlay_common::verdict::{EcnRewrite, Frame};
use overlay_common::wire::{ETH_LEN, ETH_P_IPV6, IPV4_LEN, OUTER_V4_LEN, be16};

use crate::packet::{Packet, Skb, Xdp};

/// Where the inner IP header is.
const INNER_IP: usize = OUTER_V4_LEN + ETH_LEN;

/// Taking the outer headers off.
pub trait Decap: Packet {
    fn decap(&mut self) -> Result<(), DropReason>;
}

/// Writes what ECN makes of the inner header, while the outer ones are still there.
#[inline(always)]
pub fn rewrite_ecn<P: Packet>(packet: &mut P, ecn: EcnRewrite) -> Result<(), DropReason> {
    packet.store(INNER_IP + 1, &[ecn.byte1])?;
    match ecn.checksum {
        Some(checksum) => packet.store(INNER_IP + 10, &checksum),
        None => Ok(()),
    }
}

impl Decap for Xdp {
    #[inline(always)]
    fn decap(&mut self) -> Result<(), DropReason> {
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if unsafe { bpf_xdp_adjust_head(self.ctx, OUTER_V4_LEN as i32) } != 0 {
            return Err(DropReason::Helper);
        }
        self.len -= OUTER_V4_LEN as u32;
        Ok(())
    }
}

impl Decap for Skb {
    #[inline(always)]
    fn decap(&mut self) -> Result<(), DropReason> {
        // The kernel takes bytes off behind the Ethernet header only, and only while a whole
        // (outer) IPv4 header's worth stays; a frame shorter than that is not IP, and padding it
        // is what an Ethernet would do.
        const SMALLEST: u32 = (INNER_IP + IPV4_LEN) as u32;
        let eth: [u8; ETH_LEN] = self.load(OUTER_V4_LEN).ok_or(DropReason::Helper)?;
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if self.total_len() < SMALLEST && unsafe { bpf_skb_change_tail(self.ctx, SMALLEST, 0) } != 0
        {
            return Err(DropReason::Helper);
        }
        // The kernel must know the protocol that is left, or it drops IPv6 super-packets. Before 6.3
        // it does not know this flag: there they are lost, but only a veth brings such here.
        let fixed = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        let is_ipv6 = be16(eth[12], eth[13]) == ETH_P_IPV6;
        if is_ipv6 && shrink(self, fixed | u64::from(BPF_F_ADJ_ROOM_DECAP_L3_IPV6)).is_ok() {
            return self.store(0, &eth);
        }
        shrink(self, fixed)?;
        self.store(0, &eth)
    }
}

/// Takes the bytes off behind the Ethernet header; when that fails, nothing has changed.
#[inline(always)]
fn shrink(packet: &mut Skb, flags: u64) -> Result<(), DropReason> {
    const DELTA: i32 = -(OUTER_V4_LEN as i32);
    // SAFETY: `ctx` is the program's own context; no packet pointer is held.
    match unsafe { bpf_skb_adjust_room(packet.ctx, DELTA, BPF_ADJ_ROOM_MAC, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::Helper),
    }
}
