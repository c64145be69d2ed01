//! Sending: the caller → TX ring → kernel → completion ring → free frames.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::error::XskError;
use crate::ring::{Consumer, Producer};
use crate::sys;
use crate::umem::Frames;

/// Drivers assume that a frame has an Ethernet header.
const MIN_FRAME: usize = 14;

/// The sending half of an [`Xsk`](crate::Xsk).
#[derive(Debug)]
pub struct Tx {
    socket: Arc<OwnedFd>,
    ring: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    frames: Frames,
    /// Frames that may be written to, the next one last. Never grows past its first capacity.
    free: Vec<u32>,
    /// Whether a frame is queued or with the kernel, by index: what a completion may name.
    in_flight: Box<[bool]>,
    ignored: u64,
    ifindex: u32,
}

impl Tx {
    pub(crate) fn new(
        socket: Arc<OwnedFd>,
        ring: Producer<libc::xdp_desc>,
        completion: Consumer<u64>,
        frames: Frames,
        ifindex: u32,
    ) -> Self {
        let free = (0..frames.count()).rev().collect();
        let in_flight = vec![false; frames.count() as usize].into_boxed_slice();
        Self {
            socket,
            ring,
            completion,
            frames,
            free,
            in_flight,
            ignored: 0,
            ifindex,
        }
    }

    /// A frame to write to. When none is free, first flushes and reclaims what the kernel has sent;
    /// `None` when that does not help either: drop the packet and count it.
    ///
    /// A frame that is not committed stays free.
    pub fn reserve(&mut self) -> Option<TxFrame<'_>> {
        if self.free.is_empty() {
            self.reclaim();
        }
        if self.free.is_empty() || self.ring.is_full() {
            // An error leaves the frames queued, and the caller's own flush reports it.
            let _ = self.flush();
        }
        let index = *self.free.last()?;
        (!self.ring.is_full()).then_some(TxFrame { tx: self, index })
    }

    /// Hands all committed frames to the kernel. Never blocks. Returns how many the kernel has not
    /// yet taken; these stay queued and the next flush, or poll of the socket, goes on with them.
    ///
    /// # Errors
    /// [`XskError::LinkDown`], [`XskError::NoDevice`] or [`XskError::Os`]. The frames stay queued.
    pub fn flush(&mut self) -> Result<usize, XskError> {
        self.ring.publish();
        let result = self.kick();
        self.reclaim();
        result.map(|()| self.ring.pending() as usize)
    }

    /// Completions ignored because they made no sense.
    pub(crate) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Wakes the kernel until it has taken all, or makes no more progress. In copy mode one call
    /// takes some frames (32 before Linux 6.17) and then says EAGAIN; it says so too when the socket's send buffer
    /// or the driver's queue is full, and then the frames have to wait.
    fn kick(&mut self) -> Result<(), XskError> {
        let mut pending = self.ring.pending();
        // Each call takes a frame or is the last one, so this many always suffice.
        let mut calls = pending;
        while pending > 0 && calls > 0 && self.ring.needs_wakeup() {
            calls -= 1;
            let dropped = match sys::kick_tx(self.socket.as_fd()) {
                Ok(()) => false,
                Err(err) => match err.raw_os_error() {
                    // The driver dropped a frame; the shared index may not show it yet.
                    Some(libc::EBUSY) => true,
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => false,
                    _ => return Err(XskError::from_send(err, self.ifindex)),
                },
            };
            // The kernel takes no frame without a place in the completion ring for it.
            self.reclaim();
            let left = self.ring.pending();
            if left == pending && !dropped {
                break;
            }
            pending = left;
        }
        Ok(())
    }

    fn reclaim(&mut self) {
        let mut any = false;
        while let Some(addr) = self.completion.peek() {
            self.completion.advance();
            any = true;
            match self.frames.index_of(addr) {
                Some(index) if self.in_flight[index as usize] => {
                    self.in_flight[index as usize] = false;
                    self.free.push(index);
                }
                _ => self.ignored += 1,
            }
        }
        if any {
            self.completion.release();
        }
    }
}

/// A free frame of the TX half.
#[derive(Debug)]
pub struct TxFrame<'a> {
    tx: &'a mut Tx,
    index: u32,
}

impl TxFrame<'_> {
    /// The whole frame, [`XskConfig::frame_size`](crate::XskConfig::frame_size) bytes. What it holds
    /// is left over from a frame sent before.
    pub fn buffer(&mut self) -> &mut [u8] {
        let (addr, size) = (self.tx.frames.addr(self.index), self.tx.frames.frame_size());
        self.tx.frames.bytes(addr, size as u32).unwrap_or_default()
    }

    /// Queues the first `len` bytes as one frame; [`Tx::flush`] sends it.
    ///
    /// A frame longer than the MTU of the link is queued, and silently lost in the kernel.
    ///
    /// # Errors
    /// [`XskError::FrameLength`] when `len` is not from 14 to the frame size; the frame stays free.
    pub fn commit(self, len: usize) -> Result<(), XskError> {
        let Self { tx, index } = self;
        let capacity = tx.frames.frame_size();
        if !(MIN_FRAME..=capacity).contains(&len) {
            return Err(XskError::FrameLength { len, capacity });
        }
        let desc = libc::xdp_desc {
            addr: tx.frames.addr(index),
            len: len as u32,
            options: 0,
        };
        // `reserve` saw room in the ring, and nothing else fills it.
        if tx.ring.push(desc) {
            tx.free.pop();
            tx.in_flight[index as usize] = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::{FakeKernel, no_socket};
    use crate::sys::Mapping;

    const FIRST: u64 = 4 * 4096;

    /// Four TX frames behind four RX frames, a TX ring of `ring`, and the kernel's side of both
    /// rings. The kernel needs no wakeup, so the socket is never used.
    fn tx(ring: u32) -> (Tx, FakeKernel<libc::xdp_desc>, FakeKernel<u64>) {
        let (ring, tx_kernel) = FakeKernel::producer(ring, u32::MAX - 2);
        let (completion, completion_kernel) = FakeKernel::consumer(4, u32::MAX - 2);
        let frames = Frames::new(Mapping::anonymous(4 * 4096).unwrap(), FIRST, 4096);
        (
            Tx::new(no_socket(), ring, completion, frames, 1),
            tx_kernel,
            completion_kernel,
        )
    }

    fn send(tx: &mut Tx, fill: u8) -> bool {
        let Some(mut frame) = tx.reserve() else {
            return false;
        };
        assert_eq!(frame.buffer().len(), 4096);
        frame.buffer()[..60].fill(fill);
        frame.commit(60).unwrap();
        true
    }

    #[test]
    fn frames_go_round_and_round() {
        let (mut tx, mut tx_kernel, mut completion_kernel) = tx(4);
        for round in 0..100 {
            assert!((0..4).all(|i| send(&mut tx, i)), "round {round}");
            assert!(!send(&mut tx, 9), "all frames are in flight");
            assert_eq!(tx.flush().unwrap(), 4);
            let mut sent = [(); 4].map(|()| tx_kernel.consume().unwrap());
            assert!(tx_kernel.consume().is_none());
            assert_eq!(tx.flush().unwrap(), 0);
            assert!(!send(&mut tx, 9), "taken is not sent");
            sent.reverse(); // completions may come in any order
            for desc in sent {
                completion_kernel.produce(desc.addr);
            }
        }
        assert_eq!(tx.ignored(), 0);
        assert_eq!(tx.free.capacity(), 4);
    }

    #[test]
    fn a_full_ring_is_as_good_as_no_frame() {
        let (mut tx, mut tx_kernel, _completion) = tx(2);
        assert!(send(&mut tx, 1) && send(&mut tx, 2));
        assert!(!send(&mut tx, 3));
        assert!(tx_kernel.consume().is_some(), "reserve has published");
        assert!(send(&mut tx, 3));
    }

    #[test]
    fn senseless_completions_are_counted_and_make_no_frame_free() {
        let (mut tx, mut tx_kernel, mut completion_kernel) = tx(4);
        assert!(send(&mut tx, 1));
        tx.flush().unwrap();
        let addr = tx_kernel.consume().unwrap().addr;
        completion_kernel.produce(0); // an RX frame
        completion_kernel.produce(u64::MAX);
        completion_kernel.produce(FIRST); // twice the one frame in flight
        completion_kernel.produce(addr);
        tx.flush().unwrap();
        assert_eq!(addr, FIRST);
        assert_eq!(tx.ignored(), 3);
        let mut free = tx.free.clone();
        free.sort_unstable();
        assert_eq!(free, [0, 1, 2, 3]);
    }

    #[test]
    fn lengths_are_checked_and_an_uncommitted_frame_stays_free() {
        let (mut tx, mut tx_kernel, _completion) = tx(4);
        let _ = tx.reserve().unwrap().buffer();
        for len in [0, 13, 4097, usize::MAX] {
            let result = tx.reserve().unwrap().commit(len);
            assert!(
                matches!(result, Err(XskError::FrameLength { capacity: 4096, .. })),
                "{len}"
            );
        }
        for len in [14, 4096] {
            tx.reserve().unwrap().commit(len).unwrap();
        }
        tx.flush().unwrap();
        assert_eq!(tx_kernel.consume().map(|d| d.len), Some(14));
        assert_eq!(tx_kernel.consume().map(|d| d.len), Some(4096));
        assert_eq!(tx.free.len(), 2);
    }
}
