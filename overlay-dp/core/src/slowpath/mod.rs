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
mod too_big;
mod uplink;
mod view;

use core::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::punt::{self, Kind};
use overlay_common::wire::{ETH_LEN, ETH_P_IP, OUTER_V4_LEN};

use crate::tables::{MapUpdate, Tables};
use emit::Sink;
use limit::Limiter;
use port::FromPort;
pub use query::Asker;
use uplink::FromUplink;

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

/// The slow path. It remembers nothing but how much it did for each port lately.
#[derive(Debug, Default)]
pub struct SlowPath {
    limiter: Limiter,
}

impl SlowPath {
    /// A slow path that has sent nothing yet.
    pub fn new() -> SlowPath {
        SlowPath::default()
    }

    /// Decides about a frame from the punt link. `now` is the time since some fixed moment.
    pub fn handle(&mut self, tables: &Tables, frame: &[u8], now: Duration, out: &mut impl Output) {
        if let Err(reason) = self.decide(tables, frame, now, out) {
            out.drop(reason);
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
                from.decide(&mut self.limiter, now, &mut sink)
            }
            Kind::FromUplink => {
                let from = FromUplink::new(tables, reason, frame)?;
                from.decide(&mut sink)
            }
            Kind::ToPort | Kind::ToVtep => Err(DropReason::NotPunted),
        }
    }
}
