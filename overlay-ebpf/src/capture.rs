//! Copies frames for `overlay-dp capture`. Nobody captures most of the time: then each place costs
//! a look at one word. Taps of the kernel's own (AF_PACKET) see neither what XDP takes nor what
//! `redirect_peer` hands over; these places see every frame.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_get_buff_len};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerfEventArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use overlay_common::capture::{Control, Decision, Header, Place};
use overlay_common::counters::DropReason;
use overlay_common::verdict::{Frame as _, Verdict};

use crate::packet::{Packet, Skb, Xdp};

#[map]
static OVL_CAPTURE: Array<Control> = Array::pinned(1, 0);
#[map]
static OVL_CAPTURED: PerfEventArray<Header> = PerfEventArray::pinned(0);

/// A frame of which the kernel makes copies.
pub trait Mirror: Packet {
    /// Its length now, whatever was put in front or taken off.
    fn len_now(&self) -> u32;

    /// Puts `header` and the frame's first `header.copied` bytes where the capturing process reads.
    fn mirror(&self, header: &Header);
}

impl Mirror for Xdp {
    #[inline(always)]
    fn len_now(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn mirror(&self, header: &Header) {
        OVL_CAPTURED.output(&XdpContext::new(self.ctx), header, header.copied);
    }
}

impl Mirror for Skb {
    #[inline(always)]
    fn len_now(&self) -> u32 {
        self.total_len()
    }

    #[inline(always)]
    fn mirror(&self, header: &Header) {
        OVL_CAPTURED.output(&TcContext::new(self.ctx), header, header.copied);
    }
}

/// Copies a frame, and what was decided about it, if somebody wants that.
#[inline(always)]
pub fn decided<P: Mirror>(
    packet: &P,
    place: Place,
    verdict: Result<&Verdict<'static>, DropReason>,
) {
    if is_wanted(place) {
        let decision = match verdict {
            Ok(Verdict::Punt { reason, .. }) => Decision::ToAgent(*reason as u32),
            Ok(_) => Decision::Goes,
            Err(reason) => Decision::Dropped(reason as u32),
        };
        copy(packet, place, packet.ifindex(), decision.encode());
    }
}

/// Copies a frame that goes out on an interface, if somebody wants that.
#[inline(always)]
pub fn goes<P: Mirror>(packet: &P, place: Place, ifindex: u32) {
    if is_wanted(place) {
        copy(packet, place, ifindex, 0);
    }
}

#[inline(always)]
fn is_wanted(place: Place) -> bool {
    OVL_CAPTURE
        .get(0)
        .is_some_and(|control| control.places & place as u32 != 0)
}

#[inline(never)]
fn copy<P: Mirror>(packet: &P, place: Place, ifindex: u32, detail: u32) {
    let Some(control) = OVL_CAPTURE.get(0) else {
        return;
    };
    // SAFETY: it reads a clock.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let inner = matches!(place, Place::Sent | Place::Delivered);
    let other = inner && control.ifindex != 0 && control.ifindex != ifindex;
    if time_ns > control.until_ns || other {
        return;
    }
    let len = packet.len_now();
    let copied = if len < control.snap {
        len
    } else {
        control.snap
    };
    packet.mirror(&Header {
        time_ns,
        place: place as u32,
        ifindex,
        detail,
        len,
        copied,
        gso_size: packet.gso_size(),
    });
}
