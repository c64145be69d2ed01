//! Reading: for people, for a restarted agent, and for the slow path.

use std::net::{IpAddr, Ipv6Addr};

use overlay_common::esp;
use overlay_common::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::policy::PolicyEntry;
use overlay_common::service::{Peer, SlotKey};
use overlay_common::wire::Ip16;

use super::claims::Owner;
use super::net::Net;
use super::record::Record;
use super::{MapContents, NetPolicies, NextHop, Tables};
use crate::model::{MacAddr, Network, Vni};
use crate::policy::Policy;

/// Where a MAC is, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A port of this host, by ifindex.
    Port(u32),
    /// The user, who says that it is behind this VTEP.
    Static(IpAddr),
    /// The host with this VTEP.
    Host(IpAddr),
}

/// What somebody says about a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The network.
    pub vni: Vni,
    /// The MAC.
    pub mac: MacAddr,
    /// The addresses that go with it.
    pub ips: Vec<IpAddr>,
    /// Where it is, and who says so.
    pub origin: Origin,
    /// False when another one claims the same MAC and comes first.
    pub effective: bool,
    /// Whether it is in the BPF map: it is effective, and this host has a port in the network.
    pub installed: bool,
    /// The next hop to its VTEP, when resolved.
    pub next_hop: Option<NextHop>,
}

/// A service's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipRow {
    /// The network.
    pub vni: Vni,
    /// The service.
    pub service: String,
    /// The MAC that goes with them.
    pub mac: MacAddr,
    /// One of each family.
    pub ips: Vec<IpAddr>,
}

/// A VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtepRow {
    /// Its address.
    pub ip: IpAddr,
    /// Whether a host of the cluster has it.
    pub host: bool,
    /// How many static entries are behind it.
    pub statics: usize,
    /// How many endpoints its host has said it has.
    pub endpoints: usize,
    /// The next hop to it, when resolved.
    pub next_hop: Option<NextHop>,
}

impl Tables {
    /// All that belongs into the maps, with the updates not polled yet done.
    pub fn snapshot(&self) -> MapContents {
        let active = || self.nets.values().filter(|net| net.active);
        let ports = active().flat_map(|net| net.port_entries(&self.ports));
        let fdb = active().flat_map(|net| net.fdb_entries(None));
        let neighbours = active().flat_map(|net| net.neighbour_entries(None));
        let vteps = self.vteps.iter().filter(|(_, vtep)| vtep.is_known());
        MapContents {
            ports: ports.collect(),
            networks: active().map(|net| (net.vni.get(), net.entry)).collect(),
            fdb: fdb.collect(),
            neighbours: neighbours.collect(),
            vteps: vteps.map(|(ip, vtep)| (*ip, vtep.entry)).collect(),
            slots: active().flat_map(|net| net.services.slots()).collect(),
            policies: active()
                .flat_map(|net| net.policy_entries(&self.ports))
                .collect(),
        }
    }

    /// What is said about every MAC: first what ports say, then the user, then other hosts. The
    /// gateways', which are in no FDB, are not among them.
    pub fn fdb(&self) -> impl Iterator<Item = FdbRow> {
        let ports = self.ports.iter();
        let ports = ports.map(|(ifindex, p)| (p.vni, Owner::Port(*ifindex), &p.record));
        let statics = self.statics.iter();
        let statics =
            statics.map(|((vni, _), (vtep, record))| (*vni, Owner::Static(*vtep), record));
        let hosts = self.vteps.iter().filter(|(_, vtep)| vtep.host);
        let hosts = hosts.flat_map(|(ip, vtep)| {
            let endpoints = vtep.endpoints.iter();
            endpoints.map(|((vni, _), record)| (*vni, Owner::Host(*ip), record))
        });
        let all = ports.chain(statics).chain(hosts);
        all.filter_map(|(vni, owner, record)| self.fdb_row(vni, owner, record))
    }

    /// Every service with addresses of its own.
    pub fn services(&self) -> impl Iterator<Item = VipRow> {
        let nets = self.nets.values();
        nets.flat_map(|net| {
            let all = net.services.with_vips();
            all.map(|(service, record)| VipRow {
                vni: net.vni,
                service: service.to_owned(),
                mac: record.mac,
                ips: record.ips.iter().map(|(ip, _)| ip_addr(ip)).collect(),
            })
        })
    }

    /// Every known VTEP but this host's own.
    pub fn vteps(&self) -> impl Iterator<Item = VtepRow> {
        let known = self.vteps.iter().filter(|(_, vtep)| vtep.is_known());
        known.map(|(ip, vtep)| VtepRow {
            ip: ip_addr(ip),
            host: vtep.host,
            statics: vtep.statics,
            endpoints: vtep.endpoints.len(),
            next_hop: next_hop(&vtep.entry),
        })
    }

    /// The largest packet of a container on `network`.
    pub fn mtu_of(&self, network: &Network) -> u32 {
        match network.encrypted {
            true => esp::inner_mtu(self.local.mtu),
            false => self.local.mtu,
        }
    }

    /// Whether this host has a port in an encrypted network.
    pub fn needs_keys(&self) -> bool {
        self.nets.values().any(|net| net.active && net.encrypted)
    }

    /// All networks that exist.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.nets.values().filter_map(|net| net.network.as_ref())
    }

    /// The network with this VNI.
    pub fn network(&self, vni: Vni) -> Option<&Network> {
        self.nets.get(&vni.get())?.network.as_ref()
    }

    /// The map's entry for a port.
    pub fn port_entry(&self, ifindex: u32) -> Option<&PortEntry> {
        let port = self.ports.get(&ifindex)?;
        self.active(port.vni.get()).map(|_| &port.entry)
    }

    /// The map's entry for a network.
    pub fn network_entry(&self, vni: u32) -> Option<&NetworkEntry> {
        self.active(vni).map(|net| &net.entry)
    }

    /// The map's entry for a MAC.
    pub fn fdb_entry(&self, key: &FdbKey) -> Option<&FdbEntry> {
        self.active(key.vni())?.fdb(MacAddr(key.mac()))
    }

    /// The map's entry for an address.
    pub fn neighbour_entry(&self, vni: u32, ip: Ip16) -> Option<&NeighbourEntry> {
        self.active(vni)?.neighbour(ip)
    }

    /// The map's entry for a slot of a service's table.
    pub fn slot_entry(&self, key: &SlotKey) -> Option<&Peer> {
        self.active(key.vni())?.services.slot(key)
    }

    /// The map's entry for the policies about the endpoint behind a port.
    pub fn policy_entry(&self, ifindex: u32) -> Option<&PolicyEntry> {
        let port = self.ports.get(&ifindex)?;
        self.active(port.vni.get())?;
        port.policy.as_deref()
    }

    /// The networks with policies, and these.
    pub fn policies(&self) -> impl Iterator<Item = (Vni, &NetPolicies)> {
        let nets = self.nets.values().filter(|net| !net.policies.is_empty());
        nets.map(|net| (net.vni, &net.policies))
    }

    /// The policy that is the rule at `index` of a port's.
    pub fn policy_at(&self, ifindex: u32, index: usize) -> Option<&Policy> {
        let port = self.ports.get(&ifindex)?;
        let net = self.active(port.vni.get())?;
        net.policies.about(&port.record).nth(index)
    }

    /// The addresses of the service with this MAC, if its network is in the maps.
    pub(crate) fn vips(&self, vni: u32, mac: MacAddr) -> impl Iterator<Item = &Ip16> {
        let nets = self.active(vni).into_iter();
        nets.flat_map(move |net| net.services.vips(mac))
    }

    /// The map's entry for a VTEP.
    pub fn vtep_entry(&self, ip: &Ip16) -> Option<&VtepEntry> {
        let vtep = self.vteps.get(ip).filter(|vtep| vtep.is_known())?;
        Some(&vtep.entry)
    }

    /// The configuration that the programs have, except for the punt link and the crypt link, which
    /// are 0.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The network with this VNI, if it is in the maps.
    pub(crate) fn active_network(&self, vni: u32) -> Option<&Network> {
        self.active(vni)?.network.as_ref()
    }

    /// The ports of a network, if it is in the maps.
    pub(crate) fn flood_ports(&self, vni: u32) -> impl Iterator<Item = u32> {
        let nets = self.active(vni).into_iter();
        nets.flat_map(|net| net.ports.iter().copied())
    }

    /// The VTEPs that have an endpoint of a network, if it is in the maps.
    pub(crate) fn flood_vteps(&self, vni: u32) -> impl Iterator<Item = (&Ip16, &VtepEntry)> {
        let nets = self.active(vni).into_iter();
        let vteps = nets.flat_map(|net| net.vteps.keys());
        vteps.filter_map(|ip| Some((ip, self.vtep_entry(ip)?)))
    }

    pub(super) fn active(&self, vni: u32) -> Option<&Net> {
        self.nets.get(&vni).filter(|net| net.active)
    }

    fn fdb_row(&self, vni: Vni, owner: Owner, record: &Record) -> Option<FdbRow> {
        let net = self.nets.get(&vni.get())?;
        let (rank, _) = net.macs.best(record.mac)?;
        let effective = rank == owner.rank(record.mac_seq);
        Some(FdbRow {
            vni,
            mac: record.mac,
            ips: record.ips.iter().map(|(ip, _)| ip_addr(ip)).collect(),
            origin: match owner {
                Owner::Gateway | Owner::Service => return None,
                Owner::Port(ifindex) => Origin::Port(ifindex),
                Owner::Static(vtep) => Origin::Static(ip_addr(&vtep)),
                Owner::Host(vtep) => Origin::Host(ip_addr(&vtep)),
            },
            effective,
            installed: effective && net.active,
            next_hop: owner
                .vtep()
                .and_then(|vtep| next_hop(self.vtep_entry(&vtep)?)),
        })
    }
}

fn next_hop(entry: &VtepEntry) -> Option<NextHop> {
    (entry.ifindex != 0).then_some(NextHop {
        ifindex: entry.ifindex,
        src_mac: entry.src_mac,
        dst_mac: entry.dst_mac,
        mtu: entry.mtu,
    })
}

fn ip_addr(ip: &Ip16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_octets(*ip)).to_canonical()
}
