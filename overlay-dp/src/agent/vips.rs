//! Services' own addresses (VIPs) and ports: what was agreed goes into the tables and the names. Each host
//! does for itself what follows from that: its own containers' connections are balanced here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_core::facts::Facts;
use overlay_core::model::{MacAddr, Service, Vni};
use overlay_core::tables::{Tables, VipRow};

use super::Agent;

/// By network and name.
#[derive(Default, PartialEq, Eq)]
pub struct Vips(BTreeMap<(Vni, String), Vip>);

/// One service's own addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Vip {
    /// What ARP tells of them: the same on all hosts.
    pub mac: MacAddr,
    /// One of each family, IPv4 first.
    pub ips: Vec<IpAddr>,
}

impl Vips {
    /// As they were agreed.
    pub fn of(facts: &Facts) -> Vips {
        let vip = |service: &Service| {
            let (network, offset) = (facts.network(service.vni)?, service.vip?);
            let vip = Vip {
                mac: network.mac_at(offset),
                ips: network.address_at(offset),
            };
            Some(((service.vni, service.name.clone()), vip))
        };
        Vips(facts.services().filter_map(vip).collect())
    }

    /// As the tables have them.
    fn told(tables: &Tables) -> Vips {
        let vip = |row: VipRow| {
            let VipRow {
                vni,
                service,
                mac,
                ips,
            } = row;
            ((vni, service), Vip { mac, ips })
        };
        Vips(tables.services().map(vip).collect())
    }
}

impl Agent {
    /// Tables and names follow what was agreed. Addresses that change hands go before they come.
    pub(super) fn fit_vips(&mut self) {
        let services = self.services();
        self.names.change(|names| names.services_set(&services));
        let agreed = self.cluster.facts(Vips::of);
        if agreed == self.vips {
            return;
        }
        let before = std::mem::take(&mut self.vips);
        for ((vni, name), vip) in &before.0 {
            if !agreed.0.contains_key(&(*vni, name.clone())) {
                tracing::info!(service = %name, "service without a VIP from now on");
                self.set_vip(*vni, name, vip.mac, &[]);
            }
        }
        for (key, vip) in &agreed.0 {
            if before.0.get(key) != Some(vip) {
                let (vni, name) = key;
                tracing::info!(service = %name, %vni, vip = ?vip.ips, "service with a VIP");
                self.set_vip(*vni, name, vip.mac, &vip.ips);
            }
        }
        self.vips = agreed;
    }

    /// Has [`Agent::fit_vips`] put right what the tables have, whatever they were told.
    pub(super) fn doubt_vips(&mut self) {
        self.vips = Vips::told(&self.tables.read());
    }

    /// The services whose VIPs are not as they were agreed, for `verify`.
    pub(super) fn wrong_vips(&self) -> BTreeSet<String> {
        let (agreed, told) = (
            self.cluster.facts(Vips::of),
            Vips::told(&self.tables.read()),
        );
        let all = agreed.0.keys().chain(told.0.keys());
        let wrong = all.filter(|key| agreed.0.get(key) != told.0.get(key));
        wrong.map(|(_, name)| name.clone()).collect()
    }

    fn set_vip(&mut self, vni: Vni, name: &str, mac: MacAddr, ips: &[IpAddr]) {
        self.names.change(|names| names.service_set(vni, name, ips));
        let set = self.tables.write().service_set(vni, name, mac, ips);
        if let Err(error) = set {
            tracing::error!(service = %name, %error, "a service's VIP is not taken");
        }
    }
}
