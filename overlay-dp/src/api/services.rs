//! The part of the API that is about services.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/services` | | list of [`ServiceDetail`] |
//! | `POST /v1/services` | [`ServiceCreate`] | [`ServiceInfo`] |
//! | `GET /v1/services/{name}` | | [`ServiceDetail`] |
//! | `DELETE /v1/services/{name}` | | [`ServiceInfo`] |

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, anyhow};
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use overlay_cluster::Error;
use overlay_core::facts::{Refusal, ServiceSpec};
use overlay_core::health::HealthCheck;
use overlay_core::model::{EndpointMode, Network, Service, ServicePort, Vni};
use serde::{Deserialize, Serialize};

use super::server::{Answer, Body, Ctx};
use super::{ContainerInfo, Publish};
use crate::agent::{Request, Wish};

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
    /// What its name stands for.
    pub mode: EndpointMode,
    /// Its own addresses (VIPs), one of each family of its network, IPv4 first.
    pub vips: Vec<IpAddr>,
    /// What tells whether its tasks are ready.
    pub check: Option<HealthCheck>,
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
    /// What its name is to stand for.
    #[serde(default)]
    pub mode: EndpointMode,
    /// Its own address, in either family; the next free one when absent.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// What tells whether its tasks are ready.
    #[serde(default)]
    pub check: Option<HealthCheck>,
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
    let network = network_of(ctx, &service);
    let vips = network.as_ref().zip(service.vip);
    ServiceInfo {
        mode: service.mode(),
        vips: vips.map_or_else(Vec::new, |(network, offset)| network.address_at(offset)),
        network: network.map_or_else(|| service.vni.to_string(), |network| network.name),
        name: service.name,
        vni: service.vni,
        publish: service.publish,
        check: service.check,
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

fn network_of(ctx: &Ctx, service: &Service) -> Option<Network> {
    ctx.cluster
        .facts(|facts| facts.network(service.vni).cloned())
}

/// With their tasks. Each network is looked at once, and all at the same time.
async fn details(ctx: &Ctx, services: Vec<Service>) -> Result<Vec<ServiceDetail>> {
    let networks = services
        .iter()
        .filter_map(|service| network_of(ctx, service));
    let networks: BTreeMap<Vni, Network> = networks.map(|n| (n.vni, n)).collect();
    let looked = join_all(networks.values().map(|network| ctx.containers_of(network))).await;
    let mut containers = BTreeMap::new();
    for (vni, found) in networks.keys().zip(looked) {
        containers.insert(*vni, found?);
    }
    let detail = |service: Service| {
        let all: &[ContainerInfo] = containers.get(&service.vni).map_or(&[], Vec::as_slice);
        let tasks = all.iter();
        let tasks = tasks.filter(|task| task.service.as_deref() == Some(&service.name));
        ServiceDetail {
            tasks: tasks.cloned().collect(),
            service: info(ctx, service),
        }
    };
    Ok(services.into_iter().map(detail).collect())
}

async fn services(State(ctx): State<Ctx>) -> Answer<Vec<ServiceDetail>> {
    let all: Vec<Service> = ctx
        .cluster
        .facts(|facts| facts.services().cloned().collect());
    Ok(Json(details(&ctx, all).await?))
}

async fn create(State(ctx): State<Ctx>, Body(ask): Body<ServiceCreate>) -> Answer<ServiceInfo> {
    let publish = ask.publish.iter().copied().map(Publish::from).collect();
    ctx.ask(|reply| Request::PublishCheck(publish, reply))
        .await?;
    let spec = ServiceSpec {
        name: ask.name,
        network: ask.network,
        publish: ask.publish,
        mode: ask.mode,
        ip: ask.ip,
        check: ask.check,
    };
    let service = match ctx.cluster.service_create(spec.clone(), false).await {
        Err(Error::Refused(Refusal::Exhausted { .. } | Refusal::Taken { .. })) => {
            create_at_leased(&ctx, spec).await?
        }
        done => done?,
    };
    // It is there for this host's containers when the answer arrives.
    ctx.ask(Request::VipsFit).await?;
    Ok(Json(info(&ctx, service)))
}

/// Hosts may hold the address for nothing. It is asked for as one for a container is, for which
/// they give back what they don't use, and then left to the service.
async fn create_at_leased(ctx: &Ctx, mut spec: ServiceSpec) -> Result<Service> {
    let network = ctx.network(&spec.network).await?;
    let vni = network.vni;
    // No container can be called so, and no earlier attempt either.
    let name = format!("service {} {:x}", spec.name, rand::random::<u64>());
    let wish = Wish {
        network,
        name: name.clone(),
        ip: spec.ip,
        mac: None,
        last: false,
    };
    let given = ctx.addresses.take(wish).await?;
    spec.ip = given.ips.first().copied();
    let made = ctx.cluster.service_create(spec, true).await;
    // Without an answer it may become the service's at any later time: until this agent's end no
    // container gets it.
    if matches!(made, Ok(_) | Err(Error::Refused(_))) {
        ctx.addresses.give_back(vni, &name);
    }
    Ok(made?)
}

async fn service(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<ServiceDetail> {
    let service = find(&ctx, &name).await?;
    let detail = details(&ctx, vec![service]).await?.pop();
    Ok(Json(detail.ok_or_else(|| anyhow!("no service '{name}'"))?))
}

async fn remove(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<ServiceInfo> {
    let service = find(&ctx, &name).await?;
    ctx.cluster.service_remove(&name).await?;
    ctx.ask(Request::VipsFit).await?;
    Ok(Json(info(&ctx, service)))
}
