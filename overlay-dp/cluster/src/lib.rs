//! The control plane of overlay-dp in its first form: which hosts belong together, which networks
//! there are, who has which address, and which endpoint is where.
//!
//! The first host makes the cluster and is its manager: it holds the CA, the networks and the
//! address leases. Other hosts join with a [`Token`]. Everything between hosts is QUIC with TLS
//! 1.3 and certificates of the cluster's CA on both sides; only a join is let in without one, by
//! the token's secret, which the joiner sends only after it has verified that CA.
//!
//! ```text
//!   host A (manager)                       host B
//!   2377/udp control  ◄── join, networks, leases ──
//!   7946/udp gossip   ◄── endpoints, facts, SWIM ──►  7946/udp gossip
//! ```
//!
//! Without the manager, nothing that runs is lost: endpoints and membership go on between the
//! others, and only networks and leases wait.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use overlay_core::model::{Endpoint, Host, HostId, Network, Vni, check_name};
use parking_lot::Mutex;
use rand::RngExt;
use rand::SeedableRng;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

mod api;
mod book;
mod control;
mod error;
mod gossip;
mod hex;
mod log;
mod manager;
mod node;
mod pki;
mod state;
mod swim;
mod token;
mod transport;
mod wire;

pub use api::{Config, Counters, Event, Member, MemberState, Start, StoredSummary, stored};
pub use error::Error;
pub use overlay_core::ipam::{Lease, LeaseSpec, NetworkSpec};
pub use token::{Token, TokenError};

use node::Node;
use state::{Store, Stored};
use wire::{Facts, Reply, Request};

/// The agent should take events at once; so many wait for it without any delay.
const EVENTS: usize = 1024;
/// So many joins are handled at a time.
const JOINS: usize = 16;

/// A running member of a cluster: a handle that is cheap to clone. Dropping it stops nothing; see
/// [`Cluster::shutdown`].
#[derive(Clone)]
pub struct Cluster {
    node: Arc<Node>,
    token: Option<Token>,
}

impl Cluster {
    /// Starts this host's part of the cluster. When a join fails, this host has kept nothing.
    ///
    /// # Errors
    /// When a port is taken, the state directory or the token can't be used, or the manager says
    /// no or nothing.
    pub async fn start(
        config: Config,
        start: Start,
    ) -> Result<(Cluster, mpsc::Receiver<Event>), Error> {
        check_name(&config.host_name)?;
        let dir = config.state_dir.clone();
        let kept = state::load(&dir)?;
        if kept.is_some() && !matches!(start, Start::Resume) {
            return Err(Error::AlreadyMember(state::path(&dir)));
        }
        // Ports are taken first, so that nobody hears of a host that can't run.
        let gossip_addr = SocketAddr::new(config.vtep, config.gossip_port);
        let gossip = transport::bind(gossip_addr, "--gossip-port")?;
        let manager = match &kept {
            Some(kept) => kept.manager.is_some(),
            None => matches!(start, Start::New),
        };
        let control_addr = SocketAddr::new(config.vtep, config.control_port);
        let control = manager
            .then(|| transport::bind(control_addr, "--control-port"))
            .transpose()?;

        let mut stored = match (kept, start) {
            (Some(kept), _) => kept,
            (None, Start::New) => new_cluster(&config)?,
            (None, Start::Join { addr, token }) => {
                let joined = control::join(&gossip, &addr, &token, &config.info()).await;
                let joined = match joined {
                    Ok(joined) => joined,
                    Err(error) => {
                        transport::close(gossip).await;
                        return Err(error);
                    }
                };
                Stored::new(joined.id, joined.identity, joined.facts, None)
            }
            (None, Start::Resume) => return Err(Error::NoCluster(state::path(&dir))),
        };
        stored.incarnation = control::wall_clock().max(stored.incarnation + 1);
        let store = Store::create(&dir, stored.clone())?;
        Self::run(config, stored, store, gossip, control).await
    }

    async fn run(
        config: Config,
        stored: Stored,
        store: Arc<Store>,
        gossip: quinn::Endpoint,
        control: Option<quinn::Endpoint>,
    ) -> Result<(Cluster, mpsc::Receiver<Event>), Error> {
        let identity = &stored.identity;
        gossip.set_server_config(Some(transport::gossip_server(
            identity.server(transport::GOSSIP, false)?,
        )));
        if let Some(control) = &control {
            let crypto = identity.server(transport::CONTROL, true)?;
            control.set_server_config(Some(transport::control_server(crypto)));
        }
        let (me, incarnation) = (stored.id, stored.incarnation);
        let rng = rand::rngs::StdRng::from_seed(rand::rng().random());
        let (events, mut pending) = mpsc::unbounded_channel();
        let (out, receiver) = mpsc::channel(EVENTS);
        let backlog = Arc::new(AtomicUsize::new(0));
        let now = Instant::now();
        let node = Arc::new(Node {
            me,
            info: config.info(),
            manager: stored.manager.is_some(),
            store,
            gossip_client: transport::gossip_client(identity.client(transport::GOSSIP)?),
            control_client: transport::control_client(identity.client(transport::CONTROL)?),
            sockets: Mutex::new(
                [Some(&gossip), control.as_ref()]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
            ),
            swim: Mutex::new(swim::Swim::new(swim::Id::new(me, incarnation), rng)),
            book: Mutex::new(book::Book::new(
                me,
                stored.facts,
                incarnation,
                config.retention,
                now,
            )),
            links: Mutex::default(),
            changed: watch::Sender::new(()),
            dial: Notify::new(),
            timer: Notify::new(),
            counted: node::Counted::default(),
            joins: Semaphore::new(JOINS),
            events,
            backlog: backlog.clone(),
            stop: watch::Sender::new(false),
        });
        let token = node.token().await;
        node.spawn(async move {
            while let Some(event) = pending.recv().await {
                if out.send(event).await.is_err() {
                    pending.close();
                }
                backlog.fetch_sub(1, Ordering::Relaxed);
            }
        });
        let served = node.clone();
        let serve = move |connection| gossip::accepted(&served, connection);
        node.spawn(transport::accept(gossip, serve));
        if let Some(control) = control {
            let served = node.clone();
            let serve = move |connection| control::accepted(&served, connection);
            node.spawn(transport::accept(control, serve));
        }
        node.spawn(gossip::dial_all(node.clone()));
        node.spawn(node.clone().run_timers());
        node.spawn(node.clone().run_clock());
        node.spawn(announce(node.clone()));
        Ok((Cluster { node, token }, receiver))
    }

    /// This host.
    pub fn me(&self) -> Host {
        self.node.info.host(self.node.me, self.node.manager)
    }

    /// What lets other hosts join; only the manager has it.
    pub fn token(&self) -> Option<Token> {
        self.token.clone()
    }

    /// All hosts of the cluster, this one among them.
    pub fn members(&self) -> Vec<Member> {
        self.node.members()
    }

    /// What was turned away.
    pub fn counters(&self) -> Counters {
        self.node.counters()
    }

    /// All networks.
    pub fn networks(&self) -> Vec<Network> {
        self.node.book(|book| book.facts().networks.clone())
    }

    /// Finds a network by its name, at the manager if it is not known here: somebody may have made
    /// it on another host just now.
    ///
    /// # Errors
    /// When it is not known here and the manager does not answer.
    pub async fn network(&self, name: &str) -> Result<Option<Network>, Error> {
        let find = || {
            self.networks()
                .into_iter()
                .find(|network| network.name == name)
        };
        if find().is_none() {
            self.refresh().await?;
        }
        Ok(find())
    }

    async fn refresh(&self) -> Result<(), Error> {
        let have = self.node.book(|book| book.facts().version);
        control::ask(&self.node, Request::Facts { have })
            .await
            .map(|_| ())
    }

    /// Makes a network, which [`Cluster::networks`] has when this returns. `avoid` are this host's
    /// routes: subnets that it must not overlap.
    ///
    /// # Errors
    /// When the manager refuses or does not answer.
    pub async fn network_create(
        &self,
        spec: NetworkSpec,
        avoid: Vec<IpNetwork>,
    ) -> Result<Network, Error> {
        self.change_network(Request::NetworkCreate { spec, avoid })
            .await
    }

    /// Removes a network that no endpoint uses.
    ///
    /// # Errors
    /// When the manager refuses or does not answer.
    pub async fn network_remove(&self, name: &str) -> Result<Network, Error> {
        self.change_network(Request::NetworkRemove {
            name: name.to_owned(),
        })
        .await
    }

    async fn change_network(&self, request: Request) -> Result<Network, Error> {
        match control::ask(&self.node, request).await? {
            Reply::Network { network, .. } => Ok(network),
            _ => Err(nonsense()),
        }
    }

    /// Leases an address for an endpoint of this host. Repeated for an endpoint that has a lease
    /// here, it gives that lease, so a request whose answer was lost can simply be made again. The
    /// network is known here when this returns.
    ///
    /// # Errors
    /// When the manager refuses or does not answer.
    pub async fn lease(&self, spec: LeaseSpec) -> Result<Lease, Error> {
        let vni = spec.vni;
        let Reply::Lease(lease) = control::ask(&self.node, Request::Lease(spec)).await? else {
            return Err(nonsense());
        };
        if self.node.book(|book| book.network(vni).is_none()) {
            self.refresh().await?;
        }
        Ok(lease)
    }

    /// Gives an address back.
    ///
    /// # Errors
    /// When the manager refuses or does not answer.
    pub async fn release(&self, vni: Vni, ip: IpAddr, endpoint: &str) -> Result<(), Error> {
        let request = Request::Release {
            vni,
            ip,
            endpoint: endpoint.to_owned(),
        };
        control::ask(&self.node, request).await.map(|_| ())
    }

    /// All leases of this host: after a crash, those without a container can be released.
    ///
    /// # Errors
    /// When the manager does not answer.
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        match control::ask(&self.node, Request::Leases).await? {
            Reply::Leases(leases) => Ok(leases),
            _ => Err(nonsense()),
        }
    }

    /// Tells all hosts of an endpoint of this one, or of what has changed about it.
    ///
    /// # Errors
    /// When the others would not accept it.
    pub fn publish(&self, endpoint: Endpoint) -> Result<(), Error> {
        let new = self.node.book(|book| {
            let network = book
                .network(endpoint.vni)
                .ok_or(Error::NoNetwork(endpoint.vni))?;
            log::well_formed(&endpoint)
                .and_then(|()| log::fits(&endpoint, network))
                .map_err(|problem| Error::Endpoint {
                    name: endpoint.name.clone(),
                    problem,
                })?;
            if book.own.is_full() {
                let problem = "this host has too many";
                return Err(Error::Endpoint {
                    name: endpoint.name.clone(),
                    problem,
                });
            }
            Ok(book.own.publish(endpoint))
        })?;
        if new {
            self.node.tell();
        }
        Ok(())
    }

    /// Tells all hosts that an endpoint of this one is gone.
    pub fn withdraw(&self, vni: Vni, name: &str) {
        self.node.book(|book| book.own.withdraw(vni, name));
        self.node.tell();
    }

    /// Says that after a restart all endpoints are published again: what this host had before and
    /// has not now goes. Without it that happens after five seconds.
    pub fn settled(&self) {
        if self.node.book(|book| book.own.settle()) {
            self.node.tell();
        }
    }

    /// The endpoints of a network on all hosts, this one among them.
    pub fn endpoints(&self, vni: Vni) -> Vec<(HostId, Endpoint)> {
        self.node.book(|book| book.endpoints(vni))
    }

    /// Leaves for good: releases this host's leases, lets the others withdraw its endpoints at
    /// once, and removes the state file. A manager that leaves takes the CA with it: the others go
    /// on, but can agree on nothing new.
    ///
    /// # Errors
    /// Also then this host has left; the error says what remains elsewhere.
    pub async fn leave(self) -> Result<(), Error> {
        self.node.book(|book| book.own.leave());
        self.node.tell();
        let told = match self.node.manager {
            true => Ok(()),
            false => control::ask(&self.node, Request::Leave).await.map(|_| ()),
        };
        // The last change is on its way to each host that can be reached.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let deleted = self.node.store.delete().await;
        self.shutdown().await;
        deleted?;
        match told {
            Err(Error::ManagerUnreachable { addr, problem }) => {
                Err(Error::LeftUntold { addr, problem })
            }
            Err(Error::ManagerLeft(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Stops all tasks and closes the sockets. The state stays for [`Start::Resume`]; the others
    /// see this host go down in a few seconds, and keep its endpoints.
    pub async fn shutdown(self) {
        self.node.shut_down().await;
    }
}

fn nonsense() -> Error {
    Error::Refused("the manager's reply makes no sense: it runs another version".into())
}

fn new_cluster(config: &Config) -> Result<Stored, Error> {
    let id = HostId(rand::rng().random_range(1..=u64::MAX));
    let authority = pki::Authority::new()?;
    let (key, csr) = pki::new_request()?;
    let cert = authority.certify(&csr, id, true)?;
    let identity = pki::Identity {
        ca: authority.cert.clone(),
        cert,
        key,
    };
    let facts = Facts {
        version: control::wall_clock(),
        manager: id,
        hosts: vec![config.info().host(id, true)],
        networks: Vec::new(),
    };
    let manager = manager::Manager::new(authority, token::new_secret());
    Ok(Stored::new(id, identity, facts, Some(manager)))
}

/// After a start with another address, name or port, tells the manager until it knows.
async fn announce(node: Arc<Node>) {
    let mut pause = Duration::from_millis(200);
    while node
        .book(|book| book.facts().host(node.me) != Some(&node.info.host(node.me, node.manager)))
    {
        match control::ask(&node, Request::Update(node.info.clone())).await {
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "this host's new address is not known yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

#[cfg(test)]
mod hostile_tests;
