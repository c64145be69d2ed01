//! Frames that the agent sends over the punt link.

use super::{Frame, Tables, Verdict};
use crate::counters::DropReason;
use crate::punt::{self, Kind};
use crate::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, Ip16, OUTER_V4_LEN, map_v4};

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
    let ethertype = punt::ethertype(&eth);
    match marker.kind {
        // The punt link's own headers are IPv4, whatever the underlay is.
        Kind::ToPort if ethertype == ETH_P_IP => {
            let ifindex = marker.ifindex;
            let port = tables.port(ifindex).ok_or(DropReason::UnknownPort)?;
            frame
                .load::<ETH_LEN>(OUTER_V4_LEN)
                .ok_or(DropReason::Truncated)?;
            Ok(act(Verdict::Decap {
                ifindex,
                family: Family::V4,
                ecn: None,
                answer: port.vni,
                router: false,
                entered: false,
            }))
        }
        Kind::ToVtep if ethertype == ETH_P_IP => {
            let ip: [u8; IPV4_LEN] = frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
            forward(tables, &map_v4([ip[16], ip[17], ip[18], ip[19]]), act)
        }
        Kind::ToVtep if ethertype == ETH_P_IPV6 => {
            let dst: Ip16 = frame.load(ETH_LEN + 24).ok_or(DropReason::Truncated)?;
            forward(tables, &dst, act)
        }
        _ => Err(DropReason::NotPunted),
    }
}

#[inline(always)]
fn forward<'t, T: Tables, R>(
    tables: &'t T,
    dst: &Ip16,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let vtep = tables.vtep(dst).ok_or(DropReason::UnknownVtep)?;
    if vtep.ifindex == 0 {
        return Err(DropReason::Unresolved);
    }
    Ok(act(Verdict::Forward { vtep }))
}
