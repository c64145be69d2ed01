//! What containers say of their groups: IGMPv1, v2 (RFC 2236) and v3 (RFC 3376), MLDv1 (RFC 2710)
//! and v2 (RFC 3810). Every byte is a container's to choose.

use std::net::IpAddr;

use overlay_common::checksum::fold;
use overlay_common::counters::DropReason;
use overlay_common::wire::{
    ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, PROTO_ICMPV6, be16, map_v4,
};

use crate::multicast::Group;
use crate::slowpath::emit::sum;
use crate::slowpath::message::Ends;

/// IP protocol number of IGMP.
pub const PROTO_IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;

/// An IGMP or MLD message, and who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The packet's source address, an IPv4 one mapped.
    pub src: Ip16,
    pub said: Said<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// Whether somebody is a member.
    Query,
    /// About one group; none when it is for all, and nobody needs to know.
    One(Option<Group>, Verb),
    /// About as many as it has records.
    Many(Records<'a>),
}

/// What a host says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is a member. From which sources it wants to hear is not told apart.
    Join,
    /// It may be none any more: to be asked.
    Leave,
}

/// The records of an IGMPv3 or MLDv2 report, all of them whole.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// How long an address is.
    width: usize,
    count: u16,
    bytes: &'a [u8],
}

/// What one record says: nothing of a group that is for all, and of others perhaps nothing that
/// matters.
type Record = (Option<Group>, Option<Verb>);

/// The message in a packet. `None` when it is none.
///
/// # Errors
/// When it is malformed.
pub fn parse(ethertype: u16, packet: &[u8]) -> Result<Option<Message<'_>>, DropReason> {
    match ethertype {
        ETH_P_IP => v4(packet),
        ETH_P_IPV6 => v6(packet),
        _ => Ok(None),
    }
}

const BAD: DropReason = DropReason::BadMembership;

fn v4(packet: &[u8]) -> Result<Option<Message<'_>>, DropReason> {
    let Some((ip, _)) = packet.split_first_chunk::<IPV4_LEN>() else {
        return Ok(None);
    };
    if ip[9] != PROTO_IGMP {
        return Ok(None);
    }
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let total_len = usize::from(be16(ip[2], ip[3]));
    let header = packet.get(..header_len).ok_or(BAD)?;
    let fragment = be16(ip[6], ip[7]) & 0x3fff != 0;
    if header_len < IPV4_LEN || fragment || fold(sum(header)) != 0xffff {
        return Err(BAD);
    }
    let message = packet.get(header_len..total_len).ok_or(BAD)?;
    if fold(sum(message)) != 0xffff {
        return Err(BAD);
    }
    let (head, rest) = message.split_first_chunk::<8>().ok_or(BAD)?;
    let [kind, _, _, _, g0, g1, g2, g3] = *head;
    let one = |verb| group(map_v4([g0, g1, g2, g3])).map(|group| Said::One(group, verb));
    let said = match kind {
        0x11 => Said::Query,
        // Version 1, version 2.
        0x12 | 0x16 => one(Verb::Join)?,
        0x17 => one(Verb::Leave)?,
        0x22 => Said::Many(Records::new(4, be16(g2, g3), rest)?),
        _ => return Err(BAD),
    };
    let src = map_v4([ip[12], ip[13], ip[14], ip[15]]);
    Ok(Some(Message { src, said }))
}

fn v6(packet: &[u8]) -> Result<Option<Message<'_>>, DropReason> {
    let Some((ip, rest)) = packet.split_first_chunk::<IPV6_LEN>() else {
        return Ok(None);
    };
    // They come behind a router alert, which is 8 bytes long with its padding.
    let (next, behind) = match (ip[6], rest.split_first_chunk::<8>()) {
        (HOP_BY_HOP, Some(([next, 0, ..], behind))) => (*next, behind),
        (PROTO_ICMPV6, _) => (PROTO_ICMPV6, rest),
        _ => return Ok(None),
    };
    if next != PROTO_ICMPV6 || !matches!(behind.first(), Some(130..=132 | 143)) {
        return Ok(None);
    }
    let payload_len = usize::from(be16(ip[4], ip[5]));
    let options = rest.len() - behind.len();
    let len = payload_len.checked_sub(options).ok_or(BAD)?;
    let message = behind.get(..len).ok_or(BAD)?;
    let src: Ip16 = *ip[8..].first_chunk().ok_or(BAD)?;
    let dst: Ip16 = *ip[24..].first_chunk().ok_or(BAD)?;
    let pseudo_header = Ends::V6(src, dst).pseudo_header(PROTO_ICMPV6, len);
    if options == 0
        || fold(u32::from(fold(sum(message))) + u32::from(fold(pseudo_header))) != 0xffff
    {
        return Err(BAD);
    }
    let (head, rest) = message.split_first_chunk::<8>().ok_or(BAD)?;
    let one = |verb| {
        let ip = rest.first_chunk().ok_or(BAD)?;
        group(*ip).map(|group| Said::One(group, verb))
    };
    let said = match head[0] {
        130 => Said::Query,
        131 => one(Verb::Join)?,
        132 => one(Verb::Leave)?,
        _ => Said::Many(Records::new(16, be16(head[6], head[7]), rest)?),
    };
    Ok(Some(Message { src, said }))
}

/// A group as a message names it: `None` when it is one for all.
fn group(ip: Ip16) -> Result<Option<Group>, DropReason> {
    let ip = IpAddr::from(ip).to_canonical();
    if !ip.is_multicast() {
        return Err(BAD);
    }
    Ok(Group::new(ip))
}

impl<'a> Records<'a> {
    fn new(width: usize, count: u16, bytes: &'a [u8]) -> Result<Records<'a>, DropReason> {
        let records = Records {
            width,
            count,
            bytes,
        };
        let mut rest = records;
        for _ in 0..count {
            rest.next_record().ok_or(BAD)??;
        }
        Ok(records)
    }

    /// Takes the next one off, whole.
    fn next_record(&mut self) -> Option<Result<Record, DropReason>> {
        self.count = self.count.checked_sub(1)?;
        Some(self.cut().ok_or(BAD).and_then(|(kind, sources, ip)| {
            // RFC 3376 section 4.2.12, RFC 3810 section 5.2.12. To hear from nobody is to leave;
            // to block sources may be, which the answer to a query tells.
            let verb = match (kind, sources) {
                (1 | 5, 0) => None,
                (1 | 2 | 4 | 5, _) | (3, 1..) => Some(Verb::Join),
                (3, 0) | (6, _) => Some(Verb::Leave),
                _ => None,
            };
            Ok((group(ip)?, verb))
        }))
    }

    fn cut(&mut self) -> Option<(u8, u16, Ip16)> {
        let ([kind, aux, s0, s1], rest) = self.bytes.split_first_chunk::<4>()?;
        let sources = be16(*s0, *s1);
        let (address, rest) = rest.split_at_checked(self.width)?;
        let ip = match self.width {
            4 => map_v4(*address.first_chunk()?),
            _ => *address.first_chunk()?,
        };
        let behind = usize::from(sources) * self.width + usize::from(*aux) * 4;
        self.bytes = rest.get(behind..)?;
        Some((*kind, sources, ip))
    }
}

/// Those that say something.
impl Iterator for Records<'_> {
    type Item = (Group, Verb);

    fn next(&mut self) -> Option<(Group, Verb)> {
        loop {
            if let Ok((Some(group), Some(verb))) = self.next_record()? {
                return Some((group, verb));
            }
        }
    }
}
