//! The way out of a network, and back into it.
//!
//! Behind one port of a network is the host itself, its router: what containers send to the
//! gateway's MAC and to somewhere else goes there. A flow from outside may have entered through
//! another host's router, which then is the only one that can send its answers on: so it is noted
//! through whose each came, and answers go back there.

use super::{Eth, Frame, Tables, Verdict};
use crate::counters::DropReason;
use crate::layout::{EntranceEntry, FdbKey, FlowKey, NetworkEntry, PORT_INTERCEPT_DNS};
use crate::outer::Meta;
use crate::punt::Reason;
use crate::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, Family, IPV4_LEN, IPV6_LEN, Ip16, PROTO_SCTP, PROTO_TCP,
    PROTO_UDP, VXLAN_LEN, be16, map_v4, words,
};

/// UDP port of DNS.
const DNS: u16 = 53;

/// True for an IPv4 address that is neither in the network nor the sender's own loopback.
#[inline(always)]
fn is_outside4(network: &NetworkEntry, ip: [u8; 4]) -> bool {
    let differs = u32::from_ne_bytes(ip) ^ u32::from_ne_bytes(network.net4);
    ip[0] != 127 && differs & u32::from_ne_bytes(network.mask4) != 0
}

/// True for an IPv6 address that is neither in the network nor of one link, or a group's.
#[inline(always)]
fn is_outside6(network: &NetworkEntry, ip: &Ip16) -> bool {
    let (ip4, net, mask) = (words(ip), words(&network.net6), words(&network.mask6));
    let differs = ((ip4[0] ^ net[0]) & mask[0])
        | ((ip4[1] ^ net[1]) & mask[1])
        | ((ip4[2] ^ net[2]) & mask[2])
        | ((ip4[3] ^ net[3]) & mask[3]);
    ip[0] != 0xff && !(ip[0] == 0xfe && ip[1] & 0xc0 == 0x80) && differs != 0
}

/// Whether what a container sends to the gateway's MAC is for outside the network, and not for the
/// agent: what is for the gateway itself, and what a port with `flags` asks of resolvers.
#[inline(always)]
fn leaves<F: Frame>(frame: &F, network: &NetworkEntry, ethertype: u16, flags: u32) -> bool {
    let (protocol, l4) = match ethertype {
        ETH_P_IP => {
            let Some(h) = frame.load::<IPV4_LEN>(ETH_LEN) else {
                return false;
            };
            if !is_outside4(network, [h[16], h[17], h[18], h[19]]) {
                return false;
            }
            (h[9], ETH_LEN + IPV4_LEN)
        }
        ETH_P_IPV6 => {
            let Some(dst) = frame.load::<16>(ETH_LEN + 24) else {
                return false;
            };
            if !is_outside6(network, &dst) {
                return false;
            }
            match frame.load::<1>(ETH_LEN + 6) {
                Some([next]) => (next, ETH_LEN + IPV6_LEN),
                None => return false,
            }
        }
        _ => return false,
    };
    if flags & PORT_INTERCEPT_DNS == 0 || protocol != PROTO_UDP {
        return true;
    }
    match frame.load::<4>(l4) {
        Some(ports) => be16(ports[2], ports[3]) != DNS,
        None => false,
    }
}

/// The flow of the IP packet behind the Ethernet header that ends at `at`. `inwards` tells that it
/// comes from outside. Where ports can't be seen, in fragments for example, all flows between two
/// addresses are one.
#[inline(always)]
fn flow<F: Frame>(
    frame: &F,
    at: usize,
    ethertype: u16,
    vni: u32,
    inwards: bool,
) -> Option<FlowKey> {
    let (src, dst, protocol, l4) = match ethertype {
        ETH_P_IP => {
            let h = frame.load::<IPV4_LEN>(at)?;
            let whole = be16(h[6], h[7]) & 0x3fff == 0 && h[0] == 0x45;
            let src = map_v4([h[12], h[13], h[14], h[15]]);
            let dst = map_v4([h[16], h[17], h[18], h[19]]);
            (src, dst, if whole { h[9] } else { 0 }, at + IPV4_LEN)
        }
        ETH_P_IPV6 => {
            let [next] = frame.load::<1>(at + 6)?;
            let (src, dst) = (frame.load::<16>(at + 8)?, frame.load::<16>(at + 24)?);
            (src, dst, next, at + IPV6_LEN)
        }
        _ => return None,
    };
    let has_ports = protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
    let ([s0, s1, d0, d1], protocol) = match has_ports {
        true => (frame.load::<4>(l4)?, protocol),
        false => ([0; 4], 0),
    };
    Some(match inwards {
        true => FlowKey::new(vni, (dst, [d0, d1]), (src, [s0, s1]), protocol),
        false => FlowKey::new(vni, (src, [s0, s1]), (dst, [d0, d1]), protocol),
    })
}

/// Notes that the packet in a tunnel's frame came through the router with the inner sender's MAC,
/// if it is from outside.
#[inline(never)]
pub fn note_entrance<F: Frame, T: Tables>(frame: &F, tables: &T, family: Family) {
    let outer_len = family.outer_len();
    let Some(eth) = frame.load(outer_len) else {
        return;
    };
    let Some([v0, v1, v2, _]) = frame.load::<4>(outer_len - VXLAN_LEN + 4) else {
        return;
    };
    let (eth, vni) = (Eth::new(&eth), u32::from_be_bytes([0, v0, v1, v2]));
    let Some(network) = tables.network(vni) else {
        return;
    };
    let Some(mut flow) = flow(frame, outer_len + ETH_LEN, eth.ethertype, vni, true) else {
        return;
    };
    let outside = match eth.ethertype {
        ETH_P_IP => {
            let [.., a, b, c, d] = flow.outside;
            is_outside4(network, [a, b, c, d])
        }
        _ => is_outside6(network, &flow.outside),
    };
    if !outside {
        return;
    }
    if let Some(known) = tables.entrance(&flow)
        && eth.src.is(&known.mac)
    {
        return;
    }
    let entry = EntranceEntry {
        mac: eth.src.mac(),
        _zero: [0; 2],
    };
    tables.set_entrance(&flow, &entry);
    if flow.protocol != 0 {
        flow.forget_ports();
        tables.set_entrance(&flow, &entry);
    }
}

/// A flow from outside may have entered elsewhere before: from now on it is through this host's own
/// router, whose frame on the network `vni` this is, for a container here.
#[inline(never)]
pub fn renew_entrance<F: Frame, T: Tables>(frame: &F, tables: &T, vni: u32) {
    let Some(eth) = frame.load(0) else {
        return;
    };
    let eth = Eth::new(&eth);
    if let Some(flow) = flow(frame, ETH_LEN, eth.ethertype, vni, true)
        && let Some(known) = tables.entrance(&flow)
        && !eth.src.is(&known.mac)
    {
        let entry = EntranceEntry {
            mac: eth.src.mac(),
            _zero: [0; 2],
        };
        tables.set_entrance(&flow, &entry);
    }
}

/// A frame from the port `port` to the gateway's MAC, of which [`from_port`](super::from_port) has
/// found nothing wrong.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// The port it comes from.
    pub port: u32,
    /// This host's router port.
    pub router: u32,
    /// From the packet.
    pub meta: Meta,
    /// The layer-3 length on the wire.
    pub len: u32,
}

/// Decides about a frame to the gateway's MAC: out of the network through this host's router; or
/// through another host's, by which the flow came in; or to the agent.
pub fn leave<'t, F: Frame, T: Tables>(frame: &F, tables: &'t T, leaving: &Leaving) -> Verdict<'t> {
    leave_then(frame, tables, leaving, |verdict| verdict).unwrap_or_else(Verdict::Drop)
}

/// [`leave`], with `act` called with the verdict.
///
/// # Errors
/// Why the frame is to be dropped.
#[inline(always)]
pub fn leave_then<'t, F, T, R>(
    frame: &F,
    tables: &'t T,
    leaving: &Leaving,
    act: impl FnOnce(Verdict<'t>) -> R,
) -> Result<R, DropReason>
where
    F: Frame,
    T: Tables,
{
    let Leaving {
        port,
        router,
        meta,
        len,
    } = *leaving;
    let entry = tables.port(port).ok_or(DropReason::UnknownPort)?;
    let vni = entry.vni;
    let eth = frame.read(0, Eth::new).ok_or(DropReason::Truncated)?;
    let reason = Reason::UnknownDestination;
    let Some(network) = tables.network(vni) else {
        return Ok(act(Verdict::Punt { reason, vni }));
    };
    if !leaves(frame, network, eth.ethertype, entry.flags) {
        return Ok(act(Verdict::Punt { reason, vni }));
    }
    if let Some(flow) = flow(frame, ETH_LEN, eth.ethertype, vni, false)
        && let Some(entrance) = tables.entrance(&flow)
    {
        let mac = entrance.mac;
        if let Some(place) = tables.fdb(&FdbKey::new(vni, mac))
            && place.port().is_none()
            && let Some(vtep) = tables.vtep(place.vtep())
            && vtep.ifindex != 0
        {
            if len > entry.mtu_to(vtep) {
                let reason = Reason::TooBig;
                return Ok(act(Verdict::Punt { reason, vni }));
            }
            let dst = place.vtep();
            return Ok(act(Verdict::Return {
                vtep,
                dst,
                meta,
                vni,
                mac,
                seal: entry.is_encrypted(),
            }));
        }
    }
    Ok(act(Verdict::Route {
        ifindex: router,
        mac: network.router,
        answer: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkEntry {
        NetworkEntry {
            net4: [10, 0, 1, 0],
            mask4: [255, 255, 255, 0],
            net6: [0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            mask6: [
                255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            ..NetworkEntry::closed(1450)
        }
    }

    #[test]
    fn what_is_outside() {
        let network = network();
        for ip in [[10, 0, 0, 255], [10, 0, 2, 0], [8, 8, 8, 8]] {
            assert!(is_outside4(&network, ip), "{ip:?}");
        }
        for ip in [[10, 0, 1, 0], [10, 0, 1, 255], [127, 0, 0, 1]] {
            assert!(!is_outside4(&network, ip), "{ip:?}");
        }
        let outside: Ip16 = [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut inside = network.net6;
        inside[15] = 9;
        let mut link_local = outside;
        (link_local[0], link_local[1]) = (0xfe, 0x80);
        let mut group = outside;
        group[0] = 0xff;
        assert!(is_outside6(&network, &outside));
        for ip in [inside, link_local, group] {
            assert!(!is_outside6(&network, &ip), "{ip:?}");
        }
        // Without a family, nothing of it is outside.
        let closed = NetworkEntry::closed(1450);
        assert!(!is_outside4(&closed, [8, 8, 8, 8]) && !is_outside6(&closed, &outside));
    }
}
