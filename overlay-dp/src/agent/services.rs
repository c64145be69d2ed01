//! Published services: every host passes what comes to their ports to their tasks, wherever those
//! are. The task sees the client's own address; its answers go back through the host that the
//! client came to, because the task's host has noted which that was.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use overlay_core::model::{Endpoint, Service, Vni};

use super::Agent;
use super::firewall::Backend;
use super::routers::is_routable;
use crate::api::Publish;

/// Who has not told by then is not waited for.
const LEARNING: Duration = Duration::from_secs(3);

impl Agent {
    /// Every service, as it was agreed.
    pub(super) fn services(&self) -> Vec<Service> {
        self.cluster
            .facts(|facts| facts.services().cloned().collect())
    }

    /// The networks that published services need a way into.
    pub(super) fn published_networks(&self) -> BTreeSet<Vni> {
        let services = self.services().into_iter();
        services
            .filter(|service| !service.publish.is_empty())
            .map(|service| service.vni)
            .collect()
    }

    /// What is published of services here, with the tasks that are there now. Ports that can't be
    /// had on this host are left out: see [`Agent::service_problems`].
    pub(super) fn published_services(&mut self) -> Vec<(Publish, Vec<Backend>)> {
        let mut all = Vec::new();
        self.service_problems.clear();
        let mut services = self.services();
        services.retain(|service| !service.publish.is_empty());
        for service in services {
            let endpoints = self.cluster.endpoints(service.vni);
            let tasks = endpoints.iter().map(|(_, endpoint)| endpoint);
            let its = |endpoint: &&Endpoint| {
                endpoint.service.as_deref() == Some(&service.name) && !endpoint.router
            };
            let mut tasks: Vec<&Endpoint> = tasks.filter(its).collect();
            if tasks.iter().any(|task| !task.unready) {
                tasks.retain(|task| !task.unready);
            }
            let ips = tasks.iter().flat_map(|task| task.ips.iter().copied());
            let mut ips: Vec<_> = ips.filter(is_routable).collect();
            // The same order on all hosts, and on each tick.
            ips.sort_unstable();
            ips.dedup();
            for port in &service.publish {
                let publish = Publish::from(*port);
                if let Err(error) = self.take_service_port(&publish, &service) {
                    let problem = format!("not published on this host: {error:#}");
                    self.service_problems.push((service.name.clone(), problem));
                    continue;
                }
                let port = port.port;
                let backends = ips.iter().map(|ip| Backend { ip: *ip, port });
                all.push((publish, backends.collect()));
            }
        }
        self.release_published();
        all
    }

    /// Whether the tasks of published services are known here. After a restart the other hosts
    /// have to tell first: until then what the last agent published stays as it is.
    pub(super) fn knows_tasks(&self) -> bool {
        if !self.firewall.took_over() || self.started.elapsed() > LEARNING {
            return true;
        }
        let networks = self.published_networks().into_iter();
        networks
            .map(|vni| self.cluster.unheard(vni))
            .all(|unheard| unheard.is_empty())
    }

    fn take_service_port(&mut self, publish: &Publish, service: &Service) -> Result<()> {
        self.check_service_publish(std::slice::from_ref(publish))?;
        let networks = self.cluster.networks();
        let network = networks.iter().find(|network| network.vni == service.vni);
        let gateways: Vec<_> = network.into_iter().flat_map(|n| n.gateways()).collect();
        self.held.take(publish, &gateways)
    }

    /// Whether the containers of this host leave these ports to a service.
    pub(super) fn check_service_publish(&self, publish: &[Publish]) -> Result<()> {
        for publish in publish {
            let mut ports = self.state.ports();
            let has = ports.find(|p| p.publish.iter().any(|p| p.conflicts_with(publish)));
            if let Some(port) = has {
                bail!(
                    "port {}/{} is published already, for container '{}' of this host: choose another one",
                    publish.host_port,
                    publish.protocol.name(),
                    port.endpoint.name
                );
            }
        }
        Ok(())
    }

    /// Whether this host could publish these for a service that there is not yet.
    pub(super) fn check_new_publish(&mut self, publish: &[Publish]) -> Result<()> {
        self.check_service_publish(publish)?;
        for service in self.services() {
            let mut ports = service.publish.iter().map(|port| Publish::from(*port));
            if let Some(taken) = ports.find(|p| publish.iter().any(|q| q.conflicts_with(p))) {
                bail!(
                    "port {}/{} is published already, for service '{}': choose another one",
                    taken.host_port,
                    taken.protocol.name(),
                    service.name
                );
            }
        }
        let any = [
            std::net::Ipv4Addr::UNSPECIFIED.into(),
            std::net::Ipv6Addr::UNSPECIFIED.into(),
        ];
        let free = publish.iter().try_for_each(|p| self.held.take(p, &any));
        self.release_published();
        free
    }
}
