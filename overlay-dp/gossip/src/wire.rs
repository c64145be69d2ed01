//! What hosts say to each other on a gossip stream: frames in postcard. How a stream is cut into
//! frames is the transport's business; no frame is larger than [`MAX_FRAME`].

use std::sync::Arc;

use overlay_core::facts::Version;
use overlay_core::model::{Endpoint, Vni};
use overlay_core::multicast::Group;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::swim;

/// No frame is larger.
pub const MAX_FRAME: usize = 256 << 10;
/// Bytes of endpoints, changes or facts in one frame: what follows the last one that fits still
/// stays below [`MAX_FRAME`].
pub(crate) const FULL: usize = 128 << 10;

/// How far a log is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Rises with every start of the owner.
    pub incarnation: u64,
    /// Rises with every change.
    pub seq: u64,
}

/// One change of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new endpoint, or another one of the same name.
    Up(Arc<Endpoint>),
    /// The endpoint of this name is gone.
    Down(String),
    /// All endpoints that outlived a restart are published again; the others are gone.
    Settled,
    /// These multicast groups have members, and no others.
    Groups(Arc<[Group]>),
}

/// What the follower of a stream says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Comes first: who follows, and which facts it has.
    Hello { swim: swim::Id, facts: Version },
    /// The follower wants to know these networks, of which it knows this much.
    Subscribe(Vec<(Vni, Position)>),
    /// It is no longer interested in these.
    Unsubscribe(Vec<Vni>),
    /// It has these facts, and what was sent does not follow on them.
    Facts(Version),
}

/// What the owner of the logs answers, until the stream ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// Comes first.
    Hello(swim::Id),
    /// A part of a whole log as of `at`.
    Snapshot {
        vni: Vni,
        at: Position,
        first: bool,
        settled: bool,
        endpoints: Vec<Arc<Endpoint>>,
        /// In the first part. `None` when it has not said yet since it started: what it said before
        /// still counts.
        groups: Option<Arc<[Group]>>,
        last: bool,
    },
    /// Changes `first`, `first` + 1 … of an incarnation.
    Changes {
        vni: Vni,
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
    },
    /// Sent every few seconds: [`digest`] of where the receiver should be by now.
    Digest(u64),
    /// From managers only: a part of encoded `FactsNews`.
    Facts { part: Vec<u8>, last: bool },
}

/// Equal for equal positions in the same networks, in whichever order they come.
pub(crate) fn digest(positions: impl Iterator<Item = (Vni, Position)>) -> u64 {
    positions.fold(0, |sum, (vni, at)| {
        let mixed =
            [at.incarnation, at.seq]
                .into_iter()
                .fold(u64::from(vni.get()), |state, word| {
                    // The finalizer of SplitMix64. Both ends are honest here: no key is needed.
                    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
                    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                    z ^ (z >> 31)
                });
        sum.wrapping_add(mixed)
    })
}

/// `None` when it can't be encoded, which no frame of ours is.
pub(crate) fn encode<T: Serialize>(frame: &T) -> Option<Vec<u8>> {
    postcard::to_allocvec(frame).ok()
}

/// `None` when it is malformed, too large or longer than it says.
pub(crate) fn decode<T: DeserializeOwned>(frame: &[u8]) -> Option<T> {
    if frame.len() > MAX_FRAME {
        return None;
    }
    let (frame, rest) = postcard::take_from_bytes(frame).ok()?;
    rest.is_empty().then_some(frame)
}
