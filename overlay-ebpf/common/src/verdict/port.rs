//! Frames that a container sends.

use super::neighbour::{self, Arp};
use super::router::Leaving;
use super::{Eth, Frame, Tables, Verdict, admitted, flow_hash, wire_len};
use crate::counters::DropReason;
use crate::layout::{FdbKey, NeighbourKey, PORT_BACKEND, PORT_ROUTER, PortEntry};
use crate::outer::{Meta, mix};
use crate::policy;
use crate::punt::Reason;
use crate::wire::{
    ARP_REQUEST, ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMPV6_NS, IPV4_LEN, IPV6_LEN, Ip16,
    PROTO_ICMPV6, UNSPECIFIED, half, ip_eq, mac_eq, map_v4, word, words,
};

/// Decides about a frame that came in on the port with this ifindex.
pub fn from_port<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T, ifindex: u32) -> Verdict<'t> {
    admitted(
        frame,
        tables,
        from_port_then(frame, tables, ifindex, |verdict| verdict),
    )
}

/// [`from_port`], with `act` called with the verdict, which [`admit`](super::admit) has not seen.
///
/// # Errors
/// Why the frame is to be dropped.
#[inline(always)]
pub fn from_port_then<'t, F, T, R>(
    frame: &F,
    tables: &'t T,
    ifindex: u32,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason>
where
    F: Frame,
    T: Tables,
{
    let entry = tables.port(ifindex).ok_or(DropReason::UnknownPort)?;
    let eth = frame.read(0, Eth::new).ok_or(DropReason::Truncated)?;
    if eth.is_tagged() || frame.has_vlan_aside() {
        return Err(DropReason::InnerVlan);
    }
    if !eth.src.is(&entry.mac) {
        return Err(DropReason::SpoofedMac);
    }
    let port = Port {
        frame,
        tables,
        entry,
        ifindex,
        eth: &eth,
    };
    match eth.ethertype {
        ETH_P_IP => port.ipv4(act),
        ETH_P_IPV6 => port.ipv6(act),
        ETH_P_ARP => port.arp(act),
        _ => port.forward(Meta::default(), port.l3_len(), act),
    }
}

/// What is looked at of an inner IPv4 header.
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    /// Flags and offset, host order.
    fragment: u16,
    protocol: u8,
    /// As they lie in memory.
    src: u32,
    dst: u32,
}

impl Ipv4 {
    #[inline(always)]
    fn new(h: &[u8; IPV4_LEN]) -> Ipv4 {
        Ipv4 {
            version_ihl: h[0],
            tos: h[1],
            fragment: u16::from_be(half(h, 6)),
            protocol: h[9],
            src: word(h, 12),
            dst: word(h, 16),
        }
    }
}

/// A frame and the port that it came in on.
struct Port<'f, 't, F, T> {
    frame: &'f F,
    tables: &'t T,
    entry: &'t PortEntry,
    ifindex: u32,
    eth: &'f Eth,
}

impl<'t, F: Frame, T: Tables> Port<'_, 't, F, T> {
    #[inline(always)]
    fn ipv4<R>(&self, act: impl FnOnce(Verdict<'t>) -> R) -> Result<R, DropReason> {
        let ip = self.frame.read(ETH_LEN, Ipv4::new);
        let ip = ip.ok_or(DropReason::Truncated)?;
        if ip.version_ihl >> 4 != 4 || ip.version_ihl & 0x0f < 5 {
            return Err(DropReason::InnerHeader);
        }
        if ip.src != u32::from_ne_bytes(self.entry.ip4) && !self.is_router() {
            return Err(DropReason::SpoofedIp);
        }
        // More-fragments flag or an offset; options move the layer-4 header: hash addresses alone.
        let l4 = if ip.fragment & 0x3fff != 0 || ip.version_ihl != 0x45 {
            None
        } else {
            Some(ETH_LEN + IPV4_LEN)
        };
        let meta = Meta {
            tos: ip.tos,
            hash: flow_hash(self.frame, mix(ip.src, ip.dst), ip.protocol, l4),
        };
        let len = wire_len(self.frame, IPV4_LEN, ip.protocol);
        self.forward(meta, len, act)
    }

    #[inline(always)]
    fn ipv6<R>(&self, act: impl FnOnce(Verdict<'t>) -> R) -> Result<R, DropReason> {
        // Piece by piece, as each is needed: 40 bytes at once are too many for a BPF stack.
        let h: [u8; 8] = self.frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
        let src: Ip16 = self.frame.load(ETH_LEN + 8).ok_or(DropReason::Truncated)?;
        if h[0] >> 4 != 6 {
            return Err(DropReason::InnerHeader);
        }
        let own = owns_ip6(self.entry, &src);
        // From `::` only what address configuration sends: it goes to groups.
        let unconfigured = ip_eq(&src, &UNSPECIFIED) && self.eth.dst.is_group();
        if !own && !unconfigured && !self.is_router() {
            return Err(DropReason::SpoofedIp);
        }
        if h[6] == PROTO_ICMPV6
            && let Some(icmp_type) = neighbour::nd_type(self.frame)
            && let Some(target) = neighbour::nd_target(self.frame)
        {
            if icmp_type == ICMPV6_NS {
                let key = NeighbourKey::new(self.entry.vni, target);
                if own
                    && let Some(known) = self.tables.neighbour(&key)
                    // Who asks for its own address checks that nobody else has it.
                    && !mac_eq(&known.mac, &self.entry.mac)
                    && neighbour::nd_answerable(self.frame)
                {
                    return Ok(act(Verdict::NdReply { mac: known.mac }));
                }
                if self.eth.dst.is_group() {
                    return Ok(act(self.punt(Reason::UnknownNeighbour)));
                }
            } else if !owns_ip6(self.entry, &target) {
                return Err(DropReason::SpoofedNeighbour);
            }
        }
        if is_extension(h[6]) {
            refuse_hidden_discovery(self.frame)?;
        }
        let dst: Ip16 = self.frame.load(ETH_LEN + 24).ok_or(DropReason::Truncated)?;
        let addresses = mix(hash_ip6(&src), hash_ip6(&dst));
        let meta = Meta {
            tos: (h[0] << 4) | (h[1] >> 4),
            hash: flow_hash(self.frame, addresses, h[6], Some(ETH_LEN + IPV6_LEN)),
        };
        self.forward(meta, wire_len(self.frame, IPV6_LEN, h[6]), act)
    }

    #[inline(always)]
    fn arp<R>(&self, act: impl FnOnce(Verdict<'t>) -> R) -> Result<R, DropReason> {
        let bytes = self.frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
        let arp = Arp::new(&bytes);
        if !arp.is_ethernet_ipv4 {
            return Err(DropReason::InnerHeader);
        }
        let probe = u32::from_ne_bytes(arp.sender_ip) == 0;
        let own = u32::from_ne_bytes(arp.sender_ip) == u32::from_ne_bytes(self.entry.ip4);
        if !mac_eq(&arp.sender_mac, &self.entry.mac) || !(own || (probe && arp.op == ARP_REQUEST)) {
            return Err(DropReason::SpoofedNeighbour);
        }
        if arp.op == ARP_REQUEST {
            let key = NeighbourKey::new(self.entry.vni, map_v4(arp.target_ip));
            // Who asks for its own address announces it, or checks that nobody else has it.
            if let Some(known) = self.tables.neighbour(&key)
                && !mac_eq(&known.mac, &self.entry.mac)
            {
                return Ok(act(Verdict::ArpReply { mac: known.mac }));
            }
            if self.eth.dst.is_group() {
                return Ok(act(self.punt(Reason::UnknownNeighbour)));
            }
        }
        self.forward(Meta::default(), self.l3_len(), act)
    }

    /// Looks up where the destination MAC is. `len` is the layer-3 length on the wire.
    #[inline(always)]
    fn forward<R>(
        &self,
        meta: Meta,
        len: u32,
        act: impl FnOnce(Verdict<'t>) -> R,
    ) -> Result<R, DropReason> {
        let vni = self.entry.vni;
        let place = self.tables.fdb(&FdbKey::of(vni, self.eth.dst));
        // What is for a service is decided about again, as for one of its tasks.
        let balanced = place.is_some_and(|place| place.is_service());
        if self.entry.rate != 0
            && !balanced
            && !self
                .tables
                .charge(self.ifindex, self.entry, self.frame.total_len())
        {
            return Err(DropReason::RateLimit);
        }
        if len > self.entry.mtu {
            return Ok(act(self.punt(Reason::TooBig)));
        }
        if self.entry.is_policed() && !balanced {
            policy::note_begun(self.frame, self.tables, vni);
        }
        let Some(entry) = place else {
            let reason = if self.eth.dst.is_group() {
                Reason::Flood
            } else {
                Reason::UnknownDestination
            };
            return Ok(act(self.punt(reason)));
        };
        if let Some(ifindex) = entry.port() {
            if ifindex == self.ifindex {
                return Err(DropReason::Hairpin);
            }
            if entry.is_gateway() {
                return Ok(act(Verdict::Leave(Leaving {
                    port: self.ifindex,
                    router: ifindex,
                    meta,
                    len,
                })));
            }
            if entry.is_router() {
                return Ok(act(Verdict::Route {
                    ifindex,
                    mac: self.eth.dst.mac(),
                    answer: self.answer(),
                }));
            }
            let policed = if entry.is_policed() { vni } else { 0 };
            if self.is_router() {
                return Ok(act(Verdict::Enter {
                    ifindex,
                    vni,
                    policed,
                }));
            }
            let answer = self.answer();
            return Ok(act(Verdict::Switch {
                ifindex,
                answer,
                policed,
            }));
        }
        if entry.is_service() {
            return Ok(act(Verdict::Balance { vni }));
        }
        let dst = entry.vtep();
        let Some(vtep) = self.tables.vtep(dst) else {
            return Ok(act(self.punt(Reason::Unresolved)));
        };
        if vtep.ifindex == 0 {
            return Ok(act(self.punt(Reason::Unresolved)));
        }
        if len > self.entry.mtu_to(vtep) {
            return Ok(act(self.punt(Reason::TooBig)));
        }
        Ok(act(Verdict::Encap {
            vtep,
            dst,
            meta,
            vni,
            seal: self.entry.is_encrypted(),
        }))
    }

    /// The network, if this may be the answer to what was for a service's own address; else 0.
    #[inline(always)]
    fn answer(&self) -> u32 {
        if self.entry.flags & PORT_BACKEND != 0 {
            self.entry.vni
        } else {
            0
        }
    }

    /// The host's own traffic, and what it forwards, comes from anywhere.
    #[inline(always)]
    fn is_router(&self) -> bool {
        self.entry.flags & PORT_ROUTER != 0
    }

    #[inline(always)]
    fn punt(&self, reason: Reason) -> Verdict<'t> {
        let vni = self.entry.vni;
        Verdict::Punt { reason, vni }
    }

    /// The layer-3 length of what is no super-packet.
    #[inline(always)]
    fn l3_len(&self) -> u32 {
        self.frame.total_len().saturating_sub(ETH_LEN as u32)
    }
}

/// True for the IPv6 headers that may stand before any message: hop-by-hop options, routing,
/// destination options. (Hosts take no neighbour discovery out of fragments: RFC 6980.)
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 60)
}

/// Refuses neighbour discovery behind an extension header, where its claims would go unchecked:
/// nobody needs that. Multicast listener reports do come behind one.
#[inline(always)]
fn refuse_hidden_discovery<F: Frame>(frame: &F) -> Result<(), DropReason> {
    let Some(bytes) = frame.load::<9>(ETH_LEN + IPV6_LEN) else {
        return Ok(()); // no room for a message
    };
    let [next, len, .., icmp_type] = bytes;
    match next {
        PROTO_ICMPV6 if len == 0 && matches!(icmp_type, 133..=137) => {
            Err(DropReason::SpoofedNeighbour)
        }
        PROTO_ICMPV6 if len != 0 => Err(DropReason::InnerHeader),
        next if is_extension(next) => Err(DropReason::InnerHeader),
        _ => Ok(()),
    }
}

#[inline(always)]
fn owns_ip6(port: &PortEntry, ip: &Ip16) -> bool {
    !ip_eq(ip, &UNSPECIFIED) && (ip_eq(ip, &port.ip6[0]) || ip_eq(ip, &port.ip6[1]))
}

/// Folds an IPv6 address into a hash.
#[inline(always)]
fn hash_ip6(ip: &Ip16) -> u32 {
    let [a, b, c, d] = words(ip);
    mix(mix(mix(mix(0, a), b), c), d)
}
