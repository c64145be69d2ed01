//! Receiving: fill ring → kernel → RX ring → the caller → fill ring.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::ring::{Consumer, Producer};
use crate::sys;
use crate::umem::Frames;

/// Frames handled before their buffers go back to the kernel: seldom enough that the shared indices
/// stay in this CPU's cache, often enough that a long batch does not empty the fill ring.
const RECYCLE_EVERY: usize = 64;

/// The receiving half of an [`Xsk`](crate::Xsk).
#[derive(Debug)]
pub struct Rx {
    socket: Arc<OwnedFd>,
    ring: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    frames: Frames,
    ignored: u64,
}

impl Rx {
    /// Takes the rings and puts every frame in the fill ring, which must have room for them all.
    pub(crate) fn new(
        socket: Arc<OwnedFd>,
        ring: Consumer<libc::xdp_desc>,
        mut fill: Producer<u64>,
        frames: Frames,
    ) -> Self {
        for index in 0..frames.count() {
            let fits = fill.push(frames.addr(index));
            debug_assert!(fits, "the fill ring has room for every RX frame");
        }
        fill.publish();
        Self {
            socket,
            ring,
            fill,
            frames,
            ignored: 0,
        }
    }

    /// Calls `on_frame` with each frame that has arrived, up to `max`, oldest first, and gives its
    /// buffer back to the kernel. Never blocks. Returns how many there were; fewer than `max` means
    /// that the ring is empty, which edge-triggered pollers must wait for before they sleep.
    ///
    /// A frame may be altered in place. If `on_frame` panics, its frame is delivered again.
    pub fn receive(&mut self, max: usize, mut on_frame: impl FnMut(&mut [u8])) -> usize {
        let mut taken = 0;
        while taken < max
            && let Some(desc) = self.ring.peek()
        {
            let whole = desc.options & libc::XDP_PKT_CONTD == 0;
            match self.frames.bytes(desc.addr, desc.len).filter(|_| whole) {
                Some(frame) => on_frame(frame),
                None => self.ignored += 1,
            }
            self.ring.advance();
            self.recycle(desc.addr);
            taken += 1;
            if taken.is_multiple_of(RECYCLE_EVERY) {
                self.hand_over();
            }
        }
        if !taken.is_multiple_of(RECYCLE_EVERY) {
            self.hand_over();
        }
        if self.fill.needs_wakeup() {
            sys::kick_rx(self.socket.as_fd());
        }
        taken
    }

    /// Whether no frame has arrived that has not been received.
    pub fn is_empty(&mut self) -> bool {
        self.ring.peek().is_none()
    }

    /// Descriptors ignored because they made no sense.
    pub(crate) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Puts the frame that holds `addr` in the fill ring. Of an address which lies in none, nothing
    /// can be said about which frame it should have been: `receive` has counted it.
    fn recycle(&mut self, addr: u64) {
        if let Some(index) = self.frames.index_of(addr)
            && !self.fill.push(self.frames.addr(index))
        {
            // The ring holds all frames, so the kernel has handed out one of them twice.
            self.ignored += 1;
        }
    }

    fn hand_over(&mut self) {
        self.fill.publish();
        self.ring.release();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::ring::tests::{FakeKernel, no_socket};
    use crate::sys::Mapping;

    /// Four RX frames at UMEM address 0, and the kernel's side of both rings.
    fn rx() -> (Rx, FakeKernel<libc::xdp_desc>, FakeKernel<u64>) {
        let (ring, rx_kernel) = FakeKernel::consumer(4, u32::MAX - 2);
        let (fill, fill_kernel) = FakeKernel::producer(4, u32::MAX - 2);
        let frames = Frames::new(Mapping::anonymous(4 * 4096).unwrap(), 0, 4096);
        (
            Rx::new(no_socket(), ring, fill, frames),
            rx_kernel,
            fill_kernel,
        )
    }

    fn desc(addr: u64, len: u32) -> libc::xdp_desc {
        libc::xdp_desc {
            addr,
            len,
            options: 0,
        }
    }

    #[test]
    fn frames_go_round_and_round() {
        let (mut rx, mut rx_kernel, mut fill_kernel) = rx();
        for round in 0..100 {
            let addrs = [(); 4].map(|()| fill_kernel.consume().unwrap());
            assert_eq!(fill_kernel.consume(), None, "round {round}");
            for addr in addrs {
                rx_kernel.produce(desc(addr + 256, 60));
            }
            let mut lens = Vec::new();
            assert!(!rx.is_empty());
            assert_eq!(rx.receive(3, |frame| lens.push(frame.len())), 3);
            assert!(!rx.is_empty());
            assert_eq!(rx.receive(3, |frame| lens.push(frame.len())), 1);
            assert!(rx.is_empty());
            assert_eq!(rx.receive(3, |_| unreachable!()), 0);
            assert_eq!(lens, [60; 4]);
        }
        assert_eq!(rx.ignored(), 0);
    }

    #[test]
    fn senseless_descriptors_are_counted_and_skipped() {
        let (mut rx, mut rx_kernel, mut fill_kernel) = rx();
        let addrs = [(); 4].map(|()| fill_kernel.consume().unwrap());
        rx_kernel.produce(desc(1 << 40, 60));
        rx_kernel.produce(desc(addrs[1] + 256, 4096));
        rx_kernel.produce(libc::xdp_desc {
            addr: addrs[2],
            len: 60,
            options: libc::XDP_PKT_CONTD,
        });
        rx_kernel.produce(desc(addrs[3] + 256, 60));
        let mut seen = 0;
        assert_eq!(rx.receive(16, |_| seen += 1), 4);
        assert_eq!((seen, rx.ignored()), (1, 3));
        // The frames that could be told from their address are with the kernel again.
        assert_eq!(fill_kernel.consume(), Some(addrs[1]));
        assert_eq!(fill_kernel.consume(), Some(addrs[2]));
        assert_eq!(fill_kernel.consume(), Some(addrs[3]));
        assert_eq!(fill_kernel.consume(), None);
    }

    #[test]
    fn a_frame_handed_out_twice_does_not_overflow_the_fill_ring() {
        let (mut rx, mut rx_kernel, mut fill_kernel) = rx();
        let addr = fill_kernel.consume().unwrap();
        rx_kernel.produce(desc(addr, 60));
        rx_kernel.produce(desc(addr, 60));
        assert_eq!(rx.receive(16, |_| ()), 2);
        assert_eq!(rx.ignored(), 1);
        let left: Vec<u64> = std::iter::from_fn(|| fill_kernel.consume()).collect();
        assert_eq!(left.len(), 4);
    }

    #[test]
    fn a_panic_loses_no_frame() {
        let (mut rx, mut rx_kernel, mut fill_kernel) = rx();
        let addrs = [(); 4].map(|()| fill_kernel.consume().unwrap());
        for (len, addr) in (60..).zip(addrs) {
            rx_kernel.produce(desc(addr, len));
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            rx.receive(16, |frame| assert!(frame.len() < 62, "on purpose"));
        }));
        assert!(result.is_err());
        let mut lens = Vec::new();
        assert_eq!(rx.receive(16, |frame| lens.push(frame.len())), 2);
        assert_eq!(lens, [62, 63]);
        assert_eq!([(); 4].map(|()| fill_kernel.consume().unwrap()), addrs);
    }
}
