//! The host's own ports, its routers: one in each network that has a way out and a use for one
//! here. What containers send to somewhere else, and what comes in from there, passes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_core::model::{Endpoint, Network, Vni, check_name};

use super::firewall::{Backend, Rules, Way};
use super::{Agent, Port, PortAdd, Reply, Request, Steps, Wish};
use crate::api::Netns;

/// How the host's side of a router port begins: the network's VNI follows.
pub const ROUTER_PREFIX: &str = "ovr-";
/// What is not known yet is asked for again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The host's own namespace, whoever asks.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// What is known of routers that are not there (yet).
#[derive(Default)]
pub struct Routers {
    /// Something has changed: see [`Agent::fit_routers`].
    pub due: bool,
    /// Their leases are being asked for.
    pending: BTreeSet<Vni>,
    /// Why there is none.
    pub problems: BTreeMap<Vni, String>,
    /// Who waits for one, or for why there is none.
    waiting: Vec<(Vni, Reply<Option<String>>)>,
}

impl Routers {
    /// None yet, and all to be looked for.
    pub fn new() -> Routers {
        Routers {
            due: true,
            ..Routers::default()
        }
    }
}

/// The host's side of the router port in a network.
pub fn router_ifname(vni: Vni) -> String {
    format!("{ROUTER_PREFIX}{vni}")
}

impl Agent {
    /// The networks that are to have a router here.
    pub(super) fn routed_networks(&self) -> BTreeMap<Vni, Network> {
        let containers = self.state.ports().filter(|port| !port.endpoint.router);
        let mut used: BTreeSet<Vni> = containers.map(|port| port.endpoint.vni).collect();
        used.extend(self.published_networks());
        let networks = self.cluster.networks().into_iter();
        networks
            .filter(|network| used.contains(&network.vni) && !network.internal)
            .map(|network| (network.vni, network))
            .collect()
    }

    /// This host's port in a network.
    pub(super) fn router(&self, vni: Vni) -> Option<&Port> {
        let mut ports = self.state.ports();
        ports.find(|port| port.endpoint.router && port.endpoint.vni == vni)
    }

    /// Makes the routers that are missing, removes those without a use, and has the kernel's tables
    /// follow. The loop calls it after whatever may have changed something.
    pub(super) async fn fit_routers(&mut self) {
        if !std::mem::take(&mut self.routers.due) {
            return;
        }
        // What changes by that is in the rules below.
        self.fit_checks();
        let wanted = self.routed_networks();
        let routers = self.state.ports().filter(|port| port.endpoint.router);
        let surplus = routers.filter(|port| !wanted.contains_key(&port.endpoint.vni));
        for port in surplus.cloned().collect::<Vec<_>>() {
            if let Err(error) = self.port_remove(&port).await {
                tracing::error!("{error:#}");
            }
            // What it has asked for itself has just been done.
            self.routers.due = false;
        }
        self.flush();
        self.routers
            .problems
            .retain(|vni, _| wanted.contains_key(vni));
        for (vni, network) in &wanted {
            if self.router(*vni).is_none() && self.routers.pending.insert(*vni) {
                self.lease_router(network.clone());
            }
        }
        self.follow_networks();
        let rules = self.rules(&wanted);
        if self.knows_tasks() {
            self.firewall.set(rules);
        } else {
            let requests = self.requests.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LOOK_AGAIN).await;
                let _ = requests.send(Request::RoutersLook).await;
            });
        }
        self.answer_waiting();
    }

    /// Has a task ask for a router's lease, which comes back as a request.
    fn lease_router(&self, network: Network) {
        let (addresses, requests) = (Arc::clone(&self.addresses), self.requests.clone());
        let me = self.cluster.me();
        let name = format!("{}.gw", me.name);
        let name = match check_name(&name) {
            Ok(()) => name,
            Err(_) => format!("{}.gw", me.id),
        };
        tokio::spawn(async move {
            let vni = network.vni;
            let wish = Wish {
                network: network.clone(),
                name: name.clone(),
                ip: None,
                mac: None,
                last: true,
            };
            let add = addresses.take(wish).await.map(|given| PortAdd {
                endpoint: Endpoint {
                    name,
                    vni,
                    mac: given.mac,
                    ips: given.ips,
                    aliases: Vec::new(),
                    service: None,
                    router: true,
                    unready: false,
                },
                network,
                netns: Netns::Path(OWN_NETNS.into()),
                ifname: router_ifname(vni),
                resolv_conf: false,
                intercept_dns: false,
                attachment: None,
                docker: None,
                publish: Vec::new(),
                limit: None,
                steps: Steps::begin(),
            });
            // An agent that stops meanwhile gives its leases back itself.
            let _ = requests
                .send(Request::RouterLeased(vni, Box::new(add)))
                .await;
        });
    }

    /// A router's lease is there, or can't be had.
    pub(super) async fn router_leased(&mut self, vni: Vni, add: Result<PortAdd>) {
        self.routers.pending.remove(&vni);
        self.routers.due = true;
        let made = match add {
            Ok(add) => {
                let name = add.endpoint.name.clone();
                let made = match self.routed_networks().contains_key(&vni) {
                    true => self.port_add(add).await.map(drop),
                    false => Err(anyhow::anyhow!("nobody needs it any more")),
                };
                if made.is_err() {
                    self.addresses.give_back(vni, &name);
                }
                made
            }
            Err(error) => Err(error).context("this host gets no address there"),
        };
        match made {
            Ok(()) => drop(self.routers.problems.remove(&vni)),
            Err(error) => {
                let problem = format!("{error:#}");
                tracing::warn!(%vni, "a network has no way out of this host: {problem}");
                self.routers.problems.insert(vni, problem);
                // The next tick tries again, and nobody before.
                self.routers.due = false;
                self.answer_waiting();
            }
        }
    }

    /// Answers when a network has its way out here, or why it has none.
    pub(super) fn router_wait(&mut self, vni: Vni, reply: Reply<Option<String>>) {
        self.routers.waiting.push((vni, reply));
        self.routers.due = true;
    }

    fn answer_waiting(&mut self) {
        for (vni, reply) in std::mem::take(&mut self.routers.waiting) {
            if self.router(vni).is_some() {
                let applied = self.firewall.applied();
                tokio::spawn(async move { drop(reply.send(Ok(applied.await))) });
            } else if let Some(problem) = self.routers.problems.get(&vni) {
                drop(reply.send(Ok(Some(problem.clone()))));
            } else if self.routers.pending.contains(&vni) {
                self.routers.waiting.push((vni, reply));
            } else {
                drop(reply.send(Ok(None)));
            }
        }
    }

    /// What the kernel's tables are to say.
    fn rules(&mut self, wanted: &BTreeMap<Vni, Network>) -> Rules {
        let mut published = self.published_services();
        let way = |(vni, network): (&Vni, &Network)| {
            self.router(*vni)?;
            Some(Way {
                ifname: router_ifname(*vni),
                ipv6: network.subnets().any(|family| family.subnet.is_ipv6()),
            })
        };
        for port in self.state.ports() {
            for publish in &port.publish {
                let ips = port.endpoint.ips.iter().filter(|ip| is_routable(ip));
                let backend = |ip: &std::net::IpAddr| Backend {
                    ip: *ip,
                    port: publish.port,
                };
                published.push((publish.clone(), ips.map(backend).collect()));
            }
        }
        Rules {
            ways: wanted.iter().filter_map(way).collect(),
            published,
        }
    }

    /// What is wrong with ways out and published services, and with which, for `verify`.
    pub(super) fn router_problems(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = self.service_problems.clone();
        for (vni, network) in self.routed_networks() {
            if self.router(vni).is_none() {
                let why = self.routers.problems.get(&vni);
                let why = why.map_or("it is being made", String::as_str);
                all.push((network.name, format!("no way out of this host: {why}")));
            }
        }
        all
    }
}

/// True but for addresses of one link.
pub(super) fn is_routable(ip: &std::net::IpAddr) -> bool {
    !matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}
