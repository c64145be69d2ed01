//! The gateway of a network. Nobody routes there: it answers echo requests to its addresses, one of
//! each family, hands out what is asked of its DNS port (and of anybody's, by ports that want that), tells that it has no other UDP ports, and
//! takes nothing else.

use core::time::Duration;

use overlay_common::checksum::fold;
use overlay_common::counters::DropReason;
use overlay_common::layout::PORT_INTERCEPT_DNS;
use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    be16, map_v4,
};

use super::Output;
use super::emit::{Sink, sum};
use super::limit::Limiter;
use super::message::{Ends, HEAD_LEN, PROTO_ICMP};
use super::port::FromPort;
use super::{icmp, query};
use crate::model::MacAddr;

/// A packet to the gateway's MAC: its ends turned round, and what the IP header tells.
struct ToGateway<'a> {
    ends: Ends,
    tos: u8,
    protocol: u8,
    message: &'a [u8],
}

/// Answers a frame to a MAC that is in no FDB, if that is the gateway's.
pub(super) fn answer(
    from: &FromPort<'_>,
    limiter: &mut Limiter,
    now: Duration,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let not_ours = DropReason::UnknownDestination;
    if from.dst != from.network.gateway_mac().0 {
        return Err(not_ours);
    }
    let packet = from.inner.get(ETH_LEN..).unwrap_or_default();
    let to = match from.ethertype {
        ETH_P_IP => v4(packet)?,
        ETH_P_IPV6 => v6(packet)?,
        _ => return Err(not_ours),
    };
    let is_gateway = match to.ends {
        Ends::V4(ip, _) => from
            .gateway4()
            .is_some_and(|gateway| gateway.octets() == ip),
        Ends::V6(ip, _) => from
            .gateway6()
            .is_some_and(|gateway| gateway.octets() == ip),
    };
    let asks = to.protocol == PROTO_UDP && to.message.get(2..4) == Some(&query::PORT.to_be_bytes());
    // Some ports' resolvers are answered for, wherever they are, in their name.
    let intercepted = asks && from.port.flags & PORT_INTERCEPT_DNS != 0;
    if !is_gateway && !intercepted {
        return Err(not_ours);
    }
    match (to.protocol, to.ends) {
        (PROTO_ICMP | PROTO_ICMPV6, _) => ping(from, &to, sink),
        (PROTO_UDP, ends) if asks => {
            // To nobody no answer goes.
            may_be_told(ends, packet).ok_or(not_ours)?;
            query::ask(from, ends, to.message, limiter, now, sink)
        }
        (PROTO_UDP, _) => port_unreachable(from, &to, packet, limiter, now, sink),
        _ => Err(not_ours),
    }
}

/// Answers a frame to a service's own MAC that no backend can have: the service is there, for who
/// pings it, but nobody behind it, for who wants to connect.
pub(super) fn answer_for_service(
    from: &FromPort<'_>,
    limiter: &mut Limiter,
    now: Duration,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let packet = from.inner.get(ETH_LEN..).unwrap_or_default();
    let to = match from.ethertype {
        ETH_P_IP => v4(packet)?,
        ETH_P_IPV6 => v6(packet)?,
        _ => return Err(DropReason::UnknownDestination),
    };
    let asked = match to.ends {
        Ends::V4(ip, _) => map_v4(ip),
        Ends::V6(ip, _) => ip,
    };
    let mut vips = from.tables.vips(from.port.vni, MacAddr(from.dst));
    if !vips.any(|vip| *vip == asked) {
        return Err(DropReason::UnknownDestination);
    }
    match to.protocol {
        PROTO_ICMP | PROTO_ICMPV6 => ping(from, &to, sink),
        PROTO_TCP | PROTO_UDP => port_unreachable(from, &to, packet, limiter, now, sink),
        _ => Err(DropReason::UnknownDestination),
    }
}

fn ping(
    from: &FromPort<'_>,
    to: &ToGateway<'_>,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    match (to.protocol, to.ends) {
        (PROTO_ICMP, Ends::V4(..)) => echo(from, to, 8, 0, sink),
        (PROTO_ICMPV6, Ends::V6(..)) => echo(from, to, 128, 129, sink),
        _ => Err(DropReason::UnknownDestination),
    }
}

fn port_unreachable(
    from: &FromPort<'_>,
    to: &ToGateway<'_>,
    packet: &[u8],
    limiter: &mut Limiter,
    now: Duration,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let [kind, code] = may_be_told(to.ends, packet).ok_or(DropReason::UnknownDestination)?;
    if !limiter.error(from.ifindex, now) {
        return Err(DropReason::UnknownDestination);
    }
    icmp::send_error(from, to.ends, [kind, code, 0, 0, 0, 0, 0, 0], sink);
    Ok(())
}

/// Type and code of "port unreachable", if the packet's sender may get an error.
fn may_be_told(ends: Ends, packet: &[u8]) -> Option<[u8; 2]> {
    match ends {
        Ends::V4(..) => icmp::v4_error_to(packet).map(|_| [3, 3]),
        Ends::V6(..) => icmp::v6_error_to(packet).map(|_| [1, 4]),
    }
}

fn echo(
    from: &FromPort<'_>,
    to: &ToGateway<'_>,
    request: u8,
    reply: u8,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let split = to.message.split_first_chunk::<HEAD_LEN>();
    let (head, body) = split.ok_or(DropReason::Truncated)?;
    let pseudo_header = match to.ends {
        Ends::V4(..) => 0,
        Ends::V6(..) => to.ends.pseudo_header(to.protocol, to.message.len()),
    };
    let pseudo_header = u32::from(fold(pseudo_header));
    if fold(u32::from(fold(sum(to.message))) + pseudo_header) != 0xffff {
        return Err(DropReason::InnerHeader);
    }
    if head[0] != request || head[1] != 0 {
        return Err(DropReason::UnknownDestination);
    }
    let head = [reply, 0, 0, 0, head[4], head[5], head[6], head[7]];
    icmp::send(from, to.ends, to.tos, head, body, sink);
    Ok(())
}

fn v4(packet: &[u8]) -> Result<ToGateway<'_>, DropReason> {
    let (ip, _) = packet
        .split_first_chunk::<IPV4_LEN>()
        .ok_or(DropReason::Truncated)?;
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let total_len = usize::from(be16(ip[2], ip[3]));
    let header = packet.get(..header_len).ok_or(DropReason::Truncated)?;
    if header_len < IPV4_LEN || fold(sum(header)) != 0xffff || total_len < header_len {
        return Err(DropReason::InnerHeader);
    }
    let message = packet.get(header_len..total_len);
    // Fragments would have to be put together first.
    let fragment = be16(ip[6], ip[7]) & 0x3fff != 0;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *ip;
    if fragment {
        return Err(DropReason::UnknownDestination);
    }
    Ok(ToGateway {
        ends: Ends::V4([d0, d1, d2, d3], [s0, s1, s2, s3]),
        tos: ip[1],
        protocol: ip[9],
        message: message.ok_or(DropReason::Truncated)?,
    })
}

fn v6(packet: &[u8]) -> Result<ToGateway<'_>, DropReason> {
    let split = packet.split_first_chunk::<IPV6_LEN>();
    let (ip, rest) = split.ok_or(DropReason::Truncated)?;
    let len = usize::from(be16(ip[4], ip[5]));
    let (src, dst) = ip[8..].split_at(16);
    let dst: Ip16 = *dst.first_chunk().ok_or(DropReason::Truncated)?;
    Ok(ToGateway {
        ends: Ends::V6(dst, *src.first_chunk().ok_or(DropReason::Truncated)?),
        tos: (ip[0] << 4) | (ip[1] >> 4),
        protocol: ip[6],
        message: rest.get(..len).ok_or(DropReason::Truncated)?,
    })
}
