//! Frames that containers send.

use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::counters::DropReason;
use overlay_common::layout::{FdbKey, NeighbourEntry, NeighbourKey, PortEntry};
use overlay_common::punt::Reason;
use overlay_common::verdict::{self, Verdict};
use overlay_common::wire::{ETH_LEN, Mac, OUTER_V4_LEN, be16};

use super::emit::{self, Sink};
use super::limit::Limiter;
use super::message::Link;
use super::snoop::Snooper;
use super::view::{Bytes, View};
use super::{Output, gateway, neighbour, too_big};
use crate::model::Network;
use crate::tables::{MapUpdate, Tables};

/// A frame that a container sent.
pub(super) struct FromPort<'a> {
    pub tables: &'a Tables,
    pub network: &'a Network,
    pub port: &'a PortEntry,
    pub ifindex: u32,
    reason: Reason,
    view: View<'a>,
    /// The inner frame: an Ethernet header at least.
    pub inner: &'a [u8],
    pub dst: Mac,
    pub ethertype: u16,
}

impl<'a> FromPort<'a> {
    pub fn new(
        tables: &'a Tables,
        ifindex: u32,
        reason: Reason,
        outer: &[u8; OUTER_V4_LEN],
        inner: &'a [u8],
    ) -> Result<FromPort<'a>, DropReason> {
        let port = tables.port_entry(ifindex).ok_or(DropReason::UnknownPort)?;
        // The ifindex may have become another port's since the frame was sent.
        let network = tables.active_network(port.vni);
        let network = network.filter(|_| port.vni == emit::vni(outer));
        let eth: [u8; ETH_LEN] = *inner.first_chunk().ok_or(DropReason::Truncated)?;
        let [d0, d1, d2, d3, d4, d5, .., t0, t1] = eth;
        Ok(FromPort {
            tables,
            network: network.ok_or(DropReason::UnknownVni)?,
            port,
            ifindex,
            reason,
            view: View::new(tables, port.vni, inner),
            inner,
            dst: [d0, d1, d2, d3, d4, d5],
            ethertype: be16(t0, t1),
        })
    }

    pub fn decide(
        &self,
        limiter: &mut Limiter,
        snooper: &mut Snooper,
        now: Duration,
        sink: &mut Sink<'_, impl Output>,
    ) -> Result<(), DropReason> {
        let vni = self.port.vni;
        let view = &self.view;
        let bytes = Bytes::whole(self.inner);
        let verdict = match verdict::from_port(&bytes, view, self.ifindex) {
            Verdict::Leave(leaving) => verdict::leave(&bytes, view, &leaving),
            other => other,
        };
        if let Verdict::Drop(reason) = verdict {
            return Err(reason);
        }
        // What was too big may have been cut: it can't be sent, whatever its length is now.
        if self.reason == Reason::TooBig {
            return too_big::answer(self, limiter, now, sink);
        }
        match verdict {
            Verdict::Encap {
                vtep, dst, meta, ..
            } => {
                if self.reason == Reason::Unresolved {
                    sink.out.update(MapUpdate::SetVtep(*dst, *vtep));
                }
                self.fill_fdb(sink);
                sink.send_to_vtep(vtep, dst, meta, vni, self.inner);
                Ok(())
            }
            Verdict::Balance { .. } => gateway::answer_for_service(self, limiter, now, sink),
            Verdict::Switch { ifindex, .. } | Verdict::Enter { ifindex, .. } => {
                self.fill_fdb(sink);
                sink.send_to_port(ifindex, vni, self.inner, None);
                Ok(())
            }
            Verdict::Route { ifindex, mac, .. } => {
                self.fill_fdb(sink);
                sink.write_to_port(ifindex, vni, self.inner.len(), |frame| {
                    frame.copy_from_slice(self.inner);
                    frame[..6].copy_from_slice(&mac);
                });
                Ok(())
            }
            Verdict::ArpReply { mac } => {
                self.fill_neighbour(sink);
                neighbour::arp_reply(self, &mac, sink)
            }
            Verdict::NdReply { mac } => {
                self.fill_neighbour(sink);
                neighbour::nd_reply(self, &mac, sink)
            }
            Verdict::Punt { reason, .. } => match reason {
                Reason::Flood => self.replicate(limiter, snooper, now, sink),
                Reason::UnknownNeighbour => match view.answer {
                    Some(NeighbourEntry { mac, .. }) if *mac != self.port.mac => {
                        self.fill_neighbour(sink);
                        neighbour::advertise(self, mac, sink)
                    }
                    // Nobody's address yet, or the asker's own, which it announces or checks for a
                    // duplicate: others may hear that, too.
                    _ => self.flood_essential(limiter, now, sink),
                },
                Reason::UnknownDestination => gateway::answer(self, limiter, now, sink),
                Reason::TooBig => too_big::answer(self, limiter, now, sink),
                Reason::Unresolved => Err(DropReason::Unresolved),
                Reason::UnknownSource | Reason::CantEncap | Reason::NoBackend => {
                    Err(DropReason::NotPunted)
                }
            },
            Verdict::Pass
            | Verdict::Drop(_)
            | Verdict::Decap { .. }
            | Verdict::Leave(_)
            | Verdict::Return { .. }
            | Verdict::EchoReply { .. }
            | Verdict::Forward { .. }
            | Verdict::Seal
            | Verdict::Open => Err(DropReason::NotPunted),
        }
    }

    /// What it asks for, if nobody is known to have it.
    pub fn unanswered(&self) -> Option<NeighbourKey> {
        self.view.asked.filter(|_| self.view.answer.is_none())
    }

    /// From the gateway's MAC back to the sender.
    pub fn link(&self) -> Link {
        Link {
            ifindex: self.ifindex,
            vni: self.port.vni,
            dst: self.port.mac,
            src: self.network.gateway_mac().0,
        }
    }

    /// The gateway's IPv4 address, if it has one.
    pub fn gateway4(&self) -> Option<Ipv4Addr> {
        gateway4(self.network)
    }

    /// The gateway's IPv6 address, if it has one.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.network.gateways().find_map(|gateway| match gateway {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip),
        })
    }

    fn fill_fdb(&self, sink: &mut Sink<'_, impl Output>) {
        let key = FdbKey::new(self.port.vni, self.dst);
        if self.reason == Reason::UnknownDestination
            && let Some(entry) = self.tables.fdb_entry(&key)
        {
            sink.out.update(MapUpdate::SetFdb(key, *entry));
        }
    }

    fn fill_neighbour(&self, sink: &mut Sink<'_, impl Output>) {
        if let (Reason::UnknownNeighbour, Some(key), Some(entry)) =
            (self.reason, self.view.asked, self.view.answer)
        {
            sink.out.update(MapUpdate::SetNeighbour(key, *entry));
        }
    }
}

/// The IPv4 address of a network's gateway, if it has one.
pub(super) fn gateway4(network: &Network) -> Option<Ipv4Addr> {
    network.gateways().find_map(|gateway| match gateway {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}
