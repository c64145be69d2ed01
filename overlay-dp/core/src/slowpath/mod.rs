//! What the programs could not decide, decided: frames from the punt link in; frames for the punt
//! link, and map entries, out.
//!
//! A frame is judged again by the programs' own code ([`overlay_common::verdict`]), over the whole
//! tables instead of the maps. So what was only missing in a map is treated just as the fast path
//! treats it, source checks included, and the map is filled. What remains is what the fast path
//! never does: replication, answers for the gateway, ICMP errors. What containers ask the gateway's
//! DNS port is handed out. Nothing here allocates.

mod emit;
mod flood;
mod gateway;
mod icmp;
mod limit;
mod message;
mod neighbour;
mod port;
mod query;
mod snoop;
mod too_big;
mod uplink;
mod view;
mod waiting;

use core::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::punt::{self, Kind};
use overlay_common::verdict::Way;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, OUTER_V4_LEN};

use crate::tables::{MapUpdate, Tables};
use emit::Sink;
pub use limit::FloodLimit;
use limit::Limiter;
use port::FromPort;
pub use query::Asker;
use snoop::Snooper;
pub use snoop::{LEARNING, Member};
use uplink::FromUplink;
use waiting::{Kept, Lack, Sender, Waiting};

/// Where the slow path's decisions go.
pub trait Output {
    /// Has `write` fill a frame of exactly `len` bytes, to be sent on the punt link; or counts it
    /// as dropped when there is no room.
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8]));

    /// An entry that a map lacks. It is true under the [`Tables::version`] of the call; written
    /// after the tables have changed, it could undo what they say now.
    fn update(&mut self, update: MapUpdate);

    /// A container has asked its gateway for a name, in the DNS message `payload`, which nobody has
    /// looked into yet. [`Asker::answer`] answers.
    fn query(&mut self, from: Asker, payload: &[u8]);

    /// A container asked for more names than one may: the question is dropped.
    fn query_refused(&mut self);

    /// A frame, or one copy of it, is dropped.
    fn drop(&mut self, reason: DropReason);
}

/// The slow path. It remembers how much it did for each port lately, which multicast groups the
/// ports have joined, and for a second the frames that other hosts' endpoints, not yet known of,
/// would explain.
#[derive(Debug)]
pub struct SlowPath {
    limiter: Limiter,
    waiting: Waiting,
    snooper: Snooper,
}

impl SlowPath {
    /// A slow path that has sent nothing yet, and allows so much.
    pub fn new(flood: FloodLimit) -> SlowPath {
        SlowPath {
            limiter: Limiter::new(flood),
            waiting: Waiting::default(),
            snooper: Snooper::default(),
        }
    }

    /// Decides about a frame from the punt link. `now` is the time since the slow path began: until
    /// [`LEARNING`] is over, it does not rely on what it knows of groups.
    pub fn handle(&mut self, tables: &Tables, frame: &[u8], now: Duration, out: &mut impl Output) {
        if let Err(reason) = self.decide(tables, frame, now, out) {
            out.drop(reason);
        }
    }

    /// Whether frames wait for the tables to change: [`SlowPath::look_again`] is due within a few
    /// milliseconds then.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Decides about the frames that waited for what the tables have now, and drops those that have
    /// waited for too long.
    pub fn look_again(&mut self, tables: &Tables, now: Duration, out: &mut impl Output) {
        while let Some((kept, ended)) = self.waiting.next(tables, now) {
            if ended {
                self.handle(tables, kept.frame(), now, out);
            } else {
                given_up(&kept, out);
            }
        }
    }

    /// When [`SlowPath::tick`] has something to do.
    pub fn due(&self) -> Option<Duration> {
        self.snooper.due()
    }

    /// Whether [`SlowPath::tick`] is due, or the tables have other ports, perhaps.
    pub fn is_due(&self, tables: &Tables, now: Duration) -> bool {
        self.snooper.is_due(tables, now)
    }

    /// Asks ports about their groups, and forgets members that have not answered.
    pub fn tick(&mut self, tables: &Tables, now: Duration, out: &mut impl Output) {
        self.snooper.tick(now, &mut Sink { tables, out });
    }

    /// Which ports have joined which groups, by network and group.
    pub fn members(&self) -> &[Member] {
        self.snooper.members()
    }

    /// Becomes another number whenever somebody joins or leaves.
    pub fn members_revision(&self) -> u64 {
        self.snooper.revision()
    }

    fn keep(&mut self, kept: Kept, out: &mut impl Output) {
        if let Some(kept) = self.waiting.keep(kept) {
            given_up(&kept, out);
        }
    }

    fn decide(
        &mut self,
        tables: &Tables,
        frame: &[u8],
        now: Duration,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let eth: &[u8; ETH_LEN] = frame.first_chunk().ok_or(DropReason::Truncated)?;
        let marker = punt::decode(eth).ok_or(DropReason::NotPunted)?;
        let reason = marker.reason.ok_or(DropReason::NotPunted)?;
        let mut sink = Sink { tables, out };
        match marker.kind {
            Kind::FromPort => {
                if punt::ethertype(eth) != ETH_P_IP {
                    return Err(DropReason::NotPunted);
                }
                let split = frame.split_first_chunk::<OUTER_V4_LEN>();
                let (outer, inner) = split.ok_or(DropReason::Truncated)?;
                let from = FromPort::new(tables, marker.ifindex, reason, outer, inner)?;
                from.decide(&mut self.limiter, &mut self.snooper, now, &mut sink)?;
                if let Some(asked) = from.unanswered() {
                    let (lack, sender) = (Lack::Neighbour(asked), Sender::Port(marker.ifindex));
                    if let Some(kept) = Kept::new(lack, sender, frame, now) {
                        self.keep(kept, out);
                    }
                }
                Ok(())
            }
            Kind::FromUplink | Kind::FromOpened => {
                let way = match marker.kind {
                    Kind::FromOpened => Way::Sealed,
                    _ => Way::Clear,
                };
                let from = FromUplink::new(tables, way, reason, frame)?;
                let decided = from.decide(&self.snooper, now, &mut sink);
                if decided == Err(DropReason::UnknownSource) {
                    let (source, vtep) = from.source();
                    let (lack, sender) = (Lack::Source(source), Sender::Vtep(vtep));
                    if let Some(kept) = Kept::new(lack, sender, frame, now) {
                        self.keep(kept, out);
                        return Ok(());
                    }
                }
                decided
            }
            Kind::ToPort | Kind::ToVtep | Kind::ToSeal | Kind::ToOpen | Kind::Opened => {
                Err(DropReason::NotPunted)
            }
        }
    }
}

/// Nothing explained it in time. A question has been flooded: it is not lost.
fn given_up(kept: &Kept, out: &mut impl Output) {
    if matches!(kept.lack, Lack::Source(_)) {
        out.drop(DropReason::UnknownSource);
    }
}
