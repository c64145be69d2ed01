//! Frames that the agent sends over the punt link.

use super::{Frame, Tables, Verdict};
use crate::counters::DropReason;
use crate::punt::{self, Kind};
use crate::wire::{ETH_LEN, ETH_P_IP, IPV4_LEN, OUTER_V4_LEN, map_v4};

/// Decides about a frame that came in on the near end of the punt link.
pub fn from_agent<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T) -> Verdict<'t> {
    from_agent_then(frame, tables, |verdict| verdict).unwrap_or_else(Verdict::Drop)
}

/// [`from_agent`], with `act` called with the verdict.
///
/// # Errors
/// Why the frame is to be dropped.
#[inline(always)]
pub fn from_agent_then<'t, F, T, R>(
    frame: &F,
    tables: &'t T,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason>
where
    F: Frame,
    T: Tables,
{
    let eth: [u8; ETH_LEN] = frame.load(0).ok_or(DropReason::NotPunted)?;
    let marker = punt::decode(&eth).ok_or(DropReason::NotPunted)?;
    if punt::ethertype(&eth) != ETH_P_IP {
        return Err(DropReason::NotPunted);
    }
    match marker.kind {
        Kind::ToPort => {
            let ifindex = marker.ifindex;
            tables.port(ifindex).ok_or(DropReason::UnknownPort)?;
            frame
                .load::<ETH_LEN>(OUTER_V4_LEN)
                .ok_or(DropReason::Truncated)?;
            Ok(act(Verdict::Decap { ifindex, ecn: None }))
        }
        Kind::ToVtep => {
            let ip: [u8; IPV4_LEN] = frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
            let dst = map_v4([ip[16], ip[17], ip[18], ip[19]]);
            let vtep = tables.vtep(&dst).ok_or(DropReason::UnknownVtep)?;
            if vtep.ifindex == 0 {
                return Err(DropReason::Unresolved);
            }
            Ok(act(Verdict::Forward { vtep }))
        }
        Kind::FromPort | Kind::FromUplink => Err(DropReason::NotPunted),
    }
}
