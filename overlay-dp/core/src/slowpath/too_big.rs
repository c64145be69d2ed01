//! Packets larger than the way to their destination carries. A VTEP never fragments (RFC 7348
//! section 4.3), so the sender is told, whether or not it allows fragments (IPv4 DF): by ICMP type
//! 3 code 4 (RFC 1191) or ICMPv6 packet too big (RFC 4443 section 3.2), as from a router.

use core::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::layout::FdbKey;
use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, is_group};

use super::Output;
use super::emit::Sink;
use super::icmp;
use super::limit::Limiter;
use super::message::Ends;
use super::port::FromPort;

/// Tells the sender, or drops the frame when that can't be.
pub(super) fn answer(
    from: &FromPort<'_>,
    limiter: &mut Limiter,
    now: Duration,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let ends = ends(from).ok_or(DropReason::PuntTooBig)?;
    if !limiter.error(from.ifindex, now) {
        return Err(DropReason::PuntTooBig);
    }
    let mtu = mtu(from);
    let head = match ends {
        Ends::V4(..) => {
            let [hi, lo] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
            [3, 4, 0, 0, 0, 0, hi, lo]
        }
        Ends::V6(..) => {
            let [a, b, c, d] = mtu.to_be_bytes();
            [2, 0, 0, 0, a, b, c, d]
        }
    };
    icmp::send_error(from, ends, head, sink);
    Ok(())
}

/// Who tells, and who is told.
fn ends(from: &FromPort<'_>) -> Option<Ends> {
    let packet = from.inner.get(ETH_LEN..)?;
    match from.ethertype {
        ETH_P_IP if !is_group(&from.dst) => {
            let gateway = from.gateway4()?;
            Some(Ends::V4(gateway.octets(), icmp::v4_error_to(packet)?))
        }
        ETH_P_IPV6 => {
            // A gateway without an IPv6 address still has the link-local one of its MAC.
            let gateway = from.gateway6();
            let gateway = gateway.unwrap_or_else(|| from.network.gateway_mac().link_local());
            Some(Ends::V6(gateway.octets(), icmp::v6_error_to(packet)?))
        }
        _ => None,
    }
}

/// The largest packet for this destination.
fn mtu(from: &FromPort<'_>) -> u32 {
    if from.dst == from.network.gateway_mac().0 {
        // Through which router it goes is not known here: the narrowest of all ways fits.
        let ways = from.tables.flood_vteps(from.port.vni);
        let ways = ways.filter(|(_, vtep)| vtep.ifindex != 0);
        return ways.fold(from.port.mtu, |mtu, (_, vtep)| {
            mtu.min(from.port.mtu_to(vtep))
        });
    }
    let entry = from.tables.fdb_entry(&FdbKey::new(from.port.vni, from.dst));
    let vtep = entry.and_then(|entry| from.tables.vtep_entry(entry.vtep()));
    match vtep {
        Some(vtep) if vtep.ifindex != 0 => from.port.mtu_to(vtep).min(from.port.mtu),
        _ => from.port.mtu,
    }
}
