//! The rings against a stand-in for the kernel: the same memory, mapped a second time.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;

const LAYOUT: libc::xdp_ring_offset = libc::xdp_ring_offset {
    producer: 0,
    consumer: 64,
    desc: 192,
    flags: 128,
};

/// The other side of a ring.
pub(crate) struct FakeKernel<T> {
    ring: Ring<T>,
}

impl<T: Slot> FakeKernel<T> {
    /// The same ring twice, with both indices at `start`.
    fn pair(size: u32, start: u32) -> (Ring<T>, Self) {
        let memory = rustix::fs::memfd_create("xsk-ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 65536).unwrap();
        let map = || Ring::<T>::map(memory.as_fd(), 0, &LAYOUT, size).unwrap();
        let (ours, kernel) = (map(), map());
        kernel.producer().store(start, Ordering::Relaxed);
        kernel.consumer().store(start, Ordering::Relaxed);
        (ours, Self { ring: kernel })
    }

    /// A ring which the code under test fills.
    pub(crate) fn producer(size: u32, start: u32) -> (Producer<T>, Self) {
        let (ours, kernel) = Self::pair(size, start);
        (Producer::new(ours), kernel)
    }

    /// A ring which the code under test empties.
    pub(crate) fn consumer(size: u32, start: u32) -> (Consumer<T>, Self) {
        let (ours, kernel) = Self::pair(size, start);
        (Consumer::new(ours), kernel)
    }

    pub(crate) fn consume(&mut self) -> Option<T> {
        let tail = self.ring.consumer().load(Ordering::Relaxed);
        if self.ring.producer().load(Ordering::Acquire) == tail {
            return None;
        }
        let value = self.ring.read(tail);
        self.ring
            .consumer()
            .store(tail.wrapping_add(1), Ordering::Release);
        Some(value)
    }

    fn try_produce(&mut self, value: T) -> bool {
        let head = self.ring.producer().load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.ring.consumer().load(Ordering::Acquire));
        if used == self.ring.size {
            return false;
        }
        self.ring.write(head, value);
        self.ring
            .producer()
            .store(head.wrapping_add(1), Ordering::Release);
        true
    }

    pub(crate) fn produce(&mut self, value: T) {
        assert!(
            self.try_produce(value),
            "the kernel has no room in the ring"
        );
    }
}

/// A descriptor that is no socket, for code which must not use it.
pub(crate) fn no_socket() -> Arc<OwnedFd> {
    Arc::new(File::open("/dev/null").unwrap().into())
}

#[test]
fn a_producer_fills_the_ring_and_no_more() {
    for start in [0, 1, 7, u32::MAX - 9, u32::MAX - 3, u32::MAX] {
        let (mut ours, mut kernel) = FakeKernel::<u64>::producer(8, start);
        assert!((0..8).all(|i| ours.push(i)));
        assert!(ours.is_full() && !ours.push(8));
        assert_eq!(ours.pending(), 8);
        assert_eq!(
            kernel.consume(),
            None,
            "nothing is seen before it is published"
        );
        ours.publish();
        assert_eq!(kernel.consume(), Some(0));
        assert_eq!(kernel.consume(), Some(1));
        assert_eq!(ours.pending(), 6);
        assert!(ours.push(8) && ours.push(9) && !ours.push(10));
        ours.publish();
        assert!((2..10).all(|i| kernel.consume() == Some(i)));
        assert_eq!((kernel.consume(), ours.pending()), (None, 0));
    }
}

#[test]
fn a_consumer_gives_slots_back_when_it_releases() {
    for start in [0, 1, 7, u32::MAX - 9, u32::MAX - 3, u32::MAX] {
        let (mut ours, mut kernel) = FakeKernel::<u64>::consumer(8, start);
        assert_eq!(ours.peek(), None);
        (0..8).for_each(|i| kernel.produce(i));
        assert_eq!((ours.peek(), ours.peek()), (Some(0), Some(0)));
        ours.advance();
        assert_eq!(ours.peek(), Some(1));
        ours.advance();
        assert!(!kernel.try_produce(8), "stepped over is not released");
        ours.release();
        kernel.produce(8);
        kernel.produce(9);
        for i in 2..10 {
            assert_eq!(ours.peek(), Some(i));
            ours.advance();
        }
        assert_eq!(ours.peek(), None);
    }
}

#[test]
fn indices_wrap_many_times_at_every_phase() {
    // One slot more or less in flight each time, over the end of u32 and of the ring.
    let (mut tx, mut tx_kernel) = FakeKernel::<u64>::producer(4, u32::MAX - 500);
    let (mut rx, mut rx_kernel) = FakeKernel::<u64>::consumer(4, u32::MAX - 500);
    let (mut sent, mut received) = (0, 0);
    for step in 0..1000 {
        for _ in 0..=step % 4 {
            assert!(tx.push(sent));
            sent += 1;
        }
        tx.publish();
        while let Some(value) = tx_kernel.consume() {
            rx_kernel.produce(value);
        }
        while let Some(value) = rx.peek() {
            assert_eq!(value, received);
            received += 1;
            rx.advance();
        }
        rx.release();
    }
    assert_eq!((sent, received), (2500, 2500));
}

#[test]
fn indices_that_cannot_be_are_not_followed() {
    let (mut ours, kernel) = FakeKernel::<u64>::consumer(8, 100);
    for nonsense in [109, 99, 0, u32::MAX] {
        kernel.ring.producer().store(nonsense, Ordering::Release);
        assert_eq!(ours.peek(), None, "{nonsense}");
    }
    let (mut ours, kernel) = FakeKernel::<u64>::producer(8, 100);
    assert!((0..8).all(|i| ours.push(i)));
    for nonsense in [109, 91, 0, u32::MAX] {
        kernel.ring.consumer().store(nonsense, Ordering::Release);
        assert!(ours.is_full() && !ours.push(8), "{nonsense}");
        assert_eq!(ours.pending(), 8);
    }
}

#[test]
fn a_layout_outside_of_the_mapping_is_refused() {
    let good = LAYOUT;
    for bad in [
        libc::xdp_ring_offset {
            producer: 65536,
            ..good
        },
        libc::xdp_ring_offset {
            consumer: u64::MAX,
            ..good
        },
        libc::xdp_ring_offset { flags: 2, ..good },
        libc::xdp_ring_offset {
            desc: 65536 - 8,
            ..good
        },
        libc::xdp_ring_offset { desc: 196, ..good },
    ] {
        let memory = Mapping::anonymous(65536).unwrap();
        assert!(Ring::<u64>::new(memory, &bad, 8).is_err());
    }
}

#[test]
fn the_wakeup_flag_is_read_from_the_ring() {
    let (ours, kernel) = FakeKernel::<u64>::producer(8, 0);
    assert!(!ours.needs_wakeup());
    kernel
        .ring
        .flags()
        .store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    assert!(ours.needs_wakeup());
}

#[test]
fn two_threads_see_every_entry_in_order() {
    const COUNT: u64 = 200_000;
    let (mut ours, mut kernel) = FakeKernel::<libc::xdp_desc>::producer(64, u32::MAX - 1000);
    let writer = std::thread::spawn(move || {
        for i in 0..COUNT {
            // All fields alike, so that a torn or stale slot shows.
            let half = i as u32;
            while !ours.push(libc::xdp_desc {
                addr: i,
                len: half,
                options: half,
            }) {
                ours.publish();
                std::thread::yield_now();
            }
            if i % 7 == 0 {
                ours.publish();
            }
        }
        ours.publish();
    });
    for i in 0..COUNT {
        let desc = loop {
            match kernel.consume() {
                Some(desc) => break desc,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!((desc.addr, desc.len, desc.options), (i, i as u32, i as u32));
    }
    writer.join().unwrap();
}
