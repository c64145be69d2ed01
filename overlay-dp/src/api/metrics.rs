//! Prometheus metrics of this host, as OpenMetrics text: `GET /v1/metrics`, and `/metrics` where
//! `attach --metrics` listens.
//!
//! Every scrape makes them anew from what the agent and the kernel say: nothing is counted twice.
//! Labels are names of containers and networks of this host, hosts of the cluster, and fixed words.

mod families;
mod process;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::mdb::MdbRow;
use super::overview::{self, PortTraffic};
use super::server::{Ctx, Failure};
use super::{NetworkInfo, Status, VtepInfo, admin};
use crate::agent::Request;

/// What OpenMetrics is sent as.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the numbers are from.
#[derive(Debug)]
pub(super) struct Sources {
    pub status: Status,
    pub vteps: Vec<VtepInfo>,
    pub traffic: Vec<PortTraffic>,
    pub cluster: admin::ClusterInfo,
    pub hosts: Vec<admin::HostInfo>,
    pub networks: Vec<NetworkInfo>,
    pub groups: Vec<MdbRow>,
    pub refused: overlay_cluster::Counters,
    /// When this host's certificate ends, in seconds since 1970.
    pub certificate_end: Option<u64>,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new().route("/v1/metrics", get(answer))
}

async fn answer(State(ctx): State<Ctx>) -> Result<Response, Failure> {
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text(&ctx).await?).into_response())
}

/// The metrics as they are now.
pub(super) async fn text(ctx: &Ctx) -> Result<String> {
    families::text(sources(ctx).await?)
}

async fn sources(ctx: &Ctx) -> Result<Sources> {
    let cluster = admin::cluster_info(ctx).await;
    Ok(Sources {
        status: ctx.ask(Request::Status).await?,
        vteps: ctx.ask(Request::Vteps).await?,
        traffic: overview::traffic(ctx).await?,
        hosts: admin::host_infos(ctx, cluster.leader),
        cluster,
        networks: ctx
            .cluster
            .networks()
            .into_iter()
            .map(|network| ctx.network_info(network))
            .collect(),
        groups: ctx.ask(Request::Mdb).await?,
        refused: ctx.cluster.counters(),
        certificate_end: ctx.cluster.certificate_end(ctx.cluster.me().id),
    })
}
