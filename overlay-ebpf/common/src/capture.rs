//! Copies of frames for `overlay-dp capture`: what the programs are told to copy, and what goes
//! with each copy. The capturing process alone writes the one and reads the other; the agent has no
//! part in it.

use crate::layout::pod;
use crate::wire::word;

/// Where a frame is when it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// A container has sent it on its port. The detail is what was decided: a [`Decision`].
    Sent = 1,
    /// It is given to a container, as it will get it.
    Delivered = 2,
    /// It came in on the uplink. The detail is a [`Decision`].
    Arrived = 4,
    /// It leaves on the uplink, with its outer headers.
    Left = 8,
}

impl Place {
    /// Every one.
    pub const ALL: [Place; 4] = [Place::Sent, Place::Delivered, Place::Arrived, Place::Left];
}

/// Inside the tunnel.
pub const INNER: u32 = Place::Sent as u32 | Place::Delivered as u32;
/// Outside of it.
pub const OUTER: u32 = Place::Arrived as u32 | Place::Left as u32;

/// What was decided about a frame, in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its way goes on in the fast path.
    Goes,
    /// Dropped, for this reason: an index of [`DropReason`](crate::counters::DropReason).
    Dropped(u32),
    /// Handed to the agent, for this reason: a [`Reason`](crate::punt::Reason).
    ToAgent(u32),
}

impl Decision {
    const DROPPED: u32 = 1 << 16;
    const TO_AGENT: u32 = 2 << 16;

    /// As a detail.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        match self {
            Decision::Goes => 0,
            Decision::Dropped(reason) => Decision::DROPPED | reason,
            Decision::ToAgent(reason) => Decision::TO_AGENT | reason,
        }
    }

    /// From a detail.
    pub const fn decode(detail: u32) -> Decision {
        let number = detail & 0xffff;
        match detail & !0xffff {
            Decision::DROPPED => Decision::Dropped(number),
            Decision::TO_AGENT => Decision::ToAgent(number),
            _ => Decision::Goes,
        }
    }
}

/// What is to be copied.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Until this moment of the monotonic clock, in nanoseconds: who captures puts it off again and
    /// again, and when that one has died, it is over by itself.
    pub until_ns: u64,
    /// The [`Place`]s, or 0 for nothing.
    pub places: u32,
    /// The bytes of each frame.
    pub snap: u32,
    /// On this interface only, of what is inside the tunnel; 0 for all.
    pub ifindex: u32,
    /// Zero.
    pub _zero: u32,
}
pod!(Control, 24);

/// The most bytes of a frame that are copied: a record of the kernel's holds less than 64 KiB.
pub const MAX_SNAP: u32 = 16 << 10;

/// What comes before the bytes of a copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// When, by the monotonic clock.
    pub time_ns: u64,
    /// A [`Place`].
    pub place: u32,
    /// The port's or the uplink's.
    pub ifindex: u32,
    /// As the place says.
    pub detail: u32,
    /// The frame's bytes.
    pub len: u32,
    /// Those that follow.
    pub copied: u32,
    /// The payload bytes of a segment, when it is a super-packet; else 0.
    pub gso_size: u32,
}
pod!(Header, 32);

impl Header {
    /// How many bytes it has.
    pub const LEN: usize = 32;

    /// Reads one.
    pub fn from_bytes(bytes: &[u8; Header::LEN]) -> Header {
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        Header {
            time_ns: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            place: word(bytes, 8),
            ifindex: word(bytes, 12),
            detail: word(bytes, 16),
            len: word(bytes, 20),
            copied: word(bytes, 24),
            gso_size: word(bytes, 28),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_come_back() {
        for decision in [
            Decision::Goes,
            Decision::Dropped(0),
            Decision::Dropped(25),
            Decision::ToAgent(7),
        ] {
            assert_eq!(Decision::decode(decision.encode()), decision);
        }
    }
}
