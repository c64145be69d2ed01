//! Frames of a container, and what is on the wire then.

use std::time::Duration;

use anyhow::Result;

use super::bed::{Place, contains};
use super::frames::Ip;
use super::table::{Claim, Family};

const HANG: Duration = Duration::from_secs(30);

/// One case.
pub struct Row {
    pub claim: Claim,
    make: Make,
    look: Look,
}

type Make = Box<dyn Fn(&Place, &[u8]) -> Vec<Vec<u8>>>;
type Look = Box<dyn Fn(&Place, &Seen) -> String>;

/// What came of frames.
pub struct Seen {
    pub sent: Vec<Vec<u8>>,
    /// Frames with the mark on the wire.
    pub wire: Vec<OnWire>,
    /// And back in the container.
    pub back: Vec<Vec<u8>>,
}

/// The `make`d frames are sent, each once; `look` says what it sees on the wire.
pub fn row(
    claim: Claim,
    make: impl Fn(&Place, &[u8]) -> Vec<Vec<u8>> + 'static,
    look: impl Fn(&Place, &Seen) -> String + 'static,
) -> Row {
    Row {
        claim,
        make: Box::new(make),
        look: Box::new(look),
    }
}

/// A frame on the wire, of good headers until something else is asked.
pub struct OnWire {
    bytes: Vec<u8>,
    family: Family,
}

impl OnWire {
    fn udp_at(&self) -> usize {
        match self.family {
            Family::V4 => 34,
            Family::V6 => 54,
        }
    }

    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub fn src_port(&self) -> u16 {
        self.be16(self.udp_at())
    }

    pub fn dst_port(&self) -> u16 {
        self.be16(self.udp_at() + 2)
    }

    pub fn udp_sum(&self) -> u16 {
        self.be16(self.udp_at() + 6)
    }

    pub fn vxlan(&self) -> &[u8] {
        &self.bytes[self.udp_at() + 8..self.udp_at() + 16]
    }

    pub fn inner(&self) -> &[u8] {
        &self.bytes[self.udp_at() + 16..]
    }

    pub fn tos(&self) -> u8 {
        match self.family {
            Family::V4 => self.bytes[15],
            Family::V6 => self.bytes[14] << 4 | self.bytes[15] >> 4,
        }
    }

    pub fn ttl(&self) -> u8 {
        match self.family {
            Family::V4 => self.bytes[22],
            Family::V6 => self.bytes[21],
        }
    }

    pub fn df(&self) -> bool {
        self.family == Family::V4 && self.bytes[20] & 0x40 != 0
    }

    pub fn flow_label(&self) -> u32 {
        u32::from_be_bytes([0, self.bytes[15] & 0xf, self.bytes[16], self.bytes[17]])
    }

    /// Whether it is a fragment.
    pub fn is_part(&self) -> bool {
        match self.family {
            Family::V4 => self.be16(20) & 0x3fff != 0,
            Family::V6 => self.bytes[20] == 44,
        }
    }

    /// The layer-3 length.
    pub fn len(&self) -> usize {
        self.bytes.len() - 14
    }
}

impl Row {
    /// Does it, and says what was seen.
    pub fn see(&self, place: &Place, row: usize) -> Result<String> {
        let mark = format!("out-{row:04}").into_bytes();
        let sent = (self.make)(place, &mark);
        let last = format!("end-{row:04}").into_bytes();
        let before = place.drops()?;
        place.wire.drain()?;
        place.inside.drain()?;
        for frame in &sent {
            place.inside.send(frame)?;
        }
        // What the agent decides may come later than what the programs do.
        let slow = Duration::from_millis(250);
        let wanted = |frame: &[u8]| contains(frame, &mark);
        let mut wire = place.wire.collect(sent.len(), slow, wanted)?;
        let frame = place.outs()[0].udp(Ip::default(), (4000, 9), &last, 60);
        place.inside.send(&frame)?;
        let is_last = |frame: &[u8]| contains(frame, &last) || contains(frame, &mark);
        let mut more = place.wire.collect(1, HANG, is_last)?;
        anyhow::ensure!(!more.is_empty(), "a good frame does not leave");
        more.retain(|frame| contains(frame, &mark));
        wire.extend(more);
        let back = place
            .inside
            .collect(sent.len(), Duration::from_millis(50), |frame| {
                contains(frame, &mark)
            })?;
        if wire.is_empty() && back.is_empty() {
            let due = self.claim.of(place.is_kernel()).contains('(');
            return place.dropped(&before, sent.len() as u64, due);
        }
        let family = place.family;
        let wire = wire.into_iter().map(|bytes| OnWire { bytes, family });
        let seen = Seen {
            sent,
            wire: wire.collect(),
            back,
        };
        Ok((self.look)(place, &seen))
    }
}
