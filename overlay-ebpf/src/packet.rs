//! The only code that touches a packet: every access is checked against the packet's bounds, and
//! packet pointers are derived anew for each one, so that none survives a change of the packet.

use core::arch::asm;
use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail,
    bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_xdp_adjust_tail,
    bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use overlay_common::bulk::{self, Segment};
use overlay_common::counters::DropReason;
use overlay_common::verdict::Frame;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, PROTO_TCP, be16};

use crate::maps::{BULK_SLOTS, OVL_BULK};

/// A frame in a hook: it can be changed and sent, too. All fail with [`DropReason::Helper`].
pub trait Packet: Frame {
    /// What the hook returns to give the frame to the host's network stack.
    const PASS: i32;
    /// What the hook returns to drop the frame.
    const DROP: i32;

    /// The interface that the frame came in on.
    fn ifindex(&self) -> u32;

    /// Copies `N` bytes at `offset`, an even number, to `room`; `None` when the frame ends before.
    fn fill<'r, const N: usize>(
        &self,
        offset: usize,
        room: &'r mut Buffer<N>,
    ) -> Option<&'r mut [u8; N]>;

    /// Overwrites `N` bytes at `offset`.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason>;

    /// Cuts the frame to `len` bytes, which are fewer than it has.
    fn cut(&mut self, len: u32) -> Result<(), DropReason>;

    /// Sends the frame out of an interface.
    fn redirect(&self, ifindex: u32) -> Result<i32, DropReason>;

    /// Gives the frame to the container behind a port, the fastest way the hook knows.
    fn deliver(&self, port: u32) -> Result<i32, DropReason>;
}

/// Room for bytes of a packet on the stack, aligned so that words can be read from it.
///
/// Without it the compiler keeps each byte of a header in a register of its own, or rather, as
/// there are ten of them, in eight bytes of the 512 that the stack has.
#[repr(C, align(8))]
pub struct Buffer<const N: usize>(MaybeUninit<[u8; N]>);

impl<const N: usize> Buffer<N> {
    #[inline(always)]
    pub fn new() -> Self {
        Buffer(MaybeUninit::uninit())
    }

    #[inline(always)]
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }

    /// Copies `N` bytes in.
    ///
    /// # Safety
    /// `from` must point to `N` readable bytes of a packet.
    #[inline(always)]
    unsafe fn copy_from(&mut self, from: *const u8) {
        let to = self.as_mut_ptr();
        let mut i = 0;
        // SAFETY: in all of these, what is read ends at N or before, and both sides have N bytes.
        // The buffer is aligned for eight bytes, and `i` is a multiple of what is written. Frames
        // begin at even addresses and all offsets in them are even, so pairs are aligned there, too.
        unsafe {
            while i + 8 <= N {
                to.add(i).cast::<u64>().write(read_8(from.add(i)));
                i += 8;
            }
            if i + 4 <= N {
                to.add(i).cast::<u32>().write(read_4(from.add(i)));
                i += 4;
            }
            if i + 2 <= N {
                to.add(i)
                    .cast::<u16>()
                    .write(from.add(i).cast::<u16>().read());
                i += 2;
            }
            if i < N {
                to.add(i).write(from.add(i).read());
            }
        }
    }

    /// The bytes, in memory: the compiler can't know what is in there.
    ///
    /// # Safety
    /// All of them must have been written.
    #[inline(always)]
    unsafe fn filled(&mut self) -> &mut [u8; N] {
        black_box(self.as_mut_ptr());
        // SAFETY: as the caller promises.
        unsafe { self.0.assume_init_mut() }
    }
}

// Words of a packet, wherever it begins: the kernel lets a program read them on processors that can
// (x86, arm64), the compiler would do it byte by byte.

/// Reads eight bytes.
///
/// # Safety
/// `from` must point to eight readable bytes of a packet.
#[inline(always)]
unsafe fn read_8(from: *const u8) -> u64 {
    let word;
    // SAFETY: one instruction, which reads what the caller promises.
    unsafe {
        asm!("{word} = *(u64 *)({from} + 0)", from = in(reg) from, word = lateout(reg) word, options(readonly, nostack));
    }
    word
}

/// Reads four bytes.
///
/// # Safety
/// `from` must point to four readable bytes of a packet.
#[inline(always)]
unsafe fn read_4(from: *const u8) -> u32 {
    let word: u64;
    // SAFETY: one instruction, which reads what the caller promises.
    unsafe {
        asm!("{word} = *(u32 *)({from} + 0)", from = in(reg) from, word = lateout(reg) word, options(readonly, nostack));
    }
    word as u32
}

/// A frame in native XDP.
pub struct Xdp {
    pub(crate) ctx: *mut xdp_md,
    /// Its length, pages behind the first one included.
    pub(crate) len: u32,
}

impl Xdp {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Xdp {
        Xdp {
            ctx: context.ctx,
            // SAFETY: `ctx` is the program's own context.
            len: unsafe { bpf_xdp_get_buff_len(context.ctx) } as u32,
        }
    }

    /// Where `N` bytes at `offset` are. Valid until the packet is next changed in size.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // SAFETY: `ctx` is the program's own context; the kernel makes these two reads pointers.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        if data + offset + N > end {
            return None;
        }
        Some((data + offset) as *mut [u8; N])
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn read<const N: usize, R>(
        &self,
        offset: usize,
        take: impl FnOnce(&[u8; N]) -> R,
    ) -> Option<R> {
        self.fill(offset, &mut Buffer::new())
            .map(|bytes| take(bytes))
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }
}

impl Packet for Xdp {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn fill<'r, const N: usize>(
        &self,
        offset: usize,
        room: &'r mut Buffer<N>,
    ) -> Option<&'r mut [u8; N]> {
        let from = self.at::<N>(offset)?;
        // SAFETY: `at` has seen that N bytes lie between data and data_end, and nothing has
        // changed the packet since.
        unsafe { room.copy_from(from.cast()) };
        // SAFETY: just written.
        Some(unsafe { room.filled() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        let to = self.at::<N>(offset).ok_or(DropReason::Helper)?;
        let to = to.cast::<u8>();
        // In pairs and in order: as one value, all would be in registers (see `Buffer`) at once.
        let mut i = 0;
        while i + 1 < N {
            let pair = u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
            // SAFETY: `at` has seen N bytes, and i + 2 <= N; XDP owns the packet and may write it.
            unsafe { to.add(i).cast::<u16>().write(pair) };
            i += 2;
        }
        if i < N {
            // SAFETY: as above, with i < N.
            unsafe { to.add(i).write(bytes[i]) };
        }
        Ok(())
    }

    #[inline(always)]
    fn cut(&mut self, len: u32) -> Result<(), DropReason> {
        let delta = len as i32 - self.len as i32;
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        if unsafe { bpf_xdp_adjust_tail(self.ctx, delta) } != 0 {
            return Err(DropReason::Helper);
        }
        self.len = len;
        Ok(())
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> Result<i32, DropReason> {
        // SAFETY: the helper takes numbers only, and any number.
        match unsafe { bpf_redirect(ifindex, 0) } as u32 {
            xdp_action::XDP_REDIRECT => Ok(xdp_action::XDP_REDIRECT as i32),
            _ => Err(DropReason::Helper),
        }
    }

    #[inline(always)]
    fn deliver(&self, port: u32) -> Result<i32, DropReason> {
        self.redirect(port)
    }
}

/// A frame at tcx ingress.
pub struct Skb {
    pub(crate) ctx: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(context: &TcContext) -> Skb {
        Skb {
            ctx: context.skb.skb,
        }
    }

    /// Whether this TCP segment for a port is one of many: see [`bulk`].
    #[inline(always)]
    fn is_bulk(&self, port: u32) -> bool {
        let Some(bulk) = OVL_BULK.get_ptr_mut(port % BULK_SLOTS) else {
            return false;
        };
        let segment = if self.gso_size() != 0 {
            Segment::Joined
        } else if self.total_len() >= bulk::FULL_SEGMENT {
            Segment::Full
        } else {
            Segment::Short
        };
        // SAFETY: the helper takes nothing. The slot is aligned, lives as long as the map, and is
        // this CPU's: softirqs, in which this runs, do not interrupt one another.
        unsafe { (*bulk).takes_long_way(bpf_ktime_get_coarse_ns() >> bulk::WINDOW_SHIFT, segment) }
    }

    /// The EtherType that the kernel believes the frame to have.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: `ctx` is the program's own context.
        u16::from_be(unsafe { (*self.ctx).protocol } as u16)
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn read<const N: usize, R>(
        &self,
        offset: usize,
        take: impl FnOnce(&[u8; N]) -> R,
    ) -> Option<R> {
        self.fill(offset, &mut Buffer::new())
            .map(|bytes| take(bytes))
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context.
        unsafe { (*self.ctx).len }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context.
        unsafe { (*self.ctx).gso_size }
    }

    #[inline(always)]
    fn has_vlan_aside(&self) -> bool {
        // SAFETY: `ctx` is the program's own context.
        unsafe { (*self.ctx).vlan_present != 0 }
    }

    #[inline(always)]
    fn may_have_sum_aside(&self) -> bool {
        true
    }
}

impl Packet for Skb {
    const PASS: i32 = TC_ACT_UNSPEC;
    const DROP: i32 = TC_ACT_SHOT;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context.
        unsafe { (*self.ctx).ifindex }
    }

    #[inline(always)]
    fn fill<'r, const N: usize>(
        &self,
        offset: usize,
        room: &'r mut Buffer<N>,
    ) -> Option<&'r mut [u8; N]> {
        // SAFETY: `ctx` is the program's own context; the kernel makes these two reads pointers.
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        if data + offset + N <= end {
            // SAFETY: N bytes lie between data and data_end, as just seen.
            unsafe { room.copy_from((data + offset) as *const u8) };
        } else {
            // Behind the linear part. Copied, because pulling it in would have the kernel copy
            // the whole head of each frame that TCP keeps a clone of.
            // SAFETY: the destination is N writable bytes.
            let result = unsafe {
                bpf_skb_load_bytes(
                    self.ctx.cast(),
                    offset as u32,
                    room.as_mut_ptr().cast(),
                    N as u32,
                )
            };
            if result != 0 {
                return None;
            }
        }
        // SAFETY: written on either way.
        Some(unsafe { room.filled() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        // Direct writes would have the kernel unclone every frame before the program runs.
        // SAFETY: the source is N readable bytes; the helper checks offset and length.
        let result = unsafe {
            bpf_skb_store_bytes(self.ctx, offset as u32, bytes.as_ptr().cast(), N as u32, 0)
        };
        if result == 0 {
            Ok(())
        } else {
            Err(DropReason::Helper)
        }
    }

    #[inline(always)]
    fn cut(&mut self, len: u32) -> Result<(), DropReason> {
        // SAFETY: `ctx` is the program's own context; no packet pointer is held.
        match unsafe { bpf_skb_change_tail(self.ctx, len, 0) } {
            0 => Ok(()),
            _ => Err(DropReason::Helper),
        }
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> Result<i32, DropReason> {
        // SAFETY: the helper takes numbers only, and any number.
        redirected(unsafe { bpf_redirect(ifindex, 0) })
    }

    #[inline(always)]
    fn deliver(&self, port: u32) -> Result<i32, DropReason> {
        const PACKET_HOST: u32 = 0;
        // The short way leaves out the port's own receive path, so the packet type must be right
        // already: behind a port it says that the frame is for somebody else. The protocol must
        // be, too, and after decapsulation it may still be the outer one.
        let Some(h) = self.load::<12>(ETH_LEN - 2) else {
            return self.redirect(port);
        };
        let ethertype = be16(h[0], h[1]);
        let protocol = match ethertype {
            ETH_P_IP => h[2 + 9],
            ETH_P_IPV6 => h[2 + 6],
            _ => return self.redirect(port),
        };
        if ethertype != self.protocol() || (protocol == PROTO_TCP && self.is_bulk(port)) {
            return self.redirect(port);
        }
        // SAFETY: `ctx` is the program's own context, here and below.
        let is_host = unsafe { (*self.ctx).pkt_type } == PACKET_HOST;
        if !is_host && unsafe { bpf_skb_change_type(self.ctx, PACKET_HOST) } != 0 {
            return Err(DropReason::Helper);
        }
        // SAFETY: the helper takes numbers only, and any number.
        redirected(unsafe { bpf_redirect_peer(port, 0) })
    }
}

#[inline(always)]
fn redirected(result: i64) -> Result<i32, DropReason> {
    if result == i64::from(TC_ACT_REDIRECT) {
        Ok(TC_ACT_REDIRECT)
    } else {
        Err(DropReason::Helper)
    }
}
