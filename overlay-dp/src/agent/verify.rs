//! `verify`: whether what was agreed, what hosts told each other, the tables, the BPF maps and the
//! kernel say the same. It is the invariant that every test ends with.

mod kernel;
mod repair;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::net::IpAddr;

use anyhow::Result;
use overlay_cluster::MemberState;
use overlay_common::layout::FdbKey;
use overlay_common::wire::{Ip16, ip16};
use overlay_core::holdings::Surplus;
use overlay_core::model::{Endpoint, HostId, MacAddr, Vni};
use overlay_core::tables::{MapContents, MapUpdate, Origin};
use serde::{Deserialize, Serialize};

use super::Agent;

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `facts`, `gossip`, `tables`, `maps`, `kernel` or `underlay`.
    pub place: String,
    /// What it is about.
    pub subject: String,
    /// What differs from what.
    pub problem: String,
    /// Whether it has been put right.
    pub repaired: bool,
}

/// What is asked for.
pub struct Verify {
    /// Put right what can be.
    pub repair: bool,
    /// Why no manager said what is agreed on: this host's copy is all that is known then.
    pub unasked: Option<String>,
}

/// Differences, while they are looked for.
#[derive(Default)]
struct Report {
    found: Vec<Finding>,
    /// What puts the maps right.
    updates: Vec<MapUpdate>,
}

impl Report {
    fn add(&mut self, place: &str, subject: impl ToString, problem: impl Into<String>) {
        self.found.push(Finding {
            place: place.to_owned(),
            subject: subject.to_string(),
            problem: problem.into(),
            repaired: false,
        });
    }
}

impl Agent {
    /// Looks at everything, and with `repair` puts right what this host alone can.
    pub(super) async fn verify(&mut self, ask: Verify) -> Result<Vec<Finding>> {
        let mut report = self.look().await?;
        if ask.repair && !report.found.is_empty() {
            self.repair(&report).await;
            let still = self.look().await?.found;
            for finding in &mut report.found {
                finding.repaired = !still.contains(finding);
            }
        }
        if let Some(problem) = ask.unasked {
            report.add("facts", "managers", problem);
        }
        Ok(report.found)
    }

    async fn look(&self) -> Result<Report> {
        let mut report = Report::default();
        self.look_at_facts(&mut report);
        self.look_at_gossip(&mut report);
        self.look_at_tables(&mut report);
        self.look_at_groups(&mut report);
        self.look_at_services(&mut report);
        self.look_at_maps(&mut report)?;
        self.look_at_kernel(&mut report).await?;
        self.look_at_underlay(&mut report);
        Ok(report)
    }

    /// What was agreed against what this host has.
    fn look_at_facts(&self, report: &mut Report) {
        let me = self.cluster.me().id;
        for port in self.state.ports() {
            let checked = self.cluster.facts(|facts| facts.check(me, &port.endpoint));
            if let Err(fault) = checked {
                report.add("facts", &port.endpoint.name, fault.to_string());
            }
        }
        for Surplus { vni, offsets, macs } in self.addresses.unused() {
            let problem =
                format!("leased to this host and not used: {offsets} addresses, {macs} MACs");
            report.add("facts", self.network_name(vni), problem);
        }
        for (vni, offset) in self.addresses.lost() {
            let problem = format!("address {offset} is in use here, and leased to another host");
            report.add("facts", self.network_name(vni), problem);
        }
    }

    /// What hosts told each other against who owns what.
    fn look_at_gossip(&self, report: &mut Report) {
        let me = self.cluster.me().id;
        for member in self.cluster.members() {
            if !member.me && member.state == MemberState::Alive && member.rtt.is_none() {
                report.add(
                    "gossip",
                    &member.host.name,
                    "alive, but no connection with it",
                );
            }
        }
        let mut told: BTreeMap<(Vni, String), Endpoint> = BTreeMap::new();
        let silent = self.silent_vteps();
        for network in self.cluster.networks() {
            for host in self.cluster.unheard(network.vni) {
                let vtep = self.members.get(&host).map(|member| ip16(member.vtep));
                if !vtep.is_some_and(|vtep| silent.contains(&vtep)) {
                    let problem =
                        format!("{} has not told what it has there", self.host_name(host));
                    report.add("gossip", &network.name, problem);
                }
            }
            let mut macs: BTreeMap<MacAddr, (HostId, String)> = BTreeMap::new();
            let mut ips: BTreeMap<IpAddr, (HostId, String)> = BTreeMap::new();
            for (host, endpoint) in self.cluster.endpoints(network.vni) {
                let owner = (host, endpoint.name.clone());
                let others = endpoint
                    .ips
                    .iter()
                    .filter_map(|ip| ips.insert(*ip, owner.clone()));
                let same_mac = macs.insert(endpoint.mac, owner.clone());
                for (other, name) in others.chain(same_mac) {
                    report.add(
                        "gossip",
                        format!("{} on {}", endpoint.name, self.host_name(host)),
                        format!("has the address of {name} on {}", self.host_name(other)),
                    );
                }
                if host == me {
                    told.insert((network.vni, endpoint.name.clone()), endpoint);
                }
            }
        }
        for port in self.state.ports() {
            let key = (port.endpoint.vni, port.endpoint.name.clone());
            match told.remove(&key) {
                Some(endpoint) if endpoint == port.endpoint => {}
                Some(_) => report.add("gossip", &key.1, "the others are told something else"),
                None => report.add("gossip", &key.1, "the others are not told of it"),
            }
        }
        for (_, name) in told.keys() {
            report.add(
                "gossip",
                name,
                "the others are told of it, but it is not here",
            );
        }
    }

    /// The forwarding tables against facts and gossip.
    fn look_at_tables(&self, report: &mut Report) {
        let me = self.cluster.me();
        let tables = self.tables.read();
        let members: HashMap<HostId, IpAddr> = self
            .cluster
            .members()
            .into_iter()
            .filter(|m| !m.me)
            .map(|m| (m.host.id, m.host.vtep))
            .collect();
        let known: BTreeSet<IpAddr> = tables.vteps().filter(|v| v.host).map(|v| v.ip).collect();
        let wanted: BTreeSet<IpAddr> = members.values().copied().collect();
        for vtep in wanted.difference(&known) {
            report.add("tables", vtep, "a host's VTEP is not known");
        }
        for vtep in known.difference(&wanted) {
            report.add("tables", vtep, "a VTEP that no host of the cluster has");
        }
        let mut rows: BTreeSet<(Vni, MacAddr, IpAddr)> = tables
            .fdb()
            .filter_map(|row| match row.origin {
                Origin::Host(vtep) => Some((row.vni, row.mac, vtep)),
                _ => None,
            })
            .collect();
        let networks = self.cluster.networks();
        for network in tables.networks() {
            if !networks.iter().any(|agreed| agreed.vni == network.vni) {
                report.add("tables", &network.name, "a network that there is no more");
            }
        }
        for network in networks {
            if tables.network(network.vni) != Some(&network) {
                report.add(
                    "tables",
                    &network.name,
                    "the network is not as it was agreed",
                );
            }
            for (host, endpoint) in self.cluster.endpoints(network.vni) {
                let Some(vtep) = members.get(&host).filter(|_| host != me.id) else {
                    continue;
                };
                if !rows.remove(&(network.vni, endpoint.mac, *vtep)) {
                    report.add("tables", &endpoint.name, format!("not known behind {vtep}"));
                }
            }
        }
        for (vni, mac, vtep) in rows {
            let problem = format!("known behind {vtep}, which has it no more (VNI {vni})");
            report.add("tables", mac, problem);
        }
    }

    /// Services' own addresses, and policies, in the tables against the facts.
    fn look_at_services(&self, report: &mut Report) {
        for service in self.wrong_vips() {
            report.add("tables", service, "its VIP is not as it was agreed");
        }
        for vni in self.wrong_policies() {
            let problem = "its policies are not as they were agreed";
            report.add("tables", self.network_name(vni), problem);
        }
    }

    /// Members of multicast groups: as they are here, as they were told, and in the tables.
    fn look_at_groups(&self, report: &mut Report) {
        for (vni, problem) in self.group_problems() {
            report.add("gossip", self.network_name(vni), problem);
        }
    }

    /// The BPF maps against the tables, and against what the agent itself has put there.
    fn look_at_maps(&self, report: &mut Report) -> Result<()> {
        let wanted = self.tables.read().snapshot();
        let have = self.bpf.contents()?;
        let silent = self.silent_vteps();
        let kept = |vtep: &Ip16| silent.contains(vtep);
        compare(
            report,
            "port",
            (&wanted.ports, &have.ports),
            MapUpdate::SetPort,
            |key, _| Some(MapUpdate::DelPort(*key)),
        );
        compare(
            report,
            "network",
            (&wanted.networks, &have.networks),
            MapUpdate::SetNetwork,
            |key, _| Some(MapUpdate::DelNetwork(*key)),
        );
        compare(
            report,
            "FDB entry",
            (&wanted.fdb, &have.fdb),
            MapUpdate::SetFdb,
            |key, entry| {
                let is_kept = entry.port().is_none() && kept(entry.vtep());
                (!is_kept).then_some(MapUpdate::DelFdb(*key))
            },
        );
        let behind_silent = |vni, mac| {
            let entry = have.fdb.get(&FdbKey::new(vni, mac));
            entry.is_some_and(|entry| entry.port().is_none() && kept(entry.vtep()))
        };
        compare(
            report,
            "neighbour",
            (&wanted.neighbours, &have.neighbours),
            MapUpdate::SetNeighbour,
            |key, entry| {
                let is_kept = behind_silent(key.vni(), entry.mac);
                (!is_kept).then_some(MapUpdate::DelNeighbour(*key))
            },
        );
        compare(
            report,
            "service slot",
            (&wanted.slots, &have.slots),
            MapUpdate::SetSlot,
            |key, peer| (!behind_silent(key.vni(), peer.mac)).then_some(MapUpdate::DelSlot(*key)),
        );
        compare(
            report,
            "policies of a port",
            (&wanted.policies, &have.policies),
            |port, entry| MapUpdate::SetPolicy(port, Box::new(entry)),
            |port, _| Some(MapUpdate::DelPolicy(*port)),
        );
        // A next hop that is unknown now leaves the last one in the map.
        let resolved = |contents: &MapContents| -> HashMap<_, _> {
            let vteps = contents.vteps.iter();
            let unknown = |ip| wanted.vteps.get(ip).is_some_and(|e| e.ifindex == 0);
            vteps
                .filter(|(ip, _)| !unknown(*ip))
                .map(|(ip, entry)| (*ip, *entry))
                .collect()
        };
        compare(
            report,
            "VTEP",
            (&resolved(&wanted), &resolved(&have)),
            MapUpdate::SetVtep,
            |key, _| (!kept(key)).then_some(MapUpdate::DelVtep(*key)),
        );
        if self.bpf.config()? != self.config {
            report.add("maps", "configuration", "not that of this host");
        }
        let [_, punt, _, crypt] = self.links;
        if !self.bpf.finds_socket(punt, None)? {
            report.add(
                "maps",
                "slow path",
                "its socket is not in the map of sockets",
            );
        }
        for (queue, _) in (0..).zip(self.crypt.sockets()) {
            if !self.bpf.finds_socket(crypt, Some(queue))? {
                let worker = format!("crypt worker {queue}");
                report.add("maps", worker, "its socket is not in the map of sockets");
            }
        }
        Ok(())
    }

    /// Whether every live VTEP can be reached.
    fn look_at_underlay(&self, report: &mut Report) {
        let alive: HashSet<IpAddr> = self
            .cluster
            .members()
            .into_iter()
            .filter(|m| !m.me && m.state == MemberState::Alive)
            .map(|m| m.host.vtep)
            .collect();
        for vtep in self.tables.read().vteps() {
            if vtep.next_hop.is_none() && alive.contains(&vtep.ip) {
                report.add(
                    "underlay",
                    vtep.ip,
                    "no next hop to the VTEP of a live host",
                );
            }
        }
    }

    /// The VTEPs of hosts that are not alive: what is behind them stays in the maps until they are
    /// forgotten.
    pub(super) fn silent_vteps(&self) -> HashSet<Ip16> {
        let silent = |m: &overlay_cluster::Member| !m.me && m.state != MemberState::Alive;
        let members = self.cluster.members().into_iter();
        members.filter(silent).map(|m| ip16(m.host.vtep)).collect()
    }

    fn network_name(&self, vni: Vni) -> String {
        let tables = self.tables.read();
        tables
            .network(vni)
            .map_or_else(|| vni.to_string(), |n| n.name.clone())
    }

    fn host_name(&self, id: HostId) -> String {
        match id == self.cluster.me().id {
            true => "this host".to_owned(),
            false => self.name_of(id),
        }
    }
}

/// Reports where a map differs from the tables. `delete` says how an entry too many goes, or that
/// it stays.
fn compare<K, V>(
    report: &mut Report,
    what: &str,
    (wanted, have): (&HashMap<K, V>, &HashMap<K, V>),
    set: impl Fn(K, V) -> MapUpdate,
    delete: impl Fn(&K, &V) -> Option<MapUpdate>,
) where
    K: Copy + Debug + Eq + Hash,
    V: Copy + Debug + PartialEq,
{
    for (key, value) in wanted {
        let problem = match have.get(key) {
            None => format!("{what} missing"),
            Some(other) if other != value => format!("{what} is {other:?}, not {value:?}"),
            Some(_) => continue,
        };
        report.add("maps", format!("{key:?}"), problem);
        report.updates.push(set(*key, *value));
    }
    for (key, value) in have.iter().filter(|(key, _)| !wanted.contains_key(key)) {
        if let Some(update) = delete(key, value) {
            let problem = format!("{what} that nobody has any more: {value:?}");
            report.add("maps", format!("{key:?}"), problem);
            report.updates.push(update);
        }
    }
}
