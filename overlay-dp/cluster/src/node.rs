//! One host at run time: the state that all its tasks share, and the way every change takes
//! through it. Locks are held for computing only, never across an await.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use overlay_core::facts::{Facts, Version};
use overlay_core::model::{Host, HostId};
use parking_lot::Mutex;
use quinn::{ClientConfig, Endpoint};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::api::{Counters, Event};
use crate::error::Error;
use crate::gossip::Gossip;
use crate::managers::{self, Raft};
use crate::pki::Identity;
use crate::state::Store;
use crate::transport;
use crate::wire::HostInfo;
use crate::{control, gossip, peers};

mod sockets;

pub use sockets::Sockets;

/// Once so many events wait for the agent, no more is read from other hosts.
const MAX_BACKLOG: usize = 100_000;
/// After a restore, hosts have so long to claim again what they use, before others get anything.
const CLAIMS_FIRST: Duration = Duration::from_secs(10);
/// Strangers' requests that are handled at a time.
const JOINS: usize = 16;

pub struct Node {
    pub me: HostId,
    /// The state directory.
    pub dir: PathBuf,
    /// What this host says of itself.
    info: Mutex<HostInfo>,
    store: Arc<Store>,
    tls: Mutex<Tls>,
    pub sockets: Mutex<Sockets>,
    /// On managers only.
    raft: Mutex<Option<Raft>>,
    /// The manager that did last what only the leader can do.
    leader: Mutex<Option<HostId>>,
    /// Until then only claims are granted.
    claims_until: Option<Instant>,
    pub gossip: Gossip,
    /// What other agents ask this host's.
    pub peers: peers::Desk,
    /// Facts have changed, or what this host says of itself.
    pub changed: watch::Sender<()>,
    pub counted: Counted,
    /// Slots for requests without a certificate.
    pub joins: Semaphore,
    events: mpsc::UnboundedSender<Event>,
    backlog: Arc<AtomicUsize>,
    expelled: AtomicBool,
    leaves: AtomicBool,
    /// So many answers of managers are to get lost.
    #[cfg(test)]
    pub lost: AtomicUsize,
    stop: watch::Sender<bool>,
}

/// This host's certificate, and what is made of it for calls.
struct Tls {
    identity: Identity,
    gossip: ClientConfig,
    control: ClientConfig,
}

impl Tls {
    fn new(identity: Identity) -> Result<Tls, Error> {
        Ok(Tls {
            gossip: transport::gossip_client(identity.client(transport::GOSSIP)?),
            control: transport::control_client(identity.client(transport::CONTROL)?),
            identity,
        })
    }
}

/// See [`Counters`].
#[derive(Default)]
pub struct Counted {
    pub joins_refused: AtomicU64,
    pub packets_refused: AtomicU64,
    pub messages_refused: AtomicU64,
    pub strangers_refused: AtomicU64,
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a node begins with.
pub struct Parts {
    pub me: HostId,
    pub dir: PathBuf,
    pub info: HostInfo,
    pub identity: Identity,
    pub store: Arc<Store>,
    /// Whether it came of a backup just now.
    pub restored: bool,
    pub gossip: Gossip,
    pub events: mpsc::UnboundedSender<Event>,
    pub backlog: Arc<AtomicUsize>,
}

impl Node {
    pub fn new(parts: Parts) -> Result<Arc<Node>, Error> {
        Ok(Arc::new(Node {
            me: parts.me,
            dir: parts.dir,
            info: Mutex::new(parts.info),
            store: parts.store,
            tls: Mutex::new(Tls::new(parts.identity)?),
            sockets: Mutex::default(),
            raft: Mutex::default(),
            leader: Mutex::new(None),
            claims_until: parts.restored.then(|| Instant::now() + CLAIMS_FIRST),
            gossip: parts.gossip,
            peers: peers::Desk::default(),
            changed: watch::Sender::new(()),
            counted: Counted::default(),
            joins: Semaphore::new(JOINS),
            events: parts.events,
            backlog: parts.backlog,
            expelled: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            #[cfg(test)]
            lost: AtomicUsize::new(0),
            stop: watch::Sender::new(false),
        }))
    }

    /// Runs a task until this host stops.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = task => {}
            }
        });
    }

    /// Ends all tasks and closes the sockets. What is known of the facts is on disk then.
    pub async fn shut_down(&self) {
        self.stop.send_replace(true);
        let raft = self.raft.lock().take();
        if let Some(raft) = raft {
            raft.shutdown().await;
        }
        self.gossip.clear();
        let sockets = std::mem::take(&mut *self.sockets.lock());
        sockets.close().await;
        // After a leave there is nothing to keep it in.
        if let Err(error) = self.keep_facts().await {
            tracing::debug!(%error, "the facts are not kept");
        }
    }

    /// Tells the agent.
    pub fn tell(&self, event: Event) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        if self.events.send(event).is_err() {
            // Without an agent that listens, events are of no use.
            self.backlog.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits until the agent has taken most of its events, so that nobody can fill the memory.
    pub async fn room(&self) {
        while self.backlog.load(Ordering::Relaxed) > MAX_BACKLOG {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// This host as it says itself; its role is what the facts say.
    pub fn host(&self) -> Host {
        let manager = self.facts(|facts| facts.host(self.me).is_some_and(|me| me.manager));
        self.info.lock().host(self.me, manager)
    }

    pub fn info(&self) -> HostInfo {
        self.info.lock().clone()
    }

    pub fn set_info(&self, change: impl FnOnce(&mut HostInfo)) {
        change(&mut self.info.lock());
        self.changed.send_replace(());
    }

    /// What this host says of itself, when the facts say something else.
    pub fn unknown_info(&self) -> Option<HostInfo> {
        let info = self.info();
        let known = self.facts(|facts| {
            let me = facts.host(self.me);
            me.is_none_or(|me| *me == info.host(self.me, me.manager))
        });
        (!known).then_some(info)
    }

    /// Reads the facts as they are known here.
    pub fn facts<R>(&self, look: impl FnOnce(&Facts) -> R) -> R {
        self.gossip.facts(look)
    }

    pub fn version(&self) -> Version {
        self.facts(Facts::version)
    }

    pub fn is_manager(&self, host: HostId) -> bool {
        self.facts(|facts| facts.host(host).is_some_and(|host| host.manager))
    }

    /// Writes the facts down, as they are known here, unless they are on disk.
    pub async fn keep_facts(&self) -> Result<(), Error> {
        if self.store.facts_version().await == Some(self.version()) {
            return Ok(());
        }
        let facts = self.facts(Facts::clone);
        let kept = self.store.update(move |stored| {
            if stored.facts.version() < facts.version() {
                stored.facts = facts;
            }
            Ok(())
        });
        kept.await
    }

    pub fn identity<R>(&self, look: impl FnOnce(&Identity) -> R) -> R {
        look(&self.tls.lock().identity)
    }

    /// Uses another certificate from now on, which is on disk before. Connections that stand are
    /// not touched.
    pub async fn set_identity(&self, identity: Identity) -> Result<(), Error> {
        let tls = Tls::new(identity.clone())?;
        let kept = identity.clone();
        let kept = self.store.update(move |stored| {
            stored.identity = kept;
            Ok(())
        });
        kept.await?;
        self.sockets.lock().certify(&identity)?;
        *self.tls.lock() = tls;
        Ok(())
    }

    pub fn gossip_client(&self) -> ClientConfig {
        self.tls.lock().gossip.clone()
    }

    pub fn control_client(&self) -> ClientConfig {
        self.tls.lock().control.clone()
    }

    /// The gossip socket, from which all calls go out.
    pub fn gossip_socket(&self) -> Option<Endpoint> {
        self.sockets.lock().gossip.clone()
    }

    pub fn control_addr(&self) -> SocketAddr {
        let info = self.info.lock();
        SocketAddr::new(info.vtep, info.control_port)
    }

    /// Answers on a gossip socket, in place of another one.
    pub fn open_gossip(self: &Arc<Self>, socket: Endpoint) -> Result<Option<Endpoint>, Error> {
        self.identity(|identity| sockets::certify_gossip(&socket, identity))?;
        let before = self.sockets.lock().gossip.replace(socket.clone());
        let served = self.clone();
        let serve = move |connection| gossip::accepted(&served, connection);
        self.spawn(transport::accept(socket, serve));
        Ok(before)
    }

    /// Answers on a control socket, in place of another one.
    pub fn open_control(self: &Arc<Self>, socket: Endpoint) -> Result<Option<Endpoint>, Error> {
        self.identity(|identity| sockets::certify_control(&socket, identity))?;
        let before = self.sockets.lock().control.replace(socket.clone());
        let served = self.clone();
        let serve = move |connection| control::accepted(&served, connection);
        self.spawn(transport::accept(socket, serve));
        Ok(before)
    }

    /// Answers no requests any more.
    pub async fn close_control(&self) {
        let socket = self.sockets.lock().control.take();
        if let Some(socket) = socket {
            transport::close(socket).await;
        }
    }

    pub fn raft(&self) -> Option<Raft> {
        self.raft.lock().clone()
    }

    /// Returns the one before.
    pub fn set_raft(self: &Arc<Self>, raft: Option<Raft>) -> Option<Raft> {
        if let Some(raft) = raft.clone() {
            self.spawn(managers::follow(self.clone(), raft));
        }
        std::mem::replace(&mut *self.raft.lock(), raft)
    }

    /// How long, after a restore, nobody gets what he has not had before.
    pub fn claims_first(&self) -> Option<Duration> {
        let left = self.claims_until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    pub fn leader(&self) -> Option<HostId> {
        *self.leader.lock()
    }

    pub fn set_leader(&self, host: Option<HostId>) {
        *self.leader.lock() = host;
    }

    /// This host leaves by itself: that it is no member then is no news.
    pub fn leaves(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    /// The cluster does without this host from now on.
    pub fn expel(&self) {
        if !self.expelled.swap(true, Ordering::Relaxed) && !self.leaves.load(Ordering::Relaxed) {
            tracing::warn!("this host was removed from its cluster");
            self.tell(Event::Expelled);
        }
    }

    pub fn is_expelled(&self) -> bool {
        self.expelled.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn loses_an_answer(&self) -> bool {
        let less = |lost: usize| lost.checked_sub(1);
        self.lost
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    pub async fn forget_all(&self) -> Result<(), Error> {
        self.store.delete().await
    }

    pub fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            joins_refused: get(&self.counted.joins_refused),
            packets_refused: get(&self.counted.packets_refused),
            messages_refused: get(&self.counted.messages_refused),
            strangers_refused: get(&self.counted.strangers_refused),
            records_refused: self.gossip.refused(),
        }
    }
}

/// Writes the facts down when they have changed, at most once a second.
pub async fn keep(node: Arc<Node>) {
    let mut changed = node.changed.subscribe();
    loop {
        if let Err(error) = node.keep_facts().await {
            tracing::warn!(%error, "the managers' news are not on disk");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        if changed.changed().await.is_err() {
            return;
        }
    }
}
