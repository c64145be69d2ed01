//! Serving the local API. What needs the cluster's agreement is asked of the cluster here, so
//! that the agent's loop never waits for another host.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::extract::{FromRequest, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use overlay_cluster::Cluster;
use overlay_core::facts::{NetworkSpec, Refusal};
use overlay_core::model::{Endpoint, Host, HostId, Network, Vni, check_name};
use overlay_core::tables::StaticEntry;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::web::Web;
use super::{
    ContainerAdd, ContainerInfo, ContainerRemove, Detach, Detached, ErrorBody, FdbAdd, FdbRemove,
    FdbRow, LocalContainer, NetworkCreate, NetworkDetail, NetworkInfo, Status, VtepInfo, names,
};
use crate::agent::{Addresses, KeyBook, Port, PortAdd, ROUTER_PREFIX, Reply, Request, Steps, Wish};
use crate::instance::Instance;
use ipnetwork::IpNetwork;

/// How long answers that are under way may take when the agent stops.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long an attach waits for the network's way out.
const WAY_OUT_WAIT: Duration = Duration::from_secs(5);

/// How long the removal of a network waits for other hosts to give their addresses back.
const GIVE_BACK_WAIT: Duration = Duration::from_secs(2);

/// The running server.
pub struct Api {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// What is served elsewhere than on the socket.
    beside: Vec<JoinHandle<()>>,
}

impl Api {
    /// Lets answers that are under way finish.
    pub async fn stop(self) {
        self.beside.iter().for_each(JoinHandle::abort);
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(ANSWER_WAIT, self.task).await;
    }
}

/// Serves on the instance's socket, which only root and `group` may open, and where `web` listens.
///
/// # Errors
/// When the socket can't be made.
pub(crate) async fn start(
    instance: &Instance,
    group: Option<u32>,
    ctx: Ctx,
    web: Option<Web>,
) -> Result<Api> {
    let path = instance.socket();
    // The lock says that no other agent serves there: it is a dead one's.
    let _ = fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("can't serve on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    if let Some(group) = group {
        let given = std::os::unix::fs::chown(&path, None, Some(group));
        given.with_context(|| format!("can't give {} to group {group}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
    }
    let asks = ctx.cluster.peer_asks();
    let mut beside = vec![
        tokio::spawn(super::peers::serve(ctx.clone(), asks)),
        tokio::spawn(super::keys::agree(ctx.clone())),
    ];
    beside.extend(web.map(|web| tokio::spawn(web.serve(ctx.clone()))));
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/networks", get(networks).post(network_create))
        .route("/v1/networks/{name}", get(network).delete(network_remove))
        .route(
            "/v1/containers",
            get(containers).post(container_add).delete(container_remove),
        )
        .route("/v1/vteps", get(vteps))
        .route("/v1/fdb", get(fdb).post(fdb_add).delete(fdb_remove))
        .route("/v1/detach", post(detach))
        .merge(super::admin::router())
        .merge(super::services::router())
        .merge(super::policies::router())
        .merge(super::keys::router())
        .merge(super::mdb::router())
        .merge(super::attachments::router())
        .merge(super::metrics::router())
        .merge(super::overview::router())
        .merge(super::trace::router())
        .merge(super::docker::router())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(ctx);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        if let Err(error) = served.await {
            tracing::error!(%error, "the API ended");
        }
    });
    Ok(Api { stop, task, beside })
}

/// What only this host knows of its containers, by network and name.
pub(super) type LocalPorts = HashMap<(Vni, String), LocalContainer>;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Ctx {
    pub cluster: Cluster,
    pub addresses: Arc<Addresses>,
    pub agent: mpsc::Sender<Request>,
    /// What is agreed with other hosts for encrypted networks.
    pub keys: Arc<KeyBook>,
    /// For asking this host's Docker, if it is served.
    pub docker: Option<Arc<crate::docker::Client>>,
}

impl Ctx {
    /// Asks the agent's loop.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.agent
            .send(request(reply))
            .await
            .map_err(|_| anyhow!("the agent is stopping"))?;
        answer.await.map_err(|_| anyhow!("the agent is stopping"))?
    }

    /// The network of this name; one that is not known here yet is asked of the manager.
    pub async fn network(&self, name: &str) -> Result<Network> {
        self.cluster.network(name).await?.ok_or_else(|| {
            anyhow!(
                "no network '{name}': see 'overlay-dp network ls', or make it with 'overlay-dp \
                 network create {name}'"
            )
        })
    }

    fn host_names(&self) -> HashMap<HostId, Host> {
        self.cluster
            .members()
            .into_iter()
            .map(|m| (m.host.id, m.host))
            .collect()
    }

    /// Every endpoint of a network, this host's with what only it knows.
    pub async fn containers_of(&self, network: &Network) -> Result<Vec<ContainerInfo>> {
        let ports = self.ports().await?;
        Ok(self.containers_with(network, &ports).await)
    }

    /// This host's ports, by network and name.
    pub async fn ports(&self) -> Result<LocalPorts> {
        let ports = self.ask(Request::Ports).await?.into_iter();
        Ok(ports
            .map(|p| ((p.endpoint.vni, p.endpoint.name.clone()), p.shown()))
            .collect())
    }

    pub async fn containers_with(
        &self,
        network: &Network,
        ports: &LocalPorts,
    ) -> Vec<ContainerInfo> {
        let hosts = self.host_names();
        let me = self.cluster.me().id;
        let mut list: Vec<ContainerInfo> = self
            .cluster
            .look_up(network.vni)
            .await
            .into_iter()
            .filter(|(_, endpoint)| !endpoint.router)
            .map(|(host, endpoint)| {
                let local = match host == me {
                    true => ports.get(&(endpoint.vni, endpoint.name.clone())).cloned(),
                    false => None,
                };
                let name = hosts
                    .get(&host)
                    .map_or_else(|| host.to_string(), |h| h.name.clone());
                info(&endpoint, &network.name, host, name, local)
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// This host's ports, as endpoints.
    pub fn infos_of(&self, ports: Vec<Port>) -> Vec<ContainerInfo> {
        let me = self.cluster.me();
        let networks = self.cluster.networks().into_iter();
        let names: HashMap<Vni, String> = networks.map(|n| (n.vni, n.name)).collect();
        let one = |port: Port| {
            let vni = port.endpoint.vni;
            let network = names.get(&vni).cloned().unwrap_or_else(|| vni.to_string());
            let endpoint = port.endpoint.clone();
            info(
                &endpoint,
                &network,
                me.id,
                me.name.clone(),
                Some(port.shown()),
            )
        };
        ports.into_iter().map(one).collect()
    }

    /// Returns when the container can get out of its network; without what it publishes it goes
    /// again.
    async fn wait_for_way_out(&self, port: &Port, network: &Network) -> Result<()> {
        match self.way_out_problem(network).await? {
            Some(problem) if !port.publish.is_empty() => {
                let name = port.endpoint.name.clone();
                let vni = Some(network.vni);
                self.ask(|reply| Request::PortsRemove(name, vni, reply))
                    .await?;
                bail!("nothing can be published: {problem}");
            }
            Some(problem) => {
                tracing::warn!(network = %network.name, "there is no way out of this host: {problem}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Returns when what is attached to the network here can get out of it, or why it can't.
    pub async fn way_out_problem(&self, network: &Network) -> Result<Option<String>> {
        let vni = network.vni;
        if network.internal {
            return Ok(None);
        }
        let ready = self.ask(|reply| Request::RouterWait(vni, reply));
        match tokio::time::timeout(WAY_OUT_WAIT, ready).await {
            Ok(problem) => problem,
            Err(_) => Ok(Some(
                "the managers give this host no address for it yet".to_owned(),
            )),
        }
    }

    pub fn network_info(&self, network: Network) -> NetworkInfo {
        let mut endpoints = self.cluster.endpoints(network.vni);
        endpoints.retain(|(_, endpoint)| !endpoint.router);
        let me = self.cluster.me().id;
        let attached = endpoints.iter().any(|(host, _)| *host == me);
        NetworkInfo {
            attached,
            multicast: network.multicast_mode(),
            multicast_by_size: network.multicast.is_none(),
            hosts: self.cluster.facts(|f| f.participants(network.vni).len()),
            endpoints: attached.then_some(endpoints.len()),
            name: network.name,
            vni: network.vni,
            subnet: network.subnet,
            gateway: network.gateway,
            ipv6: network.ipv6,
            internal: network.internal,
            encrypted: network.encrypted,
        }
    }
}

/// An error as an answer.
pub(super) struct Failure(StatusCode, String);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(StatusCode::BAD_REQUEST, format!("{:#}", error.into()))
    }
}

/// A request's JSON body. One that is none, or too large, is answered like any other error.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Body<T>, Failure> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(rejection) => Err(Failure(rejection.status(), rejection.body_text())),
        }
    }
}

async fn no_such_route() -> Failure {
    Failure(StatusCode::NOT_FOUND, "the API has no such path".to_owned())
}

async fn no_such_method() -> Failure {
    Failure(
        StatusCode::METHOD_NOT_ALLOWED,
        "the API has no such method for this path".to_owned(),
    )
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Failure(status, error) = self;
        (status, Json(ErrorBody { error })).into_response()
    }
}

pub(super) type Answer<T> = Result<Json<T>, Failure>;

async fn status(State(ctx): State<Ctx>) -> Answer<Status> {
    Ok(Json(ctx.ask(Request::Status).await?))
}

async fn vteps(State(ctx): State<Ctx>) -> Answer<Vec<VtepInfo>> {
    Ok(Json(ctx.ask(Request::Vteps).await?))
}

async fn networks(State(ctx): State<Ctx>) -> Answer<Vec<NetworkInfo>> {
    let mut list = Vec::new();
    for network in ctx.cluster.networks() {
        list.push(ctx.network_info(network));
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(list))
}

async fn network(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<NetworkDetail> {
    let network = ctx.network(&name).await?;
    let containers = ctx.containers_of(&network).await?;
    let mut network = ctx.network_info(network);
    network.endpoints = Some(containers.len());
    Ok(Json(NetworkDetail {
        network,
        containers,
    }))
}

async fn network_create(
    State(ctx): State<Ctx>,
    Body(ask): Body<NetworkCreate>,
) -> Answer<NetworkInfo> {
    check_name(&ask.name)?;
    let host = overlay_host::Host::new()?;
    let mut routes = host.host_routes().await?;
    // Those into our own networks are the managers' to speak of.
    routes.retain(|(_, interface)| !interface.starts_with(ROUTER_PREFIX));
    for subnet in &ask.subnets {
        let overlaps = |route: &IpNetwork| {
            route.contains(subnet.network()) || subnet.contains(route.network())
        };
        if let Some((route, interface)) = routes.iter().find(|(route, _)| overlaps(route)) {
            return Err(anyhow!(
                "{subnet} overlaps this host's route {route} (dev {interface}): choose another --subnet"
            )
            .into());
        }
    }
    let avoid = routes.into_iter().map(|(route, _)| route).collect();
    let spec = NetworkSpec {
        name: ask.name,
        subnets: ask.subnets,
        gateways: ask.gateways,
        ip_range: ask.ip_range,
        ipv6: ask.ipv6,
        vni: ask.vni,
        internal: ask.internal,
        encrypted: ask.encrypted,
        multicast: ask.multicast,
    };
    let network = ctx.cluster.network_create(spec, avoid).await?;
    Ok(Json(ctx.network_info(network)))
}

async fn network_remove(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<NetworkInfo> {
    let network = ctx.network(&name).await?;
    let info = ctx.network_info(network);
    // Hosts whose last container has just gone are giving their addresses back.
    ctx.addresses.settle(ANSWER_WAIT).await;
    let deadline = tokio::time::Instant::now() + GIVE_BACK_WAIT;
    loop {
        match ctx.cluster.network_remove(&name).await {
            Err(overlay_cluster::Error::Refused(Refusal::InUse { .. }))
                if tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(GIVE_BACK_WAIT / 20).await;
            }
            done => break done?,
        };
    }
    Ok(Json(info))
}

async fn containers(State(ctx): State<Ctx>) -> Answer<Vec<ContainerInfo>> {
    // Networks without a container here are asked about, all at the same time.
    let (networks, ports) = (ctx.cluster.networks(), ctx.ports().await?);
    let lists = networks
        .iter()
        .map(|network| ctx.containers_with(network, &ports));
    Ok(Json(futures_util::future::join_all(lists).await.concat()))
}

async fn container_add(
    State(ctx): State<Ctx>,
    Body(ask): Body<ContainerAdd>,
) -> Answer<ContainerInfo> {
    // A task of its own: whoever asked may go away, but what is begun is ended.
    let added = tokio::spawn(async move { add_container(&ctx, ask).await });
    Ok(Json(added.await??))
}

async fn add_container(ctx: &Ctx, ask: ContainerAdd) -> Result<ContainerInfo> {
    let mut steps = Steps::begin();
    let network = ctx.network(&ask.network).await?;
    // What other hosts have there is known when the container is: its first packet finds them.
    // Not all of it is looked through for every name.
    let others = match ask.ip.is_some() || ask.name.is_none() {
        true => ctx.cluster.look_up(network.vni).await,
        false => Vec::new(),
    };
    let name = names::of_container(&ask, &others)?;
    if let Some(host) = ctx.cluster.whose_name(network.vni, &name).await {
        let hosts = ctx.host_names();
        bail!(
            "the name '{}' is taken on '{}' by a container of host '{}': choose another",
            name,
            network.name,
            hosts.get(&host).map_or("?", |h| h.name.as_str()),
        );
    }
    if let Some(ip) = ask.ip
        && let Some((host, other)) = others.iter().find(|(_, e)| e.ips.contains(&ip))
    {
        let hosts = ctx.host_names();
        bail!(
            "{ip} is the address of '{}' on host '{}': choose another --ip",
            other.name,
            hosts.get(host).map_or("?", |h| h.name.as_str()),
        );
    }
    steps.done("names");
    let wish = Wish {
        network: network.clone(),
        name: name.clone(),
        ip: ask.ip,
        mac: ask.mac,
        last: false,
    };
    let given = ctx.addresses.take(wish).await?;
    steps.done("lease");
    let add = PortAdd {
        endpoint: Endpoint {
            name: name.clone(),
            vni: network.vni,
            mac: given.mac,
            ips: given.ips,
            aliases: ask.aliases,
            service: ask.service,
            router: false,
            unready: false,
        },
        network: network.clone(),
        netns: ask.netns,
        ifname: ask.ifname,
        resolv_conf: ask.resolv_conf,
        intercept_dns: false,
        attachment: ask.attachment,
        docker: None,
        publish: ask.publish,
        limit: ask.limit,
        steps,
    };
    let port = match ctx
        .ask(|reply| Request::PortAdd(Box::new(add), reply))
        .await
    {
        Ok(port) => port,
        Err(error) => {
            ctx.addresses.give_back(network.vni, &name);
            return Err(error);
        }
    };
    ctx.wait_for_way_out(&port, &network).await?;
    let me = ctx.cluster.me();
    let endpoint = port.endpoint.clone();
    let shown = Some(port.shown());
    Ok(info(&endpoint, &network.name, me.id, me.name, shown))
}

async fn container_remove(
    State(ctx): State<Ctx>,
    Body(ask): Body<ContainerRemove>,
) -> Answer<Vec<ContainerInfo>> {
    let vni = match &ask.network {
        Some(name) => Some(ctx.network(name).await?.vni),
        None => None,
    };
    let name = ask.name.clone();
    let removed = ctx
        .ask(|reply| Request::PortsRemove(name, vni, reply))
        .await?;
    if removed.is_empty() {
        return Err(not_here(&ctx, &ask.name, vni).into());
    }
    Ok(Json(ctx.infos_of(removed)))
}

/// Says where a container is that is not on this host.
fn not_here(ctx: &Ctx, name: &str, vni: Option<Vni>) -> anyhow::Error {
    let me = ctx.cluster.me().id;
    let networks = ctx.cluster.networks();
    let wanted = networks.iter().filter(|n| vni.is_none_or(|v| v == n.vni));
    let elsewhere = wanted
        .flat_map(|n| ctx.cluster.endpoints(n.vni))
        .find(|(host, endpoint)| *host != me && endpoint.name == name);
    match elsewhere {
        Some((host, _)) => {
            let names = ctx.host_names();
            let host = names
                .get(&host)
                .map_or_else(|| host.to_string(), |h| h.name.clone());
            anyhow!("container '{name}' is on host '{host}': remove it there")
        }
        None => anyhow!("no container '{name}' on this host: see 'overlay-dp container ls'"),
    }
}

async fn fdb(State(ctx): State<Ctx>) -> Answer<Vec<FdbRow>> {
    Ok(Json(ctx.ask(Request::Fdb).await?))
}

async fn fdb_add(State(ctx): State<Ctx>, Body(ask): Body<FdbAdd>) -> Answer<FdbRow> {
    let network = ctx.network(&ask.network).await?;
    if !ask.mac.is_unicast() {
        return Err(anyhow!(
            "{} is no single interface's address: it is a group's, or zero",
            ask.mac
        )
        .into());
    }
    check_static_ips(&network, &ask)?;
    let entry = StaticEntry {
        vni: network.vni,
        mac: ask.mac,
        vtep: ask.vtep,
        ips: ask.ips,
    };
    Ok(Json(
        ctx.ask(|reply| Request::StaticAdd(entry, reply)).await?,
    ))
}

fn check_static_ips(network: &Network, ask: &FdbAdd) -> Result<()> {
    for ip in &ask.ips {
        let link_local = matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
        let inside = network.subnets().any(|family| family.subnet.contains(*ip));
        if !inside && !link_local {
            bail!("{ip} is in no subnet of '{}'", network.name);
        }
    }
    Ok(())
}

async fn fdb_remove(State(ctx): State<Ctx>, Body(ask): Body<FdbRemove>) -> Answer<FdbRow> {
    let vni = ctx.network(&ask.network).await?.vni;
    Ok(Json(
        ctx.ask(|reply| Request::StaticRemove(vni, ask.mac, reply))
            .await?,
    ))
}

async fn detach(State(ctx): State<Ctx>, Body(ask): Body<Detach>) -> Answer<Detached> {
    Ok(Json(
        ctx.ask(|reply| Request::Detach(ask.force, reply)).await?,
    ))
}

fn info(
    endpoint: &Endpoint,
    network: &str,
    host: HostId,
    host_name: String,
    local: Option<LocalContainer>,
) -> ContainerInfo {
    ContainerInfo {
        name: endpoint.name.clone(),
        ready: !endpoint.unready,
        network: network.to_owned(),
        vni: endpoint.vni,
        ip: endpoint.ips.first().copied(),
        ips: endpoint.ips.clone(),
        aliases: endpoint.aliases.clone(),
        service: endpoint.service.clone(),
        mac: endpoint.mac,
        host,
        host_name,
        local,
    }
}
