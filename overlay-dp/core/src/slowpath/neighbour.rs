//! Answers to ARP requests and neighbour solicitations.

use overlay_common::checksum;
use overlay_common::counters::DropReason;
use overlay_common::verdict::neighbour::{self, ARP_FRAME, ND_FRAME};
use overlay_common::wire::{
    ETH_LEN, ETH_P_IPV6, ICMPV6_NS, IPV6_LEN, Ip16, Mac, ND_LEN, PROTO_ICMPV6, UNSPECIFIED, be16,
};

use super::Output;
use super::emit::Sink;
use super::port::FromPort;

/// All nodes of the link, `ff02::1`, and the MAC for it (RFC 2464 section 7).
const ALL_NODES: Ip16 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// The first word of an advertisement's flags: solicited and override, or override alone.
const SOLICITED: u16 = 0x6000;
const UNSOLICITED: u16 = 0x2000;

/// Answers the ARP request that the verdict has found to be one.
pub(super) fn arp_reply(
    from: &FromPort<'_>,
    mac: &Mac,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let mut frame: [u8; ARP_FRAME] = *from.inner.first_chunk().ok_or(DropReason::Truncated)?;
    neighbour::arp_reply(&mut frame, mac);
    sink.send_to_port(from.ifindex, from.port.vni, &frame, None);
    Ok(())
}

/// Answers the solicitation that the verdict has found to be answerable in place.
pub(super) fn nd_reply(
    from: &FromPort<'_>,
    mac: &Mac,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let mut frame: [u8; ND_FRAME] = *from.inner.first_chunk().ok_or(DropReason::Truncated)?;
    neighbour::nd_reply(&mut frame, mac);
    sink.send_to_port(from.ifindex, from.port.vni, &frame, None);
    Ok(())
}

/// Answers a solicitation with other options than the one, or from the unspecified address:
/// duplicate address detection, which is told so by an advertisement to all nodes (RFC 4862
/// section 5.4.3, RFC 4861 section 7.2.4).
///
/// The checksum is not verified: it comes from a container of this very host.
pub(super) fn advertise(
    from: &FromPort<'_>,
    mac: &Mac,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let packet = from.inner.get(ETH_LEN..).unwrap_or_default();
    let (ip, message) = packet
        .split_first_chunk::<IPV6_LEN>()
        .ok_or(DropReason::Truncated)?;
    let (target, valid) = match message {
        [ICMPV6_NS, 0, _, _, _, _, _, _, rest @ ..] => (rest.first_chunk::<16>(), true),
        _ => (None, false),
    };
    let len = usize::from(be16(ip[4], ip[5]));
    // RFC 4861 section 7.1.1.
    if !valid || ip[7] != 255 || len < 24 || len > message.len() {
        return Err(DropReason::InnerHeader);
    }
    let target = target.ok_or(DropReason::Truncated)?;
    let [_, _, _, _, _, _, _, _, addresses @ ..] = ip;
    let src: &Ip16 = addresses.first_chunk().ok_or(DropReason::Truncated)?;
    let detection = *src == UNSPECIFIED;
    let (to_mac, to) = if detection {
        (ALL_NODES_MAC, ALL_NODES)
    } else {
        (from.port.mac, *src)
    };
    let mut frame = solicitation(to_mac, to, target);
    neighbour::nd_reply(&mut frame, mac);
    if detection {
        const ICMP: usize = ETH_LEN + IPV6_LEN;
        let old = be16(frame[ICMP + 2], frame[ICMP + 3]);
        let sum = checksum::update(old, SOLICITED, UNSOLICITED);
        frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
        frame[ICMP + 4..ICMP + 6].copy_from_slice(&UNSOLICITED.to_be_bytes());
    }
    sink.send_to_port(from.ifindex, from.port.vni, &frame, None);
    Ok(())
}

/// The solicitation for `target` that [`neighbour::nd_reply`] makes an advertisement to `mac` and
/// `ip`.
fn solicitation(mac: Mac, ip: Ip16, target: &Ip16) -> [u8; ND_FRAME] {
    let mut frame = [0; ND_FRAME];
    let (eth, rest) = frame.split_at_mut(ETH_LEN);
    let (header, message) = rest.split_at_mut(IPV6_LEN);
    eth[6..12].copy_from_slice(&mac);
    eth[12..].copy_from_slice(&ETH_P_IPV6.to_be_bytes());
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, ND_LEN as u8, PROTO_ICMPV6, 255]);
    header[8..24].copy_from_slice(&ip);
    message[8..24].copy_from_slice(target);
    frame
}
