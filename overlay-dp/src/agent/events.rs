//! What the cluster and the kernel tell, and what time brings.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use overlay_cluster::Event;
use overlay_common::wire::Ip16;
use overlay_core::model::{Endpoint, Host, HostId, Vni};
use overlay_core::tables::{Origin, Tables};

use super::Agent;
use crate::bpf::Swept;

impl Agent {
    pub(super) async fn on_cluster(&mut self, event: Event) {
        // Services, their endpoints and networks may be others now.
        self.routers.due |= !matches!(event, Event::MemberUp(_) | Event::MemberDown(_));
        match event {
            Event::MemberUp(host) => {
                tracing::info!(host = %host.name, vtep = %host.vtep, "host up");
                self.add_vtep(host.vtep).await;
                self.sweep_due |= self.stale_kept;
                self.host_is_up(&host);
                self.keys.set_peer(host.id, host.vtep);
                let old = self.members.insert(host.id, host.clone());
                let moved = old.map(|old| old.vtep).filter(|old| *old != host.vtep);
                if let Some(old) = moved {
                    self.remove_vtep(old);
                    self.endpoints_again(&host);
                }
            }
            Event::MemberDown(id) => {
                tracing::warn!(host = %self.name_of(id), "host down: its endpoints stay if its data path runs on");
                self.host_is_down(id);
            }
            Event::MemberLeft(id) => {
                tracing::info!(host = %self.name_of(id), "host left");
                // Nothing is taken from it any more, or sent to it.
                self.keys.remove_peer(id);
                self.names.change(|names| names.host_gone(id));
                self.sweep_due |= self.stale_kept;
                if let Some(host) = self.members.remove(&id) {
                    self.remove_vtep(host.vtep);
                }
            }
            Event::NetworkAdded(network) => {
                tracing::info!(network = %network.name, vni = %network.vni, subnet = %network.subnet, "network known");
                self.names
                    .change(|names| names.network_set(network.clone()));
                self.tables.write().network_add(network);
            }
            Event::NetworkRemoved(network) => {
                tracing::info!(network = %network.name, "network gone");
                if let Err(error) = self.drop_statics_of(network.vni) {
                    tracing::error!("{error:#}");
                }
                self.names.change(|names| names.network_gone(network.vni));
                self.tables.write().network_remove(network.vni);
            }
            Event::FactsChanged => {
                self.fit_vips();
                self.fit_policies();
                self.tell_again();
            }
            Event::Expelled => self.expelled = true,
            Event::EndpointUp { host, endpoint } => {
                self.names
                    .change(|names| names.endpoint_up(host, &endpoint));
                if let Some(vtep) = self.vtep_of(host) {
                    self.endpoint_up(vtep, &endpoint);
                }
            }
            Event::Groups { host, vni, groups } => {
                if let Some(vtep) = self.vtep_of(host) {
                    self.tables.write().groups_set(vtep, vni, &groups);
                }
            }
            Event::EndpointDown { host, endpoint } => {
                self.names
                    .change(|names| names.endpoint_down(host, &endpoint));
                if let Some(vtep) = self.vtep_of(host) {
                    self.tables.write().endpoint_down(vtep, &endpoint);
                }
            }
        }
    }

    /// A host has moved to another VTEP, and its endpoints with it, or is back.
    fn endpoints_again(&mut self, host: &Host) {
        for network in self.cluster.networks() {
            for (owner, endpoint) in self.cluster.endpoints(network.vni) {
                if owner == host.id {
                    self.names
                        .change(|names| names.endpoint_up(owner, &endpoint));
                    self.endpoint_up(host.vtep, &endpoint);
                }
            }
            for (owner, groups) in self.cluster.groups(network.vni) {
                if owner == host.id {
                    let mut tables = self.tables.write();
                    tables.groups_set(host.vtep, network.vni, &groups);
                }
            }
        }
    }

    /// Tells the tables again all that facts and gossip say, and takes out what they don't.
    pub(super) async fn tables_again(&mut self) {
        let networks = self.cluster.networks();
        let agreed: HashSet<Vni> = networks.iter().map(|network| network.vni).collect();
        let gone = |tables: &Tables| -> Vec<Vni> {
            let all = tables.networks().map(|network| network.vni);
            all.filter(|vni| !agreed.contains(vni)).collect()
        };
        let gone = gone(&self.tables.read());
        for vni in gone {
            self.tables.write().network_remove(vni);
        }
        let mut told = HashSet::new();
        for network in networks {
            let endpoints = self.cluster.endpoints(network.vni).into_iter();
            told.extend(endpoints.map(|(host, endpoint)| (host, network.vni, endpoint.mac)));
            self.tables.write().network_add(network);
        }
        let members = self.cluster.members().into_iter();
        let hosts: HashMap<IpAddr, Host> = members
            .filter(|member| !member.me)
            .map(|member| (member.host.vtep, member.host))
            .collect();
        // Of those that have too much, all is taken out first.
        let surplus = |tables: &Tables| -> HashSet<IpAddr> {
            let vteps = tables.vteps().filter(|vtep| vtep.host).map(|vtep| vtep.ip);
            let vteps = vteps.filter(|vtep| !hosts.contains_key(vtep));
            let rows = tables.fdb().filter_map(|row| match row.origin {
                Origin::Host(vtep) => Some((vtep, row.vni, row.mac)),
                Origin::Port(_) | Origin::Static(_) => None,
            });
            let rows = rows.filter(|(vtep, vni, mac)| {
                let host = hosts.get(vtep);
                host.is_some_and(|host| !told.contains(&(host.id, *vni, *mac)))
            });
            vteps.chain(rows.map(|(vtep, ..)| vtep)).collect()
        };
        let surplus = surplus(&self.tables.read());
        for vtep in surplus {
            self.remove_vtep(vtep);
        }
        for (vtep, host) in hosts {
            self.add_vtep(vtep).await;
            self.members.insert(host.id, host.clone());
            self.endpoints_again(&host);
        }
    }

    fn endpoint_up(&mut self, vtep: IpAddr, endpoint: &Endpoint) {
        if let Err(error) = self.tables.write().endpoint_up(vtep, endpoint) {
            tracing::warn!(endpoint = %endpoint.name, %error, "an endpoint is not taken");
        }
    }

    pub(super) fn name_of(&self, id: HostId) -> String {
        self.members
            .get(&id)
            .map_or_else(|| id.to_string(), |h| h.name.clone())
    }

    /// The VTEP of another host. Our own endpoints come back as events, too; they are not remote.
    pub(super) fn vtep_of(&self, id: HostId) -> Option<IpAddr> {
        self.members
            .get(&id)
            .map(|h| h.vtep)
            .filter(|v| *v != self.uplink.addr)
    }

    pub(super) async fn on_tick(&mut self) {
        if !self.slow.is_running() {
            self.fatal = Some("the slow path has ended".to_owned());
        }
        if !self.crypt.are_running() {
            self.fatal = Some("a crypt worker has ended".to_owned());
        }
        if !self.names.is_running() {
            self.fatal = Some("the name service has ended".to_owned());
        }
        self.routers.due = true;
        self.next_hops.keep_fresh(&self.host).await;
        self.next_hops.mark_all();
        self.next_hops.look_soon();
        // Who was broken may have been forgotten.
        self.fit_checksums().await;
        // One whole tick after the start, the hosts that are alive have told all they own.
        if self.settled && self.sweep_due {
            self.sweep_due = false;
            self.sweep();
        }
        self.settled = true;
    }

    /// Removes from the BPF maps what nobody owns: left by an earlier agent, and not confirmed
    /// since. What belongs to a host that is not alive stays until that host is forgotten.
    fn sweep(&mut self) {
        let silent = self.silent_vteps();
        let keep = |ip: &Ip16| silent.contains(ip);
        match self.bpf.sweep(&self.tables.read(), keep) {
            Ok(Swept { removed, kept }) => {
                self.stale_kept = kept > 0;
                if removed > 0 {
                    tracing::info!(removed, "removed stale entries from the BPF maps");
                }
            }
            Err(error) => tracing::warn!("can't look for stale entries in the BPF maps: {error:#}"),
        }
    }
}
