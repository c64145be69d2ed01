//! Frames that the agent sends over the punt link.

use super::{Frame, Tables, Verdict, admitted};
use crate::counters::DropReason;
use crate::punt::{self, Kind};
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, Ip16, OUTER_V4_LEN, UDP_LEN, be16,
    map_v4,
};

/// Decides about a frame that came in on the near end of the punt link, or of the crypt link,
/// unless that is [`Kind::Opened`]: such a one is judged as one from the uplink.
pub fn from_agent<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T) -> Verdict<'t> {
    admitted(
        frame,
        tables,
        from_agent_then(frame, tables, |verdict| verdict),
    )
}

/// [`from_agent`], with `act` called with the verdict, which [`admit`](super::admit) has not seen.
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
            let policed = if port.is_policed() { port.vni } else { 0 };
            Ok(act(Verdict::Decap {
                ifindex,
                family: Family::V4,
                ecn: None,
                answer: port.vni,
                router: false,
                entered: false,
                policed,
            }))
        }
        Kind::ToVtep if ethertype == ETH_P_IP => {
            let ip: [u8; IPV4_LEN] = frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
            let dst = map_v4([ip[16], ip[17], ip[18], ip[19]]);
            forward(frame, tables, &dst, ETH_LEN + IPV4_LEN, act)
        }
        Kind::ToVtep if ethertype == ETH_P_IPV6 => {
            let dst: Ip16 = frame.load(ETH_LEN + 24).ok_or(DropReason::Truncated)?;
            forward(frame, tables, &dst, ETH_LEN + IPV6_LEN, act)
        }
        _ => Err(DropReason::NotPunted),
    }
}

/// Whatever the agent itself sends passes here: what is of an encrypted network leaves the host as
/// ESP, or not at all. Its UDP header is at `udp_at`.
#[inline(always)]
fn forward<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    dst: &Ip16,
    udp_at: usize,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let vtep = tables.vtep(dst).ok_or(DropReason::UnknownVtep)?;
    if vtep.ifindex == 0 {
        return Err(DropReason::Unresolved);
    }
    let config = tables.config().ok_or(DropReason::NotPunted)?;
    let udp: [u8; UDP_LEN] = frame.load(udp_at).ok_or(DropReason::Truncated)?;
    let port = be16(udp[2], udp[3]);
    if port == config.data_port {
        let vxlan: [u8; 8] = frame.load(udp_at + UDP_LEN).ok_or(DropReason::Truncated)?;
        let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
        let network = tables.network(vni).ok_or(DropReason::UnknownVni)?;
        if network.is_encrypted() {
            return Ok(act(Verdict::Seal));
        }
    } else if port != config.esp_port {
        return Err(DropReason::NotPunted);
    }
    Ok(act(Verdict::Forward { vtep }))
}
