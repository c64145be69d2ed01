//! Outer headers come off.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_xdp_adjust_head};
use overlay_common::counters::DropReason;
use overlay_common::verdict::{EcnRewrite, Frame};
use overlay_common::wire::{ETH_LEN, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, be16};

use crate::packet::{Buffer, Packet, Skb, Xdp};

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
        let mut room = Buffer::<ETH_LEN>::new();
        let eth = self.fill(outer_len, &mut room).ok_or(DropReason::Helper)?;
        // The kernel must know the protocol that is left, or it drops super-packets of another one
        // than is outside. Before 6.3 it does not know these flags: there they are lost, but only a
        // veth brings such here.
        //
        // It takes bytes off behind the Ethernet header only, and only while a whole header's worth
        // stays: of the protocol it was told, or else of the outer one. A frame shorter than that
        // is not IP (or came in IPv6 on an old kernel), and padding it is what an Ethernet would do.
        let (flag, kept) = match (family, be16(eth[12], eth[13])) {
            (Family::V4, ETH_P_IPV6) => (BPF_F_ADJ_ROOM_DECAP_L3_IPV6, IPV4_LEN),
            (Family::V4, _) => (0, IPV4_LEN),
            (Family::V6, ETH_P_IPV6) => (0, IPV6_LEN),
            (Family::V6, _) => (BPF_F_ADJ_ROOM_DECAP_L3_IPV4, IPV4_LEN),
        };
        let inner_ip = outer_len + ETH_LEN;
        pad(self, (inner_ip + kept) as u32)?;
        if flag != 0 && shrink(self, outer_len, flag).is_ok() {
            return self.store(0, eth);
        }
        if matches!(family, Family::V6) {
            pad(self, (inner_ip + IPV6_LEN) as u32)?;
        }
        shrink(self, outer_len, 0)?;
        self.store(0, eth)
    }
}

/// Makes the frame `len` bytes long if it is shorter.
#[inline(always)]
fn pad(packet: &mut Skb, len: u32) -> Result<(), DropReason> {
    // SAFETY: `ctx` is the program's own context; no packet pointer is held.
    if packet.total_len() < len && unsafe { bpf_skb_change_tail(packet.ctx, len, 0) } != 0 {
        return Err(DropReason::Helper);
    }
    Ok(())
}

/// Takes the bytes off behind the Ethernet header; when that fails, nothing has changed.
#[inline(always)]
fn shrink(packet: &mut Skb, outer_len: usize, flag: u32) -> Result<(), DropReason> {
    let delta = -(outer_len as i32);
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | flag);
    // SAFETY: `ctx` is the program's own context; no packet pointer is held.
    match unsafe { bpf_skb_adjust_room(packet.ctx, delta, BPF_ADJ_ROOM_MAC, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::Helper),
    }
}
