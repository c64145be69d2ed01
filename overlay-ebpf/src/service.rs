//! Frames to a service's own address get a backend's, and its answers get the service's back.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_NO_PREALLOC, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use overlay_common::checksum::fold;
use overlay_common::counters::DropReason;
use overlay_common::service::{self, Connections, Flow, FlowKey, Peer, SlotKey, l4_at};
use overlay_common::wire::{ETH_LEN, Family, Ip16, Mac, PROTO_TCP, PROTO_UDP, mac_eq, unmap_v4};

use crate::maps::Maps;
use crate::packet::{Buffer, Packet, Skb, Xdp};

#[map]
static OVL_SLOTS: HashMap<SlotKey, Peer> = HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
/// Two for each connection: there and back. The longest idle one goes when it is full.
#[map]
static OVL_FLOWS: LruHashMap<FlowKey, Peer> = LruHashMap::pinned(1 << 17, 0);

impl Connections for Maps {
    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<&Peer> {
        // SAFETY: as with the other tables in `maps`: not preallocated, written by the agent alone.
        unsafe { OVL_SLOTS.get(key) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Peer> {
        // SAFETY: the element lives until the end of the program. The kernel may give it to another
        // flow meanwhile when it is the longest idle of a full map: then this frame goes astray, as
        // it would without its flow.
        unsafe { OVL_FLOWS.get(key) }
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, peer: &Peer) {
        // When there is no room, the next frame finds the same slot.
        let _ = OVL_FLOWS.insert(key, peer, 0);
    }
}

/// What has become of a frame to a service's address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Balanced {
    /// It is for a backend now.
    Sent,
    /// It is for who sent it.
    Back,
    /// There is no backend, or it is no frame of a connection.
    No,
}

/// Addresses a frame to a VIP to a backend instead.
#[inline(never)]
pub fn balance<P: Rewrite>(packet: &mut P, vni: u32) -> Result<Balanced, DropReason> {
    let Some(flow) = Flow::of(packet, vni) else {
        return Ok(Balanced::No);
    };
    let vip_mac: Mac = packet.load(0).ok_or(DropReason::Truncated)?;
    let from: Mac = packet.load(6).ok_or(DropReason::Truncated)?;
    let Some(peer) = service::choose(&flow.key, &from, &vip_mac, &Maps, &Maps) else {
        return Ok(Balanced::No);
    };
    if !mac_eq(&peer.mac, &from) {
        packet.store(0, &peer.mac)?;
        readdress(packet, &flow, End::Destination, &peer.ip)?;
        return Ok(Balanced::Sent);
    }
    packet.store(0, &from)?;
    packet.store(6, &vip_mac)?;
    // Sums don't change when two of their words change places.
    put_address(packet, flow.family, End::Source, &flow.key.dst)?;
    put_address(packet, flow.family, End::Destination, &flow.key.src)?;
    Ok(Balanced::Back)
}

/// Has an answer come from the VIP that was asked, if it is one.
#[inline(never)]
pub fn answer_as_vip<P: Rewrite>(packet: &mut P, vni: u32) -> Result<(), DropReason> {
    let Some(flow) = Flow::of(packet, vni) else {
        return Ok(());
    };
    let Some(vip) = Maps.flow(&flow.key).copied() else {
        return Ok(());
    };
    packet.store(6, &vip.mac)?;
    readdress(packet, &flow, End::Source, &vip.ip)
}

/// Which of the two addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

impl End {
    /// Where the address is in a frame.
    #[inline(always)]
    fn offset(self, family: Family) -> usize {
        match (family, self) {
            (Family::V4, End::Source) => ETH_LEN + 12,
            (Family::V4, End::Destination) => ETH_LEN + 16,
            (Family::V6, End::Source) => ETH_LEN + 8,
            (Family::V6, End::Destination) => ETH_LEN + 24,
        }
    }
}

/// Replaces an address, and mends the checksums that cover it.
#[inline(always)]
fn readdress<P: Rewrite>(
    packet: &mut P,
    flow: &Flow,
    end: End,
    new: &Ip16,
) -> Result<(), DropReason> {
    let old = match end {
        End::Source => &flow.key.src,
        End::Destination => &flow.key.dst,
    };
    let difference = difference(old, new);
    if matches!(flow.family, Family::V4) {
        packet.mend_header_sum(ETH_LEN + 10, difference)?;
    }
    let at = l4_at(flow.family);
    if flow.key.protocol == PROTO_TCP as u32 {
        packet.mend_sum(at + 16, difference, PROTO_TCP)?;
    } else {
        packet.mend_sum(at + 6, difference, PROTO_UDP)?;
    }
    put_address(packet, flow.family, end, new)
}

#[inline(always)]
fn put_address<P: Packet>(
    packet: &mut P,
    family: Family,
    end: End,
    ip: &Ip16,
) -> Result<(), DropReason> {
    match family {
        Family::V4 => packet.store(end.offset(family), &unmap_v4(ip)),
        Family::V6 => packet.store(end.offset(family), ip),
    }
}

/// What the sum of the 16-bit words changes by; the prefix of IPv4-mapped addresses adds nothing.
#[inline(always)]
fn difference(old: &Ip16, new: &Ip16) -> u32 {
    // SAFETY: both point to 16 readable bytes, which the helper only reads.
    unsafe {
        bpf_csum_diff(
            old.as_ptr().cast_mut().cast(),
            16,
            new.as_ptr().cast_mut().cast(),
            16,
            0,
        ) as u32
    }
}

/// Changing what checksums cover.
pub trait Rewrite: Packet {
    /// Mends an IPv4 header's checksum.
    fn mend_header_sum(&mut self, at: usize, difference: u32) -> Result<(), DropReason>;

    /// Mends the checksum of TCP or UDP, whose pseudo-header has changed.
    fn mend_sum(&mut self, at: usize, difference: u32, protocol: u8) -> Result<(), DropReason>;
}

impl Rewrite for Skb {
    #[inline(always)]
    fn mend_header_sum(&mut self, at: usize, difference: u32) -> Result<(), DropReason> {
        // SAFETY: the helper checks the offset; no packet pointer is held.
        match unsafe { bpf_l3_csum_replace(self.ctx, at as u32, 0, difference.into(), 0) } {
            0 => Ok(()),
            _ => Err(DropReason::Helper),
        }
    }

    #[inline(always)]
    fn mend_sum(&mut self, at: usize, difference: u32, protocol: u8) -> Result<(), DropReason> {
        // One that is still to be computed covers the pseudo-header only: the kernel knows.
        let mut flags = BPF_F_PSEUDO_HDR as u64;
        if protocol == PROTO_UDP {
            flags |= BPF_F_MARK_MANGLED_0 as u64;
        }
        // SAFETY: as above.
        match unsafe { bpf_l4_csum_replace(self.ctx, at as u32, 0, difference.into(), flags) } {
            0 => Ok(()),
            _ => Err(DropReason::Helper),
        }
    }
}

impl Rewrite for Xdp {
    #[inline(always)]
    fn mend_header_sum(&mut self, at: usize, difference: u32) -> Result<(), DropReason> {
        mend(self, at, difference, false)
    }

    #[inline(always)]
    fn mend_sum(&mut self, at: usize, difference: u32, protocol: u8) -> Result<(), DropReason> {
        mend(self, at, difference, protocol == PROTO_UDP)
    }
}

/// RFC 1624, equation 3. UDP says with 0 that there is no checksum.
#[inline(always)]
fn mend(packet: &mut Xdp, at: usize, difference: u32, udp: bool) -> Result<(), DropReason> {
    let mut room = Buffer::<2>::new();
    let old = *packet.fill(at, &mut room).ok_or(DropReason::Truncated)?;
    let old = u16::from_ne_bytes(old);
    if udp && old == 0 {
        return Ok(());
    }
    // The order of bytes does not matter to such sums, as long as it is one.
    let new = !fold(u32::from(!old) + u32::from(fold(difference)));
    let new = if udp && new == 0 { 0xffff } else { new };
    packet.store(at, &new.to_ne_bytes())
}
