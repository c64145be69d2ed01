//! Multicast groups: what containers here have joined is told to the other hosts, and what these
//! have told is in the tables.

use std::collections::{BTreeMap, BTreeSet};

use overlay_core::model::Vni;
use overlay_core::multicast::Group;
use overlay_core::slowpath::Member;

use super::Agent;
use crate::api::mdb::MdbRow;

impl Agent {
    /// Tells the other hosts which groups have members here. Before that is known they go on with
    /// what the last agent told.
    pub(super) fn tell_groups(&self) {
        if let Some(members) = self.slow.members() {
            for (vni, groups) in self.groups_here(&members) {
                self.cluster.set_groups(vni, &groups);
            }
        }
    }

    /// By network: also those where there are none, or none any more.
    fn groups_here(&self, members: &[Member]) -> BTreeMap<Vni, BTreeSet<Group>> {
        let me = self.cluster.me().id;
        let held = self.cluster.facts(|facts| facts.networks_of(me));
        let mut groups: BTreeMap<Vni, BTreeSet<Group>> = BTreeMap::new();
        for vni in held.into_iter().chain(self.cluster.networks_with_groups()) {
            groups.insert(vni, BTreeSet::new());
        }
        for member in members {
            if let Some(vni) = Vni::new(member.vni) {
                groups.entry(vni).or_default().insert(member.group);
            }
        }
        groups
    }

    /// The members of all groups: containers of this host, then other hosts.
    pub(super) fn mdb(&self) -> Vec<MdbRow> {
        let tables = self.tables.read();
        let row = |vni: Vni, group: Group| MdbRow {
            network: tables
                .network(vni)
                .map_or_else(|| vni.to_string(), |network| network.name.clone()),
            vni,
            group: group.ip(),
            container: None,
            port: None,
            host_name: None,
            vtep: None,
        };
        let members = self.slow.members();
        let members = members.iter().flat_map(|members| members.iter());
        let local = members.filter_map(|member| {
            let port = self.state.port_at(member.ifindex)?;
            Some(MdbRow {
                container: Some(port.endpoint.name.clone()),
                port: Some(port.local.port.clone()),
                ..row(Vni::new(member.vni)?, member.group)
            })
        });
        let remote = tables.groups().map(|of| {
            let host = self.members.values().find(|host| host.vtep == of.vtep);
            MdbRow {
                host_name: host.map(|host| host.name.clone()),
                vtep: Some(of.vtep),
                ..row(of.vni, of.group)
            }
        });
        let mut rows: Vec<MdbRow> = local.chain(remote).collect();
        rows.sort_by(|a, b| (&a.network, a.group, a.vtep).cmp(&(&b.network, b.group, b.vtep)));
        rows
    }

    /// What is wrong with groups, each with its network: what hosts have told against the tables, and
    /// what this host has told against what its containers have joined.
    pub(super) fn group_problems(&self) -> Vec<(Vni, String)> {
        let mut problems = Vec::new();
        let mut told: BTreeSet<(Vni, Group, _)> = BTreeSet::new();
        for network in self.cluster.networks() {
            for (host, groups) in self.cluster.groups(network.vni) {
                let vtep = self.vtep_of(host);
                let rows = groups
                    .into_iter()
                    .filter_map(|g| Some((network.vni, g, vtep?)));
                told.extend(rows);
            }
        }
        let rows = self.tables.read();
        let known: BTreeSet<_> = rows
            .groups()
            .map(|of| (of.vni, of.group, of.vtep))
            .collect();
        for (vni, group, vtep) in told.difference(&known) {
            problems.push((
                *vni,
                format!("{group} has members behind {vtep}, which is not known"),
            ));
        }
        for (vni, group, vtep) in known.difference(&told) {
            problems.push((
                *vni,
                format!("{group} is known to have members behind {vtep}, which has none"),
            ));
        }
        let Some(members) = self.slow.members() else {
            return problems;
        };
        for (vni, groups) in self.groups_here(&members) {
            if self.cluster.own_groups(vni) != groups {
                let problem = "the others are told of other groups than its containers have joined";
                problems.push((vni, problem.to_owned()));
            }
        }
        problems
    }
}
