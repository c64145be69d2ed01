//! Frames that a container sends.

use super::neighbour::{self, Arp, Nd};
use super::{Eth, Frame, Tables, Verdict, ethernet, flow_hash, wire_len};
use crate::counters::DropReason;
use crate::layout::{FdbKey, NeighbourKey, PortEntry};
use crate::outer::{Meta, mix};
use crate::punt::Reason;
use crate::wire::{
    ARP_REQUEST, ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMPV6_NS, IPV4_LEN, IPV6_LEN, Ip16,
    PROTO_ICMPV6, UNSPECIFIED, be16, ip_eq, is_group, mac_eq, map_v4, words,
};

/// Decides about a frame that came in on the port with this ifindex.
#[inline(always)]
pub fn from_port<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T, ifindex: u32) -> Verdict<'t> {
    match decide(frame, tables, ifindex) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &'t T,
    ifindex: u32,
) -> Result<Verdict<'t>, DropReason> {
    let port = tables.port(ifindex).ok_or(DropReason::UnknownPort)?;
    let eth = ethernet(frame, 0)?;
    if frame.has_vlan_aside() {
        return Err(DropReason::InnerVlan);
    }
    if !mac_eq(&eth.src, &port.mac) {
        return Err(DropReason::SpoofedMac);
    }
    match eth.ethertype {
        ETH_P_IP => ipv4(frame, tables, port, ifindex, &eth),
        ETH_P_IPV6 => ipv6(frame, tables, port, ifindex, &eth),
        ETH_P_ARP => arp(frame, tables, port, ifindex, &eth),
        _ => {
            let len = frame.total_len().saturating_sub(ETH_LEN as u32);
            forward(tables, port, ifindex, &eth, Meta::default(), len)
        }
    }
}

#[inline(always)]
fn ipv4<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &'t T,
    port: &'t PortEntry,
    ifindex: u32,
    eth: &Eth,
) -> Result<Verdict<'t>, DropReason> {
    let h: [u8; IPV4_LEN] = frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
    if h[0] >> 4 != 4 || h[0] & 0x0f < 5 {
        return Err(DropReason::InnerHeader);
    }
    let src = [h[12], h[13], h[14], h[15]];
    if u32::from_ne_bytes(src) != u32::from_ne_bytes(port.ip4) {
        return Err(DropReason::SpoofedIp);
    }
    // More-fragments flag or an offset; options move the layer-4 header: hash addresses alone.
    let fragment = be16(h[6], h[7]) & 0x3fff != 0;
    let l4 = if fragment || h[0] != 0x45 {
        None
    } else {
        Some(ETH_LEN + IPV4_LEN)
    };
    let dst = u32::from_ne_bytes([h[16], h[17], h[18], h[19]]);
    let addresses = mix(u32::from_ne_bytes(src), dst);
    let meta = Meta {
        tos: h[1],
        hash: flow_hash(frame, addresses, h[9], l4),
    };
    let len = wire_len(frame, IPV4_LEN, h[9]);
    forward(tables, port, ifindex, eth, meta, len)
}

#[inline(always)]
fn ipv6<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &'t T,
    port: &'t PortEntry,
    ifindex: u32,
    eth: &Eth,
) -> Result<Verdict<'t>, DropReason> {
    // Piece by piece, as each is needed: 40 bytes at once are too many for a BPF stack.
    let h: [u8; 8] = frame.load(ETH_LEN).ok_or(DropReason::Truncated)?;
    let src: Ip16 = frame.load(ETH_LEN + 8).ok_or(DropReason::Truncated)?;
    if h[0] >> 4 != 6 {
        return Err(DropReason::InnerHeader);
    }
    let own = owns_ip6(port, &src);
    // From `::` only what address configuration sends: it goes to groups.
    let unconfigured = ip_eq(&src, &UNSPECIFIED) && is_group(&eth.dst);
    if !own && !unconfigured {
        return Err(DropReason::SpoofedIp);
    }
    if h[6] == PROTO_ICMPV6 {
        match neighbour::parse_nd(frame) {
            Some(Nd {
                icmp_type: ICMPV6_NS,
                target,
                answerable,
            }) => {
                let key = NeighbourKey::new(port.vni, target);
                match tables.neighbour(&key) {
                    // Who asks for its own address checks that nobody else has it.
                    Some(entry) if own && answerable && !mac_eq(&entry.mac, &port.mac) => {
                        return Ok(Verdict::NdReply { mac: entry.mac });
                    }
                    _ if is_group(&eth.dst) => {
                        return Ok(Verdict::Punt {
                            reason: Reason::UnknownNeighbour,
                            vni: port.vni,
                        });
                    }
                    _ => {}
                }
            }
            Some(nd) if !owns_ip6(port, &nd.target) => return Err(DropReason::SpoofedNeighbour),
            _ => {}
        }
    }
    if is_extension(h[6]) {
        refuse_hidden_discovery(frame)?;
    }
    let dst: Ip16 = frame.load(ETH_LEN + 24).ok_or(DropReason::Truncated)?;
    let addresses = mix(hash_ip6(&src), hash_ip6(&dst));
    let tos = (h[0] << 4) | (h[1] >> 4);
    let meta = Meta {
        tos,
        hash: flow_hash(frame, addresses, h[6], Some(ETH_LEN + IPV6_LEN)),
    };
    let len = wire_len(frame, IPV6_LEN, h[6]);
    forward(tables, port, ifindex, eth, meta, len)
}

#[inline(always)]
fn arp<'t, F: Frame, T: Tables>(
    frame: &F,
    tables: &'t T,
    port: &'t PortEntry,
    ifindex: u32,
    eth: &Eth,
) -> Result<Verdict<'t>, DropReason> {
    let Arp {
        op,
        sender_mac,
        sender_ip,
        target_ip,
    } = neighbour::parse_arp(frame)?;
    let probe = u32::from_ne_bytes(sender_ip) == 0;
    let own = u32::from_ne_bytes(sender_ip) == u32::from_ne_bytes(port.ip4);
    if !mac_eq(&sender_mac, &port.mac) || !(own || (probe && op == ARP_REQUEST)) {
        return Err(DropReason::SpoofedNeighbour);
    }
    if op == ARP_REQUEST {
        let key = NeighbourKey::new(port.vni, map_v4(target_ip));
        match tables.neighbour(&key) {
            // Who asks for its own address announces it, or checks that nobody else has it.
            Some(entry) if !mac_eq(&entry.mac, &port.mac) => {
                return Ok(Verdict::ArpReply { mac: entry.mac });
            }
            _ if is_group(&eth.dst) => {
                return Ok(Verdict::Punt {
                    reason: Reason::UnknownNeighbour,
                    vni: port.vni,
                });
            }
            _ => {}
        }
    }
    let len = frame.total_len().saturating_sub(ETH_LEN as u32);
    forward(tables, port, ifindex, eth, Meta::default(), len)
}

/// Looks up where the destination MAC is. `len` is the layer-3 length on the wire.
#[inline(always)]
fn forward<'t, T: Tables>(
    tables: &'t T,
    port: &'t PortEntry,
    ifindex: u32,
    eth: &Eth,
    meta: Meta,
    len: u32,
) -> Result<Verdict<'t>, DropReason> {
    let punt = |reason| {
        Ok(Verdict::Punt {
            reason,
            vni: port.vni,
        })
    };
    if len > port.mtu {
        return punt(Reason::TooBig);
    }
    if is_group(&eth.dst) {
        return punt(Reason::Flood);
    }
    let Some(entry) = tables.fdb(&FdbKey::new(port.vni, eth.dst)) else {
        return punt(Reason::UnknownDestination);
    };
    if let Some(to) = entry.port() {
        if to == ifindex {
            return Err(DropReason::Hairpin);
        }
        return Ok(Verdict::Switch { ifindex: to });
    }
    match tables.vtep(entry.vtep()) {
        Some(vtep) if vtep.ifindex == 0 => punt(Reason::Unresolved),
        Some(vtep) if len > vtep.mtu => punt(Reason::TooBig),
        Some(vtep) => Ok(Verdict::Encap {
            vtep,
            dst: entry.vtep(),
            meta,
            vni: port.vni,
        }),
        None => punt(Reason::Unresolved),
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
