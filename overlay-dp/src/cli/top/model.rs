//! What is shown: one look, with the rates since the one before.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Sort;
use super::state::State;
use crate::api::overview::{Overview, PortTraffic};
use crate::api::{DataPath, VtepInfo};
use crate::cli::render::{duration, table};

/// One look.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// This host.
    pub host: String,
    /// Whether it is a manager.
    pub manager: bool,
    /// Hosts that are alive, and all.
    pub hosts: (usize, usize),
    /// Whether the managers can agree.
    pub quorum: bool,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Of all containers here.
    pub total: Rates,
    /// Frames that the programs hand to the agent, in a second.
    pub punted: f64,
    /// Networks with a container here.
    pub networks: Vec<NetworkRow>,
    /// Endpoints of these networks, on all hosts.
    pub endpoints: Vec<EndpointRow>,
    /// Drops on this host.
    pub drops: Vec<DropRow>,
    /// The ways to the other hosts.
    pub vteps: Vec<VtepInfo>,
}

/// Per second, as containers see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Bits received.
    pub rx_bits: f64,
    /// Bits sent.
    pub tx_bits: f64,
    /// Packets received.
    pub rx_packets: f64,
    /// Packets sent.
    pub tx_packets: f64,
}

impl Rates {
    fn add(&mut self, other: &Rates) {
        self.rx_bits += other.rx_bits;
        self.tx_bits += other.tx_bits;
        self.rx_packets += other.rx_packets;
        self.tx_packets += other.tx_packets;
    }

    fn since(before: &PortTraffic, now: &PortTraffic, seconds: f64) -> Rates {
        // A counter that has gone back is a new interface's.
        let grown = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Rates {
            rx_bits: 8.0 * grown(now.rx_bytes, before.rx_bytes),
            tx_bits: 8.0 * grown(now.tx_bytes, before.tx_bytes),
            rx_packets: grown(now.rx_packets, before.rx_packets),
            tx_packets: grown(now.tx_packets, before.tx_packets),
        }
    }
}

/// A network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Its name.
    pub name: String,
    /// Its endpoints on all hosts.
    pub endpoints: usize,
    /// Of its containers here.
    pub rates: Rates,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Its first address.
    pub ip: String,
    /// Its host.
    pub host: String,
    /// Of a container here, from the second look on.
    pub rates: Option<Rates>,
    /// Packets that found no room, since its interface was made.
    pub dropped: Option<u64>,
}

/// A reason for drops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropRow {
    /// Its name.
    pub reason: String,
    /// Since the data path was made.
    pub total: u64,
    /// Per second.
    pub rate: f64,
}

impl Snapshot {
    /// `before` is an earlier look at the same host.
    pub fn new(now: &Overview, before: Option<&Overview>) -> Snapshot {
        let seconds = before.map_or(0.0, |b| now.at_ms.saturating_sub(b.at_ms) as f64 / 1000.0);
        let before = before.filter(|_| seconds > 0.0);
        let rates = rates(now, before, seconds);
        let mut total = Rates::default();
        let mut of_network: BTreeMap<&str, Rates> = BTreeMap::new();
        for traffic in &now.traffic {
            if let Some(one) = rates.get(traffic.port.as_str()) {
                total.add(one);
                of_network.entry(&traffic.network).or_default().add(one);
            }
        }
        let per_second = |table: fn(&Overview) -> &BTreeMap<String, u64>, name: &str| {
            let count = |of: &Overview| table(of).get(name).copied().unwrap_or(0);
            before.map_or(0.0, |b| {
                count(now).saturating_sub(count(b)) as f64 / seconds
            })
        };
        let traffic: HashMap<(&str, &str), &PortTraffic> = now
            .traffic
            .iter()
            .map(|t| ((t.network.as_str(), t.container.as_str()), t))
            .collect();
        let endpoints = now.containers.iter().map(|container| {
            let here = traffic.get(&(container.network.as_str(), container.name.as_str()));
            EndpointRow {
                name: container.name.clone(),
                network: container.network.clone(),
                ip: container.ip.map_or("-".to_owned(), |ip| ip.to_string()),
                host: container.host_name.clone(),
                rates: here.and_then(|t| rates.get(t.port.as_str()).copied()),
                dropped: here.map(|t| t.rx_dropped + t.tx_dropped),
            }
        });
        let drops = now.status.drops.iter().filter(|(_, total)| **total > 0);
        let own = now.latency.iter().find(|row| row.host == now.status.host);
        Snapshot {
            at_ms: now.at_ms,
            host: now.status.host_name.clone(),
            manager: now.status.manager,
            hosts: (
                now.hosts
                    .iter()
                    .filter(|host| host.state == "alive")
                    .count(),
                now.hosts.len(),
            ),
            quorum: now.cluster.quorum,
            uptime_s: now.status.uptime_s,
            total,
            punted: per_second(|o| &o.status.stats, "punted"),
            networks: now
                .networks
                .iter()
                .filter(|network| network.attached)
                .map(|network| NetworkRow {
                    name: network.name.clone(),
                    endpoints: network.endpoints.unwrap_or(0),
                    rates: of_network
                        .get(network.name.as_str())
                        .copied()
                        .unwrap_or_default(),
                })
                .collect(),
            endpoints: endpoints.collect(),
            drops: drops
                .map(|(reason, total)| DropRow {
                    reason: reason.clone(),
                    total: *total,
                    rate: per_second(|o| &o.status.drops, reason),
                })
                .collect(),
            vteps: own.map_or_else(Vec::new, |row| row.vteps.clone()),
        }
    }

    /// Leaves only the endpoints that are wanted, in the wanted order; the most drops come first.
    pub fn arrange(&mut self, state: &State) {
        self.endpoints.retain(|endpoint| state.wants(endpoint));
        let rate = |e: &EndpointRow, of: fn(&Rates) -> f64| e.rates.as_ref().map_or(-1.0, of);
        self.endpoints.sort_by(|a, b| {
            let busier = |of: fn(&Rates) -> f64| rate(b, of).total_cmp(&rate(a, of));
            let order = match state.sort {
                Sort::Rate => busier(|rates| rates.rx_bits + rates.tx_bits),
                Sort::Rx => busier(|rates| rates.rx_bits),
                Sort::Tx => busier(|rates| rates.tx_bits),
                Sort::Name => a.name.cmp(&b.name),
                Sort::Network => a.network.cmp(&b.network),
                Sort::Host => a.host.cmp(&b.host),
            };
            let order = if state.reversed {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| (&a.network, &a.name).cmp(&(&b.network, &b.name)))
        });
        self.drops
            .sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.total.cmp(&a.total)));
    }

    /// The whole look, for a pipe.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.head(), self.totals());
        let mut part = |title: &str, table: String| {
            let _ = write!(text, "\n{title}:\n{table}\n");
        };
        part(
            "VTEPs",
            table(
                [
                    "HOST",
                    "ADDRESS",
                    "STATE",
                    "DATA PATH",
                    "LATENCY",
                    "P99",
                    "LOSS",
                    "PATH MTU",
                ],
                self.vteps.iter().map(vtep_cells),
            ),
        );
        part(
            "networks",
            table(
                ["NAME", "ENDPOINTS", "RX", "TX"],
                self.networks.iter().map(|n| {
                    [
                        n.name.clone(),
                        n.endpoints.to_string(),
                        bits(n.rates.rx_bits),
                        bits(n.rates.tx_bits),
                    ]
                }),
            ),
        );
        part(
            "endpoints",
            table(
                [
                    "NAME", "NETWORK", "IP", "HOST", "RX", "TX", "RX PPS", "TX PPS", "DROPPED",
                ],
                self.endpoints.iter().map(endpoint_cells),
            ),
        );
        part(
            "drops",
            table(
                ["REASON", "TOTAL", "PER SECOND"],
                self.drops.iter().map(|d| {
                    [
                        d.reason.clone(),
                        d.total.to_string(),
                        format!("{:.1}", d.rate),
                    ]
                }),
            ),
        );
        text
    }

    /// Who looks, and how the cluster is.
    pub fn head(&self) -> String {
        let role = if self.manager { "manager" } else { "worker" };
        let agree = if self.quorum {
            "can agree"
        } else {
            "can NOT agree"
        };
        let (alive, all) = self.hosts;
        format!(
            "{} ({role}), {alive} of {all} hosts alive, managers {agree}, agent up {} s",
            self.host, self.uptime_s
        )
    }

    /// All containers together.
    pub fn totals(&self) -> String {
        let drops: f64 = self.drops.iter().map(|drop| drop.rate).sum();
        format!(
            "rx {} ({} pps), tx {} ({} pps), drops {drops:.0}/s, to the agent {:.0}/s",
            bits(self.total.rx_bits),
            number(self.total.rx_packets),
            bits(self.total.tx_bits),
            number(self.total.tx_packets),
            self.punted,
        )
    }
}

/// By port, of those that were there before.
fn rates<'a>(
    now: &'a Overview,
    before: Option<&Overview>,
    seconds: f64,
) -> HashMap<&'a str, Rates> {
    let old: HashMap<&str, &PortTraffic> = before
        .iter()
        .flat_map(|before| before.traffic.iter())
        .map(|traffic| (traffic.port.as_str(), traffic))
        .collect();
    let known = now.traffic.iter().filter_map(|traffic| {
        let before = old.get(traffic.port.as_str())?;
        let same = before.container == traffic.container;
        same.then(|| {
            (
                traffic.port.as_str(),
                Rates::since(before, traffic, seconds),
            )
        })
    });
    known.collect()
}

/// An endpoint's line.
pub fn endpoint_cells(e: &EndpointRow) -> [String; 9] {
    let rate = |of: fn(&Rates) -> String| e.rates.as_ref().map_or("-".to_owned(), of);
    [
        e.name.clone(),
        e.network.clone(),
        e.ip.clone(),
        e.host.clone(),
        rate(|rates| bits(rates.rx_bits)),
        rate(|rates| bits(rates.tx_bits)),
        rate(|rates| number(rates.rx_packets)),
        rate(|rates| number(rates.tx_packets)),
        e.dropped.map_or("-".to_owned(), |n| n.to_string()),
    ]
}

/// A VTEP's line.
pub fn vtep_cells(v: &VtepInfo) -> [String; 8] {
    let dash = || "-".to_owned();
    [
        v.host_name.clone(),
        v.address.to_string(),
        v.state.clone(),
        match v.data_path {
            DataPath::Answers => "answers",
            DataPath::Silent => "SILENT",
            DataPath::Unknown => "unknown",
        }
        .to_owned(),
        v.latency.map_or_else(dash, |l| duration(l.average_us)),
        v.latency.map_or_else(dash, |l| duration(l.p99_us)),
        v.loss_percent.map_or_else(dash, |p| format!("{p:.0}%")),
        v.path_mtu.map_or_else(dash, |mtu| mtu.to_string()),
    ]
}

/// Bits per second, in three digits.
pub fn bits(per_second: f64) -> String {
    let units = [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")];
    let unit = units.into_iter().find(|(size, _)| per_second >= *size);
    let (size, name) = unit.unwrap_or((1.0, "bit/s"));
    let value = per_second / size;
    match value {
        v if v >= 99.95 || size == 1.0 => format!("{v:.0} {name}"),
        v => format!("{v:.1} {name}"),
    }
}

/// A number per second, in three digits.
pub fn number(per_second: f64) -> String {
    match per_second {
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.0}k", n / 1e3),
        n if n >= 1e3 => format!("{:.1}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
