//! The metrics themselves: names, help texts, labels.
//!
//! A name never changes its meaning. Counters end in `_total`, which the encoder adds, and what has
//! a unit in its base unit.

use std::collections::BTreeMap;
use std::fmt::Error;

use anyhow::{Context as _, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Sources;
use super::process::Process;
use crate::api::overview::PortTraffic;
use crate::api::{DataPath, VtepInfo};

/// All metrics, as OpenMetrics text.
pub fn text(sources: Sources) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All {
        sources,
        process: Process::look(),
    }));
    let mut text = String::new();
    encode(&mut text, &registry).context("can't write the metrics")?;
    Ok(text)
}

#[derive(Debug)]
struct All {
    sources: Sources,
    process: Process,
}

impl Collector for All {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut to = Writer(encoder);
        self.agent(&mut to)?;
        self.datapath(&mut to)?;
        self.containers(&mut to)?;
        self.vteps(&mut to)?;
        self.cluster(&mut to)?;
        self.dns(&mut to)
    }
}

impl All {
    fn agent(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let (status, process) = (&self.sources.status, &self.process);
        let of_build = [
            ("version", status.version.as_str()),
            ("host", &status.host_name),
            ("instance_name", &status.instance),
            ("datapath", &status.datapath),
        ];
        to.gauges(
            "build_info",
            "What runs here: always 1",
            None,
            [(of_build, 1.0)],
        )?;
        to.gauge(
            "uptime",
            "Since the agent started; the data path may be older",
            Some(Unit::Seconds),
            status.uptime_s as f64,
        )?;
        to.gauge(
            "manager",
            "1 when this host is one of the cluster's managers",
            None,
            f64::from(u8::from(status.manager)),
        )?;
        let memory = [
            ([("kind", "resident")], process.resident as f64),
            ([("kind", "virtual")], process.virtual_memory as f64),
        ];
        to.gauges(
            "agent_memory",
            "Memory of the agent, without the kernel's maps",
            Some(Unit::Bytes),
            memory,
        )?;
        to.counter_f64(
            "agent_cpu",
            "CPU time of the agent; that of the eBPF programs is the kernel's",
            Some(Unit::Seconds),
            process.cpu.as_secs_f64(),
        )?;
        to.gauge(
            "agent_threads",
            "Threads of the agent",
            None,
            process.threads as f64,
        )?;
        to.gauge(
            "agent_open_fds",
            "Open files of the agent",
            None,
            process.fds as f64,
        )
    }

    fn datapath(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let status = &self.sources.status;
        let events = status.stats.iter();
        to.counters(
            "datapath_frames",
            "Frames in the data path since it was made, by what was done with them",
            None,
            events.map(|(event, n)| ([("event", event.as_str())], *n)),
        )?;
        let drops = status.drops.iter();
        to.counters(
            "drops",
            "Frames dropped by data path and slow path, by reason",
            None,
            drops.map(|(reason, n)| ([("reason", reason.as_str())], *n)),
        )?;
        let missing = |site: &str, gone: bool| {
            let hooks = status.hooks.iter();
            let of_site = hooks.filter(|hook| hook.site == site);
            of_site
                .filter(|hook| (hook.attached == "MISSING") == gone)
                .count() as f64
        };
        let mut sites: Vec<&str> = status.hooks.iter().map(|hook| hook.site.as_str()).collect();
        sites.sort_unstable();
        sites.dedup();
        let hooks = sites.into_iter().flat_map(|site| {
            [("attached", false), ("missing", true)]
                .map(|(state, gone)| ([("site", site), ("state", state)], missing(site, gone)))
        });
        to.gauges(
            "hooks",
            "Programs that are attached to interfaces, and those that somebody has removed",
            None,
            hooks,
        )?;
        let up = &status.uplink;
        let mtus = [
            ([("of", "uplink")], f64::from(up.mtu)),
            ([("of", "containers")], f64::from(up.inner_mtu)),
        ];
        to.gauges("mtu", "Largest packets", Some(Unit::Bytes), mtus)?;
        to.gauge(
            "uplink_problem",
            "1 while something is wrong with the uplink: 'overlay-dp status' says what",
            None,
            f64::from(u8::from(up.problem.is_some())),
        )
    }

    fn containers(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        type Field = fn(&PortTraffic) -> u64;
        let fields: [(&str, &str, Option<Unit>, Field); 6] = [
            (
                "container_receive",
                "Bytes that containers of this host have received, as the kernel counts them",
                Some(Unit::Bytes),
                |t| t.rx_bytes,
            ),
            (
                "container_transmit",
                "Bytes that containers of this host have sent, as the kernel counts them",
                Some(Unit::Bytes),
                |t| t.tx_bytes,
            ),
            (
                "container_receive_packets",
                "Packets that containers of this host have received; a super-packet is one",
                None,
                |t| t.rx_packets,
            ),
            (
                "container_transmit_packets",
                "Packets that containers of this host have sent; a super-packet is one",
                None,
                |t| t.tx_packets,
            ),
            (
                "container_receive_dropped",
                "Packets that came to containers' interfaces and found no room",
                None,
                |t| t.rx_dropped,
            ),
            (
                "container_transmit_dropped",
                "Packets that containers' interfaces could not send",
                None,
                |t| t.tx_dropped,
            ),
        ];
        for (name, help, unit, field) in fields {
            let rows = self.sources.traffic.iter();
            let rows = rows.map(|t| {
                let labels = [("network", t.network.as_str()), ("container", &t.container)];
                (labels, field(t))
            });
            to.counters(name, help, unit, rows)?;
        }
        to.gauge(
            "containers",
            "Containers attached on this host",
            None,
            self.sources.status.ports as f64,
        )?;
        let of_here = self.sources.groups.iter().filter(|row| row.vtep.is_none());
        let mut members: BTreeMap<&str, f64> = BTreeMap::new();
        for row in of_here {
            *members.entry(&row.network).or_default() += 1.0;
        }
        to.gauges(
            "network_group_members",
            "Multicast groups that containers of this host have joined, each with each container",
            None,
            members.iter().map(|(name, n)| ([("network", *name)], *n)),
        )?;
        let networks = self.sources.networks.iter();
        let endpoints = networks.filter_map(|network| {
            let endpoints = network.endpoints? as f64;
            Some(([("network", network.name.as_str())], endpoints))
        });
        to.gauges(
            "network_endpoints",
            "Endpoints on all hosts, of networks with a container on this one",
            None,
            endpoints,
        )
    }

    fn vteps(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        type Field = fn(&VtepInfo) -> Option<f64>;
        let fields: [(&str, &str, Option<Unit>, Field); 7] = [
            (
                "vtep_up",
                "1 while the other host's data path answers probes; absent before its first answer",
                None,
                |v| match v.data_path {
                    DataPath::Answers => Some(1.0),
                    DataPath::Silent => Some(0.0),
                    DataPath::Unknown => None,
                },
            ),
            (
                "vtep_latency_average",
                "Round trip between the data paths of two hosts, a moving average",
                Some(Unit::Seconds),
                |v| v.latency.map(|l| l.average_us as f64 / 1e6),
            ),
            (
                "vtep_latency_min",
                "The fastest of the last 100 such round trips",
                Some(Unit::Seconds),
                |v| v.latency.map(|l| l.min_us as f64 / 1e6),
            ),
            (
                "vtep_latency_p99",
                "All but one in a hundred of the last 100 such round trips are faster",
                Some(Unit::Seconds),
                |v| v.latency.map(|l| l.p99_us as f64 / 1e6),
            ),
            (
                "vtep_loss",
                "Of the last 100 probes, the part that was not answered",
                Some(Unit::Other("ratio".to_owned())),
                |v| v.loss_percent.map(|percent| percent / 100.0),
            ),
            (
                "vtep_path_mtu",
                "Largest IP packet that arrives there and back",
                Some(Unit::Bytes),
                |v| v.path_mtu.map(f64::from),
            ),
            (
                "vtep_next_hop_resolved",
                "1 while the next hop to it is known",
                None,
                |v| Some(f64::from(u8::from(v.next_hop.is_some()))),
            ),
        ];
        for (name, help, unit, field) in fields {
            let rows: Vec<_> = self
                .sources
                .vteps
                .iter()
                .filter_map(|v| Some((v.host_name.as_str(), v.address.to_string(), field(v)?)))
                .collect();
            let rows = rows
                .iter()
                .map(|(host, vtep, value)| ([("peer", *host), ("vtep", vtep)], *value));
            to.gauges(name, help, unit, rows)?;
        }
        let probes = self.sources.status.probes;
        let answers = [
            ([("kind", "in_time")], probes.answers),
            ([("kind", "late")], probes.late),
            ([("kind", "unknown")], probes.unknown),
        ];
        to.counters(
            "probe_answers",
            "Answers to the probes of VTEPs",
            None,
            answers,
        )
    }

    fn cluster(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let (cluster, hosts) = (&self.sources.cluster, &self.sources.hosts);
        let states = ["alive", "suspect", "down"].map(|state| {
            let of_state = hosts.iter().filter(|host| host.state == state);
            ([("state", state)], of_state.count() as f64)
        });
        to.gauges(
            "cluster_hosts",
            "Hosts of the cluster, as this one sees them",
            None,
            states,
        )?;
        to.gauge(
            "cluster_managers",
            "Managers of the cluster",
            None,
            cluster.managers.len() as f64,
        )?;
        to.gauge(
            "cluster_quorum",
            "1 while the managers can agree on new facts, as far as this host knows",
            None,
            f64::from(u8::from(cluster.quorum)),
        )?;
        to.gauge(
            "cluster_leader_known",
            "1 while this host knows who leads the managers",
            None,
            f64::from(u8::from(cluster.leader.is_some())),
        )?;
        if let Some(end) = self.sources.certificate_end {
            to.gauge(
                "certificate_end_timestamp",
                "When this host's certificate ends, since 1970: it is renewed by itself 60 days before",
                Some(Unit::Seconds),
                end as f64,
            )?;
        }
        let index = cluster.version.rsplit_once('.');
        let index = index.and_then(|(_, index)| index.parse::<u64>().ok());
        to.gauge(
            "cluster_facts_version",
            "The last agreed change that this host knows: where it lags behind other hosts', news do not come",
            None,
            index.unwrap_or(0) as f64,
        )?;
        to.gauge(
            "cluster_networks",
            "Networks of the cluster",
            None,
            cluster.networks as f64,
        )?;
        let rtts: Vec<(&str, f64)> = hosts
            .iter()
            .filter_map(|host| Some((host.name.as_str(), host.rtt_us? as f64 / 1e6)))
            .collect();
        to.gauges(
            "gossip_round_trip",
            "Round trip of the control connection between two hosts' agents",
            Some(Unit::Seconds),
            rtts.iter().map(|(host, rtt)| ([("peer", *host)], *rtt)),
        )?;
        let refused = self.sources.refused;
        let refused = [
            ("joins", refused.joins_refused),
            ("packets", refused.packets_refused),
            ("messages", refused.messages_refused),
            ("strangers", refused.strangers_refused),
            ("records", refused.records_refused),
        ];
        to.counters(
            "cluster_refused",
            "What other hosts sent that was against the rules",
            None,
            refused.map(|(what, n)| ([("what", what)], n)),
        )
    }

    fn dns(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let outcomes = self.sources.status.names.iter();
        to.counters(
            "dns_questions",
            "What became of containers' questions for names since the agent started",
            None,
            outcomes.map(|(outcome, n)| ([("outcome", outcome.as_str())], *n)),
        )
    }
}

/// Where metrics are written to. A family without rows is not in the text.
struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: f64,
    ) -> Result<(), Error> {
        const NONE: [(&str, &str); 0] = [];
        self.gauges(name, help, unit, [(NONE, value)])
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = ([(&'static str, &'l str); N], f64)>,
    ) -> Result<(), Error> {
        self.family(
            name,
            help,
            unit,
            rows.into_iter()
                .map(|(labels, value)| (labels, ConstGauge::new(value))),
        )
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = ([(&'static str, &'l str); N], u64)>,
    ) -> Result<(), Error> {
        self.family(
            name,
            help,
            unit,
            rows.into_iter()
                .map(|(labels, value)| (labels, ConstCounter::new(value))),
        )
    }

    fn counter_f64(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: f64,
    ) -> Result<(), Error> {
        const NONE: [(&str, &str); 0] = [];
        self.family(name, help, unit, [(NONE, ConstCounter::new(value))])
    }

    fn family<'l, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = ([(&'static str, &'l str); N], M)>,
    ) -> Result<(), Error> {
        let mut rows = rows.into_iter().peekable();
        let Some((_, first)) = rows.peek() else {
            return Ok(());
        };
        let name = format!("overlay_dp_{name}");
        let kind = first.metric_type();
        let to = &mut self.0;
        let mut encoder = to.encode_descriptor(&name, help, unit.as_ref(), kind)?;
        if N == 0 {
            return match rows.next() {
                Some((_, value)) => value.encode(encoder),
                None => Ok(()),
            };
        }
        rows.try_for_each(|(labels, value)| value.encode(encoder.encode_family(&labels)?))
    }
}
