//! Broadcast and multicast: copies for ports of the network, and from a port also for VTEPs with an
//! endpoint in it: for all of them, or for those with a member of the group. What came from a VTEP
//! never goes to another one: it has sent each its own copy.

use core::time::Duration;
use std::net::IpAddr;

use overlay_common::checksum;
use overlay_common::counters::DropReason;
use overlay_common::layout::VtepEntry;
use overlay_common::outer::{Meta, decap_ecn, mix};
use overlay_common::verdict::EcnRewrite;
use overlay_common::wire::{
    ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPV6_LEN, Ip16, PROTO_ICMPV6, be16,
};

use super::Output;
use super::emit::Sink;
use super::limit::Limiter;
use super::port::FromPort;
use super::snoop::{LEARNING, Said, Snooper, parse};
use crate::model::Multicast;
use crate::multicast::Group;

impl FromPort<'_> {
    /// Gives a frame to a group's MAC to who needs it.
    pub fn replicate(
        &self,
        limiter: &mut Limiter,
        snooper: &mut Snooper,
        now: Duration,
        sink: &mut Sink<'_, impl Output>,
    ) -> Result<(), DropReason> {
        let packet = self.inner.get(ETH_LEN..).unwrap_or_default();
        if is_essential(self.ethertype, packet) {
            return self.flood_essential(limiter, now, sink);
        }
        let mode = self.network.multicast_mode();
        if mode == Multicast::Off {
            return Err(DropReason::MulticastOff);
        }
        let (vni, ifindex) = (self.port.vni, self.ifindex);
        if mode == Multicast::Snoop
            && let Some(message) = parse(self.ethertype, packet)?
        {
            if !limiter.report(ifindex, now) {
                return Err(DropReason::FloodLimit);
            }
            snooper.hear(self, message, now)?;
            self.to_vteps(self.tables.static_vteps(vni), sink);
            return Ok(());
        }
        let known = mode == Multicast::Snoop && now >= LEARNING;
        let group = group(self.ethertype, packet).filter(|_| known);
        let Some(group) = group else {
            self.may_flood(limiter, now)?;
            self.flood(sink);
            return Ok(());
        };
        let others = |port: &u32| *port != ifindex;
        let mut ports = snooper.of_group(vni, group).filter(others).peekable();
        let mut vteps = self.tables.group_vteps(vni, group).peekable();
        if ports.peek().is_none() && vteps.peek().is_none() {
            return Err(DropReason::NoMember);
        }
        self.may_flood(limiter, now)?;
        for port in ports {
            sink.send_to_port(port, vni, self.inner, None);
        }
        self.to_vteps(vteps, sink);
        Ok(())
    }

    /// Gives all a frame without which nothing works on any network: ARP, neighbour discovery.
    pub fn flood_essential(
        &self,
        limiter: &mut Limiter,
        now: Duration,
        sink: &mut Sink<'_, impl Output>,
    ) -> Result<(), DropReason> {
        if !limiter.essential(self.ifindex, now) {
            return Err(DropReason::FloodLimit);
        }
        self.flood(sink);
        Ok(())
    }

    fn may_flood(&self, limiter: &mut Limiter, now: Duration) -> Result<(), DropReason> {
        match limiter.flood(self.ifindex, self.inner.len(), now) {
            true => Ok(()),
            false => Err(DropReason::FloodLimit),
        }
    }

    fn flood(&self, sink: &mut Sink<'_, impl Output>) {
        let vni = self.port.vni;
        for ifindex in self.tables.flood_ports(vni) {
            if ifindex != self.ifindex {
                sink.send_to_port(ifindex, vni, self.inner, None);
            }
        }
        self.to_vteps(self.tables.flood_vteps(vni), sink);
    }

    fn to_vteps<'t>(
        &self,
        vteps: impl Iterator<Item = (&'t Ip16, &'t VtepEntry)>,
        sink: &mut Sink<'_, impl Output>,
    ) {
        let meta = meta(self.ethertype, self.inner);
        for (dst, vtep) in vteps {
            if vtep.ifindex == 0 {
                sink.out.drop(DropReason::Unresolved);
            } else if self.inner.len() - ETH_LEN > self.port.mtu_to(vtep) as usize {
                sink.out.drop(DropReason::PuntTooBig);
            } else {
                sink.send_to_vtep(vtep, dst, meta, self.port.vni, self.inner);
            }
        }
    }
}

/// Gives a frame that came in on the uplink to the ports of its network that need it.
pub(super) fn from_uplink(
    vni: u32,
    inner: &[u8],
    outer_tos: u8,
    (snooper, now): (&Snooper, Duration),
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let ecn = ecn(inner, outer_tos)?;
    let tables = sink.tables;
    let network = tables.active_network(vni).ok_or(DropReason::UnknownVni)?;
    let (eth, packet) = inner
        .split_first_chunk::<ETH_LEN>()
        .ok_or(DropReason::Truncated)?;
    let ethertype = be16(eth[12], eth[13]);
    let mode = network.multicast_mode();
    let group = match mode {
        _ if is_essential(ethertype, packet) => None,
        Multicast::Off => return Err(DropReason::MulticastOff),
        Multicast::Flood => None,
        Multicast::Snoop => match parse(ethertype, packet)?.map(|message| message.said) {
            // One that is no host of the cluster asks: the answers go there.
            Some(Said::Query) => None,
            // What is there is nobody's business here.
            Some(_) => return Err(DropReason::NoMember),
            None => group(ethertype, packet).filter(|_| now >= LEARNING),
        },
    };
    let Some(group) = group else {
        for ifindex in tables.flood_ports(vni) {
            sink.send_to_port(ifindex, vni, inner, ecn);
        }
        return Ok(());
    };
    let mut ports = snooper.of_group(vni, group).peekable();
    if ports.peek().is_none() {
        return Err(DropReason::NoMember);
    }
    for ifindex in ports {
        sink.send_to_port(ifindex, vni, inner, ecn);
    }
    Ok(())
}

/// Whether all need it, on every network: ARP, and neighbour discovery (RFC 4861).
fn is_essential(ethertype: u16, packet: &[u8]) -> bool {
    match ethertype {
        ETH_P_ARP => true,
        ETH_P_IPV6 => {
            packet.get(6) == Some(&PROTO_ICMPV6) && matches!(packet.get(IPV6_LEN), Some(133..=137))
        }
        _ => false,
    }
}

/// The group whose members need a packet; `None` when all do.
fn group(ethertype: u16, packet: &[u8]) -> Option<Group> {
    let dst = match ethertype {
        ETH_P_IP => IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?),
        ETH_P_IPV6 => IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Group::new(dst)
}

/// TOS and a hash of the addresses. (Ports would take the fragments of one datagram apart.)
fn meta(ethertype: u16, inner: &[u8]) -> Meta {
    let packet = inner.get(ETH_LEN..).unwrap_or_default();
    let (tos, addresses) = match (ethertype, packet) {
        (ETH_P_IP, [_, tos, ..]) => (*tos, packet.get(12..20)),
        (ETH_P_IPV6, [a, b, ..]) => ((a << 4) | (b >> 4), packet.get(8..40)),
        _ => (0, None),
    };
    let (words, _) = addresses.unwrap_or_default().as_chunks::<4>();
    let add = |hash, word: &[u8; 4]| mix(hash, u32::from_ne_bytes(*word));
    Meta {
        tos,
        hash: words.iter().fold(0, add),
    }
}

/// What RFC 6040 makes of the inner header; `None` when it stays as it is.
fn ecn(inner: &[u8], outer_tos: u8) -> Result<Option<EcnRewrite>, DropReason> {
    let Some((eth, packet)) = inner.split_first_chunk::<ETH_LEN>() else {
        return Ok(None);
    };
    let combine = |tos| decap_ecn(tos, outer_tos).ok_or(DropReason::EcnIllegal);
    let (old, new, checksum) = match (be16(eth[12], eth[13]), packet) {
        (ETH_P_IP, [b0, b1, _, _, _, _, _, _, _, _, c0, c1, ..]) => {
            let new = (b1 & !3) | combine(*b1)?;
            let sum = checksum::update(be16(*c0, *c1), be16(*b0, *b1), be16(*b0, new));
            (*b1, new, Some(sum.to_be_bytes()))
        }
        (ETH_P_IPV6, [_, b1, ..]) => (*b1, (b1 & !0x30) | (combine(b1 >> 4)? << 4), None),
        _ => return Ok(None),
    };
    Ok((new != old).then_some(EcnRewrite {
        byte1: new,
        checksum,
    }))
}
