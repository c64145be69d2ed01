//! What this host knows of networks, endpoints and VTEPs, and what of it belongs into the BPF
//! maps.
//!
//! The agent is the only writer: it tells facts as they come, in any order, and carries out what
//! [`Tables::poll_update`] gives back, in that order. The slow path only reads.
//!
//! - A network is in the maps only while this host has a port in it.
//! - Frames to the gateway's MAC are the agent's to answer, so that MAC is in no FDB, unless this
//!   host has a router port in the network: then it is behind that port. The gateway's addresses, one of each family, are in the neighbour map: BPF answers ARP and ND for them.
//! - When two endpoints claim one MAC or one address, the gateway comes before a local port, that
//!   before a static entry, that before another host; among equals the first one counts until it
//!   withdraws. What another host says counts only while its VTEP is known.
//! - Which hosts have members of which multicast groups is in no map: only the slow path replicates.
//! - That a network is encrypted is in the entries of its ports, so that nothing that they send
//!   leaves in the clear, in those of its MACs, so that nothing is taken that came so, and in its
//!   own, for what has no such entry.
//! - What policies say of a port is in the maps before the port and its MAC say that there are any,
//!   and goes after.
//! - An update never leaves a reference to something that is not in the maps: a VTEP is set before
//!   the FDB entries behind it, a port before its FDB entry, and they are deleted the other way
//!   round.

mod claims;
mod facts;
mod groups;
mod local;
mod net;
mod policies;
mod port;
mod read;
mod record;
mod services;
mod updates;
mod vtep;

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_common::layout::{Config, PORT_ENCRYPTED, PORT_ROUTER, VtepEntry};
use overlay_common::wire::{Family, Ip16};

pub use facts::{Error, Local, NextHop, StaticEntry};
pub use groups::GroupRow;
pub use policies::NetPolicies;
pub use port::PortOptions;
pub use read::{FdbRow, Origin, VipRow, VtepRow};
pub use record::MAX_IPS;
pub use updates::{MapContents, MapUpdate};

use crate::model::{Endpoint, MacAddr, Network, Vni};
use claims::Owner;
use net::Net;
use port::{Port, Ports};
use record::{Record, check};
use updates::Updates;
use vtep::{Vtep, unresolved, vtep_key};

/// The forwarding tables.
#[derive(Debug)]
pub struct Tables {
    local: Local,
    /// `punt_ifindex` and `crypt_ifindex` are not known here and 0.
    config: Config,
    nets: BTreeMap<u32, Net>,
    vteps: BTreeMap<Ip16, Vtep>,
    statics: BTreeMap<(Vni, MacAddr), (Ip16, Record)>,
    ports: Ports,
    /// The last claim's place in the order of all.
    seq: u64,
    updates: Updates,
}

impl Tables {
    /// Empty tables.
    ///
    /// # Errors
    /// When the VTEP is none.
    pub fn new(local: Local) -> Result<Tables, Error> {
        Ok(Tables {
            config: Config {
                vtep: vtep_key(local.vtep)?,
                punt_ifindex: 0,
                crypt_ifindex: 0,
                data_port: local.data_port,
                esp_port: local.esp_port,
            },
            local,
            nets: BTreeMap::new(),
            vteps: BTreeMap::new(),
            statics: BTreeMap::new(),
            ports: Ports::new(),
            seq: 0,
            updates: Updates::default(),
        })
    }

    /// This host.
    pub fn local(&self) -> Local {
        self.local
    }

    /// The next change to carry out, until there is none.
    pub fn poll_update(&mut self) -> Option<MapUpdate> {
        self.updates.pop()
    }

    /// Becomes another number whenever an update is queued. What the slow path found out under an
    /// older one may be wrong by now.
    pub fn version(&self) -> u64 {
        self.updates.queued()
    }

    /// The uplink's MTU is another one now.
    pub fn set_mtu(&mut self, mtu: u32) {
        if mtu == self.local.mtu {
            return;
        }
        self.local.mtu = mtu;
        for net in self.nets.values_mut() {
            net.set_mtu(mtu, &mut self.ports);
            if net.active {
                let set = |(ifindex, entry)| MapUpdate::SetPort(ifindex, entry);
                self.updates.extend(net.port_entries(&self.ports).map(set));
                let update = MapUpdate::SetNetwork(net.vni.get(), net.entry);
                self.updates.push(update);
            }
        }
    }

    /// A network exists, or has changed.
    pub fn network_add(&mut self, network: Network) {
        let net = net_or_new(&mut self.nets, network.vni, self.local.mtu);
        if net.network.as_ref() == Some(&network) {
            return;
        }
        net.set_encrypted(network.encrypted, &mut self.ports, &mut self.updates);
        let old = net.gateway.take();
        let ips: Vec<IpAddr> = network.gateways().collect();
        let new = Record::new(network.gateway_mac(), &ips, old.as_ref(), &mut self.seq);
        net.replace(Owner::Gateway, old.as_ref(), Some(&new), &mut self.updates);
        net.gateway = Some(new);
        net.network = Some(network);
        net.set_router(net.router, &mut self.updates);
        net.activate(&self.ports, &mut self.updates);
    }

    /// A network exists no more. Its endpoints are kept, out of the maps, until they are withdrawn.
    pub fn network_remove(&mut self, vni: Vni) {
        let Some(net) = self.nets.get_mut(&vni.get()) else {
            return;
        };
        net.deactivate(&mut self.updates);
        let gateway = net.gateway.take();
        net.replace(Owner::Gateway, gateway.as_ref(), None, &mut self.updates);
        net.network = None;
        net.groups.clear();
        self.forget_net_if_empty(vni);
    }

    /// A host with this VTEP is in the cluster.
    ///
    /// # Errors
    /// When the address can't be another host's VTEP.
    pub fn vtep_add(&mut self, ip: IpAddr) -> Result<(), Error> {
        let key = self.remote_vtep(ip)?;
        let vtep = vtep_or_new(&mut self.vteps, key, self.config.vtep);
        if vtep.host {
            return Ok(());
        }
        if !vtep.is_known() {
            let update = MapUpdate::SetVtep(key, vtep.entry);
            self.updates.push(update);
        }
        vtep.host = true;
        for ((vni, _), record) in &mut vtep.endpoints {
            *record = record.renewed(&mut self.seq);
            let net = net_or_new(&mut self.nets, *vni, self.local.mtu);
            net.replace(Owner::Host(key), None, Some(record), &mut self.updates);
        }
        Ok(())
    }

    /// The host with this VTEP has left. All that it said is forgotten.
    pub fn vtep_remove(&mut self, ip: IpAddr) {
        let Ok(key) = vtep_key(ip) else { return };
        let Some(vtep) = self.vteps.get_mut(&key) else {
            return;
        };
        let endpoints = std::mem::take(&mut vtep.endpoints);
        if std::mem::take(&mut vtep.host) {
            self.forget_groups(key);
            for ((vni, _), record) in &endpoints {
                self.withdraw(*vni, Owner::Host(key), record);
            }
            self.forget_vtep_if_unknown(key);
        } else if !vtep.is_known() {
            self.vteps.remove(&key);
        }
    }

    /// The next hop to a VTEP, `None` when it is not resolved (any more). It is forgotten with the
    /// VTEP; for one that is not known nothing happens.
    pub fn next_hop(&mut self, vtep: IpAddr, hop: Option<NextHop>) {
        let Ok(key) = vtep_key(vtep) else { return };
        let Some(vtep) = self.vteps.get_mut(&key).filter(|vtep| vtep.is_known()) else {
            return;
        };
        let entry = match hop {
            Some(hop) => VtepEntry {
                src_ip: self.config.vtep,
                ifindex: hop.ifindex,
                mtu: hop.mtu,
                src_mac: hop.src_mac,
                dst_mac: hop.dst_mac,
            },
            None => unresolved(self.config.vtep),
        };
        if entry != vtep.entry {
            vtep.entry = entry;
            self.updates.push(MapUpdate::SetVtep(key, entry));
        }
    }

    /// The host with this VTEP has an endpoint. An endpoint it has by that name on that network is
    /// changed. Until the VTEP is known, the endpoint is only remembered.
    ///
    /// # Errors
    /// When the VTEP can't be another host's, or the endpoint's addresses are none.
    pub fn endpoint_up(&mut self, vtep: IpAddr, endpoint: &Endpoint) -> Result<(), Error> {
        let key = self.remote_vtep(vtep)?;
        check(endpoint.mac, &endpoint.ips)?;
        let vtep = vtep_or_new(&mut self.vteps, key, self.config.vtep);
        let name = (endpoint.vni, endpoint.name.as_str().into());
        let old = vtep.endpoints.get(&name);
        if old.is_some_and(|old| old.is_of(endpoint)) {
            return Ok(());
        }
        let new = Record::of_endpoint(endpoint, old, &mut self.seq);
        if vtep.host {
            let net = net_or_new(&mut self.nets, endpoint.vni, self.local.mtu);
            net.replace(Owner::Host(key), old, Some(&new), &mut self.updates);
        }
        vtep.endpoints.insert(name, new);
        Ok(())
    }

    /// The host with this VTEP has that endpoint no more. When it has one by that name with other
    /// addresses by now, nothing happens.
    pub fn endpoint_down(&mut self, vtep: IpAddr, endpoint: &Endpoint) {
        let Ok(key) = vtep_key(vtep) else { return };
        let Some(vtep) = self.vteps.get_mut(&key) else {
            return;
        };
        let name = (endpoint.vni, endpoint.name.as_str().into());
        let held = vtep.endpoints.get(&name);
        if !held.is_some_and(|held| held.is(endpoint.mac, &endpoint.ips)) {
            return;
        }
        let record = vtep.endpoints.remove(&name);
        if vtep.host {
            if let Some(record) = record {
                self.withdraw(endpoint.vni, Owner::Host(key), &record);
            }
        } else if !vtep.is_known() && vtep.endpoints.is_empty() {
            self.vteps.remove(&key);
        }
    }

    /// An endpoint is behind a VTEP because the user says so. An entry for the same MAC of the
    /// same network is replaced.
    ///
    /// # Errors
    /// When the VTEP can't be another host's, or the addresses are none.
    pub fn static_add(&mut self, entry: StaticEntry) -> Result<(), Error> {
        let key = self.remote_vtep(entry.vtep)?;
        check(entry.mac, &entry.ips)?;
        let name = (entry.vni, entry.mac);
        let mut old = self.statics.get(&name);
        if old.is_some_and(|(vtep, old)| *vtep == key && old.is(entry.mac, &entry.ips)) {
            return Ok(());
        }
        if old.is_some_and(|(vtep, _)| *vtep != key) {
            self.static_remove(entry.vni, entry.mac);
            old = None;
        }
        let old = old.map(|(_, record)| record);
        let vtep = vtep_or_new(&mut self.vteps, key, self.config.vtep);
        if !vtep.is_known() {
            let update = MapUpdate::SetVtep(key, vtep.entry);
            self.updates.push(update);
        }
        if old.is_none() {
            vtep.statics += 1;
        }
        let new = Record::new(entry.mac, &entry.ips, old, &mut self.seq);
        let net = net_or_new(&mut self.nets, entry.vni, self.local.mtu);
        net.replace(Owner::Static(key), old, Some(&new), &mut self.updates);
        self.statics.insert(name, (key, new));
        Ok(())
    }

    /// A service of the network has these addresses of its own, and this MAC; without addresses it
    /// is gone. Its backends are the endpoints that name it.
    ///
    /// # Errors
    /// When they can't be an endpoint's.
    pub fn service_set(
        &mut self,
        vni: Vni,
        name: &str,
        mac: MacAddr,
        ips: &[IpAddr],
    ) -> Result<(), Error> {
        check(mac, ips)?;
        let net = net_or_new(&mut self.nets, vni, self.local.mtu);
        net.set_vips(name, (mac, ips), &mut self.seq, &mut self.updates);
        self.forget_net_if_empty(vni);
        Ok(())
    }

    /// What was agreed about who reaches whom in a network.
    pub fn policies_set(&mut self, vni: Vni, policies: NetPolicies) {
        let net = net_or_new(&mut self.nets, vni, self.local.mtu);
        net.set_policies(policies, &mut self.ports, &mut self.updates);
        self.forget_net_if_empty(vni);
    }

    /// The user says so no more. False when there was no such entry.
    pub fn static_remove(&mut self, vni: Vni, mac: MacAddr) -> bool {
        let Some((key, record)) = self.statics.remove(&(vni, mac)) else {
            return false;
        };
        self.withdraw(vni, Owner::Static(key), &record);
        if let Some(vtep) = self.vteps.get_mut(&key) {
            vtep.statics -= 1;
        }
        self.forget_vtep_if_unknown(key);
        true
    }

    /// An endpoint of this host is behind this port. Another one that was there is down.
    ///
    /// # Errors
    /// When the ifindex or the endpoint's addresses are none.
    pub fn port_up(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), Error> {
        self.port_up_with(ifindex, endpoint, PortOptions::default())
    }

    /// As [`Tables::port_up`], with more about the port.
    ///
    /// # Errors
    /// As [`Tables::port_up`].
    pub fn port_up_with(
        &mut self,
        ifindex: u32,
        endpoint: &Endpoint,
        mut options: PortOptions,
    ) -> Result<(), Error> {
        if ifindex == 0 {
            return Err(Error::Ifindex);
        }
        check(endpoint.mac, &endpoint.ips)?;
        let old = self.ports.get(&ifindex);
        let record = Record::of_endpoint(endpoint, None, &mut self.seq);
        if endpoint.router {
            options.flags |= PORT_ROUTER;
        }
        let net = net_or_new(&mut self.nets, endpoint.vni, self.local.mtu);
        if net.encrypted {
            options.flags |= PORT_ENCRYPTED;
        }
        let mut port = Port::new(endpoint.vni, record, net.inner_mtu(), options);
        port.set_policy(&net.policies);
        if old.is_some_and(|old| old.entry == port.entry && old.record.is_of(endpoint)) {
            return Ok(());
        }
        // Who only has other names, or is of another service, carries traffic all the time.
        if let Some(old) = old
            && old.vni == endpoint.vni
            && old.record.router == endpoint.router
            && old.record.is(endpoint.mac, &endpoint.ips)
            && let Some(net) = self.nets.get_mut(&endpoint.vni.get())
        {
            let record = Record::of_endpoint(endpoint, Some(&old.record), &mut self.seq);
            let port = Port { record, ..port };
            let (before, now) = (old.policy.as_deref(), port.policy.as_deref());
            net.tell_policy(ifindex, before, now, &mut self.updates);
            // Its MAC's entry follows from this, before what it had of them goes.
            let opened = now.is_none() && net.policed.remove(&ifindex);
            if net.active && port.entry != old.entry {
                let update = MapUpdate::SetPort(ifindex, port.entry);
                self.updates.push(update);
            }
            let owner = Owner::Port(ifindex);
            net.replace(
                owner,
                Some(&old.record),
                Some(&port.record),
                &mut self.updates,
            );
            if opened && net.active {
                self.updates.push(MapUpdate::DelPolicy(ifindex));
            }
            self.ports.insert(ifindex, port);
            return Ok(());
        }
        self.port_down(ifindex);
        let net = net_or_new(&mut self.nets, endpoint.vni, self.local.mtu);
        net.ports.insert(ifindex);
        let policy = port.policy.as_deref();
        net.tell_policy(ifindex, None, policy, &mut self.updates);
        if net.active {
            let update = MapUpdate::SetPort(ifindex, port.entry);
            self.updates.push(update);
        }
        net.replace(
            Owner::Port(ifindex),
            None,
            Some(&port.record),
            &mut self.updates,
        );
        if endpoint.router {
            net.set_router(Some((ifindex, endpoint.mac)), &mut self.updates);
        }
        self.ports.insert(ifindex, port);
        net.activate(&self.ports, &mut self.updates);
        Ok(())
    }

    /// The port is gone.
    pub fn port_down(&mut self, ifindex: u32) {
        let Some(port) = self.ports.get(&ifindex) else {
            return;
        };
        let vni = port.vni;
        let Some(net) = self.nets.get_mut(&vni.get()) else {
            return;
        };
        if net.router.is_some_and(|(router, _)| router == ifindex) {
            net.set_router(None, &mut self.updates);
        }
        if net.ports.len() == 1 {
            net.deactivate(&mut self.updates);
        }
        let owner = Owner::Port(ifindex);
        net.replace(owner, Some(&port.record), None, &mut self.updates);
        if net.active {
            self.updates.push(MapUpdate::DelPort(ifindex));
        }
        net.forget_policy(ifindex, &mut self.updates);
        net.ports.remove(&ifindex);
        self.ports.remove(&ifindex);
        self.forget_net_if_empty(vni);
    }

    fn withdraw(&mut self, vni: Vni, owner: Owner, record: &Record) {
        if let Some(net) = self.nets.get_mut(&vni.get()) {
            net.replace(owner, Some(record), None, &mut self.updates);
            self.forget_net_if_empty(vni);
        }
    }

    fn forget_net_if_empty(&mut self, vni: Vni) {
        if self.nets.get(&vni.get()).is_some_and(Net::is_empty) {
            self.nets.remove(&vni.get());
        }
    }

    /// Called when a VTEP that was known may not be any more.
    fn forget_vtep_if_unknown(&mut self, key: Ip16) {
        let Some(vtep) = self.vteps.get_mut(&key).filter(|vtep| !vtep.is_known()) else {
            return;
        };
        self.updates.push(MapUpdate::DelVtep(key));
        if vtep.endpoints.is_empty() {
            self.vteps.remove(&key);
        } else {
            vtep.entry = unresolved(self.config.vtep);
        }
    }

    fn remote_vtep(&self, ip: IpAddr) -> Result<Ip16, Error> {
        let key = vtep_key(ip)?;
        if key == self.config.vtep {
            return Err(Error::OwnVtep(ip));
        }
        self.check_family(ip, &key)?;
        Ok(key)
    }

    fn check_family(&self, ip: IpAddr, key: &Ip16) -> Result<(), Error> {
        if Family::of(key) != Family::of(&self.config.vtep) {
            return Err(Error::OtherFamily(ip, self.local.vtep));
        }
        Ok(())
    }
}

fn net_or_new(nets: &mut BTreeMap<u32, Net>, vni: Vni, mtu: u32) -> &mut Net {
    nets.entry(vni.get()).or_insert_with(|| Net::new(vni, mtu))
}

fn vtep_or_new(vteps: &mut BTreeMap<Ip16, Vtep>, key: Ip16, src_ip: Ip16) -> &mut Vtep {
    vteps.entry(key).or_insert_with(|| Vtep::new(src_ip))
}
