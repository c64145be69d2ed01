//! What is to become of a frame: the fast path's decisions, without a packet pointer or a map in
//! sight. The programs bring a [`Frame`] and [`Tables`] and carry out the [`Verdict`]; tests and
//! the agent bring slices and hash maps.
//!
//! A miss is not an error: what the tables can't decide is punted to the agent.
//!
//! Each decision comes in two forms. One returns the [`Verdict`]; the other calls a function with
//! it, at each of the places where it is made. The programs need this one: where branches join to
//! return an enum, its fields of another variant are registers that some branches never wrote,
//! and the verifier refuses a program that copies them, whether or not it looks at the copy.
//! Hence the plain control flow here, too: what joins is a number, or nothing.

mod agent;
pub mod neighbour;
mod port;
mod router;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod uplink;

pub use agent::{from_agent, from_agent_then};
pub use port::{from_port, from_port_then};
pub use router::{Leaving, leave, leave_then, note_entrance, renew_entrance};
pub use uplink::{Way, from_uplink, from_uplink_then};

use crate::counters::DropReason;
use crate::layout::{
    Config, EntranceEntry, FdbEntry, FdbKey, FlowKey, NeighbourEntry, NeighbourKey, NetworkEntry,
    PortEntry, VtepEntry,
};
use crate::outer::{Meta, mix};
use crate::policy::{self, PolicyEntry, Seen};
use crate::punt::Reason;
use crate::service;
use crate::wire::{
    ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, Family, IPV4_LEN, Ip16, Mac, MacHalves, PROTO_SCTP,
    PROTO_TCP, PROTO_UDP, half,
};

/// Bytes of a frame, checked.
pub trait Frame {
    /// What `take` makes of `N` bytes at `offset`, or `None` when the frame ends before. For what
    /// is read in halves or words: moved about in an `Option`, bytes are not aligned.
    fn read<const N: usize, R>(&self, offset: usize, take: impl FnOnce(&[u8; N]) -> R)
    -> Option<R>;

    /// `N` bytes at `offset`, or `None` when the frame ends before.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.read(offset, |bytes| *bytes)
    }

    /// The whole frame's length in bytes, Ethernet header included.
    fn total_len(&self) -> u32;

    /// The payload bytes of one segment when the frame is a GSO super-packet, else 0.
    fn gso_size(&self) -> u32;

    /// True when the kernel has taken an 802.1Q tag off the frame and keeps it beside it.
    fn has_vlan_aside(&self) -> bool {
        false
    }

    /// True when the kernel may keep a note beside the frame that a checksum in it is still to be
    /// computed, and does not lose it from here on: then bytes that don't add up are no fault.
    fn may_have_sum_aside(&self) -> bool {
        false
    }
}

/// The forwarding tables, read.
pub trait Tables {
    /// What is true for the whole host; `None` before the agent wrote it.
    fn config(&self) -> Option<&Config>;
    /// The port with this ifindex.
    fn port(&self, ifindex: u32) -> Option<&PortEntry>;
    /// The network with this VNI, if this host has an endpoint in it.
    fn network(&self, vni: u32) -> Option<&NetworkEntry>;
    /// Where a MAC is.
    fn fdb(&self, key: &FdbKey) -> Option<&FdbEntry>;
    /// The MAC of an address.
    fn neighbour(&self, key: &NeighbourKey) -> Option<&NeighbourEntry>;
    /// How to reach a VTEP.
    fn vtep(&self, ip: &Ip16) -> Option<&VtepEntry>;

    /// Through whose router a flow came in: only the programs know.
    fn entrance(&self, _: &FlowKey) -> Option<&EntranceEntry> {
        None
    }

    /// Notes through whose router a flow came in, for the programs.
    fn set_entrance(&self, _: &FlowKey, _: &EntranceEntry) {}

    /// Who may reach the endpoint behind a policed port.
    fn policy(&self, _: u32) -> Option<&PolicyEntry> {
        None
    }

    /// Whether a policed endpoint of this host has begun a flow: only the programs know.
    fn has_begun(&self, _: &service::FlowKey) -> bool {
        false
    }

    /// Gives `then` room for what policies see of a frame: in the programs none of their stack.
    fn with_seen<R>(&self, then: impl FnOnce(&mut Seen) -> R) -> Option<R> {
        Some(then(&mut Seen::default()))
    }

    /// Notes that a policed endpoint of this host has begun a flow, for the programs.
    fn set_begun(&self, _: &service::FlowKey) {}

    /// Has a port with a limit pay for what it sends; false when it can't. See [`crate::rate`]. The
    /// programs alone have a clock.
    fn charge(&self, _: u32, _: &PortEntry, _: u32) -> bool {
        true
    }
}

/// What is to become of a frame.
///
/// Its tag is a word of its own, because the verifier keeps track of what whole words on the stack
/// are, so it knows which variant it reads back.
#[derive(Clone, Copy, Debug)]
#[repr(C, u64)]
pub enum Verdict<'t> {
    /// It is none of ours: the host's network stack gets it.
    Pass,
    /// Drop and count it.
    Drop(DropReason),
    /// Hand it to the agent.
    Punt {
        /// Why.
        reason: Reason,
        /// The network it is on.
        vni: u32,
    },
    /// Put outer headers in front and send it to a VTEP.
    Encap {
        /// How to get there.
        vtep: &'t VtepEntry,
        /// The VTEP's address.
        dst: &'t Ip16,
        /// From the inner packet.
        meta: Meta,
        /// The network it is on.
        vni: u32,
        /// Whether that is encrypted: then a crypt worker gets it, and sends it on.
        seal: bool,
    },
    /// Give it, as it is, to another local port.
    Switch {
        /// The port.
        ifindex: u32,
        /// The network, if it may answer what was for a service's own address; else 0.
        answer: u32,
        /// The network, if policies are about the port's endpoint: see [`admit`]; else 0.
        policed: u32,
    },
    /// It is for a service's own address: give it a backend's, and decide again.
    Balance {
        /// The network it is on.
        vni: u32,
    },
    /// It is for the gateway's MAC: see [`leave`].
    Leave(Leaving),
    /// From the host's own port to another local one: see [`renew_entrance`], then give it, as it
    /// is, to that port.
    Enter {
        /// The port.
        ifindex: u32,
        /// The network it is on.
        vni: u32,
        /// As with [`Verdict::Switch`].
        policed: u32,
    },
    /// Give it the MAC of the host's own port and send it there.
    Route {
        /// The port.
        ifindex: u32,
        /// The MAC behind it.
        mac: Mac,
        /// The network, if it may answer what was for a service's own address; else 0.
        answer: u32,
    },
    /// Give it the MAC of another host's router, put outer headers in front and send it there.
    Return {
        /// How to get there.
        vtep: &'t VtepEntry,
        /// The VTEP's address.
        dst: &'t Ip16,
        /// From the inner packet.
        meta: Meta,
        /// The network it is on.
        vni: u32,
        /// The router's.
        mac: Mac,
        /// As with [`Verdict::Encap`].
        seal: bool,
    },
    /// Turn the ARP request into its reply ([`neighbour::arp_reply`]) and send it back.
    ArpReply {
        /// The answer.
        mac: Mac,
    },
    /// Turn the neighbour solicitation into its advertisement ([`neighbour::nd_reply`]) and send
    /// it back.
    NdReply {
        /// The answer.
        mac: Mac,
    },
    /// Take the outer headers off and give the inner frame to a port.
    Decap {
        /// The port.
        ifindex: u32,
        /// Of its outer headers.
        family: Family,
        /// What ECN makes of the inner header.
        ecn: Option<EcnRewrite>,
        /// The network, if it may answer what was for a service's own address; else 0.
        answer: u32,
        /// The host itself is behind the port, and no container.
        router: bool,
        /// Another host's router has sent it to a container: see [`note_entrance`].
        entered: bool,
        /// As with [`Verdict::Switch`].
        policed: u32,
    },
    /// Turn the echo request into its answer ([`echo`](crate::echo)) and send it back.
    EchoReply {
        /// Of its outer headers.
        family: Family,
        /// It is a checksum probe whose checksum is wrong, which the answer is to say.
        unsound: bool,
    },
    /// It has its outer headers already: give it the addresses of the next hop and send it.
    Forward {
        /// How to get there.
        vtep: &'t VtepEntry,
    },
    /// The same, but its network is encrypted: a crypt worker gets it.
    Seal,
    /// It is sealed: a crypt worker gets it.
    Open,
}

/// Whether the policies of the endpoint that a frame is for, if there are any, let it in.
///
/// # Errors
/// [`DropReason::Policy`] when they don't.
#[inline(always)]
pub fn admit<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    verdict: &Verdict<'_>,
) -> Result<(), DropReason> {
    let (at, vni, port) = match *verdict {
        Verdict::Switch {
            ifindex, policed, ..
        }
        | Verdict::Enter {
            ifindex, policed, ..
        } => (0, policed, ifindex),
        Verdict::Decap {
            ifindex,
            policed,
            family,
            ..
        } => (family.outer_len(), policed, ifindex),
        _ => return Ok(()),
    };
    if vni == 0 {
        return Ok(());
    }
    policy::judge(frame, at, tables, vni, port)
}

/// A decision with what [`admit`] says of it.
fn admitted<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    decided: Result<Verdict<'t>, DropReason>,
) -> Verdict<'t> {
    let admitted = decided.and_then(|verdict| admit(frame, tables, &verdict).map(|()| verdict));
    admitted.unwrap_or_else(Verdict::Drop)
}

/// New bytes for an inner IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcnRewrite {
    /// The header's second byte: the IPv4 TOS, or the low half of IPv6's traffic class with the
    /// flow label's first bits.
    pub byte1: u8,
    /// The new IPv4 header checksum; `None` for IPv6.
    pub checksum: Option<[u8; 2]>,
}

/// An Ethernet header.
struct Eth {
    dst: MacHalves,
    src: MacHalves,
    ethertype: u16,
}

impl Eth {
    #[inline(always)]
    fn new(h: &[u8; ETH_LEN]) -> Eth {
        Eth {
            dst: MacHalves::at(h, 0),
            src: MacHalves::at(h, 6),
            ethertype: u16::from_be(half(h, 12)),
        }
    }

    /// Tagged inner frames are refused (RFC 7348 section 6.1).
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        self.ethertype == ETH_P_8021Q || self.ethertype == ETH_P_8021AD
    }
}

/// The flow hash of an inner packet whose layer-4 header, if it is not a fragment and one with
/// ports, is at `l4`. Fragments hash by their addresses alone, so that all of a datagram's take
/// one path.
#[inline(always)]
fn flow_hash<F: Frame>(frame: &F, addresses: u32, protocol: u8, l4: Option<usize>) -> u32 {
    let hash = mix(addresses, protocol as u32);
    match l4 {
        Some(l4) if protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP => {
            match frame.load::<4>(l4) {
                Some(ports) => mix(hash, u32::from_ne_bytes(ports)),
                None => hash,
            }
        }
        _ => hash,
    }
}

/// The largest layer-3 packet that the frame puts on a wire: its own, or one GSO segment's.
/// `l3_len` is the length of the IP header.
#[inline(always)]
fn wire_len<F: Frame>(frame: &F, l3_len: usize, protocol: u8) -> u32 {
    let gso_size = frame.gso_size();
    if gso_size == 0 {
        return frame.total_len().saturating_sub(ETH_LEN as u32);
    }
    let l4_len = if protocol == PROTO_TCP {
        match frame.load::<1>(ETH_LEN + l3_len + 12) {
            Some([offset]) => ((offset >> 4) as u32) * 4,
            None => IPV4_LEN as u32,
        }
    } else {
        8
    };
    l3_len as u32 + l4_len + gso_size
}
