//! The agent: one event loop that owns this host's forwarding state.
//!
//! It alone writes the tables and the BPF maps. Everything else asks it: the API through
//! [`Request`]s, the cluster and the kernel through their events, the slow path through the
//! updates that its misses ask for.

mod addresses;
mod attachments;
mod checks;
mod checksums;
mod crypt;
mod data_port;
mod datapath;
mod desk;
mod docker;
mod events;
mod firewall;
pub(crate) mod fuzzing;
mod groups;
mod judge;
mod keys;
mod leave;
mod names;
mod next_hops;
mod options;
mod policies;
mod ports;
mod probe;
mod publish;
mod resolv_conf;
mod routers;
mod services;
mod slow;
mod start;
mod state;
mod status;
mod steps;
#[cfg(test)]
mod tests;
mod underlay;
mod upgrade;
mod uplink;
mod verify;
mod vips;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use overlay_cluster::Cluster;
use overlay_common::layout::Config;
use overlay_common::{esp, wire::VXLAN_PORT};
use overlay_core::model::{Endpoint, Host as ClusterHost, HostId, Network, Vni};
use overlay_core::policy::RateLimit;
use overlay_core::tables::{StaticEntry, Tables};
use overlay_host::{Host, HostEvent, PuntPair, Uplink};
use parking_lot::RwLock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::api::attachments::AttachmentRef;
use crate::api::mdb::MdbRow;
use crate::api::{Attachment, Detached, FdbRow, Netns, Publish, Status, VtepInfo};
use crate::bpf::{Bpf, Hook};
use crate::docker::Docker;

pub use docker::{DockerJoin, DockerName, DockerPlug};
pub use judge::{Fate, Judge, Judgement, To, Tried};
pub use leave::{Expelled, clean_up_after_dead_agent};
pub use options::{Datapath, OnExit, Options};
pub use routers::ROUTER_PREFIX;
pub use start::prepare_restore;
pub use state::{JsonFile, Port};

pub use addresses::{Addresses, Wish};
use checks::Checks;
use checksums::Checksums;
use crypt::CryptThreads;
use data_port::DataPort;
use firewall::Firewall;
pub use keys::KeyBook;
use leave::Lock;
use names::NameService;
use next_hops::NextHops;
use probe::Prober;
use publish::Held;
use routers::Routers;
use slow::SlowThread;
use state::State;
pub use steps::Steps;
pub use verify::{Finding, Verify};
use vips::Vips;

/// How often next hops are confirmed and stale map entries are looked for.
const TICK: Duration = Duration::from_secs(15);
/// Ways out and published services follow a burst of so much news at a time: they look at all
/// endpoints of a network.
const BURST: u32 = 1000;

/// What the API asks of the agent.
pub enum Request {
    /// The state of this host.
    Status(Reply<Status>),
    /// The ways to the other VTEPs.
    Vteps(Reply<Vec<VtepInfo>>),
    /// This host's ports.
    Ports(Reply<Vec<Port>>),
    /// Make a port for an endpoint that has its lease.
    PortAdd(Box<PortAdd>, Reply<Port>),
    /// A router's lease is there, or can't be had.
    RouterLeased(Vni, Box<Result<PortAdd>>),
    /// What routers wait for may be known by now.
    RoutersLook,
    /// Somebody else may have changed the kernel's tables.
    FirewallLook,
    /// A task of this host passes its service's check, or does not any more.
    TaskReady {
        /// Its network.
        vni: Vni,
        /// Its name.
        name: String,
        /// Whether it passes.
        ready: bool,
    },
    /// Answer when what was agreed on services is in the tables.
    VipsFit(Reply<()>),
    /// Answer when what was agreed on policies is in the maps.
    PoliciesFit(Reply<()>),
    /// Answer when a network has its way out here: with what is wrong, if anything.
    RouterWait(Vni, Reply<Option<String>>),
    /// Whether this host can publish these for a service.
    PublishCheck(Vec<Publish>, Reply<()>),
    /// Remove ports: of this name, on this network or on all.
    PortsRemove(String, Option<Vni>, Reply<Vec<Port>>),
    /// Remove what was attached for a runtime's container.
    AttachmentsRemove(AttachmentRef, Reply<Vec<Port>>),
    /// Look at it, and say what is wrong with it.
    AttachmentCheck(AttachmentRef, Reply<(Vec<Port>, Vec<String>)>),
    /// The forwarding table.
    Fdb(Reply<Vec<FdbRow>>),
    /// Which groups have members.
    Mdb(Reply<Vec<MdbRow>>),
    /// Add a static entry.
    StaticAdd(StaticEntry, Reply<FdbRow>),
    /// Remove a static entry.
    StaticRemove(Vni, overlay_core::model::MacAddr, Reply<FdbRow>),
    /// Make the port of a container of Docker's; the answer is the interface that Docker moves.
    DockerJoin(Box<DockerJoin>, Reply<String>),
    /// What such a container is called.
    DockerName(DockerName, Reply<()>),
    /// Make such a port again, which an agent that stopped has removed.
    DockerPlug(Box<DockerPlug>, Reply<()>),
    /// Publish these for an endpoint of Docker's, in the place of what it has.
    DockerPublish(String, Vec<Publish>, Reply<()>),
    /// Remove the port of an endpoint of Docker's.
    DockerLeave(String, Reply<()>),
    /// Look for differences, and repair them.
    Verify(Verify, Reply<Vec<Finding>>),
    /// What would become of a frame.
    Judge(Judge, Reply<Judgement>),
    /// Leave the cluster, undo everything and stop.
    Detach(bool, Reply<Detached>),
}

/// A port to make.
pub struct PortAdd {
    /// What the cluster is told.
    pub endpoint: Endpoint,
    /// Its network.
    pub network: Network,
    /// The container.
    pub netns: Netns,
    /// The interface inside.
    pub ifname: String,
    /// Whether the namespace gets a resolv.conf.
    pub resolv_conf: bool,
    /// Whether the agent answers what it asks of resolvers elsewhere.
    pub intercept_dns: bool,
    /// What the runtime calls it that asked.
    pub attachment: Option<Attachment>,
    /// Docker's id of it.
    pub docker: Option<String>,
    /// Ports of it that this host publishes.
    pub publish: Vec<Publish>,
    /// How much it may send.
    pub limit: Option<RateLimit>,
    /// What was done for it before.
    pub steps: Steps,
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
        started = Agent::start(options, lock) => started,
        () = signals.received() => Err(anyhow!("told to stop before it was attached")),
    };
    let (mut agent, mut inputs, api, mut requests) = match started {
        Ok(started) => started,
        Err(error) => {
            before.restore(&instance).await;
            return Err(error);
        }
    };
    agent.announce().await;

    let mut tick = tokio::time::interval(TICK);
    tick.reset();
    let mut unfitted = 0;
    let mut look = tokio::time::interval(upgrade::LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            event = inputs.cluster.recv() => match event {
                Some(event) => agent.on_cluster(event).await,
                None => agent.fatal = Some("the cluster's part has ended".to_owned()),
            },
            event = inputs.host.recv() => match event {
                Some(event) => agent.on_host(event).await,
                None => agent.fatal = Some("the kernel's news have ended".to_owned()),
            },
            () = agent.slow.wait_for_updates() => agent.take_updates(),
            () = agent.slow.wait_for_members() => agent.tell_groups(),
            () = agent.next_hops.wait() => agent.on_changes().await,
            () = agent.prober.wait_for_news() => agent.on_probes().await,
            _ = tick.tick() => agent.on_tick().await,
            _ = look.tick(), if agent.bpf.has_other_layouts() => {
                agent.swap_when_known(inputs.cluster.is_empty());
            }
            () = signals.received() => break None,
        }
        agent.flush();
        agent.fit_crypt();
        unfitted += 1;
        if inputs.cluster.is_empty() || unfitted >= BURST {
            agent.fit_routers().await;
            unfitted = 0;
        }
        if agent.expelled {
            agent.stop_docker(&mut requests).await;
            api.stop().await;
            return Err(agent.cut_off().await);
        }
        if let Some(why) = agent.fatal.take() {
            agent.stop_docker(&mut requests).await;
            return Err(agent.give_up(why).await);
        }
    };
    // Whoever still waits for an answer is told that there will be none.
    agent.stop_docker(&mut requests).await;
    tokio::spawn(async move {
        signals.received().await;
        tracing::error!("told twice to stop: the rest is left as it is, for 'overlay-dp detach'");
        std::process::exit(1);
    });
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
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
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
    names: NameService,
    next_hops: NextHops,
    prober: Prober,
    data_port: DataPort,
    /// Whether containers leave checksums to be computed.
    checksums: Checksums,
    /// Serves Docker, if it is to.
    docker: Option<Docker>,
    /// What is wrong with the uplink.
    uplink_problem: Option<String>,
    /// Its interface was deleted, and its hook with it.
    uplink_lost: bool,
    /// Since when it has not had our address, but another one.
    address_gone: Option<Instant>,
    cluster: Cluster,
    members: HashMap<HostId, ClusterHost>,
    addresses: Arc<Addresses>,
    /// Where the status page is served.
    metrics: Option<SocketAddr>,
    /// For what this agent's own tasks ask of its loop.
    requests: mpsc::Sender<Request>,
    routers: Routers,
    firewall: Firewall,
    held: Held,
    /// Services that this host can't publish, and why.
    service_problems: Vec<(String, String)>,
    /// Tries of this host's tasks.
    checks: Checks,
    /// What tables and names were told of services' own addresses.
    vips: Vips,
    /// The ends of the punt link and the crypt link, by ifindex.
    links: [u32; 4],
    /// What the programs know of this host.
    config: Config,
    crypt_link: PuntPair,
    crypt: CryptThreads,
    crypt_shared: Arc<crypt::Shared>,
    /// What is agreed with other hosts for encrypted networks.
    keys: Arc<KeyBook>,
    /// Why encrypted networks carry nothing.
    crypt_problem: Option<String>,
    /// The version of the tables when it was last seen whether keys are needed.
    tables_seen: Option<u64>,
    /// Why the agent can't go on.
    fatal: Option<String>,
    /// This host is a member no more.
    expelled: bool,
    /// Endpoints here that could not be told of yet, as the managers' news lack their network or
    /// address.
    untold: Vec<Endpoint>,
    /// Whether all was known that other layouts' programs must be replaced with, when it was last
    /// looked.
    all_was_known: bool,
    /// Whether entries of an earlier agent may be left in the BPF maps.
    sweep_due: bool,
    /// Whether the last sweep had to leave some of them to hosts that were not alive.
    stale_kept: bool,
    /// Whether this start made the cluster.
    is_new: bool,
    /// How long what took at the start.
    steps: Steps,
    state: State,
    started: Instant,
    /// Whether the last tick's sweep may believe that silent owners are gone.
    settled: bool,
    _lock: Lock,
}

/// What the loop listens to.
struct Inputs {
    cluster: mpsc::Receiver<overlay_cluster::Event>,
    host: mpsc::Receiver<HostEvent>,
}

impl Agent {
    /// Tells people and the service manager that the agent is ready.
    async fn announce(&self) {
        let me = self.cluster.me();
        tracing::info!(
            host = %me.name, id = %me.id, vtep = %me.vtep, uplink = %self.uplink.name,
            mtu = self.inner_mtu, took = %self.steps, "attached"
        );
        for hook in &self.hooks {
            tracing::info!(interface = %hook.interface, site = %hook.site, attached = %hook.attached, why = %hook.why, "hook");
        }
        if let Some(address) = self.metrics {
            tracing::info!("status page: http://{address}/, metrics: http://{address}/metrics");
        }
        if self.is_new {
            match self.cluster.token(false).await {
                Ok(token) => {
                    let command = join_command(&me, &token.to_string());
                    tracing::info!("to join a host, run there:\n\n    {command}\n");
                }
                Err(error) => tracing::warn!(%error, "no token to join with yet"),
            }
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    }

    async fn handle(&mut self, request: Request) {
        // Whoever asked may be gone: an answer that nobody takes is no error.
        match request {
            Request::Status(reply) => drop(reply.send(self.status().await)),
            Request::Vteps(reply) => drop(reply.send(self.vteps().await)),
            Request::Ports(reply) => {
                let containers = self.state.ports().filter(|port| !port.endpoint.router);
                drop(reply.send(Ok(containers.cloned().collect())));
            }
            Request::PortAdd(add, reply) => {
                let done = self.port_add(*add).await;
                // The port must carry traffic when the answer arrives.
                self.flush();
                drop(reply.send(done));
            }
            Request::RouterLeased(vni, add) => self.router_leased(vni, *add).await,
            Request::RoutersLook => self.routers.due = true,
            Request::FirewallLook => self.firewall.look(),
            Request::TaskReady { vni, name, ready } => self.task_ready(vni, &name, ready),
            Request::VipsFit(reply) => {
                self.fit_vips();
                self.flush();
                drop(reply.send(Ok(())));
            }
            Request::PoliciesFit(reply) => {
                self.fit_policies();
                self.flush();
                drop(reply.send(Ok(())));
            }
            Request::RouterWait(vni, reply) => self.router_wait(vni, reply),
            Request::PublishCheck(publish, reply) => {
                drop(reply.send(self.check_new_publish(&publish)));
            }
            Request::PortsRemove(name, vni, reply) => {
                let done = self.ports_remove(&name, vni).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::AttachmentsRemove(which, reply) => {
                let done = self.attachments_remove(&which).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::AttachmentCheck(which, reply) => {
                drop(reply.send(self.attachment_check(&which).await));
            }
            Request::DockerJoin(join, reply) => {
                let done = self.docker_join(*join).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::DockerName(name, reply) => drop(reply.send(self.docker_name(name).await)),
            Request::DockerPlug(plug, reply) => {
                let done = self.docker_plug(*plug).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::DockerPublish(id, publish, reply) => {
                drop(reply.send(self.docker_publish(&id, publish)));
            }
            Request::DockerLeave(id, reply) => {
                let done = self.docker_leave(&id).await;
                self.flush();
                drop(reply.send(done));
            }
            Request::Fdb(reply) => drop(reply.send(Ok(self.fdb()))),
            Request::Mdb(reply) => drop(reply.send(Ok(self.mdb()))),
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
            Request::Judge(frame, reply) => drop(reply.send(Ok(self.judge(&frame)))),
            Request::Verify(ask, reply) => drop(reply.send(self.verify(ask).await)),
            Request::Detach(..) => unreachable!("the loop takes it"),
        }
    }

    /// Writes to the BPF maps what has changed in the tables.
    fn flush(&mut self) {
        if let Err(error) = self.flush_checked() {
            tracing::error!("{error:#}");
        }
    }

    /// [`Agent::flush`], with the first error. The updates behind it are carried out as well.
    fn flush_checked(&mut self) -> Result<()> {
        let mut result = Ok(());
        loop {
            let Some(update) = self.tables.write().poll_update() else {
                return result;
            };
            let done = self.bpf.apply(update);
            if result.is_ok() {
                result = done;
            }
        }
    }

    /// Has keys agreed on while this host has a container in an encrypted network, and workers to
    /// use them from the first such container on.
    fn fit_crypt(&mut self) {
        let (version, needed) = {
            let tables = self.tables.read();
            if self.tables_seen == Some(tables.version()) && self.crypt_problem.is_none() {
                return;
            }
            (tables.version(), tables.needs_keys())
        };
        self.tables_seen = Some(version);
        if needed {
            let (far, queues) = (self.crypt_link.far_ifindex, self.crypt_link.queues);
            let problem = self.crypt.start(&mut self.bpf, far, queues).err();
            let problem = problem.map(|error| format!("{error:#}"));
            if let Some(problem) = &problem
                && self.crypt_problem.as_ref() != Some(problem)
            {
                tracing::error!("encrypted networks carry nothing: {problem}");
            }
            self.crypt_problem = problem;
        }
        self.keys.set_active(needed);
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
    let address = join_address(me);
    // All hosts have the same.
    let ports = [
        ("--data-port", me.data_port, VXLAN_PORT),
        ("--esp-port", me.esp_port, esp::PORT),
    ];
    let unusual = ports.iter().filter(|(_, port, usual)| port != usual);
    let unusual: String = unusual
        .map(|(name, port, _)| format!(" {name} {port}"))
        .collect();
    format!("overlay-dp attach --iface <uplink> --join {address} --token {token}{unusual}")
}

/// Where hosts join: with the port, if it is not the usual one.
pub fn join_address(me: &ClusterHost) -> String {
    match me.control_port {
        2377 => me.vtep.to_string(),
        port => SocketAddr::new(me.vtep, port).to_string(),
    }
}
