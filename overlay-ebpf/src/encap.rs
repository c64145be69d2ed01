//! Outer headers go on.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::bpf_f_adj_room_encap_l2;
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_change_head, bpf_xdp_adjust_head};
use overlay_common::counters::DropReason;
use overlay_common::outer::{OuterV4, OuterV6};
use overlay_common::verdict::Frame;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV6_LEN, OUTER_V4_LEN, OUTER_V6_LEN};

use crate::packet::{Buffer, Packet, Skb, Xdp};

/// Why a frame got no outer headers.
pub enum EncapError {
    /// The hook can't do it for such a frame, which is as it was: the agent may be able to.
    Unable,
    /// It went wrong half-way.
    Failed(DropReason),
}

impl From<DropReason> for EncapError {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        EncapError::Failed(reason)
    }
}

/// Outer headers.
pub trait Headers {
    /// How many bytes they are.
    const LEN: usize;
    /// What the kernel is told about them.
    const L3: u32;

    /// Writes them over the frame's first bytes, in front of an inner frame of `inner_len` bytes.
    fn write<P: Packet>(&self, packet: &mut P, inner_len: u32) -> Result<(), DropReason>;
}

impl Headers for OuterV4 {
    const LEN: usize = OUTER_V4_LEN;
    const L3: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    #[inline(always)]
    fn write<P: Packet>(&self, packet: &mut P, inner_len: u32) -> Result<(), DropReason> {
        packet.store(0, &self.to_bytes(inner_len))
    }
}

impl Headers for OuterV6<'_> {
    const LEN: usize = OUTER_V6_LEN;
    const L3: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

    // In pieces, the addresses straight out of the maps: all bytes together take more than the
    // stack has (see `Buffer`).
    #[inline(always)]
    fn write<P: Packet>(&self, packet: &mut P, inner_len: u32) -> Result<(), DropReason> {
        packet.store(0, &self.head(inner_len))?;
        packet.store(ETH_LEN + 8, self.src)?;
        packet.store(ETH_LEN + 24, self.dst)?;
        packet.store(ETH_LEN + IPV6_LEN, &self.tail(inner_len))
    }
}

/// Putting outer headers in front.
pub trait Encap: Packet {
    /// For the wire: the kernel, too, knows it as a tunnel then, and can segment and checksum it.
    fn encap<H: Headers>(&mut self, outer: &H) -> Result<(), EncapError>;

    /// For the punt link: mere bytes in front, whatever the frame is.
    fn prepend<H: Headers>(&mut self, outer: &H) -> Result<(), DropReason>;
}

impl Encap for Xdp {
    #[inline(always)]
    fn encap<H: Headers>(&mut self, outer: &H) -> Result<(), EncapError> {
        Ok(self.prepend(outer)?)
    }

    #[inline(always)]
    fn prepend<H: Headers>(&mut self, outer: &H) -> Result<(), DropReason> {
        let inner_len = self.len;
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if unsafe { bpf_xdp_adjust_head(self.ctx, -(H::LEN as i32)) } != 0 {
            return Err(DropReason::Helper);
        }
        self.len += H::LEN as u32;
        outer.write(self, inner_len)
    }
}

impl Encap for Skb {
    #[inline(always)]
    fn encap<H: Headers>(&mut self, outer: &H) -> Result<(), EncapError> {
        // The room is made behind the Ethernet header, with its own length announced as the inner
        // layer 2's: this is what makes segmentation offload work. Any other length breaks it,
        // and without FIXED_GSO the segments would shrink. UDP checksum offload is a flag of its
        // own that stays off, as RFC 7348 wants.
        let flags = (H::L3
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
            | BPF_F_ADJ_ROOM_FIXED_GSO) as u64
            | bpf_f_adj_room_encap_l2(ETH_LEN as u64);

        let protocol = self.protocol();
        if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
            return Err(EncapError::Unable);
        }
        let inner_len = self.total_len();
        let mut room = Buffer::<ETH_LEN>::new();
        let eth = self.fill(0, &mut room).ok_or(DropReason::Helper)?;
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        let result =
            unsafe { bpf_skb_adjust_room(self.ctx, H::LEN as i32, BPF_ADJ_ROOM_MAC, flags) };
        if result != 0 {
            // A tunnel inside, or a kind of super-packet the kernel can't tunnel: it has looked
            // before it changed anything.
            return Err(EncapError::Unable);
        }
        outer.write(self, inner_len)?;
        self.store(H::LEN, eth)?;
        Ok(())
    }

    #[inline(always)]
    fn prepend<H: Headers>(&mut self, outer: &H) -> Result<(), DropReason> {
        let inner_len = self.total_len();
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if unsafe { bpf_skb_change_head(self.ctx, H::LEN as u32, 0) } != 0 {
            return Err(DropReason::Helper);
        }
        outer.write(self, inner_len)
    }
}
