//! One half of the UMEM: frames of equal size, named by their address as the kernel counts it.

use std::slice;

use crate::sys::Mapping;

/// The frames of one half, owned with their memory.
#[derive(Debug)]
pub(crate) struct Frames {
    memory: Mapping,
    /// Offset of this half in the UMEM: the address of its first frame.
    first: u64,
    frame_size: u32,
}

impl Frames {
    pub(crate) fn new(memory: Mapping, first: u64, frame_size: u32) -> Self {
        Self {
            memory,
            first,
            frame_size,
        }
    }

    pub(crate) fn frame_size(&self) -> usize {
        self.frame_size as usize
    }

    pub(crate) fn count(&self) -> u32 {
        (self.memory.len() / self.frame_size()) as u32
    }

    /// The address of a frame's first byte.
    pub(crate) fn addr(&self, index: u32) -> u64 {
        self.first + u64::from(index) * u64::from(self.frame_size)
    }

    /// The frame which an address of the kernel's lies in, if it is one of this half.
    pub(crate) fn index_of(&self, addr: u64) -> Option<u32> {
        let index = addr.checked_sub(self.first)? / u64::from(self.frame_size);
        u32::try_from(index)
            .ok()
            .filter(|index| *index < self.count())
    }

    /// `len` bytes at `addr`, if they lie within one frame of this half.
    ///
    /// The kernel may be writing to frames it owns: ask only for one it has handed over.
    pub(crate) fn bytes(&mut self, addr: u64, len: u32) -> Option<&mut [u8]> {
        let index = self.index_of(addr)?;
        let end = addr.checked_add(u64::from(len))?;
        if end > self.addr(index) + u64::from(self.frame_size) {
            return None;
        }
        let offset = usize::try_from(addr - self.first).ok()?;
        // SAFETY: [addr, end) lies in frame `index` of this half, hence `offset + len` is at most
        // `memory.len()`, and the mapping is readable and writable for as long as `self` lives. It
        // is initialised: anonymous memory is zeroed. This mapping is reachable only through this
        // value, which is borrowed mutably for as long as the slice, so no other reference exists.
        Some(unsafe {
            slice::from_raw_parts_mut(self.memory.base().as_ptr().add(offset), len as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half() -> Frames {
        Frames::new(Mapping::anonymous(4 * 4096).unwrap(), 16384, 4096)
    }

    #[test]
    fn frames_are_counted_and_addressed() {
        let frames = half();
        assert_eq!(frames.count(), 4);
        assert_eq!(frames.addr(0), 16384);
        assert_eq!(frames.addr(3), 28672);
        assert_eq!(frames.index_of(16384), Some(0));
        assert_eq!(frames.index_of(16384 + 4095), Some(0));
        assert_eq!(frames.index_of(16384 + 4096 + 256), Some(1));
    }

    #[test]
    fn what_is_outside_the_half_or_crosses_a_frame_is_refused() {
        let mut frames = half();
        assert_eq!(frames.bytes(16384 + 256, 3840).map(|b| b.len()), Some(3840));
        assert_eq!(frames.bytes(28672, 4096).map(|b| b.len()), Some(4096));
        assert_eq!(frames.bytes(16384, 0).map(|b| b.len()), Some(0));
        for (addr, len) in [
            (0, 64),             // the other half
            (16383, 1),          // one byte before
            (16384 + 256, 3841), // one byte into the next frame
            (28672, 4097),       // one byte past the end
            (32768, 0),          // just past the end
            (16384, u32::MAX),
            (u64::MAX, 1),
            (u64::MAX - 64, 64),
            (1 << 48 | 16384, 64), // an unaligned-mode offset
        ] {
            assert!(frames.bytes(addr, len).is_none(), "{addr} {len}");
        }
    }
}
