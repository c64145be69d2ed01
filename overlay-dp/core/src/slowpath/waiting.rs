//! Frames that came before the news that explain them.
//!
//! A container that has just been attached can be asked for, and can answer, before gossip has told
//! this host of it. Dropped, such a frame would be sent again after a second (RFC 4861 section 10,
//! `RETRANS_TIMER`; ARP does the same on Linux). So it is kept for that long, and looked at again
//! when the tables have learned what it lacks.

use core::time::Duration;

use overlay_common::layout::{FdbKey, NeighbourKey};
use overlay_common::wire::Ip16;

use crate::tables::Tables;

/// Who asked has asked again by then.
const KEPT: Duration = Duration::from_secs(1);
const SLOTS: usize = 64;
/// So many of one sender, so that it can't push out what all others wait for.
const OF_ONE_SENDER: usize = 8;
/// Enough for a question, its answer, or the first segment of a connection, with the outer headers.
const LARGEST: usize = 256;

/// What the tables lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The answer to a question of a container's, which has been flooded.
    Neighbour(NeighbourKey),
    /// The sender of a frame from another VTEP.
    Source(FdbKey),
}

impl Lack {
    fn ended(&self, tables: &Tables) -> bool {
        match self {
            Lack::Neighbour(key) => tables.neighbour_entry(key.vni(), key.ip()).is_some(),
            Lack::Source(key) => tables.fdb_entry(key).is_some(),
        }
    }
}

/// Who sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Port(u32),
    Vtep(Ip16),
}

/// A frame, as it came over the punt link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub lack: Lack,
    sender: Sender,
    until: Duration,
    len: usize,
    bytes: [u8; LARGEST],
}

impl Kept {
    /// `None` when it is too long.
    pub fn new(lack: Lack, sender: Sender, frame: &[u8], now: Duration) -> Option<Kept> {
        let mut bytes = [0; LARGEST];
        bytes.get_mut(..frame.len())?.copy_from_slice(frame);
        Some(Kept {
            lack,
            sender,
            until: now.saturating_add(KEPT),
            len: frame.len(),
            bytes,
        })
    }

    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// All that wait, the oldest first.
#[derive(Debug)]
pub(super) struct Waiting(Vec<Kept>);

impl Default for Waiting {
    fn default() -> Self {
        Waiting(Vec::with_capacity(SLOTS))
    }
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a frame; returns the one that it takes the place of.
    pub fn keep(&mut self, kept: Kept) -> Option<Kept> {
        let same = |other: &&Kept| other.sender == kept.sender;
        let crowded = self.0.iter().filter(same).count() >= OF_ONE_SENDER;
        let out = if crowded {
            self.0.iter().position(|other| same(&other))
        } else {
            (self.0.len() >= SLOTS).then_some(0)
        };
        let out = out.map(|index| self.0.remove(index));
        self.0.push(kept);
        out
    }

    /// Takes out one that need not wait any more: because its time is over, or with true because
    /// the tables have what it lacked.
    pub fn next(&mut self, tables: &Tables, now: Duration) -> Option<(Kept, bool)> {
        let over = |kept: &Kept| (kept.until <= now, kept.lack.ended(tables));
        let index = self
            .0
            .iter()
            .position(|kept| over(kept) != (false, false))?;
        let kept = self.0.remove(index);
        let (_, ended) = over(&kept);
        Some((kept, ended))
    }
}
