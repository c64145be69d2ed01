//! All that is to be seen of the cluster from this host, at once: for `top`, the status page, and
//! whoever would ask for the parts one after the other.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/overview` | [`Overview`] of this host |
//! | `GET /v1/overview?cluster=true` | the same with all networks' containers, and all hosts' [`LatencyRow`]s |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use overlay_core::model::HostId;
use overlay_host::Traffic;
use serde::{Deserialize, Serialize};

use super::admin::{ClusterInfo, HostInfo, cluster_info, host_infos};
use super::server::{Answer, Ctx};
use super::{ContainerInfo, NetworkInfo, Status, VtepInfo, peers};
use crate::agent::Request;

/// Hosts that are asked for their rows of the latency matrix.
const MAX_ROWS: usize = 64;
/// How long an answer of theirs may take.
const ROW_WAIT: Duration = Duration::from_millis(800);

/// What there is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overview {
    /// When it was so: milliseconds since 1970.
    pub at_ms: u64,
    /// This host.
    pub status: Status,
    /// The managers.
    pub cluster: ClusterInfo,
    /// All hosts.
    pub hosts: Vec<HostInfo>,
    /// All networks.
    pub networks: Vec<NetworkInfo>,
    /// The containers of networks with one here, or of all networks.
    pub containers: Vec<ContainerInfo>,
    /// What this host's containers have sent and received.
    pub traffic: Vec<PortTraffic>,
    /// How far it is to the other hosts: this host's row, or all hosts'.
    pub latency: Vec<LatencyRow>,
}

/// What a container has sent and received since its interface was made. As it sees it: what is
/// `rx` it has received. Super-packets count as one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortTraffic {
    /// The container.
    pub container: String,
    /// Its network.
    pub network: String,
    /// The port's interface on this host.
    pub port: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets for which there was no room.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_dropped: u64,
}

/// The ways from one host to the others, as its agent measures them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LatencyRow {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// The others, as it sees them.
    pub vteps: Vec<VtepInfo>,
    /// Why it has not told.
    pub problem: Option<String>,
}

#[derive(Deserialize)]
struct Ask {
    #[serde(default)]
    cluster: bool,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new().route("/v1/overview", get(overview))
}

async fn overview(State(ctx): State<Ctx>, Query(ask): Query<Ask>) -> Answer<Overview> {
    Ok(Json(gather(&ctx, ask.cluster).await?))
}

/// Looks at everything; `all`: also at what only other hosts know.
pub(super) async fn gather(ctx: &Ctx, all: bool) -> Result<Overview> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let status = ctx.ask(Request::Status).await?;
    let own = LatencyRow {
        host: status.host,
        host_name: status.host_name.clone(),
        vteps: ctx.ask(Request::Vteps).await?,
        problem: None,
    };
    let (others, networks, cluster) = futures_util::join!(
        async {
            match all {
                true => rows_of_others(ctx).await,
                false => Vec::new(),
            }
        },
        networks(ctx, all),
        cluster_info(ctx),
    );
    let (networks, containers) = networks?;
    let mut latency = vec![own];
    latency.extend(others);
    latency.sort_by(|a, b| (&a.host_name, a.host).cmp(&(&b.host_name, b.host)));
    Ok(Overview {
        at_ms: now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
        hosts: host_infos(ctx, cluster.leader),
        cluster,
        networks,
        containers,
        traffic: traffic(ctx).await?,
        latency,
        status,
    })
}

/// All networks, and the containers of those with one here, or of all.
async fn networks(ctx: &Ctx, all: bool) -> Result<(Vec<NetworkInfo>, Vec<ContainerInfo>)> {
    let ports = ctx.ports().await?;
    let known = ctx.cluster.networks();
    let (mut infos, mut asked) = (Vec::new(), Vec::new());
    for network in known {
        let info = ctx.network_info(network.clone());
        if all || info.attached {
            asked.push(network);
        }
        infos.push(info);
    }
    let lists = asked
        .iter()
        .map(|network| ctx.containers_with(network, &ports));
    let containers = join_all(lists).await.concat();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((infos, containers))
}

/// The counters of this host's containers, in order of their networks and names.
pub(super) async fn traffic(ctx: &Ctx) -> Result<Vec<PortTraffic>> {
    let ports = ctx.ask(Request::Ports).await?;
    let names: std::collections::HashMap<u32, &str> = ports
        .iter()
        .map(|port| (port.local.port_ifindex, port.local.port.as_str()))
        .collect();
    let host = overlay_host::Host::new()?;
    let counters = host
        .peer_traffic(|link| names.get(&link.index) == Some(&link.name.as_str()))
        .await?;
    let networks = ctx.cluster.networks();
    let named = |vni| {
        let network = networks.iter().find(|network| network.vni == vni);
        network.map_or_else(|| vni.to_string(), |network| network.name.clone())
    };
    let mut list: Vec<PortTraffic> = ports
        .iter()
        .filter_map(|port| {
            let Traffic {
                rx_bytes,
                rx_packets,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_dropped,
            } = *counters.get(&port.local.port_ifindex)?;
            Some(PortTraffic {
                container: port.endpoint.name.clone(),
                network: named(port.endpoint.vni),
                port: port.local.port.clone(),
                rx_bytes,
                rx_packets,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_dropped,
            })
        })
        .collect();
    list.sort_by(|a, b| (&a.network, &a.container).cmp(&(&b.network, &b.container)));
    Ok(list)
}

/// What the other hosts measure; those that can't be asked are in it with the reason.
async fn rows_of_others(ctx: &Ctx) -> Vec<LatencyRow> {
    let members = ctx.cluster.members().into_iter();
    let others = members.filter(|member| !member.me).take(MAX_ROWS);
    let rows = others.map(|member| async move {
        let asked = peers::ask(ctx, member.host.id, &peers::Question::Vteps, ROW_WAIT).await;
        let (vteps, problem) = match asked {
            Ok(vteps) => (vteps, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        LatencyRow {
            host: member.host.id,
            host_name: member.host.name,
            vteps,
            problem,
        }
    });
    join_all(rows).await
}
