//! One host at run time: the state that all its tasks share, and the way every change takes
//! through it. Locks are held for computing only, never across an await, and `swim` before `book`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use overlay_core::model::{Host, HostId};
use parking_lot::Mutex;
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::book::Book;
use crate::manager::{MAX_HOSTS, Manager};
use crate::state::Store;
use crate::swim::{Output, Swim};
use crate::transport::{self, Goodbye};
use crate::wire::{Facts, HostInfo};
use crate::{Counters, Event, Member, MemberState};

/// Once so many events wait for the agent, no more is read from other hosts.
const MAX_BACKLOG: usize = 100_000;
/// More connections with one host than this: the oldest goes.
const MAX_LINKS: usize = 4;
/// A restarted host has so long to publish what it had.
const SETTLE: Duration = Duration::from_secs(5);

pub struct Node {
    pub me: HostId,
    pub info: HostInfo,
    /// Whether this host is the manager.
    pub manager: bool,
    pub store: Arc<Store>,
    /// The gossip socket, and the control socket on the manager; none after a shutdown.
    pub sockets: Mutex<Vec<Endpoint>>,
    pub gossip_client: ClientConfig,
    pub control_client: ClientConfig,
    pub swim: Mutex<Swim>,
    pub book: Mutex<Book>,
    /// The live connections with each host, the newest last.
    pub links: Mutex<BTreeMap<HostId, Vec<Connection>>>,
    /// Something of this host's own has changed, for which its followers wait.
    pub changed: watch::Sender<()>,
    /// There is somebody to call.
    pub dial: Notify,
    /// The next membership timer may be another one.
    pub timer: Notify,
    pub counted: Counted,
    /// Slots for requests without a certificate.
    pub joins: Semaphore,
    pub events: mpsc::UnboundedSender<Event>,
    pub backlog: Arc<AtomicUsize>,
    pub stop: watch::Sender<bool>,
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

impl Node {
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

    /// The gossip socket, from which all calls go out.
    pub fn socket(&self) -> Option<Endpoint> {
        self.sockets.lock().first().cloned()
    }

    /// Ends all tasks and closes the sockets.
    pub async fn shut_down(&self) {
        self.stop.send_replace(true);
        let sockets = std::mem::take(&mut *self.sockets.lock());
        self.links.lock().clear();
        for socket in sockets {
            transport::close(socket).await;
        }
    }

    /// Reads or changes the book; the events that come of it go out in order.
    pub fn book<R>(&self, change: impl FnOnce(&mut Book) -> R) -> R {
        let mut book = self.book.lock();
        let result = change(&mut book);
        while let Some(event) = book.poll_event() {
            self.backlog.fetch_add(1, Ordering::Relaxed);
            if self.events.send(event).is_err() {
                // Without an agent that listens, events are of no use.
                self.backlog.fetch_sub(1, Ordering::Relaxed);
            }
        }
        result
    }

    /// Lets SWIM do something, and does what it wants.
    pub fn swim<R>(&self, act: impl FnOnce(&mut Swim, Instant) -> R) -> R {
        let now = Instant::now();
        let mut outputs = Vec::new();
        let result = {
            let mut swim = self.swim.lock();
            let result = act(&mut swim, now);
            outputs.extend(std::iter::from_fn(|| swim.poll()));
            result
        };
        for output in outputs {
            match output {
                Output::Up(host) => self.book(|book| book.up(host)),
                Output::Down(host) => self.book(|book| book.down(host, now)),
                Output::Send(host, packet) => {
                    if let Some(connection) = self.link(host) {
                        // Lost packets are what SWIM is made for.
                        let _ = connection.send_datagram(packet);
                    }
                }
            }
        }
        self.timer.notify_one();
        result
    }

    /// Waits until the agent has taken most of its events, so that nobody can fill the memory.
    pub async fn room(&self) {
        while self.backlog.load(Ordering::Relaxed) > MAX_BACKLOG {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The newest live connection with a host.
    pub fn link(&self, host: HostId) -> Option<Connection> {
        let links = self.links.lock();
        links
            .get(&host)?
            .iter()
            .rfind(|link| link.close_reason().is_none())
            .cloned()
    }

    pub fn add_link(&self, host: HostId, connection: &Connection) {
        let mut links = self.links.lock();
        let links = links.entry(host).or_default();
        links.push(connection.clone());
        if links.len() > MAX_LINKS {
            Goodbye::Done.say(&links.remove(0));
        }
    }

    pub fn remove_link(&self, host: HostId, connection: &Connection) {
        let mut links = self.links.lock();
        if let Some(own) = links.get_mut(&host) {
            own.retain(|link| link.stable_id() != connection.stable_id());
            if own.is_empty() {
                links.remove(&host);
            }
        }
        drop(links);
        self.dial.notify_one();
    }

    /// Takes the manager's facts, if they are news, and keeps them.
    pub fn take_facts(self: &Arc<Self>, facts: Facts) {
        if facts.hosts.len() > MAX_HOSTS {
            count(&self.counted.messages_refused);
            return;
        }
        let kept = facts.clone();
        let (news, gone) = self.book(|book| {
            let before: Vec<HostId> = book.peers().map(|host| host.id).collect();
            let news = book.set_facts(facts, Instant::now());
            let gone = before
                .into_iter()
                .filter(|id| !book.is_peer(*id))
                .collect::<Vec<_>>();
            (news, gone)
        });
        if !news {
            return;
        }
        for host in gone {
            self.swim(|swim, now| swim.remove(host, now));
            for link in self.links.lock().remove(&host).unwrap_or_default() {
                Goodbye::NotAMember.say(&link);
            }
        }
        self.changed.send_replace(());
        self.dial.notify_one();
        if !self.manager {
            let node = self.clone();
            tokio::spawn(async move {
                let written = node.store.update(move |stored| {
                    if stored.facts.version < kept.version {
                        stored.facts = kept;
                    }
                    Ok(())
                });
                if let Err(error) = written.await {
                    tracing::warn!(%error, "the manager's news are not on disk");
                }
            });
        }
    }

    /// What SWIM thinks of the other hosts, of those that it has met.
    fn states(&self) -> BTreeMap<HostId, MemberState> {
        let swim = self.swim.lock();
        let states = swim.states().map(|(host, state)| match state {
            foca::State::Alive => (host, MemberState::Alive),
            foca::State::Suspect => (host, MemberState::Suspect),
            foca::State::Down => (host, MemberState::Down),
        });
        states.collect()
    }

    /// The other hosts that are thought to be alive.
    pub fn live(&self) -> BTreeSet<HostId> {
        let states = self.states().into_iter();
        let alive = states
            .filter(|(_, state)| *state != MemberState::Down)
            .map(|(host, _)| host);
        let mut live: BTreeSet<HostId> = alive.collect();
        let links = self.links.lock();
        let open = |links: &Vec<Connection>| links.iter().any(|link| link.close_reason().is_none());
        live.extend(
            links
                .iter()
                .filter(|(_, links)| open(links))
                .map(|(host, _)| *host),
        );
        live
    }

    pub fn members(&self) -> Vec<Member> {
        let hosts = self.book(|book| book.facts().hosts.clone());
        let states = self.states();
        let member = |host: Host| {
            let me = host.id == self.me;
            let known = if me {
                Some(MemberState::Alive)
            } else {
                states.get(&host.id).copied()
            };
            let rtt = self.link(host.id).map(|link| link.rtt());
            Member {
                host,
                state: known.unwrap_or(MemberState::Down),
                rtt,
                me,
            }
        };
        hosts.into_iter().map(member).collect()
    }

    pub fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            joins_refused: get(&self.counted.joins_refused),
            packets_refused: get(&self.counted.packets_refused),
            messages_refused: get(&self.counted.messages_refused),
            strangers_refused: get(&self.counted.strangers_refused),
            records_refused: self.book(|book| book.refused()),
        }
    }

    /// Own endpoints or facts have changed.
    pub fn tell(&self) {
        self.changed.send_replace(());
    }

    /// Drives SWIM's timers.
    pub async fn run_timers(self: Arc<Self>) {
        loop {
            let deadline = self.swim.lock().deadline();
            let idle = Instant::now() + Duration::from_secs(60);
            tokio::select! {
                () = tokio::time::sleep_until(deadline.unwrap_or(idle).into()) => {
                    self.swim(|swim, now| swim.tick(now));
                }
                () = self.timer.notified() => {}
            }
        }
    }

    /// What is due by the clock.
    pub async fn run_clock(self: Arc<Self>) {
        let started = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if started.elapsed() >= SETTLE && self.book(|book| book.own.settle()) {
                self.tell();
            }
            // A host that was up by its connection alone, before SWIM ever knew it alive, is
            // found down here.
            let up: Vec<HostId> = self.book(|book| {
                let up = book
                    .peers()
                    .map(|host| host.id)
                    .filter(|id| book.is_up(*id));
                up.collect()
            });
            let (now, live) = (Instant::now(), self.live());
            for host in up.into_iter().filter(|host| !live.contains(host)) {
                self.book(|book| book.down(host, now));
            }
            self.book(|book| book.expire(now));
        }
    }

    /// The token, on the manager.
    pub async fn token(&self) -> Option<crate::Token> {
        let token = self
            .store
            .read(|stored| stored.manager.as_ref().and_then(Manager::token));
        token.await.ok().flatten()
    }
}
