//! ICMP messages from a network's gateway, and when an error may be sent at all.

use overlay_common::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, Ip16, PROTO_ICMPV6, UNSPECIFIED, be16};

use super::Output;
use super::emit::Sink;
use super::message::{self, Ends, HEAD_LEN, Head, PROTO_ICMP};
use super::port::FromPort;

/// No ICMPv4 error is longer than 576 bytes (RFC 1812 section 4.3.2.3).
const V4_QUOTE: usize = 576 - IPV4_LEN - HEAD_LEN;
/// No ICMPv6 error is longer than 1280 bytes (RFC 4443 section 2.4 c).
const V6_QUOTE: usize = 1280 - IPV6_LEN - HEAD_LEN;
/// The TOS of ICMP errors: precedence 6 (RFC 1812 section 4.3.2.5).
const ERROR_TOS: u8 = 0xc0;

/// Sends a message from the gateway's MAC to who sent the frame. `head` is the ICMP header,
/// checksum 0.
pub(super) fn send(
    from: &FromPort<'_>,
    ends: Ends,
    tos: u8,
    head: [u8; HEAD_LEN],
    body: &[u8],
    sink: &mut Sink<'_, impl Output>,
) {
    let protocol = match ends {
        Ends::V4(..) => PROTO_ICMP,
        Ends::V6(..) => PROTO_ICMPV6,
    };
    let head = Head {
        protocol,
        tos,
        bytes: head,
    };
    message::send(from.link(), ends, head, body, sink);
}

/// Sends an error about the frame.
pub(super) fn send_error(
    from: &FromPort<'_>,
    ends: Ends,
    head: [u8; HEAD_LEN],
    sink: &mut Sink<'_, impl Output>,
) {
    let packet = from.inner.get(ETH_LEN..).unwrap_or_default();
    let (tos, most) = match ends {
        Ends::V4(..) => (ERROR_TOS, V4_QUOTE),
        Ends::V6(..) => (0, V6_QUOTE),
    };
    let quote = packet.get(..most).unwrap_or(packet);
    send(from, ends, tos, head, quote, sink);
}

/// The sender of an IPv4 packet, if it may be sent an error about it: it is no error itself, no
/// fragment but the first, to one host, and the frame has all that must be quoted (RFC 1122
/// section 3.2.2).
pub(super) fn v4_error_to(packet: &[u8]) -> Option<[u8; 4]> {
    let (ip, _) = packet.split_first_chunk::<IPV4_LEN>()?;
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let quoted = packet.get(header_len..)?.first_chunk::<8>()?;
    let first = be16(ip[6], ip[7]) & 0x1fff == 0;
    // Unreachable, source quench, redirect, time exceeded, parameter problem.
    let error = ip[9] == PROTO_ICMP && matches!(quoted[0], 3 | 4 | 5 | 11 | 12);
    // Multicast and broadcast from 224.0.0.0 up; 0.0.0.0 is nobody.
    let group = ip[16] >= 224;
    let src = [ip[12], ip[13], ip[14], ip[15]];
    let sendable = header_len >= IPV4_LEN && first && !error && !group && src != [0; 4];
    sendable.then_some(src)
}

/// The sender of an IPv6 packet, if it may be sent an error about it: it is neither an error nor a
/// redirect, nor something of which that can't be seen (RFC 4443 section 2.4 e).
pub(super) fn v6_error_to(packet: &[u8]) -> Option<Ip16> {
    let (ip, _) = packet.split_first_chunk::<IPV6_LEN>()?;
    let src: Ip16 = *ip[8..].first_chunk()?;
    let (upper, message) = v6_upper(ip[6], packet.get(IPV6_LEN..)?)?;
    let error = upper == PROTO_ICMPV6
        && message
            .first()
            .is_none_or(|kind| *kind < 128 || *kind == 137);
    (!error && src != UNSPECIFIED).then_some(src)
}

/// The upper-layer protocol behind the extension headers and its bytes, of which a later fragment
/// has none.
fn v6_upper(mut next: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    // More than each of them twice is nothing a host sends.
    for _ in 0..10 {
        let len = match (next, rest) {
            (HOP_BY_HOP | ROUTING | DESTINATION, [_, len, ..]) => (usize::from(*len) + 1) * 8,
            (AUTHENTICATION, [_, len, ..]) => (usize::from(*len) + 2) * 4,
            (FRAGMENT, [upper, _, o0, o1, ..]) if be16(*o0, *o1) & 0xfff8 != 0 => {
                return Some((*upper, &[]));
            }
            (FRAGMENT, _) => 8,
            (HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION, _) => return None,
            _ => return Some((next, rest)),
        };
        next = *rest.first()?;
        rest = rest.get(len..)?;
    }
    None
}
