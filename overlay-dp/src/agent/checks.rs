//! Trying whether this host's tasks are ready, where their service has a check: from inside their
//! own namespaces, so that it works in internal networks as well and costs the network nothing.
//! Every host does it for its own, and tells the others what has become of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{Result, bail};
use http_body_util::Empty;
use hyper::Request as HttpRequest;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use overlay_core::facts::Facts;
use overlay_core::health::{Health, HealthCheck, Probe};
use overlay_core::model::{Endpoint, Vni};
use overlay_host::Netns as HostNetns;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ports::netns_ref;
use super::routers::is_routable;
use super::{Agent, Port, Request};
use crate::api::Netns;

/// Network and name of a task.
type Key = (Vni, String);

/// What is being tried. Dropping one stops it.
#[derive(Default)]
pub struct Checks(HashMap<Key, (Target, JoinSet<()>)>);

/// What is tried, and where.
#[derive(Clone, PartialEq)]
struct Target {
    check: HealthCheck,
    netns: Netns,
    ip: IpAddr,
    ifindex: u32,
}

impl Agent {
    /// Whether an endpoint's service has a check that it has to pass first.
    pub(super) fn is_checked(&self, endpoint: &Endpoint) -> bool {
        let has = |facts: &Facts| {
            let service = facts.service(endpoint.service.as_deref()?)?;
            (service.vni == endpoint.vni).then_some(service.check.is_some())
        };
        self.cluster.facts(has) == Some(true)
    }

    /// Tries what there is to try, and nothing else.
    pub(super) fn fit_checks(&mut self) {
        let services = self.services().into_iter();
        let checks: HashMap<Key, HealthCheck> = services
            .filter_map(|service| Some(((service.vni, service.name), service.check?)))
            .collect();
        let mut wanted = HashMap::new();
        let mut unchecked = Vec::new();
        for port in self.state.ports() {
            let endpoint = &port.endpoint;
            let service = endpoint.service.clone().map(|name| (endpoint.vni, name));
            let check = service.and_then(|service| checks.get(&service));
            let key = || (endpoint.vni, endpoint.name.clone());
            match check.and_then(|check| target(port, check)) {
                Some(target) => drop(wanted.insert(key(), (target, !endpoint.unready))),
                None if endpoint.unready => unchecked.push(key()),
                None => {}
            }
        }
        let stays = |key: &Key, target: &Target| wanted.get(key).is_some_and(|(t, _)| t == target);
        self.checks.0.retain(|key, (target, _)| stays(key, target));
        for (key, (target, ready)) in wanted {
            if !self.checks.0.contains_key(&key) {
                let mut task = JoinSet::new();
                let requests = self.requests.clone();
                task.spawn(watch(key.clone(), target.clone(), ready, requests));
                self.checks.0.insert(key, (target, task));
            }
        }
        for (vni, name) in unchecked {
            self.task_ready(vni, &name, true);
        }
    }

    /// A task of this host is ready, or is not.
    pub(super) fn task_ready(&mut self, vni: Vni, name: &str, ready: bool) {
        let is_news = |port: &&Port| {
            let endpoint = &port.endpoint;
            endpoint.vni == vni && endpoint.name == name && endpoint.unready == ready
        };
        let found = self.state.ports().find(is_news).cloned();
        let Some(mut port) = found else {
            return;
        };
        port.endpoint.unready = !ready;
        tracing::info!(container = %name, ready, "a task's check");
        if let Err(error) = self.tell_ready(port) {
            tracing::error!(container = %name, "not everybody knows whether it is ready: {error:#}");
        }
        self.routers.due = true;
    }

    fn tell_ready(&mut self, port: Port) -> Result<()> {
        self.state.port_add(port.clone())?;
        let me = self.cluster.me().id;
        self.names
            .change(|names| names.endpoint_up(me, &port.endpoint));
        let (ifindex, options) = (port.local.port_ifindex, port.options());
        self.tables
            .write()
            .port_up_with(ifindex, &port.endpoint, options)?;
        Ok(self.cluster.publish(port.endpoint)?)
    }
}

fn target(port: &Port, check: &HealthCheck) -> Option<Target> {
    let mut ips = port.endpoint.ips.iter().copied();
    Some(Target {
        check: check.clone(),
        netns: port.netns.clone(),
        ip: ips.find(is_routable)?,
        ifindex: port.local.port_ifindex,
    })
}

async fn watch(key: Key, target: Target, ready: bool, requests: mpsc::Sender<Request>) {
    let check = &target.check;
    let mut health = Health::new(ready);
    loop {
        let tried = timeout(check.timeout(), target.attempt()).await;
        let good = matches!(tried, Ok(Ok(())));
        if let Some(ready) = health.tried(good, check) {
            let (vni, name) = key.clone();
            let news = Request::TaskReady { vni, name, ready };
            if requests.send(news).await.is_err() {
                return;
            }
        }
        sleep(health.pause(check)).await;
    }
}

impl Target {
    async fn attempt(&self) -> Result<()> {
        let (netns, ip) = (netns_ref(&self.netns), self.ip);
        let made = tokio::task::spawn_blocking(move || -> Result<OwnedFd> {
            Ok(HostNetns::open(&netns)?.run(|| tcp_socket(ip))??)
        });
        let socket = TcpSocket::from_std_stream(made.await??.into());
        let stream = socket.connect((ip, self.check.probe.port()).into()).await?;
        match &self.check.probe {
            Probe::Tcp(_) => Ok(()),
            Probe::Http(_, path) => get(stream, ip, path).await,
        }
    }
}

/// A socket of the namespace that the thread is in.
fn tcp_socket(ip: IpAddr) -> rustix::io::Result<OwnedFd> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, SocketType::STREAM, flags, None)
}

async fn get(stream: TcpStream, ip: IpAddr, path: &str) -> Result<()> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with this call.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let host = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let request = HttpRequest::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "overlay-dp")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_client_error() || status.is_server_error() {
        bail!("{status}");
    }
    Ok(())
}
