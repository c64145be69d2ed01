//! One network: the claims made in it, and the updates that follow when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_common::esp;
use overlay_common::layout::{
    FDB_BACKEND, FDB_ROUTER, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry,
    PORT_ENCRYPTED, PortEntry,
};
use overlay_common::policy::PolicyEntry;
use overlay_common::wire::Ip16;

use super::claims::{Claims, Class, Owner};
use super::policies::NetPolicies;
use super::port::Ports;
use super::record::Record;
use super::services::Services;
use super::updates::{MapUpdate, Updates};
use crate::model::{MacAddr, Network, Vni};
use crate::multicast::Group;
use crate::policy::identity;

#[derive(Debug)]
pub(super) struct Net {
    pub vni: Vni,
    /// `None` while only its endpoints are known.
    pub network: Option<Network>,
    /// The gateway's claims, while `network` is known.
    pub gateway: Option<Record>,
    /// This host's own port, and the MAC behind it.
    pub router: Option<(u32, MacAddr)>,
    /// Of networks that are not encrypted.
    pub mtu: u32,
    /// As the network was when it was last known.
    pub encrypted: bool,
    pub entry: NetworkEntry,
    /// The value is `None` for the gateway's MAC while there is no router: it is in no FDB.
    pub macs: Claims<MacAddr, Option<FdbEntry>>,
    pub ips: Claims<Ip16, NeighbourEntry>,
    /// How many endpoints are behind each VTEP; none of them zero.
    pub vteps: BTreeMap<Ip16, usize>,
    /// Of these, what the user says: how many are behind VTEPs that are no hosts.
    pub statics: BTreeMap<Ip16, usize>,
    /// Behind which hosts' VTEPs groups have members, as they say.
    pub groups: BTreeSet<(Group, Ip16)>,
    pub ports: BTreeSet<u32>,
    pub services: Services,
    pub policies: NetPolicies,
    /// The ports that policies are about: what a port has of them is in the maps before it says
    /// so, and stays until it no longer does.
    pub policed: BTreeSet<u32>,
    /// Whether it is in the maps.
    pub active: bool,
}

impl Net {
    pub fn new(vni: Vni, mtu: u32) -> Net {
        Net {
            vni,
            network: None,
            gateway: None,
            router: None,
            mtu,
            encrypted: false,
            entry: NetworkEntry::closed(mtu),
            macs: Claims::default(),
            ips: Claims::default(),
            vteps: BTreeMap::new(),
            statics: BTreeMap::new(),
            groups: BTreeSet::new(),
            ports: BTreeSet::new(),
            services: Services::new(vni),
            policies: NetPolicies::default(),
            policed: BTreeSet::new(),
            active: false,
        }
    }

    /// True when nothing is known of it any more.
    pub fn is_empty(&self) -> bool {
        self.network.is_none()
            && self.ports.is_empty()
            && self.macs.is_empty()
            && self.ips.is_empty()
            && self.services.is_empty()
            && self.groups.is_empty()
            && self.policies.is_empty()
    }

    pub fn fdb_key(&self, mac: MacAddr) -> FdbKey {
        FdbKey::new(self.vni.get(), mac.0)
    }

    pub fn neighbour_key(&self, ip: Ip16) -> NeighbourKey {
        NeighbourKey::new(self.vni.get(), ip)
    }

    /// Puts `new` in the place of `old`, both of `owner`. What is new is set before anything is
    /// deleted, and what both claim stays untouched.
    pub fn replace(
        &mut self,
        owner: Owner,
        old: Option<&Record>,
        new: Option<&Record>,
        updates: &mut Updates,
    ) {
        if let Some(new) = new {
            let before = self.fdb(new.mac).copied();
            let rank = owner.rank(new.mac_seq);
            let backend = new.service.as_ref().map_or(0, |_| FDB_BACKEND);
            let router = if new.router { FDB_ROUTER } else { 0 };
            let who = new.service.as_deref().map_or(0, identity);
            let entry = match owner {
                Owner::Gateway => self.gateway_entry(),
                _ => owner.fdb_entry().map(|entry| {
                    let policed =
                        matches!(owner, Owner::Port(port) if self.policed.contains(&port));
                    let entry = entry.with(backend | router).policed(policed);
                    entry.identified(who)
                }),
            };
            let entry = entry.map(|entry| entry.encrypted(self.encrypted));
            self.macs.set(new.mac, rank, entry);
            self.tell_mac(new.mac, before, updates);
            let entry = NeighbourEntry {
                mac: new.mac.0,
                _zero: [0; 2],
            };
            for (ip, seq) in &new.ips {
                let before = self.neighbour(*ip).copied();
                self.ips.set(*ip, owner.rank(*seq), entry);
                self.tell_ip(*ip, before, updates);
            }
        }
        let active = self.active;
        let backends = self.services.replace(owner, old, new);
        updates.extend(backends.into_iter().filter(|_| active));
        if let Some(old) = old {
            let kept = |ip: Ip16| new.is_some_and(|new| new.seq_of(ip).is_some());
            for (ip, seq) in old.ips.iter().filter(|(ip, _)| !kept(*ip)) {
                let before = self.neighbour(*ip).copied();
                self.ips.unset(*ip, owner.rank(*seq));
                self.tell_ip(*ip, before, updates);
            }
            if new.is_none_or(|new| new.mac != old.mac) {
                let before = self.fdb(old.mac).copied();
                self.macs.unset(old.mac, owner.rank(old.mac_seq));
                self.tell_mac(old.mac, before, updates);
            }
        }
        if let Some(vtep) = owner.vtep() {
            let (before, after) = (old.is_some(), new.is_some());
            count(&mut self.vteps, vtep, before, after);
            if matches!(owner, Owner::Static(_)) {
                count(&mut self.statics, vtep, before, after);
            }
        }
    }

    /// A service has these addresses of its own; none when it is gone.
    pub fn set_vips(
        &mut self,
        name: &str,
        (mac, ips): (MacAddr, &[IpAddr]),
        seq: &mut u64,
        updates: &mut Updates,
    ) {
        let old = self.services.vips_of(name);
        if old.map_or(ips.is_empty(), |old| old.is(mac, ips)) {
            return;
        }
        let new = (!ips.is_empty()).then(|| Record::new(mac, ips, old, seq));
        let (old, slots) = self.services.set_vips(name, new.clone());
        // A MAC is a service's only while its table is there.
        let (set, deleted): (Vec<_>, Vec<_>) = slots
            .into_iter()
            .filter(|_| self.active)
            .partition(|slot| matches!(slot, MapUpdate::SetSlot(..)));
        updates.extend(set.into_iter());
        self.replace(Owner::Service, old.as_ref(), new.as_ref(), updates);
        updates.extend(deleted.into_iter());
    }

    /// The network's policies are others now.
    pub fn set_policies(
        &mut self,
        policies: NetPolicies,
        ports: &mut Ports,
        updates: &mut Updates,
    ) {
        if self.policies == policies {
            return;
        }
        self.policies = policies;
        let mut open = Vec::new();
        for ifindex in self.ports.clone() {
            let Some(port) = ports.get_mut(&ifindex) else {
                continue;
            };
            let (before, entry) = (port.policy.take(), port.entry);
            port.set_policy(&self.policies);
            self.tell_policy(ifindex, before.as_deref(), port.policy.as_deref(), updates);
            if port.entry != entry && self.active {
                updates.push(MapUpdate::SetPort(ifindex, port.entry));
            }
            let (mac, rank) = (
                port.record.mac,
                Owner::Port(ifindex).rank(port.record.mac_seq),
            );
            let before = self.fdb(mac).copied();
            if let Some(entry) = self.macs.get_mut(mac, rank).and_then(Option::as_mut) {
                *entry = entry.policed(port.policy.is_some());
            }
            self.tell_mac(mac, before, updates);
            if port.policy.is_none() {
                open.push(ifindex);
            }
        }
        for ifindex in open {
            self.forget_policy(ifindex, updates);
        }
    }

    /// What policies say of a port, before anything else does.
    pub fn tell_policy(
        &mut self,
        ifindex: u32,
        before: Option<&PolicyEntry>,
        now: Option<&PolicyEntry>,
        updates: &mut Updates,
    ) {
        let Some(now) = now else { return };
        self.policed.insert(ifindex);
        if self.active && before != Some(now) {
            updates.push(MapUpdate::SetPolicy(ifindex, Box::new(*now)));
        }
    }

    /// Nothing says any more that policies are about the port.
    pub fn forget_policy(&mut self, ifindex: u32, updates: &mut Updates) {
        if self.policed.remove(&ifindex) && self.active {
            updates.push(MapUpdate::DelPolicy(ifindex));
        }
    }

    /// This host has a port of its own, or none any more: the gateway's MAC is behind it.
    pub fn set_router(&mut self, router: Option<(u32, MacAddr)>, updates: &mut Updates) {
        self.router = router;
        let entry = self.network_entry();
        // The network first: who is found in the FDB finds it there.
        if entry != self.entry && router.is_some() {
            self.set_entry(entry, updates);
        }
        if let Some(gateway) = &self.gateway {
            let (mac, rank) = (gateway.mac, Owner::Gateway.rank(gateway.mac_seq));
            let before = self.fdb(mac).copied();
            self.macs.set(mac, rank, self.gateway_entry());
            self.tell_mac(mac, before, updates);
        }
        if entry != self.entry {
            self.set_entry(entry, updates);
        }
    }

    /// The largest packet of its containers.
    pub fn inner_mtu(&self) -> u32 {
        match self.encrypted {
            true => esp::inner_mtu(self.mtu),
            false => self.mtu,
        }
    }

    /// Packets of networks that are not encrypted may have `mtu` bytes.
    pub fn set_mtu(&mut self, mtu: u32, ports: &mut Ports) {
        self.mtu = mtu;
        self.entry.mtu = self.inner_mtu();
        self.fit_ports(ports);
    }

    /// Says of all that it has whether it is encrypted. Only another network that gets the same VNI
    /// ever changes that.
    pub fn set_encrypted(&mut self, encrypted: bool, ports: &mut Ports, updates: &mut Updates) {
        if self.encrypted == encrypted {
            return;
        }
        // What is on its way out of the maps is of the network as it was.
        let active = self.active;
        self.deactivate(updates);
        self.encrypted = encrypted;
        self.entry = self.network_entry();
        for entry in self.macs.values_mut().flatten() {
            *entry = entry.encrypted(encrypted);
        }
        self.fit_ports(ports);
        if active {
            self.activate(ports, updates);
        }
    }

    fn fit_ports(&self, ports: &mut Ports) {
        for ifindex in &self.ports {
            if let Some(port) = ports.get_mut(ifindex) {
                port.entry.mtu = self.inner_mtu();
                port.entry.flags &= !PORT_ENCRYPTED;
                if self.encrypted {
                    port.entry.flags |= PORT_ENCRYPTED;
                }
            }
        }
    }

    fn set_entry(&mut self, entry: NetworkEntry, updates: &mut Updates) {
        self.entry = entry;
        if self.active {
            updates.push(MapUpdate::SetNetwork(self.vni.get(), entry));
        }
    }

    fn gateway_entry(&self) -> Option<FdbEntry> {
        let (ifindex, _) = self.router?;
        Some(FdbEntry::gateway(ifindex).encrypted(self.encrypted))
    }

    fn network_entry(&self) -> NetworkEntry {
        let mut entry = NetworkEntry::closed(self.inner_mtu());
        entry.encrypted = self.encrypted.into();
        if let (Some((_, mac)), Some(network)) = (self.router, &self.network) {
            entry.router = mac.0;
            for family in network.subnets() {
                match family.subnet {
                    IpNetwork::V4(subnet) => {
                        entry.net4 = subnet.network().octets();
                        entry.mask4 = subnet.mask().octets();
                    }
                    IpNetwork::V6(subnet) => {
                        entry.net6 = subnet.network().octets();
                        entry.mask6 = subnet.mask().octets();
                    }
                }
            }
        }
        entry
    }

    pub fn fdb(&self, mac: MacAddr) -> Option<&FdbEntry> {
        self.macs.best(mac)?.1.as_ref()
    }

    pub fn neighbour(&self, ip: Ip16) -> Option<&NeighbourEntry> {
        Some(self.ips.best(ip)?.1)
    }

    fn tell_mac(&self, mac: MacAddr, before: Option<FdbEntry>, updates: &mut Updates) {
        let now = self.fdb(mac).copied();
        if self.active && now != before {
            let key = self.fdb_key(mac);
            updates.push(match now {
                Some(entry) => MapUpdate::SetFdb(key, entry),
                None => MapUpdate::DelFdb(key),
            });
        }
    }

    fn tell_ip(&self, ip: Ip16, before: Option<NeighbourEntry>, updates: &mut Updates) {
        let now = self.neighbour(ip).copied();
        if self.active && now != before {
            let key = self.neighbour_key(ip);
            updates.push(match now {
                Some(entry) => MapUpdate::SetNeighbour(key, entry),
                None => MapUpdate::DelNeighbour(key),
            });
        }
    }

    /// Puts the network into the maps if it belongs there now: what is behind other VTEPs, then
    /// the network itself, then its ports and what is behind them.
    pub fn activate(&mut self, ports: &Ports, updates: &mut Updates) {
        if self.active || self.network.is_none() || self.ports.is_empty() {
            return;
        }
        self.active = true;
        let set = |(key, peer)| MapUpdate::SetSlot(key, peer);
        updates.extend(self.services.slots().map(set));
        let vni = self.vni.get();
        for local in [false, true] {
            if local {
                updates.push(MapUpdate::SetNetwork(vni, self.entry));
                let set = |(ifindex, entry)| MapUpdate::SetPolicy(ifindex, Box::new(entry));
                updates.extend(self.policy_entries(ports).map(set));
                let set = |(ifindex, entry)| MapUpdate::SetPort(ifindex, entry);
                updates.extend(self.port_entries(ports).map(set));
            }
            let set = |(key, entry)| MapUpdate::SetFdb(key, entry);
            updates.extend(self.fdb_entries(Some(local)).map(set));
            let set = |(key, entry)| MapUpdate::SetNeighbour(key, entry);
            updates.extend(self.neighbour_entries(Some(local)).map(set));
        }
    }

    /// Takes the network out of the maps, in the opposite order.
    pub fn deactivate(&mut self, updates: &mut Updates) {
        if !self.active {
            return;
        }
        for local in [true, false] {
            let delete = |(key, _)| MapUpdate::DelNeighbour(key);
            updates.extend(self.neighbour_entries(Some(local)).map(delete));
            let delete = |(key, _)| MapUpdate::DelFdb(key);
            updates.extend(self.fdb_entries(Some(local)).map(delete));
            if local {
                updates.extend(self.ports.iter().copied().map(MapUpdate::DelPort));
                updates.extend(self.policed.iter().copied().map(MapUpdate::DelPolicy));
                updates.push(MapUpdate::DelNetwork(self.vni.get()));
            }
        }
        let delete = |(key, _)| MapUpdate::DelSlot(key);
        updates.extend(self.services.slots().map(delete));
        self.active = false;
    }

    pub fn port_entries<'a>(
        &'a self,
        ports: &'a Ports,
    ) -> impl Iterator<Item = (u32, PortEntry)> + 'a {
        let entry = |ifindex: &u32| Some((*ifindex, ports.get(ifindex)?.entry));
        self.ports.iter().filter_map(entry)
    }

    /// What the map of policies has of it.
    pub fn policy_entries<'a>(
        &'a self,
        ports: &'a Ports,
    ) -> impl Iterator<Item = (u32, PolicyEntry)> + 'a {
        let policed = self.policed.iter();
        policed.filter_map(|ifindex| Some((*ifindex, **ports.get(ifindex)?.policy.as_ref()?)))
    }

    /// What the FDB map has of it; only what is behind ports, or only what is not, when asked.
    pub fn fdb_entries(&self, local: Option<bool>) -> impl Iterator<Item = (FdbKey, FdbEntry)> {
        self.macs.winners().filter_map(move |(mac, class, entry)| {
            let at_port = matches!(class, Class::Port | Class::Gateway);
            let wanted = local.is_none_or(|local| local == at_port);
            Some((self.fdb_key(mac), (*entry)?)).filter(|_| wanted)
        })
    }

    /// What the neighbour map has of it; see [`Net::fdb_entries`].
    pub fn neighbour_entries(
        &self,
        local: Option<bool>,
    ) -> impl Iterator<Item = (NeighbourKey, NeighbourEntry)> {
        self.ips.winners().filter_map(move |(ip, class, entry)| {
            let wanted = local.is_none_or(|local| local == (class == Class::Port));
            Some((self.neighbour_key(ip), *entry)).filter(|_| wanted)
        })
    }
}

/// One more behind a VTEP, or one less.
fn count(vteps: &mut BTreeMap<Ip16, usize>, vtep: Ip16, before: bool, after: bool) {
    if after && !before {
        *vteps.entry(vtep).or_default() += 1;
    } else if before && !after {
        match vteps.get_mut(&vtep) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                vteps.remove(&vtep);
            }
        }
    }
}
