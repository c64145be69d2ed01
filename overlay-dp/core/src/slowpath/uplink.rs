//! Frames from other VTEPs.

use core::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::layout::FdbKey;
use overlay_common::punt::{self, Reason};
use overlay_common::verdict::{self, Verdict, Way};
use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Ip16, Mac, OUTER_V4_LEN, OUTER_V6_LEN, map_v4,
};

use super::emit::{self, Sink};
use super::snoop::Snooper;
use super::view::{Bytes, View};
use super::{Output, flood};
use crate::tables::{MapUpdate, Tables};

/// What is read of the sender's outer headers.
struct Outer {
    src: Ip16,
    tos: u8,
    vni: u32,
}

/// Takes the outer headers off, of either family.
fn split(frame: &[u8]) -> Result<(Outer, &[u8]), DropReason> {
    let eth: &[u8; ETH_LEN] = frame.first_chunk().ok_or(DropReason::Truncated)?;
    match punt::ethertype(eth) {
        ETH_P_IP => {
            let split = frame.split_first_chunk::<OUTER_V4_LEN>();
            let (outer, inner) = split.ok_or(DropReason::Truncated)?;
            let outer = Outer {
                src: map_v4([outer[26], outer[27], outer[28], outer[29]]),
                tos: outer[15],
                vni: emit::vni(outer),
            };
            Ok((outer, inner))
        }
        ETH_P_IPV6 => {
            let split = frame.split_first_chunk::<OUTER_V6_LEN>();
            let (outer, inner) = split.ok_or(DropReason::Truncated)?;
            let outer = Outer {
                src: *outer[22..].first_chunk().ok_or(DropReason::Truncated)?,
                tos: (outer[14] << 4) | (outer[15] >> 4),
                vni: emit::vni(outer),
            };
            Ok((outer, inner))
        }
        _ => Err(DropReason::NotPunted),
    }
}

/// A frame that came in on the uplink.
pub(super) struct FromUplink<'a> {
    tables: &'a Tables,
    way: Way,
    reason: Reason,
    frame: &'a [u8],
    outer: Outer,
    inner: &'a [u8],
    dst: Mac,
    src: Mac,
}

impl<'a> FromUplink<'a> {
    pub fn new(
        tables: &'a Tables,
        way: Way,
        reason: Reason,
        frame: &'a [u8],
    ) -> Result<FromUplink<'a>, DropReason> {
        let (outer, inner) = split(frame)?;
        let eth: [u8; ETH_LEN] = *inner.first_chunk().ok_or(DropReason::Truncated)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = eth;
        Ok(FromUplink {
            tables,
            way,
            reason,
            frame,
            outer,
            inner,
            dst: [d0, d1, d2, d3, d4, d5],
            src: [s0, s1, s2, s3, s4, s5],
        })
    }

    pub fn decide(
        &self,
        snooper: &Snooper,
        now: Duration,
        sink: &mut Sink<'_, impl Output>,
    ) -> Result<(), DropReason> {
        // The programs never cut what comes from the uplink; a frame that was cut can't be sent.
        if self.reason == Reason::TooBig {
            return Err(DropReason::PuntTooBig);
        }
        let vni = self.outer.vni;
        let view = View::new(self.tables, vni, self.inner);
        match verdict::from_uplink(&Bytes::segment(self.frame), &view, self.way) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Decap { ifindex, ecn, .. } => {
                self.fill_source(sink);
                if self.reason == Reason::UnknownDestination {
                    self.fill(FdbKey::new(vni, self.dst), sink);
                }
                sink.send_to_port(ifindex, vni, self.inner, ecn);
                Ok(())
            }
            Verdict::Punt { reason, .. } => match reason {
                Reason::Flood => {
                    self.fill_source(sink);
                    flood::from_uplink(vni, self.inner, self.outer.tos, (snooper, now), sink)
                }
                // A gateway is answered for on each host, for its own containers only.
                Reason::UnknownDestination => {
                    self.fill_source(sink);
                    Err(DropReason::UnknownDestination)
                }
                Reason::UnknownSource => Err(DropReason::UnknownSource),
                _ => Err(DropReason::NotPunted),
            },
            _ => Err(DropReason::NotPunted),
        }
    }

    /// Whose it is, and the VTEP that sent it.
    pub fn source(&self) -> (FdbKey, Ip16) {
        (FdbKey::new(self.outer.vni, self.src), self.outer.src)
    }

    /// The tables have the source behind the VTEP that sent the frame: now the map has it, too.
    fn fill_source(&self, sink: &mut Sink<'_, impl Output>) {
        if self.reason == Reason::UnknownSource {
            self.fill(FdbKey::new(self.outer.vni, self.src), sink);
        }
    }

    /// The map gets what the tables have.
    fn fill(&self, key: FdbKey, sink: &mut Sink<'_, impl Output>) {
        if let Some(entry) = self.tables.fdb_entry(&key) {
            sink.out.update(MapUpdate::SetFdb(key, *entry));
        }
    }
}
