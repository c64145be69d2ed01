//! The gateway of a network. Nobody routes there: it answers echo requests to its address, tells
//! that it has no UDP ports, and takes nothing else.

use core::time::Duration;
use std::net::IpAddr;

use overlay_common::checksum::fold;
use overlay_common::counters::DropReason;
use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, PROTO_ICMPV6, PROTO_UDP, be16,
};

use super::Output;
use super::emit::{Sink, sum};
use super::icmp::{self, Ends, PROTO_ICMP};
use super::limit::Limiter;
use super::port::FromPort;

/// A packet to the gateway's address: its ends turned round, and what the IP header tells.
struct ToGateway<'a> {
    ends: Ends,
    tos: u8,
    protocol: u8,
    message: &'a [u8],
    /// What an upper-layer checksum covers besides the message.
    pseudo_header: u32,
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
    let to = match (from.ethertype, from.network.gateway) {
        (ETH_P_IP, IpAddr::V4(gateway)) => v4(packet, gateway.octets())?,
        (ETH_P_IPV6, IpAddr::V6(gateway)) => v6(packet, gateway.octets())?,
        _ => return Err(not_ours),
    };
    match (to.protocol, to.ends) {
        (PROTO_ICMP, Ends::V4(..)) => echo(from, &to, 8, 0, sink),
        (PROTO_ICMPV6, Ends::V6(..)) => echo(from, &to, 128, 129, sink),
        (PROTO_UDP, Ends::V4(..)) if limiter.allow(from.ifindex, now) => {
            icmp::v4_error_to(packet).ok_or(not_ours)?;
            icmp::send_error(from, to.ends, [3, 3, 0, 0, 0, 0, 0, 0], sink);
            Ok(())
        }
        (PROTO_UDP, Ends::V6(..)) if limiter.allow(from.ifindex, now) => {
            icmp::v6_error_to(packet).ok_or(not_ours)?;
            icmp::send_error(from, to.ends, [1, 4, 0, 0, 0, 0, 0, 0], sink);
            Ok(())
        }
        _ => Err(not_ours),
    }
}

fn echo(
    from: &FromPort<'_>,
    to: &ToGateway<'_>,
    request: u8,
    reply: u8,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let split = to.message.split_first_chunk::<8>();
    let (head, body) = split.ok_or(DropReason::Truncated)?;
    if fold(u32::from(fold(sum(to.message))) + to.pseudo_header) != 0xffff {
        return Err(DropReason::InnerHeader);
    }
    if head[0] != request || head[1] != 0 {
        return Err(DropReason::UnknownDestination);
    }
    let head = [reply, 0, 0, 0, head[4], head[5], head[6], head[7]];
    icmp::send(from, to.ends, to.tos, head, body, sink);
    Ok(())
}

fn v4(packet: &[u8], gateway: [u8; 4]) -> Result<ToGateway<'_>, DropReason> {
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
    if [d0, d1, d2, d3] != gateway || fragment {
        return Err(DropReason::UnknownDestination);
    }
    Ok(ToGateway {
        ends: Ends::V4(gateway, [s0, s1, s2, s3]),
        tos: ip[1],
        protocol: ip[9],
        message: message.ok_or(DropReason::Truncated)?,
        pseudo_header: 0,
    })
}

fn v6(packet: &[u8], gateway: Ip16) -> Result<ToGateway<'_>, DropReason> {
    let split = packet.split_first_chunk::<IPV6_LEN>();
    let (ip, rest) = split.ok_or(DropReason::Truncated)?;
    let len = usize::from(be16(ip[4], ip[5]));
    let (src, dst) = ip[8..].split_at(16);
    if dst != gateway {
        return Err(DropReason::UnknownDestination);
    }
    let pseudo_header = sum(&ip[8..]) + len as u32 + u32::from(ip[6]);
    Ok(ToGateway {
        ends: Ends::V6(gateway, *src.first_chunk().ok_or(DropReason::Truncated)?),
        tos: (ip[0] << 4) | (ip[1] >> 4),
        protocol: ip[6],
        message: rest.get(..len).ok_or(DropReason::Truncated)?,
        pseudo_header: u32::from(fold(pseudo_header)),
    })
}
