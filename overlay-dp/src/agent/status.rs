//! What the agent knows, for people.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use overlay_cluster::{Member, MemberState};
use overlay_core::model::MacAddr;
use overlay_core::tables::{Origin, VtepRow};
use overlay_host::LinkInfo;

use super::Agent;
use crate::api::{
    Checksums, DataPath, FdbRow, LatencyInfo, ProbeCounters, Status, UplinkStatus, VtepInfo,
    VtepStatus,
};
use crate::bpf::Hook;

impl Agent {
    pub(super) async fn status(&self) -> Result<Status> {
        let hooks = self.hooks_now().await?;
        let me = self.cluster.me();
        let members = self.members_by_vtep();
        let probes = self.prober.counters();
        let tables = self.tables.read();
        let vteps = tables
            .vteps()
            .map(|vtep| {
                let member = members.get(&vtep.ip);
                VtepStatus {
                    address: vtep.ip,
                    host: member.map(|m| m.host.id),
                    host_name: member.map_or("-".to_owned(), |m| m.host.name.clone()),
                    state: state_of(member).to_owned(),
                    next_hop: vtep.next_hop.map(|h| MacAddr(h.dst_mac)),
                    ifindex: vtep.next_hop.map(|h| h.ifindex),
                    mtu: vtep.next_hop.map(|h| h.mtu),
                }
            })
            .collect();
        let drops = self.bpf.drops()?.into_iter().map(|(reason, n)| {
            (
                reason.name().to_owned(),
                n + self.slow.drops(reason) + self.crypt_shared.drops(reason),
            )
        });
        let containers = self.state.ports().filter(|p| !p.endpoint.router);
        let networks: BTreeSet<_> = containers.map(|p| p.endpoint.vni).collect();
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
                problem: self.uplink_problem.clone(),
                address: self.uplink.addr,
                mtu: self.uplink.mtu,
                inner_mtu: self.inner_mtu,
                data_port: self.options.data_port,
            },
            datapath: serde_json::to_value(self.options.datapath)?
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            metrics: self.metrics,
            hooks,
            checksum_offload: self.checksum_offload(),
            vteps,
            probes: ProbeCounters {
                answers: probes.answers,
                late: probes.late,
                unknown: probes.unknown,
            },
            networks_attached: networks.len(),
            ports: self.state.ports().filter(|p| !p.endpoint.router).count(),
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

    /// The ways to the other VTEPs, in order of their addresses.
    pub(super) async fn vteps(&self) -> Result<Vec<VtepInfo>> {
        let names = self.interfaces().await?;
        let members = self.members_by_vtep();
        let tables = self.tables.read();
        let info = |vtep: VtepRow| {
            let member = members.get(&vtep.ip);
            let report = self.prober.report(vtep.ip);
            let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let latency = report.and_then(|report| report.latency);
            let probes = report.map_or(0, |report| report.probes);
            let lost = report.map_or(0, |report| report.lost);
            VtepInfo {
                address: vtep.ip,
                host: member.map(|m| m.host.id),
                host_name: member.map_or("-".to_owned(), |m| m.host.name.clone()),
                state: state_of(member).to_owned(),
                data_path: report.map_or(DataPath::Unknown, |report| report.path),
                latency: latency.map(|latency| LatencyInfo {
                    min_us: us(latency.min),
                    average_us: us(latency.average),
                    p99_us: us(latency.p99),
                }),
                loss_percent: (probes > 0).then(|| lost as f64 * 100.0 / probes as f64),
                path_mtu: report.and_then(|report| report.mtu),
                checksums: report.map_or(Checksums::Unknown, |report| report.checksums),
                next_hop: vtep.next_hop.map(|hop| MacAddr(hop.dst_mac)),
                interface: vtep
                    .next_hop
                    .and_then(|hop| names.get(&hop.ifindex).cloned()),
            }
        };
        Ok(tables.vteps().map(info).collect())
    }

    fn members_by_vtep(&self) -> HashMap<IpAddr, Member> {
        let members = self.cluster.members().into_iter();
        members.map(|member| (member.host.vtep, member)).collect()
    }

    /// The hooks as they are now: somebody may have removed an interface or a program.
    pub(super) async fn hooks_now(&self) -> Result<Vec<Hook>> {
        let links = self.host.links().await?.into_iter();
        let links: HashMap<u32, LinkInfo> = links.map(|link| (link.index, link)).collect();
        let mut hooks = self.hooks.clone();
        for hook in &mut hooks {
            let link = links.get(&hook.ifindex);
            let link = link.filter(|link| link.name == hook.interface);
            if !link.is_some_and(|link| self.bpf.is_attached(hook, link.xdp)) {
                hook.attached = "MISSING".to_owned();
            }
        }
        Ok(hooks)
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
                        let port = self.state.port_at(ifindex);
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

/// What the cluster says of the host that a VTEP is of.
fn state_of(member: Option<&Member>) -> &'static str {
    match member.map(|m| m.state) {
        Some(MemberState::Alive) => "alive",
        Some(MemberState::Suspect) => "suspect",
        Some(MemberState::Down) => "down",
        None => "static",
    }
}
