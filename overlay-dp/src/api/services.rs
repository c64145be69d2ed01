//! The part of the API that is about services.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/services` | | list of [`ServiceInfo`] |
//! | `POST /v1/services` | [`ServiceCreate`] | [`ServiceInfo`] |
//! | `GET /v1/services/{name}` | | [`ServiceDetail`] |
//! | `DELETE /v1/services/{name}` | | [`ServiceInfo`] |

use anyhow::{Result, anyhow};
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use overlay_core::facts::ServiceSpec;
use overlay_core::model::{Service, ServicePort, Vni};
use serde::{Deserialize, Serialize};

use super::server::{Answer, Body, Ctx};
use super::{ContainerInfo, Publish};
use crate::agent::Request;

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Its name: what `container add --service` says.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Its network's VNI.
    pub vni: Vni,
    /// Ports that every host publishes.
    pub publish: Vec<ServicePort>,
}

/// A service with its tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// The service.
    #[serde(flatten)]
    pub service: ServiceInfo,
    /// The containers that are tasks of it, on all hosts.
    pub tasks: Vec<ContainerInfo>,
}

/// Asks for a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceCreate {
    /// Its name.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Ports that every host is to publish.
    #[serde(default)]
    pub publish: Vec<ServicePort>,
}

impl From<ServicePort> for Publish {
    fn from(port: ServicePort) -> Publish {
        Publish {
            host_ip: None,
            host_port: port.host_port,
            port: port.port,
            protocol: port.protocol,
        }
    }
}

pub(super) fn router() -> Router<Ctx> {
    Router::new()
        .route("/v1/services", get(services).post(create))
        .route("/v1/services/{name}", get(service).delete(remove))
}

fn info(ctx: &Ctx, service: Service) -> ServiceInfo {
    let network = ctx
        .cluster
        .facts(|facts| facts.network(service.vni).map(|n| n.name.clone()));
    ServiceInfo {
        name: service.name,
        network: network.unwrap_or_else(|| service.vni.to_string()),
        vni: service.vni,
        publish: service.publish,
    }
}

/// The service of this name; one that is not known here yet is asked of a manager.
async fn find(ctx: &Ctx, name: &str) -> Result<Service> {
    let known = || ctx.cluster.facts(|facts| facts.service(name).cloned());
    if known().is_none() {
        ctx.cluster.refresh().await?;
    }
    known().ok_or_else(|| anyhow!("no service '{name}': see 'overlay-dp service ls'"))
}

async fn services(State(ctx): State<Ctx>) -> Answer<Vec<ServiceInfo>> {
    let all: Vec<Service> = ctx
        .cluster
        .facts(|facts| facts.services().cloned().collect());
    Ok(Json(all.into_iter().map(|s| info(&ctx, s)).collect()))
}

async fn create(State(ctx): State<Ctx>, Body(ask): Body<ServiceCreate>) -> Answer<ServiceInfo> {
    let publish = ask.publish.iter().copied().map(Publish::from).collect();
    ctx.ask(|reply| Request::PublishCheck(publish, reply))
        .await?;
    let spec = ServiceSpec {
        name: ask.name,
        network: ask.network,
        publish: ask.publish,
    };
    let service = ctx.cluster.service_create(spec).await?;
    Ok(Json(info(&ctx, service)))
}

async fn service(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<ServiceDetail> {
    let service = find(&ctx, &name).await?;
    let network = ctx
        .cluster
        .facts(|facts| facts.network(service.vni).cloned());
    let mut tasks = match network {
        Some(network) => ctx.containers_of(&network).await?,
        None => Vec::new(),
    };
    tasks.retain(|task| task.service.as_deref() == Some(&service.name));
    Ok(Json(ServiceDetail {
        service: info(&ctx, service),
        tasks,
    }))
}

async fn remove(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<ServiceInfo> {
    let service = find(&ctx, &name).await?;
    ctx.cluster.service_remove(&name).await?;
    Ok(Json(info(&ctx, service)))
}
