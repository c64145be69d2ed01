//! What the agent knows, for people.

use std::collections::BTreeMap;

use anyhow::Result;
use overlay_cluster::MemberState;
use overlay_core::model::MacAddr;
use overlay_core::tables::Origin;

use super::Agent;
use crate::api::{FdbRow, Status, UplinkStatus, VtepStatus};
use crate::bpf::Hook;

impl Agent {
    pub(super) async fn status(&self) -> Result<Status> {
        let hooks = self.hooks_now().await;
        let me = self.cluster.me();
        let members = self.cluster.members();
        let tables = self.tables.read();
        let vteps = tables
            .vteps()
            .map(|vtep| {
                let member = members.iter().find(|m| m.host.vtep == vtep.ip);
                let state = match member.map(|m| m.state) {
                    Some(MemberState::Alive) => "alive",
                    Some(MemberState::Suspect) => "suspect",
                    Some(MemberState::Down) => "down",
                    None => "static",
                };
                VtepStatus {
                    address: vtep.ip,
                    host: member.map(|m| m.host.id),
                    host_name: member.map_or("-".to_owned(), |m| m.host.name.clone()),
                    state: state.to_owned(),
                    next_hop: vtep.next_hop.map(|h| MacAddr(h.dst_mac)),
                    ifindex: vtep.next_hop.map(|h| h.ifindex),
                    mtu: vtep.next_hop.map(|h| h.mtu),
                }
            })
            .collect();
        let drops = self
            .bpf
            .drops()?
            .into_iter()
            .map(|(reason, n)| (reason.name().to_owned(), n + self.slow.drops(reason)));
        let networks: std::collections::BTreeSet<_> =
            self.state.ports.iter().map(|p| p.endpoint.vni).collect();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.options.instance.name().to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            host: me.id,
            host_name: me.name,
            manager: me.manager,
            uplink: UplinkStatus {
                interface: self.uplink.name.clone(),
                driver: self.uplink.driver.clone(),
                address: self.uplink.addr,
                mtu: self.uplink.mtu,
                inner_mtu: self.inner_mtu,
                data_port: self.options.data_port,
            },
            datapath: serde_json::to_value(self.options.datapath)?
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            hooks,
            vteps,
            networks_attached: networks.len(),
            ports: self.state.ports.len(),
            stats: self
                .bpf
                .stats()?
                .into_iter()
                .map(|(s, n)| (s.name().to_owned(), n))
                .collect(),
            drops: drops.collect::<BTreeMap<_, _>>(),
            names: self.names.counters(),
        })
    }

    /// The hooks as they are now: somebody may have removed an interface or a program.
    async fn hooks_now(&self) -> Vec<Hook> {
        let mut hooks = self.hooks.clone();
        for hook in &mut hooks {
            let link = self.host.link(&hook.interface).await;
            let same = link.is_ok_and(|l| l.is_some_and(|l| l.index == hook.ifindex));
            if !same || !self.bpf.is_attached(hook) {
                hook.attached = "MISSING".to_owned();
            }
        }
        hooks
    }

    /// The forwarding table, sorted.
    pub(super) fn fdb(&self) -> Vec<FdbRow> {
        let tables = self.tables.read();
        let mut rows: Vec<FdbRow> = tables
            .fdb()
            .filter(|row| row.effective)
            .map(|row| {
                let (vtep, port, origin) = match row.origin {
                    Origin::Port(ifindex) => {
                        let port = self
                            .state
                            .ports
                            .iter()
                            .find(|p| p.local.port_ifindex == ifindex);
                        (None, port.map(|p| p.local.port.clone()), "port")
                    }
                    Origin::Host(vtep) => (Some(vtep), None, "host"),
                    Origin::Static(vtep) => (Some(vtep), None, "static"),
                };
                FdbRow {
                    network: tables
                        .network(row.vni)
                        .map_or_else(|| row.vni.to_string(), |n| n.name.clone()),
                    vni: row.vni,
                    mac: row.mac,
                    ips: row.ips,
                    vtep,
                    port,
                    origin: origin.to_owned(),
                    installed: row.installed,
                }
            })
            .collect();
        rows.sort_by(|a, b| (&a.network, a.mac).cmp(&(&b.network, b.mac)));
        rows
    }
}
