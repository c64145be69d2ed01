//! Frames from the underlay. Nothing in them is trusted.

use super::{EcnRewrite, Frame, Tables, Verdict, ethernet};
use crate::checksum;
use crate::counters::DropReason;
use crate::layout::{Config, FdbKey};
use crate::outer::decap_ecn;
use crate::punt::Reason;
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, OUTER_V4_LEN, PROTO_UDP, UDP_LEN, VXLAN_FLAG_VNI,
    VXLAN_LEN, be16, ip_eq, is_group, map_v4,
};

/// A VXLAN frame's outer header stack, checked.
struct Outer {
    /// Sender, IPv4-mapped.
    src: [u8; 16],
    tos: u8,
    vni: u32,
}

/// Decides about a frame that came in on the uplink.
#[inline(always)]
pub fn from_uplink<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T) -> Verdict<'t> {
    let Some(config) = tables.config() else {
        return Verdict::Pass;
    };
    match outer(frame, config) {
        Ok(Some(outer)) => match inner(frame, tables, &outer) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        },
        Ok(None) => Verdict::Pass,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Reads the outer headers; `None` when the frame is not VXLAN for this VTEP. Packets with IP
/// options and fragments are not: a VTEP sends neither (RFC 7348 section 4.3).
#[inline(always)]
fn outer<F: Frame>(frame: &F, config: &Config) -> Result<Option<Outer>, DropReason> {
    let Some([t0, t1]) = frame.load::<2>(12) else {
        return Ok(None);
    };
    // A tagged frame belongs to a VLAN interface above the uplink.
    if be16(t0, t1) != ETH_P_IP || frame.has_vlan_aside() {
        return Ok(None);
    }
    let Some(ip) = frame.load::<IPV4_LEN>(ETH_LEN) else {
        return Ok(None);
    };
    let fragment = be16(ip[6], ip[7]) & 0x3fff != 0;
    if ip[0] != 0x45 || ip[9] != PROTO_UDP || fragment {
        return Ok(None);
    }
    let dst = map_v4([ip[16], ip[17], ip[18], ip[19]]);
    if !ip_eq(&dst, &config.vtep) {
        return Ok(None);
    }
    let Some(udp) = frame.load::<UDP_LEN>(ETH_LEN + IPV4_LEN) else {
        return Ok(None);
    };
    if be16(udp[2], udp[3]) != config.data_port {
        return Ok(None);
    }
    // From here on it is ours, and a fault is counted. Lengths of a GSO super-packet are those of
    // the whole, or nothing, as the kernel likes; they are checked segment by segment elsewhere.
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
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    Ok(Some(Outer {
        src: map_v4([ip[12], ip[13], ip[14], ip[15]]),
        tos: ip[1],
        vni,
    }))
}

#[inline(always)]
fn inner<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &'t T,
    outer: &Outer,
) -> Result<Verdict<'t>, DropReason> {
    let vni = outer.vni;
    tables.vtep(&outer.src).ok_or(DropReason::UnknownVtep)?;
    tables.network(vni).ok_or(DropReason::UnknownVni)?;
    let eth = ethernet(frame, OUTER_V4_LEN)?;
    if is_group(&eth.src) || eth.src == [0; 6] {
        return Err(DropReason::InnerSource);
    }
    match tables.fdb(&FdbKey::new(vni, eth.src)) {
        Some(entry) if entry.is_behind(&outer.src) => {}
        Some(_) => return Err(DropReason::WrongVtep),
        None => {
            return Ok(Verdict::Punt {
                reason: Reason::UnknownSource,
                vni,
            });
        }
    }
    if is_group(&eth.dst) {
        return Ok(Verdict::Punt {
            reason: Reason::Flood,
            vni,
        });
    }
    let Some(entry) = tables.fdb(&FdbKey::new(vni, eth.dst)) else {
        return Ok(Verdict::Punt {
            reason: Reason::UnknownDestination,
            vni,
        });
    };
    let ifindex = entry.port().ok_or(DropReason::NotLocal)?;
    let ecn = ecn_rewrite(frame, eth.ethertype, outer.tos)?;
    Ok(Verdict::Decap { ifindex, ecn })
}

/// Combines outer and inner ECN; `None` when the inner header stays as it is.
#[inline(always)]
fn ecn_rewrite<F: Frame>(
    frame: &F,
    ethertype: u16,
    outer_tos: u8,
) -> Result<Option<EcnRewrite>, DropReason> {
    const INNER_IP: usize = OUTER_V4_LEN + ETH_LEN;
    // Only ECT(1) and CE outside ever change anything.
    if outer_tos & 1 == 0 {
        return Ok(None);
    }
    match ethertype {
        ETH_P_IP => {
            let h: [u8; 12] = frame.load(INNER_IP).ok_or(DropReason::Truncated)?;
            let ecn = decap_ecn(h[1], outer_tos).ok_or(DropReason::EcnIllegal)?;
            let byte1 = (h[1] & !3) | ecn;
            if byte1 == h[1] {
                return Ok(None);
            }
            let updated = checksum::update(be16(h[10], h[11]), be16(h[0], h[1]), be16(h[0], byte1));
            Ok(Some(EcnRewrite {
                byte1,
                checksum: Some(updated.to_be_bytes()),
            }))
        }
        ETH_P_IPV6 => {
            let [_, old] = frame.load::<2>(INNER_IP).ok_or(DropReason::Truncated)?;
            let ecn = decap_ecn(old >> 4, outer_tos).ok_or(DropReason::EcnIllegal)?;
            let byte1 = (old & !0x30) | (ecn << 4);
            if byte1 == old {
                return Ok(None);
            }
            Ok(Some(EcnRewrite {
                byte1,
                checksum: None,
            }))
        }
        _ => Ok(None),
    }
}
