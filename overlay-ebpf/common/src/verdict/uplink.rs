//! Frames from the underlay. Nothing in them is trusted.

use super::{EcnRewrite, Eth, Frame, Tables, Verdict};
use crate::checksum;
use crate::counters::DropReason;
use crate::echo::{self, Kind};
use crate::layout::FdbKey;
use crate::outer::decap_ecn;
use crate::punt::Reason;
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, Ip16, OUTER_V4_LEN, PROTO_UDP, UDP_LEN,
    VXLAN_FLAG_VNI, VXLAN_LEN, be16, ip_eq, is_group, mac_eq, map_v4,
};

/// What of the outer headers still matters behind them.
struct Outer {
    /// Sender, IPv4-mapped.
    src: Ip16,
    tos: u8,
    vni: u32,
}

/// Decides about a frame that came in on the uplink.
pub fn from_uplink<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T) -> Verdict<'t> {
    from_uplink_then(frame, tables, |verdict| verdict).unwrap_or_else(Verdict::Drop)
}

/// [`from_uplink`], with `act` called with the verdict.
///
/// # Errors
/// Why the frame is to be dropped. It is VXLAN for this VTEP then.
#[inline(always)]
pub fn from_uplink_then<'t, F, T, R>(
    frame: &F,
    tables: &'t T,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason>
where
    F: Frame,
    T: Tables,
{
    let Some(config) = tables.config() else {
        return Ok(act(Verdict::Pass));
    };
    let Some([t0, t1]) = frame.load::<2>(ETH_LEN - 2) else {
        return Ok(act(Verdict::Pass));
    };
    // A tagged frame belongs to a VLAN interface above the uplink.
    if be16(t0, t1) != ETH_P_IP || frame.has_vlan_aside() {
        return Ok(act(Verdict::Pass));
    }
    let Some(ip) = frame.load::<IPV4_LEN>(ETH_LEN) else {
        return Ok(act(Verdict::Pass));
    };
    // A VTEP sends neither IP options nor fragments (RFC 7348 section 4.3).
    let fragment = be16(ip[6], ip[7]) & 0x3fff != 0;
    let dst = map_v4([ip[16], ip[17], ip[18], ip[19]]);
    if ip[0] != 0x45 || ip[9] != PROTO_UDP || fragment || !ip_eq(&dst, &config.vtep) {
        return Ok(act(Verdict::Pass));
    }
    let Some(udp) = frame.load::<UDP_LEN>(ETH_LEN + IPV4_LEN) else {
        return Ok(act(Verdict::Pass));
    };
    if be16(udp[2], udp[3]) != config.data_port {
        return Ok(act(Verdict::Pass));
    }
    // From here on it is ours, and a fault is counted. Lengths of a GSO super-packet are those of
    // the whole, or nothing, as the kernel likes.
    if checksum::fold(checksum::sum(&ip)) != 0xffff {
        return Err(DropReason::OuterChecksum);
    }
    let ip_len = be16(ip[2], ip[3]) as u32;
    let udp_len = be16(udp[4], udp[5]) as u32;
    let smallest = (UDP_LEN + VXLAN_LEN + ETH_LEN) as u32;
    let fits = ip_len + ETH_LEN as u32 <= frame.total_len()
        && udp_len >= smallest
        && ip_len >= udp_len + IPV4_LEN as u32;
    if frame.gso_size() == 0 && !fits {
        return Err(DropReason::OuterLength);
    }
    let vxlan: [u8; VXLAN_LEN] = frame
        .load(OUTER_V4_LEN - VXLAN_LEN)
        .ok_or(DropReason::OuterLength)?;
    if vxlan[0] & VXLAN_FLAG_VNI == 0 {
        return Err(DropReason::VxlanFlags);
    }
    let outer = Outer {
        src: map_v4([ip[12], ip[13], ip[14], ip[15]]),
        tos: ip[1],
        vni: u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]),
    };
    if outer.vni == echo::VNI {
        let exact = ip_len + ETH_LEN as u32 == frame.total_len()
            && ip_len == udp_len + IPV4_LEN as u32
            && frame.gso_size() == 0;
        let from_vtep = be16(udp[0], udp[1]) == config.data_port;
        return match echo_kind(frame, tables, &outer.src, exact && from_vtep)? {
            Kind::Request => Ok(act(Verdict::EchoReply { family: Family::V4 })),
            Kind::Answer => Ok(act(Verdict::Pass)),
        };
    }
    inner(frame, tables, &outer, act)
}

/// What a frame on VNI 0 is. `sound` says that its lengths and ports are an echo's.
#[inline(always)]
fn echo_kind<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    src: &Ip16,
    sound: bool,
) -> Result<Kind, DropReason> {
    const MALFORMED: DropReason = DropReason::MalformedEcho;
    tables.vtep(src).ok_or(DropReason::UnknownVtep)?;
    let [to_group, ..] = frame.load::<2>(0).ok_or(MALFORMED)?;
    // The nonce, too, must be there.
    let message: [u8; echo::MESSAGE_LEN] = frame.load(OUTER_V4_LEN).ok_or(MALFORMED)?;
    if !sound || to_group & 1 != 0 {
        return Err(MALFORMED);
    }
    let [r0, r1, a0, a1, m0, m1, m2, m3, ..] = message;
    echo::kind(&[r0, r1, a0, a1, m0, m1, m2, m3]).ok_or(MALFORMED)
}

#[inline(always)]
fn inner<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    outer: &Outer,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let vni = outer.vni;
    tables.vtep(&outer.src).ok_or(DropReason::UnknownVtep)?;
    tables.network(vni).ok_or(DropReason::UnknownVni)?;
    let eth = Eth::new(frame.load(OUTER_V4_LEN).ok_or(DropReason::Truncated)?);
    if eth.is_tagged() {
        return Err(DropReason::InnerVlan);
    }
    if is_group(&eth.src) || mac_eq(&eth.src, &[0; 6]) {
        return Err(DropReason::InnerSource);
    }
    let Some(source) = tables.fdb(&FdbKey::new(vni, eth.src)) else {
        let reason = Reason::UnknownSource;
        return Ok(act(Verdict::Punt { reason, vni }));
    };
    if !source.is_behind(&outer.src) {
        return Err(DropReason::WrongVtep);
    }
    if is_group(&eth.dst) {
        let reason = Reason::Flood;
        return Ok(act(Verdict::Punt { reason, vni }));
    }
    let Some(destination) = tables.fdb(&FdbKey::new(vni, eth.dst)) else {
        let reason = Reason::UnknownDestination;
        return Ok(act(Verdict::Punt { reason, vni }));
    };
    let ifindex = destination.port().ok_or(DropReason::NotLocal)?;
    combine_ecn(frame, eth.ethertype, outer.tos, |ecn| {
        act(Verdict::Decap { ifindex, ecn })
    })
}

/// Combines outer and inner ECN and calls `act` with the result: `None` when the inner header
/// stays as it is.
#[inline(always)]
fn combine_ecn<F: Frame, R>(
    frame: &F,
    ethertype: u16,
    outer_tos: u8,
    act: impl FnOnce(Option<EcnRewrite>) -> R,
) -> Result<R, DropReason> {
    const INNER_IP: usize = OUTER_V4_LEN + ETH_LEN;
    // Only ECT(1) and CE outside ever change anything.
    let matters = outer_tos & 1 != 0;
    if matters && ethertype == ETH_P_IP {
        let h: [u8; 12] = frame.load(INNER_IP).ok_or(DropReason::Truncated)?;
        let ecn = decap_ecn(h[1], outer_tos).ok_or(DropReason::EcnIllegal)?;
        let byte1 = (h[1] & !3) | ecn;
        if byte1 != h[1] {
            let updated = checksum::update(be16(h[10], h[11]), be16(h[0], h[1]), be16(h[0], byte1));
            return Ok(act(Some(EcnRewrite {
                byte1,
                checksum: Some(updated.to_be_bytes()),
            })));
        }
    }
    if matters && ethertype == ETH_P_IPV6 {
        let [_, old] = frame.load::<2>(INNER_IP).ok_or(DropReason::Truncated)?;
        let ecn = decap_ecn(old >> 4, outer_tos).ok_or(DropReason::EcnIllegal)?;
        let byte1 = (old & !0x30) | (ecn << 4);
        if byte1 != old {
            return Ok(act(Some(EcnRewrite {
                byte1,
                checksum: None,
            })));
        }
    }
    Ok(act(None))
}
