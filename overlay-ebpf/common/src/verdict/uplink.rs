//! Frames from the underlay. Nothing in them is trusted.

use core::hint::black_box;

use super::{EcnRewrite, Eth, Frame, Tables, Verdict, admitted};
use crate::checksum;
use crate::counters::DropReason;
use crate::echo;
use crate::layout::{Config, FdbKey};
use crate::outer::decap_ecn;
use crate::punt::Reason;
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, Ip16, PROTO_UDP, UDP_LEN,
    VXLAN_FLAG_VNI, VXLAN_LEN, be16, half, ip_eq, map_v4,
};

/// A checksum probe's UDP length. It is summed with its addresses as they are in tables: the prefix
/// of those that are IPv4-mapped adds nothing (0xffff is the 0 of such sums).
const PROBE_LEN: usize = UDP_LEN + echo::PAYLOAD_LEN;

/// What of the outer headers still matters behind them.
struct Outer {
    family: Family,
    /// Sender, IPv4-mapped if it is one.
    src: Ip16,
    tos: u8,
    vni: u32,
    way: Way,
}

/// What an outer IP header says.
struct OuterIp {
    family: Family,
    src: Ip16,
    tos: u8,
    /// The whole packet's length, this header included.
    len: u32,
    /// False when the header's own checksum is wrong.
    sound: bool,
    way: Way,
}

/// How a frame came from another VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    Clear,
    /// As ESP, which a crypt worker has opened: the outer source is whose key sealed it.
    Sealed,
}

/// Decides about a frame that came in on the uplink.
pub fn from_uplink<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T, way: Way) -> Verdict<'t> {
    admitted(
        frame,
        tables,
        from_uplink_then(frame, tables, way, |verdict| verdict),
    )
}

/// [`from_uplink`], with `act` called with the verdict, which [`admit`](super::admit) has not seen.
///
/// # Errors
/// Why the frame is to be dropped. It is VXLAN for this VTEP then.
#[inline(always)]
pub fn from_uplink_then<'t, F, T, R>(
    frame: &F,
    tables: &'t T,
    way: Way,
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
    if frame.has_vlan_aside() {
        return Ok(act(Verdict::Pass));
    }
    match be16(t0, t1) {
        ETH_P_IP => over_ipv4(frame, tables, config, way, act),
        ETH_P_IPV6 => over_ipv6(frame, tables, config, way, act),
        _ => Ok(act(Verdict::Pass)),
    }
}

#[inline(always)]
fn over_ipv4<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    config: &Config,
    way: Way,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let Some(ip) = frame.load::<IPV4_LEN>(ETH_LEN) else {
        return Ok(act(Verdict::Pass));
    };
    // A VTEP sends neither IP options nor fragments (RFC 7348 section 4.3).
    let fragment = u16::from_be(half(&ip, 6)) & 0x3fff != 0;
    let dst = map_v4([ip[16], ip[17], ip[18], ip[19]]);
    if ip[0] != 0x45 || ip[9] != PROTO_UDP || fragment || !ip_eq(&dst, &config.vtep) {
        return Ok(act(Verdict::Pass));
    }
    let ip = OuterIp {
        family: Family::V4,
        src: map_v4([ip[12], ip[13], ip[14], ip[15]]),
        tos: ip[1],
        len: be16(ip[2], ip[3]) as u32,
        sound: checksum::fold(checksum::sum(&ip)) == 0xffff,
        way,
    };
    datagram(frame, tables, config, &ip, act)
}

#[inline(always)]
fn over_ipv6<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    config: &Config,
    way: Way,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let Some(dst) = frame.load::<16>(ETH_LEN + 24) else {
        return Ok(act(Verdict::Pass));
    };
    if !ip_eq(&dst, &config.vtep) {
        return Ok(act(Verdict::Pass));
    }
    // One after the other: of two that were loaded together, one is not there where the other fails.
    let Some(h) = frame.load::<8>(ETH_LEN) else {
        return Ok(act(Verdict::Pass));
    };
    // A VTEP sends neither extension headers nor fragments, which have one.
    if h[0] >> 4 != 6 || h[6] != PROTO_UDP {
        return Ok(act(Verdict::Pass));
    }
    let Some(src) = frame.load::<16>(ETH_LEN + 8) else {
        return Ok(act(Verdict::Pass));
    };
    let ip = OuterIp {
        family: Family::V6,
        src,
        tos: (h[0] << 4) | (h[1] >> 4),
        len: be16(h[4], h[5]) as u32 + IPV6_LEN as u32,
        sound: true,
        way,
    };
    datagram(frame, tables, config, &ip, act)
}

#[inline(always)]
fn datagram<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    config: &Config,
    ip: &OuterIp,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let outer_len = ip.family.outer_len();
    let udp_at = outer_len - VXLAN_LEN - UDP_LEN;
    let Some(udp) = frame.load::<UDP_LEN>(udp_at) else {
        return Ok(act(Verdict::Pass));
    };
    let port = be16(udp[2], udp[3]);
    if port != config.data_port {
        // Who is no VTEP may use that port with the host itself.
        if port == config.esp_port && tables.vtep(&ip.src).is_some() {
            return Ok(act(Verdict::Open));
        }
        return Ok(act(Verdict::Pass));
    }
    // From here on it is ours, and a fault is counted. Lengths of a GSO super-packet are those of
    // the whole, or nothing, as the kernel likes.
    if !ip.sound {
        return Err(DropReason::OuterChecksum);
    }
    let udp_len = be16(udp[4], udp[5]) as u32;
    let smallest = (UDP_LEN + VXLAN_LEN + ETH_LEN) as u32;
    let header_len = (udp_at - ETH_LEN) as u32;
    let fits = ip.len + ETH_LEN as u32 <= frame.total_len()
        && udp_len >= smallest
        && ip.len >= udp_len + header_len;
    if frame.gso_size() == 0 && !fits {
        return Err(DropReason::OuterLength);
    }
    let vxlan: [u8; VXLAN_LEN] = frame
        .load(outer_len - VXLAN_LEN)
        .ok_or(DropReason::OuterLength)?;
    if vxlan[0] & VXLAN_FLAG_VNI == 0 {
        return Err(DropReason::VxlanFlags);
    }
    let outer = Outer {
        family: ip.family,
        src: ip.src,
        tos: ip.tos,
        vni: u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]),
        way: ip.way,
    };
    if outer.vni == echo::VNI && matches!(ip.way, Way::Clear) {
        let exact = ip.len + ETH_LEN as u32 == frame.total_len()
            && ip.len == udp_len + header_len
            && frame.gso_size() == 0;
        let exact_len = if exact { udp_len } else { 0 };
        let unsound = check_echo(frame, tables, &outer, exact_len)?;
        let family = ip.family;
        return Ok(act(Verdict::EchoReply { family, unsound }));
    }
    inner(frame, tables, &outer, act)
}

/// Refuses what is on VNI 0 and no echo request, whose lengths agree exactly: `udp_len` is the UDP
/// header's then, and 0 when they don't. Returns whether it is a checksum probe and its checksum
/// wrong.
///
/// A function of its own: what it reads need not be on every frame's stack.
#[inline(never)]
fn check_echo<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    outer: &Outer,
    udp_len: u32,
) -> Result<bool, DropReason> {
    const MALFORMED: DropReason = DropReason::MalformedEcho;
    // It stays where it is: its fields would be more arguments than there can be.
    let outer = black_box(outer);
    tables.vtep(&outer.src).ok_or(DropReason::UnknownVtep)?;
    let [to_group, _] = frame.load(0).ok_or(MALFORMED)?;
    if udp_len == 0 || to_group & 1 != 0 {
        return Err(MALFORMED);
    }
    let message = outer.family.outer_len();
    let words: [u8; 4] = frame.load(message).ok_or(MALFORMED)?;
    let magic: [u8; 4] = frame.load(message + 4).ok_or(MALFORMED)?;
    let _nonce: [u8; 8] = frame.load(message + 8).ok_or(MALFORMED)?;
    if echo::is_request(words, magic) {
        return Ok(false);
    }
    if !echo::is_checksum_request(words, magic) || udp_len != PROBE_LEN as u32 {
        return Err(MALFORMED);
    }
    let datagram: [u8; PROBE_LEN] = frame.load(message - VXLAN_LEN - UDP_LEN).ok_or(MALFORMED)?;
    // Without a checksum it asks nothing.
    if be16(datagram[6], datagram[7]) == 0 {
        return Err(MALFORMED);
    }
    let config = tables.config().ok_or(MALFORMED)?;
    let sum = checksum::sum(&outer.src)
        + checksum::sum(&config.vtep)
        + u32::from(PROTO_UDP)
        + PROBE_LEN as u32
        + checksum::sum(&datagram);
    Ok(checksum::fold(sum) != 0xffff && !frame.may_have_sum_aside())
}

#[inline(always)]
fn inner<'t, F: Frame, T: Tables, R>(
    frame: &F,
    tables: &'t T,
    outer: &Outer,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason> {
    let vni = outer.vni;
    let outer_len = outer.family.outer_len();
    let eth = frame
        .read(outer_len, Eth::new)
        .ok_or(DropReason::Truncated)?;
    // An entry is there only while its VTEP and its network are known, and only for one address:
    // whoever is found behind the sender needs no other check.
    let source = tables.fdb(&FdbKey::of(vni, eth.src));
    let answer = match source {
        Some(source) if source.is_backend() => vni,
        _ => 0,
    };
    if !source.is_some_and(|source| source.is_behind(&outer.src)) {
        let found = source.is_some();
        refuse_sender(tables, outer, &eth, found)?;
        let reason = Reason::UnknownSource;
        return Ok(act(Verdict::Punt { reason, vni }));
    }
    // Each MAC's entry says it, so that what is in the clear, and may be, needs no other look.
    let encrypted = source.is_some_and(|source| source.is_encrypted());
    refuse_way(outer.way, encrypted)?;
    if eth.is_tagged() {
        return Err(DropReason::InnerVlan);
    }
    let Some(destination) = tables.fdb(&FdbKey::of(vni, eth.dst)) else {
        let reason = if eth.dst.is_group() {
            Reason::Flood
        } else {
            Reason::UnknownDestination
        };
        return Ok(act(Verdict::Punt { reason, vni }));
    };
    let ifindex = destination.port().ok_or(DropReason::NotLocal)?;
    // The gateway is each host's own: what other hosts send there is for nobody here.
    if destination.is_gateway() {
        let reason = Reason::UnknownDestination;
        return Ok(act(Verdict::Punt { reason, vni }));
    }
    let policed = if destination.is_policed() { vni } else { 0 };
    let router = destination.is_router();
    let entered = !router && source.is_some_and(|source| source.is_router());
    combine_ecn(frame, eth.ethertype, outer, |ecn| {
        let family = outer.family;
        act(Verdict::Decap {
            ifindex,
            family,
            ecn,
            answer,
            router,
            entered,
            policed,
        })
    })
}

/// On an encrypted network nothing is taken that did not come sealed, and on others nothing that
/// did.
#[inline(always)]
fn refuse_way(way: Way, encrypted: bool) -> Result<(), DropReason> {
    match (way, encrypted) {
        (Way::Clear, true) => Err(DropReason::ClearForEncrypted),
        (Way::Sealed, false) => Err(DropReason::SealedForClear),
        _ => Ok(()),
    }
}

/// Says what is wrong with a frame whose sender is not behind the VTEP it came from. `found` tells
/// that it is elsewhere; otherwise the agent may know more than the map.
#[inline(always)]
fn refuse_sender<T: Tables>(
    tables: &T,
    outer: &Outer,
    eth: &Eth,
    found: bool,
) -> Result<(), DropReason> {
    tables.vtep(&outer.src).ok_or(DropReason::UnknownVtep)?;
    let network = tables.network(outer.vni).ok_or(DropReason::UnknownVni)?;
    refuse_way(outer.way, network.is_encrypted())?;
    if eth.is_tagged() {
        return Err(DropReason::InnerVlan);
    }
    if eth.src.is_group() || eth.src.is(&[0; 6]) {
        return Err(DropReason::InnerSource);
    }
    if found {
        return Err(DropReason::WrongVtep);
    }
    Ok(())
}

/// Combines outer and inner ECN and calls `act` with the result: `None` when the inner header
/// stays as it is.
#[inline(always)]
fn combine_ecn<F: Frame, R>(
    frame: &F,
    ethertype: u16,
    outer: &Outer,
    act: impl FnOnce(Option<EcnRewrite>) -> R,
) -> Result<R, DropReason> {
    let inner_ip = outer.family.outer_len() + ETH_LEN;
    let outer_tos = outer.tos;
    // Only ECT(1) and CE outside ever change anything.
    let matters = outer_tos & 1 != 0;
    if matters && ethertype == ETH_P_IP {
        let h: [u8; 12] = frame.load(inner_ip).ok_or(DropReason::Truncated)?;
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
        let [_, old] = frame.load::<2>(inner_ip).ok_or(DropReason::Truncated)?;
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
