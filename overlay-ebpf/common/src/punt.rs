//! The punt link's marker: what replaces the outer Ethernet addresses of a VXLAN frame between
//! the programs and the agent.
//!
//! ```text
//!  0      1      2      3      4      5      6      7      8 .. 11       12 .. 13
//! +------+------+------+------+------+------+------+------+-------------+-----------+
//! | 0x06 | 'O'  | 'V'  | 'P'  | kind | why  | 0x06 |  0   | ifindex, BE | EtherType |
//! +------+------+------+------+------+------+------+------+-------------+-----------+
//! ```
//!
//! On the crypt link, another such pair, the same markers go between the programs and the workers
//! that seal and open the frames of encrypted networks ([`esp`](crate::esp)).
//!
//! The lengths in a punted frame's outer headers mean nothing (segmentation may have cut it
//! since): the frame's own length counts.

use crate::wire::{ETH_LEN, be16};

/// The first four bytes of a marker: a locally administered unicast address.
const MAGIC: [u8; 4] = [0x06, b'O', b'V', b'P'];

/// Where a frame on the punt link comes from, or is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the agent: a container sent it; the ifindex is its port's.
    FromPort = 1,
    /// To the agent: it came in on the uplink; outer IP and UDP headers are the sender's.
    FromUplink = 2,
    /// From the agent: take the outer headers off and give it to the port.
    ToPort = 3,
    /// From the agent: send it to the VTEP of the outer destination address.
    ToVtep = 4,
    /// To a crypt worker: seal it and send it to the VTEP of the outer destination address.
    ToSeal = 5,
    /// To a crypt worker: an ESP packet that came in on the uplink.
    ToOpen = 6,
    /// From a crypt worker: it came sealed, from the VTEP of the outer source address.
    Opened = 7,
    /// To the agent: it came in on the uplink, sealed; outer IP and UDP headers are the sender's.
    FromOpened = 8,
}

impl Kind {
    /// Every one.
    pub const ALL: &'static [Kind] = &[
        Kind::FromPort,
        Kind::FromUplink,
        Kind::ToPort,
        Kind::ToVtep,
        Kind::ToSeal,
        Kind::ToOpen,
        Kind::Opened,
        Kind::FromOpened,
    ];
}

/// Why the programs handed a frame to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Broadcast or multicast: to be replicated.
    Flood = 1,
    /// The destination MAC is not in the FDB map.
    UnknownDestination = 2,
    /// The source MAC is not in the FDB map (uplink only).
    UnknownSource = 3,
    /// An ARP request or neighbour solicitation that the neighbour map can't answer.
    UnknownNeighbour = 4,
    /// The VTEP is not in the map, or its next hop is not resolved.
    Unresolved = 5,
    /// The packet is larger than the way to its destination carries. The frame may be cut.
    TooBig = 6,
    /// The hook can't encapsulate this frame: it is not IP, or a tunnel inside already.
    CantEncap = 7,
    /// For a service's own address, and no backend can have it: there is none, or it is of no
    /// connection.
    NoBackend = 8,
}

impl Reason {
    /// Every one.
    pub const ALL: &'static [Reason] = &[
        Reason::Flood,
        Reason::UnknownDestination,
        Reason::UnknownSource,
        Reason::UnknownNeighbour,
        Reason::Unresolved,
        Reason::TooBig,
        Reason::CantEncap,
        Reason::NoBackend,
    ];

    /// A name for logs.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Flood => "flood",
            Reason::UnknownDestination => "unknown-destination",
            Reason::UnknownSource => "unknown-source",
            Reason::UnknownNeighbour => "unknown-neighbour",
            Reason::Unresolved => "unresolved-next-hop",
            Reason::TooBig => "too-big",
            Reason::CantEncap => "cant-encap",
            Reason::NoBackend => "no-backend",
        }
    }
}

/// A marker, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Where from or where to.
    pub kind: Kind,
    /// Why; 0 on frames from the agent.
    pub reason: Option<Reason>,
    /// The port's, or the uplink's.
    pub ifindex: u32,
}

/// The most bytes of inner frame that a [`Reason::TooBig`] punt carries: an ICMP error quotes
/// less than this.
pub const TOO_BIG_KEEP: u32 = 590;

/// The MTU of all ends of the punt link and the crypt link: the largest that a veth with plain XDP takes, rounded
/// down.
pub const MTU: u32 = 3498;

/// The most queues that the crypt link has, each with a worker of its own.
pub const CRYPT_QUEUES: u32 = 8;

/// The marker's bytes: an Ethernet header with `ethertype`.
#[inline(always)]
pub const fn encode(
    kind: Kind,
    reason: Option<Reason>,
    ifindex: u32,
    ethertype: u16,
) -> [u8; ETH_LEN] {
    let i = ifindex.to_be_bytes();
    let t = ethertype.to_be_bytes();
    let why = match reason {
        Some(reason) => reason as u8,
        None => 0,
    };
    [
        MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], kind as u8, why, 0x06, 0, i[0], i[1], i[2], i[3],
        t[0], t[1],
    ]
}

/// Reads a marker; `None` when it is none.
#[inline(always)]
pub const fn decode(eth: &[u8; ETH_LEN]) -> Option<Marker> {
    if eth[0] != MAGIC[0] || eth[1] != MAGIC[1] || eth[2] != MAGIC[2] || eth[3] != MAGIC[3] {
        return None;
    }
    let kind = match eth[4] {
        1 => Kind::FromPort,
        2 => Kind::FromUplink,
        3 => Kind::ToPort,
        4 => Kind::ToVtep,
        5 => Kind::ToSeal,
        6 => Kind::ToOpen,
        7 => Kind::Opened,
        8 => Kind::FromOpened,
        _ => return None,
    };
    let reason = match eth[5] {
        0 => None,
        1 => Some(Reason::Flood),
        2 => Some(Reason::UnknownDestination),
        3 => Some(Reason::UnknownSource),
        4 => Some(Reason::UnknownNeighbour),
        5 => Some(Reason::Unresolved),
        6 => Some(Reason::TooBig),
        7 => Some(Reason::CantEncap),
        8 => Some(Reason::NoBackend),
        _ => return None,
    };
    let ifindex = u32::from_be_bytes([eth[8], eth[9], eth[10], eth[11]]);
    Some(Marker {
        kind,
        reason,
        ifindex,
    })
}

/// The EtherType behind a marker.
#[inline(always)]
pub const fn ethertype(eth: &[u8; ETH_LEN]) -> u16 {
    be16(eth[12], eth[13])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for kind in Kind::ALL.iter().copied() {
            for reason in Reason::ALL.iter().copied().map(Some).chain([None]) {
                let bytes = encode(kind, reason, 0x01020304, 0x0800);
                assert_eq!(
                    decode(&bytes),
                    Some(Marker {
                        kind,
                        reason,
                        ifindex: 0x01020304
                    })
                );
                assert_eq!(ethertype(&bytes), 0x0800);
            }
        }
    }

    #[test]
    fn other_frames_are_no_markers() {
        assert_eq!(decode(&[0xff; 14]), None);
        let mut bytes = encode(Kind::ToPort, None, 1, 0x0800);
        bytes[4] = 9;
        assert_eq!(decode(&bytes), None);
    }
}
