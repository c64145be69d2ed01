//! ICMP messages and UDP datagrams, as a network's gateway sends them to a port.

use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, Mac, PROTO_ICMPV6, PROTO_UDP,
};

use super::Output;
use super::emit::{Sink, checksum, sum};

/// IP protocol number of ICMP for IPv4.
pub(super) const PROTO_ICMP: u8 = 1;
/// Length of an ICMP header, and of a UDP header.
pub(super) const HEAD_LEN: usize = 8;

/// Source and destination of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    V4([u8; 4], [u8; 4]),
    V6(Ip16, Ip16),
}

impl Ends {
    /// What an upper-layer checksum covers besides the message (RFC 768, RFC 8200 section 8.1).
    pub fn pseudo_header(&self, protocol: u8, len: usize) -> u32 {
        let ends = match self {
            Ends::V4(src, dst) => sum(src) + sum(dst),
            Ends::V6(src, dst) => sum(src) + sum(dst),
        };
        ends + len as u32 + u32::from(protocol)
    }
}

/// The link-layer part of the way to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub ifindex: u32,
    pub vni: u32,
    pub dst: Mac,
    pub src: Mac,
}

/// What goes between the IP header and the body.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub protocol: u8,
    pub tos: u8,
    /// Checksum 0.
    pub bytes: [u8; HEAD_LEN],
}

/// Sends a message to a port.
pub(super) fn send(
    link: Link,
    ends: Ends,
    head: Head,
    body: &[u8],
    sink: &mut Sink<'_, impl Output>,
) {
    let len = HEAD_LEN + body.len();
    let ip_len = match ends {
        Ends::V4(..) => IPV4_LEN,
        Ends::V6(..) => IPV6_LEN,
    };
    let Head { protocol, tos, .. } = head;
    let frame_len = ETH_LEN + ip_len + len;
    sink.write_to_port(link.ifindex, link.vni, frame_len, |frame| {
        let (eth, rest) = frame.split_at_mut(ETH_LEN);
        let (ip, message) = rest.split_at_mut(ip_len);
        eth[..6].copy_from_slice(&link.dst);
        eth[6..12].copy_from_slice(&link.src);
        message[..HEAD_LEN].copy_from_slice(&head.bytes);
        message[HEAD_LEN..].copy_from_slice(body);
        match ends {
            Ends::V4(src, dst) => {
                let [l0, l1] = ((ip_len + len) as u16).to_be_bytes();
                eth[12..].copy_from_slice(&ETH_P_IP.to_be_bytes());
                // DF: what is not fragmented needs no identification (RFC 6864).
                ip[..12].copy_from_slice(&[0x45, tos, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
                ip[12..16].copy_from_slice(&src);
                ip[16..].copy_from_slice(&dst);
                let checksum = checksum(ip, 0);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Ends::V6(src, dst) => {
                let [l0, l1] = (len as u16).to_be_bytes();
                eth[12..].copy_from_slice(&ETH_P_IPV6.to_be_bytes());
                let class = [0x60 | (tos >> 4), tos << 4, 0, 0];
                ip[..4].copy_from_slice(&class);
                ip[4..8].copy_from_slice(&[l0, l1, protocol, 64]);
                ip[8..24].copy_from_slice(&src);
                ip[24..].copy_from_slice(&dst);
            }
        }
        let (at, checksum) = match protocol {
            // No pseudo-header (RFC 792).
            PROTO_ICMP => (2, checksum(message, 0)),
            PROTO_ICMPV6 => (2, checksum(message, ends.pseudo_header(protocol, len))),
            _ => {
                debug_assert_eq!(protocol, PROTO_UDP);
                // 0 would say that there is none (RFC 768).
                match checksum(message, ends.pseudo_header(protocol, len)) {
                    0 => (6, 0xffff),
                    checksum => (6, checksum),
                }
            }
        };
        message[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    });
}
