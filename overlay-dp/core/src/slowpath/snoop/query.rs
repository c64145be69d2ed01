//! Queries, as the gateway of a network sends them to one port: IGMPv3 (RFC 3376 section 4.1) and
//! MLDv2 (RFC 3810 section 5.1), which older hosts understand as well.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::wire::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV6_LEN, Mac, PROTO_ICMPV6};

use super::members::{QUERY_INTERVAL, RESPONSE, ROBUSTNESS};
use super::message::PROTO_IGMP;
use crate::multicast::Group;
use crate::slowpath::Output;
use crate::slowpath::emit::{Sink, checksum};
use crate::slowpath::message::{Ends, Link};

/// With a router alert (RFC 2113), without which nobody would take it.
const IP4_LEN: usize = 24;
const IGMP_LEN: usize = 12;
/// Hop-by-hop options: a router alert for MLD (RFC 2711), and padding.
const ALERT6: [u8; 8] = [PROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0];
const MLD_LEN: usize = 28;
const ALL_SYSTEMS: [u8; 4] = [224, 0, 0, 1];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Both as codes that stand for themselves.
const QRV: u8 = ROBUSTNESS as u8;
const QQIC: u8 = QUERY_INTERVAL.as_secs() as u8;

/// Asks about a group, or with `None` about all. `link` leads from the gateway to the port. Without
/// an IPv4 gateway nobody can ask about IPv4 groups.
pub fn send(
    link: Link,
    gateway4: Option<Ipv4Addr>,
    group: Option<Group>,
    sink: &mut Sink<'_, impl Output>,
) {
    let ip = group.map(Group::ip);
    if let Some(gateway) = gateway4 {
        match ip {
            None => igmp(link, gateway, None, sink),
            Some(IpAddr::V4(ip)) => igmp(link, gateway, Some(ip.octets()), sink),
            Some(IpAddr::V6(_)) => {}
        }
    }
    match ip {
        None => mld(link, None, sink),
        Some(IpAddr::V6(ip)) => mld(link, Some(ip.octets()), sink),
        Some(IpAddr::V4(_)) => {}
    }
}

fn igmp(link: Link, src: Ipv4Addr, group: Option<[u8; 4]>, sink: &mut Sink<'_, impl Output>) {
    let dst = group.unwrap_or(ALL_SYSTEMS);
    let mac = [1, 0, 0x5e, dst[1] & 0x7f, dst[2], dst[3]];
    let len = ETH_LEN + IP4_LEN + IGMP_LEN;
    sink.write_to_port(link.ifindex, link.vni, len, |frame| {
        let (ip, message) = head(frame, mac, link.src, ETH_P_IP).split_at_mut(IP4_LEN);
        let total = (IP4_LEN + IGMP_LEN) as u8;
        ip[..12].copy_from_slice(&[0x46, 0xc0, 0, total, 0, 0, 0x40, 0, 1, PROTO_IGMP, 0, 0]);
        ip[12..16].copy_from_slice(&src.octets());
        ip[16..20].copy_from_slice(&dst);
        ip[20..].copy_from_slice(&[0x94, 4, 0, 0]);
        let sum = checksum(ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let tenths = (RESPONSE.as_millis() / 100) as u8;
        message[..4].copy_from_slice(&[0x11, tenths, 0, 0]);
        message[4..8].copy_from_slice(&group.unwrap_or_default());
        message[8..].copy_from_slice(&[QRV, QQIC, 0, 0]);
        let sum = checksum(message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    });
}

fn mld(link: Link, group: Option<[u8; 16]>, sink: &mut Sink<'_, impl Output>) {
    let dst = group.unwrap_or(ALL_NODES);
    let mac = [0x33, 0x33, dst[12], dst[13], dst[14], dst[15]];
    // From a link-local address, or nobody takes it.
    let src = crate::model::MacAddr(link.src).link_local().octets();
    let len = ETH_LEN + IPV6_LEN + ALERT6.len() + MLD_LEN;
    sink.write_to_port(link.ifindex, link.vni, len, |frame| {
        let (ip, rest) = head(frame, mac, link.src, ETH_P_IPV6).split_at_mut(IPV6_LEN);
        let (alert, message) = rest.split_at_mut(ALERT6.len());
        let payload = (ALERT6.len() + MLD_LEN) as u8;
        ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, payload, 0, 1]);
        ip[8..24].copy_from_slice(&src);
        ip[24..].copy_from_slice(&dst);
        alert.copy_from_slice(&ALERT6);
        let [m0, m1] = (RESPONSE.as_millis() as u16).to_be_bytes();
        message[..8].copy_from_slice(&[130, 0, 0, 0, m0, m1, 0, 0]);
        message[8..24].copy_from_slice(&group.unwrap_or_default());
        message[24..].copy_from_slice(&[QRV, QQIC, 0, 0]);
        let sum = checksum(
            message,
            Ends::V6(src, dst).pseudo_header(PROTO_ICMPV6, MLD_LEN),
        );
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    });
}

/// Writes the Ethernet header; returns what is behind it.
fn head(frame: &mut [u8], dst: Mac, src: Mac, ethertype: u16) -> &mut [u8] {
    let (eth, rest) = frame.split_at_mut(ETH_LEN);
    eth[..6].copy_from_slice(&dst);
    eth[6..12].copy_from_slice(&src);
    eth[12..].copy_from_slice(&ethertype.to_be_bytes());
    rest
}
