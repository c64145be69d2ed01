//! The single-producer single-consumer rings shared with the kernel.
//!
//! Indices run freely as u32 and wrap; a slot is `index & mask`. Whoever owns an index stores it with
//! Release after it is done with the slots, the other side loads it with Acquire before it touches
//! them. This side keeps its own index privately, and so needs not believe shared memory for it.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use crate::sys::Mapping;

/// What a slot may hold.
///
/// # Safety
/// Every bit pattern must be a valid value.
pub(crate) unsafe trait Slot: Copy {}
// SAFETY: an integer.
unsafe impl Slot for u64 {}
// SAFETY: a repr(C) struct of integers.
unsafe impl Slot for libc::xdp_desc {}

/// A mapped ring. Its pointers point into `_memory` and stay valid while it lives.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    _memory: Mapping,
}

// SAFETY: the pointers lead into memory which the ring owns and which is not tied to a thread.
unsafe impl<T: Slot> Send for Ring<T> {}
// SAFETY: what can be done through a shared reference is an atomic access, or `read`, which races
// with no write of ours because `write` takes `&mut self`.
unsafe impl<T: Slot> Sync for Ring<T> {}

impl<T: Slot> Ring<T> {
    fn new(memory: Mapping, at: &libc::xdp_ring_offset, size: u32) -> io::Result<Self> {
        assert!(size.is_power_of_two(), "a ring's size is a power of two");
        let base = memory.base();
        let locate = |offset: u64, len: usize, align: usize| {
            let bad = || io::Error::other("the kernel's ring layout is outside of its mapping");
            let offset = usize::try_from(offset).map_err(|_| bad())?;
            let end = offset.checked_add(len).ok_or_else(bad)?;
            if end > memory.len() || !offset.is_multiple_of(align) {
                return Err(bad());
            }
            // SAFETY: offset <= end <= memory.len(), so the pointer stays within the mapping.
            Ok(unsafe { base.add(offset) })
        };
        let index = |offset| locate(offset, size_of::<AtomicU32>(), align_of::<AtomicU32>());
        Ok(Self {
            producer: index(at.producer)?.cast(),
            consumer: index(at.consumer)?.cast(),
            flags: index(at.flags)?.cast(),
            slots: locate(at.desc, size as usize * size_of::<T>(), align_of::<T>())?.cast(),
            size,
            _memory: memory,
        })
    }

    fn map(
        fd: BorrowedFd<'_>,
        pgoff: libc::off_t,
        at: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        let slots = size as usize * size_of::<T>();
        let len = usize::try_from(at.desc)
            .ok()
            .and_then(|desc| desc.checked_add(slots));
        let len = len.ok_or_else(|| io::Error::other("the kernel's ring layout is too long"))?;
        Self::new(Mapping::ring(fd, len, pgoff)?, at, size)
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `new` placed it aligned inside the mapping, and everyone, the kernel included,
        // accesses it atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is less than `size`, and `new` checked that `size` slots lie in
        // the mapping.
        unsafe { self.slots.add((index & (self.size - 1)) as usize) }
    }

    /// A copy of the slot, read exactly once so that what is checked is what is used.
    fn read(&self, index: u32) -> T {
        // SAFETY: `slot` is in the mapping and aligned (`new`), and any bits are a valid `T`.
        unsafe { self.slot(index).read_volatile() }
    }

    fn write(&mut self, index: u32, value: T) {
        // SAFETY: `slot` is in the mapping and aligned (`new`), the mapping is writable, and no
        // reference to a slot is ever made.
        unsafe { self.slot(index).write_volatile(value) }
    }
}

/// A ring which this side fills: the fill ring and the TX ring.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    ring: Ring<T>,
    /// Where the next entry goes; ahead of the shared index by what is not yet published.
    head: u32,
    /// The kernel's index as last seen.
    consumed: u32,
}

impl<T: Slot> Producer<T> {
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        pgoff: libc::off_t,
        at: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        Ring::map(fd, pgoff, at, size).map(Self::new)
    }

    fn new(ring: Ring<T>) -> Self {
        let head = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Self {
            ring,
            head,
            consumed,
        }
    }

    /// Entries the kernel has not consumed yet, published or not. More than the ring holds is
    /// nonsense from the other side, and counts as full.
    pub(crate) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.consumed).min(self.ring.size)
    }

    pub(crate) fn is_full(&mut self) -> bool {
        self.head.wrapping_sub(self.consumed) >= self.ring.size && self.pending() >= self.ring.size
    }

    /// Adds an entry, which the kernel sees after [`publish`](Self::publish). False when full.
    #[must_use]
    pub(crate) fn push(&mut self, value: T) -> bool {
        if self.is_full() {
            return false;
        }
        self.ring.write(self.head, value);
        self.head = self.head.wrapping_add(1);
        true
    }

    pub(crate) fn publish(&mut self) {
        self.ring.producer().store(self.head, Ordering::Release);
    }

    /// Whether the kernel sleeps and must be told of what was published.
    pub(crate) fn needs_wakeup(&self) -> bool {
        // The kernel sets the flag and then looks at the ring once more; this side publishes and
        // then looks at the flag. The fence makes sure that one of both sees the other.
        fence(Ordering::SeqCst);
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring which this side empties: the RX ring and the completion ring.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    ring: Ring<T>,
    /// The next entry to read; ahead of the shared index by what is not yet released.
    tail: u32,
    /// The kernel's index as last seen.
    produced: u32,
}

impl<T: Slot> Consumer<T> {
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        pgoff: libc::off_t,
        at: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        Ring::map(fd, pgoff, at, size).map(Self::new)
    }

    fn new(ring: Ring<T>) -> Self {
        let tail = ring.consumer().load(Ordering::Relaxed);
        Self {
            ring,
            tail,
            produced: tail,
        }
    }

    /// The next entry, which stays the next one until [`advance`](Self::advance).
    pub(crate) fn peek(&mut self) -> Option<T> {
        if self.tail == self.produced {
            let produced = self.ring.producer().load(Ordering::Acquire);
            // More than the ring holds is nonsense from the other side, and not to be followed.
            if produced == self.tail || produced.wrapping_sub(self.tail) > self.ring.size {
                return None;
            }
            self.produced = produced;
        }
        Some(self.ring.read(self.tail))
    }

    /// Steps over the entry that [`peek`](Self::peek) returned.
    pub(crate) fn advance(&mut self) {
        debug_assert_ne!(self.tail, self.produced, "advance follows a peek");
        self.tail = self.tail.wrapping_add(1);
    }

    /// Gives the slots stepped over back to the kernel.
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.tail, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests;
