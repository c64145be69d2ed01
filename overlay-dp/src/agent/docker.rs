//! Ports of Docker's containers: made with both ends on the host, of which Docker moves one into
//! the container when it has been told its name.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use overlay_core::model::{Endpoint, MacAddr, Network};
use overlay_host::{Netns as HostNetns, PortSpec};
use tokio::sync::mpsc;

use super::datapath::{PORT_PREFIX, set_offloads, set_port_offloads};
use super::ports::{host_mtu, netns_ref};
use super::{Agent, Port, PortAdd, Request, Steps};
use crate::api::{LocalContainer, Netns, Publish};

/// How the ends that are Docker's to move begin.
const INNER_PREFIX: &str = "ovc-";

/// An endpoint that Docker plugs in.
pub struct DockerJoin {
    /// Docker's id of it.
    pub id: String,
    /// What the cluster is told.
    pub endpoint: Endpoint,
    /// The file of the container's namespace, as Docker sees it.
    pub sandbox: PathBuf,
}

/// What its container is called.
pub struct DockerName {
    /// Docker's id of the endpoint.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Its aliases in this network.
    pub aliases: Vec<String>,
    /// The service that it is a task of.
    pub service: Option<String>,
    /// A process in it, once there is one.
    pub pid: Option<u32>,
    /// Only the name is known yet: it is of use when there was none.
    pub is_first: bool,
}

/// An endpoint whose port is lost, in a container that runs.
pub struct DockerPlug {
    /// Docker's id of it.
    pub id: String,
    /// What it is called until its name is known.
    pub name: String,
    /// Its addresses, but the link-local one.
    pub ips: Vec<IpAddr>,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its network.
    pub network: Network,
    /// A process in the container.
    pub pid: u32,
}

impl Agent {
    /// Makes a port, and returns the name of the interface that Docker is to move.
    pub(super) async fn docker_join(&mut self, join: DockerJoin) -> Result<String> {
        self.docker_leave(&join.id).await?;
        let DockerJoin {
            id,
            endpoint,
            sandbox,
        } = join;
        let name = self.port_name(endpoint.vni, endpoint.mac).await?;
        let inner = name.replacen(PORT_PREFIX, INNER_PREFIX, 1);
        let here = HostNetns::current()?;
        let mtu = {
            let tables = self.tables.read();
            let network = tables.network(endpoint.vni);
            network.map_or(self.inner_mtu, |network| tables.mtu_of(network))
        };
        let made = self
            .host
            .create_port(&PortSpec {
                host_ifname: &name,
                container_ifname: &inner,
                netns: &here,
                in_host: true,
                mac: endpoint.mac,
                owner: &self.options.instance.owner(),
                host_mtu: host_mtu(mtu),
                container_mtu: mtu,
                addrs: &[],
                gateways: &[],
            })
            .await?;
        let port = Port {
            endpoint,
            local: LocalContainer {
                ifname: inner.clone(),
                netns: sandbox.display().to_string(),
                port: name.clone(),
                port_ifindex: made.host_ifindex,
                mtu,
                attachment: None,
                publish: Vec::new(),
                limit: None,
            },
            netns: Netns::Path(sandbox),
            resolv_conf: None,
            intercept_dns: true,
            docker: Some(id),
            publish: Vec::new(),
        };
        let finish = async {
            set_offloads(&inner, self.checksums.offload())?;
            set_port_offloads(&name)?;
            self.attach_port(&port)?;
            self.state.port_add(port.clone())?;
            self.follow_networks();
            self.cluster.publish(port.endpoint.clone())?;
            anyhow::Ok(())
        };
        if let Err(error) = finish.await {
            self.port_remove(&port).await?;
            return Err(error);
        }
        self.routers.due = true;
        tracing::info!(port = %name, ips = ?port.endpoint.ips, "Docker's container attached");
        Ok(inner)
    }

    /// Removes an endpoint's port, if there is one.
    pub(super) async fn docker_leave(&mut self, id: &str) -> Result<()> {
        match self.docker_port(id) {
            Some(port) => self.port_remove(&port).await,
            None => Ok(()),
        }
    }

    /// Publishes these for a container, and no others. When that fails, it has none.
    pub(super) fn docker_publish(&mut self, id: &str, publish: Vec<Publish>) -> Result<()> {
        let Some(mut port) = self.docker_port(id) else {
            ensure!(
                publish.is_empty(),
                "it is not attached: nothing leads there"
            );
            return Ok(());
        };
        if port.publish == publish {
            return Ok(());
        }
        self.routers.due = true;
        port.publish.clear();
        self.state.port_add(port.clone())?;
        self.release_published();
        if publish.is_empty() {
            return Ok(());
        }
        let network = self.cluster.networks().into_iter();
        let mut network = network.filter(|network| network.vni == port.endpoint.vni);
        if let Some(network) = network.next().filter(|network| network.internal) {
            bail!(
                "'{}' is internal: nothing can be published out of it",
                network.name
            );
        }
        self.check_publish(&publish)?;
        port.publish = publish;
        let mut ports = port.publish.iter();
        let held = ports.try_for_each(|publish| self.held.take(publish, &port.endpoint.ips));
        let done = held.and_then(|()| self.state.port_add(port));
        if done.is_err() {
            self.release_published();
        }
        done
    }

    /// Tells the cluster what a container is called, and finds it.
    pub(super) async fn docker_name(&mut self, named: DockerName) -> Result<()> {
        let Some(before) = self.docker_port(&named.id) else {
            return Ok(());
        };
        let mut port = before.clone();
        let was_provisional = named.id.starts_with(&before.endpoint.name);
        if !named.is_first {
            port.endpoint.aliases = named.aliases;
            port.endpoint.service = named.service;
            if port.endpoint.service != before.endpoint.service {
                port.endpoint.unready = self.is_checked(&port.endpoint);
            }
        }
        if was_provisional || !named.is_first {
            port.endpoint.name = named.name;
        }
        if let Some(pid) = named.pid {
            self.find_inside(&mut port, pid).await;
        }
        if port == before {
            return Ok(());
        }
        self.state.port_add(port.clone())?;
        if port.endpoint == before.endpoint {
            return Ok(());
        }
        // It may be one of a service's tasks now.
        self.tables.write().port_up_with(
            port.local.port_ifindex,
            &port.endpoint,
            port.options(),
        )?;
        let me = self.cluster.me().id;
        if port.endpoint.name != before.endpoint.name {
            // First the old one: two of them with one address would be a contradiction.
            self.cluster
                .withdraw(before.endpoint.vni, &before.endpoint.name);
            self.names
                .change(|names| names.endpoint_down(me, &before.endpoint));
        }
        self.names
            .change(|names| names.endpoint_up(me, &port.endpoint));
        self.cluster.publish(port.endpoint.clone())?;
        let Endpoint { name, aliases, .. } = &port.endpoint;
        tracing::info!(container = %name, ?aliases, port = %port.local.port, "Docker's container is known");
        Ok(())
    }

    /// Which interface it is inside, which Docker has chosen.
    async fn find_inside(&self, port: &mut Port, pid: u32) {
        let netns = Netns::Pid(pid);
        let found = async {
            let inside = HostNetns::open(&netns_ref(&netns))?;
            let link = self
                .host
                .container_peer(&inside, port.local.port_ifindex)
                .await?;
            anyhow::Ok((inside, link.context("it is not there")?))
        };
        match found.await {
            Ok((inside, link)) => {
                port.local.ifname = link.name;
                port.local.netns = inside.reference().to_string();
                port.netns = netns;
            }
            Err(error) => {
                tracing::debug!(port = %port.local.port, pid, "the interface inside: {error:#}");
            }
        }
    }

    /// Makes a port that was lost, this time right inside.
    pub(super) async fn docker_plug(&mut self, plug: DockerPlug) -> Result<()> {
        if self.docker_port(&plug.id).is_some() {
            return Ok(());
        }
        let inside = HostNetns::open(&netns_ref(&Netns::Pid(plug.pid)))?;
        let mut ifname = None;
        for number in 0..100 {
            let name = format!("eth{number}");
            if self.host.container_link(&inside, &name).await?.is_none() {
                ifname = Some(name);
                break;
            }
        }
        let add = PortAdd {
            endpoint: Endpoint {
                name: plug.name,
                vni: plug.network.vni,
                mac: plug.mac,
                ips: plug.ips,
                aliases: Vec::new(),
                service: None,
                router: false,
                unready: false,
            },
            network: plug.network,
            netns: Netns::Pid(plug.pid),
            ifname: ifname.context("the container has a hundred interfaces")?,
            resolv_conf: false,
            intercept_dns: true,
            attachment: None,
            docker: Some(plug.id),
            steps: Steps::begin(),
            publish: Vec::new(),
            limit: None,
        };
        self.port_add(add).await.map(drop)
    }

    /// Takes no requests any more, and serves Docker no more.
    pub(super) async fn stop_docker(&mut self, requests: &mut mpsc::Receiver<Request>) {
        requests.close();
        while requests.try_recv().is_ok() {}
        if let Some(docker) = self.docker.take() {
            docker.stop().await;
        }
    }

    fn docker_port(&self, id: &str) -> Option<Port> {
        let mut ports = self.state.ports();
        ports
            .find(|port| port.docker.as_deref() == Some(id))
            .cloned()
    }
}
