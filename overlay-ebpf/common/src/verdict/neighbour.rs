//! ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861): reading questions, writing answers.

use super::Frame;
use crate::checksum;
use crate::counters::DropReason;
use crate::wire::{
    ARP_LEN, ARP_REPLY, ETH_LEN, ETH_P_IP, ICMPV6_NA, ICMPV6_NS, IPV6_LEN, Ip16, Mac, ND_LEN,
    PROTO_ICMPV6, be16,
};

/// An Ethernet frame with an ARP packet.
pub const ARP_FRAME: usize = ETH_LEN + ARP_LEN;
/// An Ethernet frame with a solicitation or advertisement and one link-layer address option.
pub const ND_FRAME: usize = ETH_LEN + IPV6_LEN + ND_LEN;

/// The fields of an ARP packet that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Whether it is for IPv4 over Ethernet; else the rest means nothing.
    pub is_ethernet_ipv4: bool,
    /// Request or reply.
    pub op: u16,
    /// Who sends it.
    pub sender_mac: Mac,
    /// Its address; 0.0.0.0 in a probe (RFC 5227).
    pub sender_ip: [u8; 4],
    /// The address asked for.
    pub target_ip: [u8; 4],
}

impl Arp {
    /// Reads a packet.
    #[inline(always)]
    pub fn new(a: &[u8; ARP_LEN]) -> Arp {
        Arp {
            is_ethernet_ipv4: be16(a[0], a[1]) == 1
                && be16(a[2], a[3]) == ETH_P_IP
                && a[4] == 6
                && a[5] == 4,
            op: be16(a[6], a[7]),
            sender_mac: [a[8], a[9], a[10], a[11], a[12], a[13]],
            sender_ip: [a[14], a[15], a[16], a[17]],
            target_ip: [a[24], a[25], a[26], a[27]],
        }
    }
}

/// Reads the ARP packet behind the Ethernet header at 0.
///
/// # Errors
/// [`DropReason::Truncated`] or, when it is not for IPv4 over Ethernet,
/// [`DropReason::InnerHeader`].
pub fn parse_arp<F: Frame>(frame: &F) -> Result<Arp, DropReason> {
    let arp = Arp::new(&frame.load(ETH_LEN).ok_or(DropReason::Truncated)?);
    if arp.is_ethernet_ipv4 {
        Ok(arp)
    } else {
        Err(DropReason::InnerHeader)
    }
}

/// Makes an ARP request its reply: the address asked for is at `mac`.
#[inline(always)]
pub fn arp_reply(frame: &mut [u8; ARP_FRAME], mac: &Mac) {
    let mut i = 0;
    while i < 6 {
        let sender = frame[22 + i];
        frame[i] = sender;
        frame[32 + i] = sender;
        frame[6 + i] = mac[i];
        frame[22 + i] = mac[i];
        i += 1;
    }
    let [o0, o1] = ARP_REPLY.to_be_bytes();
    frame[20] = o0;
    frame[21] = o1;
    i = 0;
    while i < 4 {
        frame.swap(28 + i, 38 + i);
        i += 1;
    }
}

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// [`ICMPV6_NS`] or [`ICMPV6_NA`].
    pub icmp_type: u8,
    /// The address asked for, or announced.
    pub target: Ip16,
    /// True for a solicitation that [`nd_reply`] can answer in place: valid (hop limit 255, code
    /// 0) and with the source link-layer address as its only option.
    pub answerable: bool,
}

/// Reads the neighbour discovery message behind the Ethernet and IPv6 headers at 0; `None` when
/// it is none. The caller has seen that the next header is ICMPv6.
pub fn parse_nd<F: Frame>(frame: &F) -> Option<Nd> {
    Some(Nd {
        icmp_type: nd_type(frame)?,
        target: nd_target(frame)?,
        answerable: nd_answerable(frame),
    })
}

/// [`Nd::icmp_type`].
#[inline(always)]
pub(super) fn nd_type<F: Frame>(frame: &F) -> Option<u8> {
    let [icmp_type] = frame.load(ETH_LEN + IPV6_LEN)?;
    (icmp_type == ICMPV6_NS || icmp_type == ICMPV6_NA).then_some(icmp_type)
}

/// [`Nd::target`].
#[inline(always)]
pub(super) fn nd_target<F: Frame>(frame: &F) -> Option<Ip16> {
    frame.load(ETH_LEN + IPV6_LEN + 8)
}

/// [`Nd::answerable`].
#[inline(always)]
pub(super) fn nd_answerable<F: Frame>(frame: &F) -> bool {
    let Some([len0, len1, _, hops]) = frame.load(ETH_LEN + 4) else {
        return false;
    };
    let Some([icmp_type, code]) = frame.load(ETH_LEN + IPV6_LEN) else {
        return false;
    };
    // All of it is there: the option's end is the message's.
    let Some([kind, len, _, _, _, _, _, _]) = frame.load(ETH_LEN + IPV6_LEN + 24) else {
        return false;
    };
    icmp_type == ICMPV6_NS
        && code == 0
        && hops == 255
        && be16(len0, len1) as usize == ND_LEN
        && kind == 1
        && len == 1
}

/// Makes an `answerable` solicitation the advertisement that answers it: its target is at `mac`.
/// Solicited and override flags are set, and the option becomes the target link-layer address.
#[inline(always)]
pub fn nd_reply(frame: &mut [u8; ND_FRAME], mac: &Mac) {
    const SRC: usize = ETH_LEN + 8;
    const DST: usize = ETH_LEN + 24;
    const ICMP: usize = ETH_LEN + IPV6_LEN;
    let mut i = 0;
    while i < 6 {
        frame[i] = frame[6 + i];
        frame[6 + i] = mac[i];
        frame[ICMP + 26 + i] = mac[i];
        i += 1;
    }
    i = 0;
    while i < 16 {
        frame[DST + i] = frame[SRC + i]; // to who asked
        frame[SRC + i] = frame[ICMP + 8 + i]; // from the target
        i += 1;
    }
    frame[ETH_LEN + 7] = 255;
    // Type, code, checksum (0 while it is computed), flags.
    let head = [ICMPV6_NA, 0, 0, 0, 0x60, 0, 0, 0];
    i = 0;
    while i < 8 {
        frame[ICMP + i] = head[i];
        i += 1;
    }
    frame[ICMP + 24] = 2;
    frame[ICMP + 25] = 1;
    // The pseudo-header's addresses and the message lie behind one another from SRC on; its
    // length and next header are added by hand (RFC 8200 section 8.1).
    let mut sum = ND_LEN as u32 + PROTO_ICMPV6 as u32;
    i = SRC;
    while i < ND_FRAME {
        sum += be16(frame[i], frame[i + 1]) as u32;
        i += 2;
    }
    let [c0, c1] = (!checksum::fold(sum)).to_be_bytes();
    frame[ICMP + 2] = c0;
    frame[ICMP + 3] = c1;
}
