//! Which way into a container pays: the short one, straight up its stack, takes the least time for
//! a packet; the long one, through the receive queue of its interface, lets GRO join the segments
//! of a bulk transfer, which takes the least time for many.

/// Time is cut in windows of so many nanoseconds, as a power of two: 4 ms.
pub const WINDOW_SHIFT: u32 = 22;
/// With so many full segments in a window, 400 Mbit/s or so, the way is long. Questions and answers,
/// one waiting for the other, are fewer, however large they are.
const BULK: u32 = 128;
/// A frame of this length in bytes is a full segment, whatever the MTU: joining smaller ones gains
/// little.
pub const FULL_SEGMENT: u32 = 1000;

/// What a TCP segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Shorter than [`FULL_SEGMENT`].
    Short,
    /// As long as that, or longer.
    Full,
    /// Several that are joined already.
    Joined,
}

/// How many full TCP segments a port has had on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bulk {
    window: u64,
    /// In that window, and in the one before.
    now: u32,
    before: u32,
}

impl Bulk {
    /// Counts a TCP segment that comes in `window`, and says whether to take the long way. While
    /// a transfer is bulk all segments of a port do, whatever their length: none overtakes another.
    /// Where something else joins them already, none does.
    #[inline(always)]
    pub fn takes_long_way(&mut self, window: u64, segment: Segment) -> bool {
        if self.window != window {
            let follows = self.window.wrapping_add(1) == window;
            self.before = if follows { self.now } else { 0 };
            self.now = 0;
            self.window = window;
        }
        match segment {
            Segment::Short => {}
            Segment::Full => self.now = self.now.wrapping_add(1),
            Segment::Joined => (self.now, self.before) = (0, 0),
        }
        self.now >= BULK || self.before >= BULK
    }
}

#[cfg(test)]
mod tests {
    use super::Segment::{Full, Joined, Short};
    use super::*;

    #[test]
    fn a_bulk_transfer_goes_the_long_way_until_it_has_ended() {
        let mut bulk = Bulk::default();
        let mut long = |window, segment, count| {
            (0..count)
                .filter(|_| bulk.takes_long_way(window, segment))
                .count()
        };
        assert_eq!(long(10, Full, 127), 0);
        // Questions that wait for answers never get there.
        assert_eq!(long(11, Full, 127), 0);
        assert_eq!(long(11, Short, 1000), 0);
        assert_eq!(long(11, Full, 10), 10);
        assert_eq!(long(11, Short, 10), 10);
        // The window after, whatever comes; and not the one after that.
        assert_eq!(long(12, Short, 10), 10);
        assert_eq!(long(13, Short, 10), 0);
        assert_eq!(long(13, Full, 200), 73);
        // After a pause.
        assert_eq!(long(15, Full, 1), 0);
        // What GRO has joined, with some between that it could not.
        assert_eq!(long(16, Full, 130), 3);
        assert_eq!(long(16, Joined, 10), 0);
        assert_eq!(long(16, Full, 100), 0);
        assert_eq!(long(17, Joined, 1), 0);
        assert_eq!(long(17, Full, 100), 0);
    }
}
