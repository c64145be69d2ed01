//! The agent: one event loop that owns this host's forwarding state.
//!
//! It alone writes the tables and the BPF maps. Everything else asks it: the API through
//! [`Request`]s, the cluster and the kernel through their events, the slow path through the
//! updates that its misses ask for.

mod datapath;
mod events;
mod leases;
mod leave;
mod next_hops;
mod options;
mod ports;
mod slow;
mod state;
mod status;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use overlay_cluster::{Cluster, Start};
use overlay_core::model::{Endpoint, Host as ClusterHost, HostId, Vni};
use overlay_core::tables::{StaticEntry, Tables};
use overlay_host::{Host, HostEvent, Monitor, Uplink};
use parking_lot::RwLock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::server::{self, Api};
use crate::api::{Detached, FdbRow, Netns, Status};
use crate::bpf::{Bpf, Hook};
use crate::instance::Instance;

pub use leave::clean_up_after_dead_agent;
pub use options::{Datapath, OnExit, Options};
pub use state::Port;

pub use leases::Leases;
use next_hops::NextHops;
use slow::SlowThread;
use state::{State, StateFile};

/// How often next hops are confirmed and stale map entries are looked for.
const TICK: Duration = Duration::from_secs(15);

/// What the API asks of the agent.
pub enum Request {
    /// The state of this host.
    Status(Reply<Status>),
    /// This host's ports.
    Ports(Reply<Vec<Port>>),
    /// Make a port for an endpoint that has its lease.
    PortAdd(Box<PortAdd>, Reply<Port>),
    /// Remove ports: of this name, on this network or on all.
    PortsRemove(String, Option<Vni>, Reply<Vec<Port>>),
    /// The forwarding table.
    Fdb(Reply<Vec<FdbRow>>),
    /// Add a static entry.
    StaticAdd(StaticEntry, Reply<FdbRow>),
    /// Remove a static entry.
    StaticRemove(Vni, overlay_core::model::MacAddr, Reply<FdbRow>),
    /// Leave the cluster, undo everything and stop.
    Detach(bool, Reply<Detached>),
}

/// A port to make.
pub struct PortAdd {
    /// What the cluster is told.
    pub endpoint: Endpoint,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The container.
    pub netns: Netns,
    /// The interface inside.
    pub ifname: String,
}

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<Result<T>>;

/// The hostname, made a name of the cluster's.
pub fn default_host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if overlay_core::model::check_name(&name).is_ok() {
        name
    } else {
        "host".to_owned()
    }
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When it can't start: one line that says what to do, with nothing left behind.
pub async fn run(options: Options) -> Result<()> {
    overlay_host::caps::check_privileges()?;
    overlay_host::kernel::require_kernel()?;
    let mut signals = Signals::new()?;
    let instance = options.instance.clone();
    let lock = leave::lock(&instance)?;
    let before = leave::Before::look(&instance);
    let started = tokio::select! {
        started = Agent::start_with_api(options, lock) => started,
        () = signals.received() => Err(anyhow!("told to stop before it was attached")),
    };
    let (mut agent, mut inputs, api, mut requests) = match started {
        Ok(started) => started,
        Err(error) => {
            before.restore(&instance).await;
            return Err(error);
        }
    };
    agent.announce();

    let mut tick = tokio::time::interval(TICK);
    tick.reset();
    let detached = loop {
        tokio::select! {
            Some(request) = requests.recv() => {
                if let Request::Detach(force, reply) = request {
                    match agent.may_leave(force) {
                        Ok(()) => break Some(reply),
                        Err(error) => { let _ = reply.send(Err(error)); }
                    }
                } else {
                    agent.handle(request).await;
                }
            }
            Some(event) = inputs.cluster.recv() => agent.on_cluster(event).await,
            Some(event) = inputs.host.recv() => agent.on_host(event).await,
            () = agent.slow.wait_for_updates() => agent.take_updates(),
            _ = tick.tick() => agent.on_tick().await,
            () = signals.received() => break None,
        }
        agent.flush();
    };
    match detached {
        Some(reply) => {
            let _ = reply.send(agent.leave().await);
            api.stop().await;
        }
        None => {
            api.stop().await;
            agent.stop().await?;
        }
    }
    Ok(())
}

/// The signals that stop the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Everything the loop works on.
struct Agent {
    options: Options,
    host: Host,
    uplink: Uplink,
    bpf: Bpf,
    plan: datapath::Plan,
    hooks: Vec<Hook>,
    /// MTU of containers.
    inner_mtu: u32,
    tables: Arc<RwLock<Tables>>,
    slow: SlowThread,
    next_hops: NextHops,
    cluster: Cluster,
    members: HashMap<HostId, ClusterHost>,
    leases: Arc<Leases>,
    /// Addresses on their way back to the manager.
    releases: Vec<JoinHandle<()>>,
    state: State,
    state_file: StateFile,
    started: Instant,
    /// Whether the last tick's sweep may believe that silent owners are gone.
    settled: bool,
    _lock: OwnedFd,
    _data_port: std::net::UdpSocket,
}

/// What the loop listens to.
struct Inputs {
    cluster: mpsc::Receiver<overlay_cluster::Event>,
    host: mpsc::Receiver<HostEvent>,
}

impl Agent {
    /// Starts everything; what is half done when that fails is for [`leave::Before::restore`].
    async fn start_with_api(
        options: Options,
        lock: OwnedFd,
    ) -> Result<(Agent, Inputs, Api, mpsc::Receiver<Request>)> {
        let (agent, inputs) = Agent::start(options, lock).await?;
        let (sender, requests) = mpsc::channel(64);
        let (cluster, leases) = (agent.cluster.clone(), Arc::clone(&agent.leases));
        match server::start(&agent.options.instance, cluster, leases, sender).await {
            Ok(api) => Ok((agent, inputs, api, requests)),
            Err(error) => {
                agent.cluster.clone().shutdown().await;
                Err(error)
            }
        }
    }

    async fn start(options: Options, lock: OwnedFd) -> Result<(Agent, Inputs)> {
        let host = Host::new()?;
        let uplink = Uplink::discover(&host, &options.iface, options.advertise).await?;
        let inner_mtu = inner_mtu(&uplink, options.mtu)?;
        let data_port = reserve(uplink.addr, options.data_port)?;
        let start = choose_start(&options)?;
        let state_file = StateFile::in_dir(&options.instance.state_dir())?;
        let state = state_file.load()?;
        overlay_host::bpffs::ensure_mounted(Instance::BPFFS.as_ref())?;
        let made = datapath::make(&options, &host, &uplink, inner_mtu).await?;
        let (monitor, host_events) = Monitor::new()?;
        tokio::spawn(monitor);
        let config = overlay_cluster::Config {
            data_port: options.data_port,
            control_port: options.control_port,
            gossip_port: options.gossip_port,
            ..overlay_cluster::Config::new(
                cluster_dir(&options.instance),
                &options.host_name,
                uplink.addr,
            )
        };
        let (cluster, cluster_events) = Cluster::start(config, start).await?;
        let mut agent = Agent {
            plan: made.plan,
            hooks: made.hooks,
            bpf: made.bpf,
            inner_mtu,
            tables: made.tables,
            slow: made.slow,
            next_hops: NextHops::default(),
            members: HashMap::new(),
            started: Instant::now(),
            settled: false,
            options,
            host,
            uplink,
            leases: Leases::new(cluster.clone()),
            releases: Vec::new(),
            cluster,
            state,
            state_file,
            _lock: lock,
            _data_port: data_port,
        };
        agent.take_over().await?;
        Ok((
            agent,
            Inputs {
                cluster: cluster_events,
                host: host_events,
            },
        ))
    }

    /// Fills the tables with what is known at the start: networks, hosts, and the ports and
    /// static entries of the last agent.
    async fn take_over(&mut self) -> Result<()> {
        for network in self.cluster.networks() {
            self.tables.write().network_add(network);
        }
        for member in self.cluster.members().into_iter().filter(|m| !m.me) {
            self.add_vtep(member.host.vtep).await;
            self.members.insert(member.host.id, member.host);
        }
        for entry in self.state.statics.clone() {
            self.add_vtep(entry.vtep).await;
            if let Err(error) = self.tables.write().static_add(entry.clone()) {
                tracing::warn!(mac = %entry.mac, %error, "a static entry is not taken over");
            }
        }
        self.take_over_ports().await?;
        self.leases.give_back_lost();
        self.state.uplink = Some(self.uplink.name.clone());
        self.state_file.save(&self.state)?;
        self.flush();
        Ok(())
    }

    /// Tells people and the service manager that the agent is ready.
    fn announce(&self) {
        let me = self.cluster.me();
        tracing::info!(
            host = %me.name, id = %me.id, vtep = %me.vtep, uplink = %self.uplink.name,
            mtu = self.inner_mtu, "attached"
        );
        for hook in &self.hooks {
            tracing::info!(interface = %hook.interface, site = %hook.site, attached = %hook.attached, why = %hook.why, "hook");
        }
        if let Some(token) = self.cluster.token() {
            let command = join_command(&me, &token.to_string());
            tracing::info!("to join a host, run there:\n\n    {command}\n");
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    }

    async fn handle(&mut self, request: Request) {
        // Whoever asked may be gone: an answer that nobody takes is no error.
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Ports(reply) => drop(reply.send(Ok(self.state.ports.clone()))),
            Request::PortAdd(add, reply) => {
                let done = self.port_add(*add).await;
                // The port must carry traffic when the answer arrives.
                self.flush();
                drop(reply.send(done));
            }
            Request::PortsRemove(name, vni, reply) => {
                let done = self.ports_remove(&name, vni).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::Fdb(reply) => drop(reply.send(Ok(self.fdb()))),
            Request::StaticAdd(entry, reply) => {
                let done = self.static_add(entry).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::StaticRemove(vni, mac, reply) => {
                let done = self.static_remove(vni, mac);
                self.flush();
                drop(reply.send(done));
            }
            Request::Detach(..) => unreachable!("the loop takes it"),
        }
    }

    /// Writes to the BPF maps what has changed in the tables.
    fn flush(&mut self) {
        loop {
            let Some(update) = self.tables.write().poll_update() else {
                break;
            };
            if let Err(error) = self.bpf.apply(update) {
                tracing::error!("{error:#}");
            }
        }
    }

    /// Writes to the BPF maps what the slow path found missing there.
    fn take_updates(&mut self) {
        while let Some((version, update)) = self.slow.next_update() {
            // Tables that have changed since may say otherwise: the next miss asks again.
            if version != self.tables.read().version() {
                continue;
            }
            if let Err(error) = self.bpf.apply(update) {
                tracing::error!("{error:#}");
            }
        }
    }
}

/// The command that joins a host to the one that is `me`.
pub fn join_command(me: &ClusterHost, token: &str) -> String {
    let address = match me.control_port {
        2377 => me.vtep.to_string(),
        port => std::net::SocketAddr::new(me.vtep, port).to_string(),
    };
    format!("overlay-dp attach --iface <uplink> --join {address} --token {token}")
}

fn inner_mtu(uplink: &Uplink, wanted: Option<u32>) -> Result<u32> {
    let most = uplink.container_mtu();
    match wanted {
        None => Ok(most),
        Some(mtu) if mtu > most => bail!(
            "--mtu {mtu} does not fit: {} has an MTU of {}, which leaves {most} for containers",
            uplink.name,
            uplink.mtu
        ),
        Some(mtu) if mtu < overlay_host::uplink::MIN_CONTAINER_MTU => {
            bail!(
                "--mtu {mtu} is too small: use {} at least",
                overlay_host::uplink::MIN_CONTAINER_MTU
            )
        }
        Some(mtu) => Ok(mtu),
    }
}

/// Holds the data port, so that no kernel vxlan device or other program takes frames that are
/// not ours, and so that a second one of us is noticed.
fn reserve(address: IpAddr, port: u16) -> Result<std::net::UdpSocket> {
    std::net::UdpSocket::bind((address, port)).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "port {port}/udp is taken on {address}: stop what uses it (see 'ss -ulpn' and 'ip -d link show type \
             vxlan'), or use another one on all hosts with --data-port"
        ),
        _ => anyhow!("can't use port {port}/udp on {address}: {error}"),
    })
}

fn cluster_dir(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir().join("cluster")
}

/// New, joining, or going on.
fn choose_start(options: &Options) -> Result<Start> {
    let stored = overlay_cluster::stored(&cluster_dir(&options.instance))?;
    match (stored, &options.join, &options.token) {
        (None, None, _) => Ok(Start::New),
        (None, Some(addr), Some(token)) => Ok(Start::Join {
            addr: addr.clone(),
            token: token.clone(),
        }),
        (Some(_), None, _) => Ok(Start::Resume),
        (Some(stored), Some(_), Some(token)) if stored.is_of(token) => {
            tracing::info!("this host is a member of that cluster already: going on as such");
            Ok(Start::Resume)
        }
        (Some(_), Some(_), _) => bail!(
            "this host is a member of another cluster: leave it first with 'overlay-dp detach', or go on as its \
             member without --join"
        ),
        (None, Some(_), None) => bail!("--join needs --token"),
    }
}
