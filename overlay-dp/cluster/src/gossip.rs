//! The gossip port: one connection between each two hosts, on which each follows the other's logs
//! and facts, with SWIM's packets beside as datagrams. What is said is overlay-gossip's business;
//! here it travels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{Facts, FactsNews};
use overlay_core::model::{Endpoint, Host, HostId, Vni};
use overlay_gossip::swim::{Id, Liveness, Output};
use overlay_gossip::{Book, Swim};
use parking_lot::Mutex;
use quinn::Connection;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until};

use crate::api::{Event, Member, MemberState};
use crate::node::{Node, count};
use crate::transport::Goodbye;

mod dial;
mod stream;

pub use dial::{accepted, dial_all};
pub use stream::ASK_PEER;

/// More connections with one host than this: the oldest goes.
const MAX_LINKS: usize = 4;
/// A restarted host has so long to publish what it had.
const SETTLE: Duration = Duration::from_secs(5);

/// What is known by gossip. Locks are held for computing only, and `swim` before `book`.
pub struct Gossip {
    swim: Mutex<Swim>,
    book: Mutex<Book>,
    /// The live connections with each host, the newest last.
    links: Mutex<BTreeMap<HostId, Vec<Connection>>>,
    /// The book has something new, which streams may have to tell or ask for.
    news: watch::Sender<()>,
    /// Another host has told something.
    heard: watch::Sender<()>,
    /// There is somebody to call.
    dial: Notify,
    /// The next membership timer may be another one.
    timer: Notify,
}

impl Gossip {
    pub fn new(me: HostId, facts: Facts, incarnation: u64, retention: Duration) -> Gossip {
        let rng = StdRng::from_rng(&mut rand::rng());
        let now = Instant::now();
        let book = Book::new(me, Arc::new(facts), incarnation, retention, now);
        Gossip {
            swim: Mutex::new(Swim::new(Id::new(me, incarnation), rng)),
            book: Mutex::new(book),
            links: Mutex::default(),
            news: watch::Sender::new(()),
            heard: watch::Sender::new(()),
            dial: Notify::new(),
            timer: Notify::new(),
        }
    }

    pub fn facts<R>(&self, look: impl FnOnce(&Facts) -> R) -> R {
        let facts = self.book.lock().facts().clone();
        look(&facts)
    }

    /// Forgets all connections.
    pub fn clear(&self) {
        self.links.lock().clear();
    }

    pub fn refused(&self) -> u64 {
        self.book.lock().refused()
    }

    /// The newest live connection with a host.
    pub fn link(&self, host: HostId) -> Option<Connection> {
        let links = self.links.lock();
        let mut links = links.get(&host)?.iter();
        links.rfind(|link| link.close_reason().is_none()).cloned()
    }

    fn add_link(&self, host: HostId, connection: &Connection) {
        let mut links = self.links.lock();
        let links = links.entry(host).or_default();
        links.push(connection.clone());
        if links.len() > MAX_LINKS {
            Goodbye::Done.say(&links.remove(0));
        }
    }

    fn remove_link(&self, host: HostId, connection: &Connection) {
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

    /// What SWIM thinks of the other hosts, of those that it has met.
    fn states(&self) -> BTreeMap<HostId, MemberState> {
        let swim = self.swim.lock();
        let states = swim.states().map(|(host, state)| match state {
            Liveness::Alive => (host, MemberState::Alive),
            Liveness::Suspect => (host, MemberState::Suspect),
            Liveness::Down => (host, MemberState::Down),
        });
        states.collect()
    }

    /// The other hosts that are thought to be alive.
    pub fn live(&self) -> BTreeSet<HostId> {
        let states = self.states();
        let alive = states
            .iter()
            .filter(|(_, state)| **state != MemberState::Down);
        let mut live: BTreeSet<HostId> = alive.map(|(host, _)| *host).collect();
        // One that SWIM has not met yet may be connected already.
        let links = self.links.lock();
        let open = |links: &Vec<Connection>| links.iter().any(|link| link.close_reason().is_none());
        let met = |host: &HostId| states.contains_key(host);
        let fresh = links
            .iter()
            .filter(|(host, links)| !met(host) && open(links));
        live.extend(fresh.map(|(host, _)| *host));
        live
    }

    pub fn members(&self, me: HostId) -> Vec<Member> {
        let hosts: Vec<Host> = self.facts(|facts| facts.hosts().cloned().collect());
        let states = self.states();
        let member = |host: Host| {
            let known = match host.id == me {
                true => Some(MemberState::Alive),
                false => states.get(&host.id).copied(),
            };
            let rtt = self.link(host.id).map(|link| link.rtt());
            Member {
                me: host.id == me,
                host,
                state: known.unwrap_or(MemberState::Down),
                rtt,
            }
        };
        hosts.into_iter().map(member).collect()
    }
}

impl Node {
    /// Reads or changes the book; the events that come of it go out in order.
    pub fn book<R>(&self, change: impl FnOnce(&mut Book) -> R) -> R {
        let mut book = self.gossip.book.lock();
        let result = change(&mut book);
        while let Some(event) = book.poll_event() {
            match event {
                Event::Expelled => self.expel(),
                event => self.tell(event),
            }
        }
        result
    }

    /// Lets SWIM do something, and does what it wants.
    fn swim<R>(&self, act: impl FnOnce(&mut Swim, Instant) -> R) -> R {
        let now = Instant::now();
        let mut outputs = Vec::new();
        let result = {
            let mut swim = self.gossip.swim.lock();
            let result = act(&mut swim, now);
            outputs.extend(std::iter::from_fn(|| swim.poll()));
            result
        };
        for output in outputs {
            match output {
                Output::Up(host) => self.book(|book| book.up(host)),
                Output::Down(host) => self.book(|book| book.down(host, now)),
                Output::Send(host, packet) => {
                    if let Some(connection) = self.gossip.link(host) {
                        // Lost packets are what SWIM is made for.
                        let _ = connection.send_datagram(packet);
                    }
                }
            }
        }
        self.gossip.timer.notify_one();
        result
    }

    /// Changes this host's own part of the book, which others wait for.
    pub fn publish<R>(&self, change: impl FnOnce(&mut Book) -> R) -> R {
        let result = self.book(change);
        self.gossip.news.send_replace(());
        result
    }

    /// Looks at a network until the answer is dropped.
    pub fn look(self: &Arc<Self>, vni: Vni) -> Look {
        self.publish(|book| book.look(vni));
        Look {
            node: self.clone(),
            vni,
        }
    }
}

/// Somebody looks at a network that is perhaps not attached here.
pub struct Look {
    node: Arc<Node>,
    vni: Vni,
}

impl Look {
    /// The endpoints, once all have said which they have, or when `deadline` has come.
    pub async fn all(&self, deadline: Instant) -> Vec<(HostId, Endpoint)> {
        self.heard(deadline).await;
        self.node.book(|book| book.endpoints(self.vni))
    }

    /// Who has the endpoint of this name; waits as [`Look::all`] does.
    pub async fn whose_name(&self, name: &str, deadline: Instant) -> Option<HostId> {
        self.heard(deadline).await;
        self.node.book(|book| book.whose_name(self.vni, name))
    }

    async fn heard(&self, deadline: Instant) {
        let node = &self.node;
        // Those that are down can't say anything.
        let waiting = || {
            let unheard = node.book(|book| book.unheard(self.vni));
            let states = node.gossip.states();
            let may_speak = |host| states.get(host) != Some(&MemberState::Down);
            unheard.iter().any(may_speak)
        };
        let mut heard = node.gossip.heard.subscribe();
        while waiting() && Instant::now() < deadline {
            tokio::select! {
                _ = heard.changed() => {}
                () = sleep_until(deadline.into()) => {}
            }
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.node.publish(|book| book.look_away(self.vni));
    }
}

/// Takes news of the facts, from a manager or from this host's own Raft.
pub fn take_news(node: &Arc<Node>, news: FactsNews) {
    match node.book(|book| book.take_facts(news, Instant::now())) {
        Ok(true) => facts_changed(node),
        Ok(false) => {}
        // A manager's stream brings what is missing.
        Err(gap) => tracing::debug!(%gap, "facts"),
    }
}

/// Does what follows from other facts. Hosts that are no members any more are cut off at once.
fn facts_changed(node: &Node) {
    let known: BTreeSet<HostId> = {
        let swim = node.gossip.swim.lock();
        let met = swim.states().map(|(host, _)| host);
        met.chain(node.gossip.links.lock().keys().copied())
            .collect()
    };
    let gone = node.book(|book| {
        let gone = known.into_iter().filter(|host| !book.is_peer(*host));
        gone.collect::<Vec<_>>()
    });
    for host in gone {
        node.swim(|swim, now| swim.remove(host, now));
        let links = node.gossip.links.lock().remove(&host);
        for link in links.unwrap_or_default() {
            Goodbye::NotAMember.say(&link);
        }
    }
    node.gossip.news.send_replace(());
    node.gossip.dial.notify_one();
    node.changed.send_replace(());
}

/// Drives SWIM's timers.
pub async fn run_timers(node: Arc<Node>) {
    loop {
        let deadline = node.gossip.swim.lock().deadline();
        let idle = Instant::now() + Duration::from_secs(60);
        tokio::select! {
            () = sleep_until(deadline.unwrap_or(idle).into()) => {
                node.swim(|swim, now| swim.tick(now));
            }
            () = node.gossip.timer.notified() => {}
        }
    }
}

/// What is due by the clock.
pub async fn run_clock(node: Arc<Node>) {
    let started = Instant::now();
    loop {
        sleep(Duration::from_millis(250)).await;
        if started.elapsed() >= SETTLE && node.book(|book| book.own.settle()) {
            node.gossip.news.send_replace(());
        }
        // A host that was up by its connection alone, before SWIM ever knew it alive, is found
        // down here.
        let (now, live) = (Instant::now(), node.gossip.live());
        node.book(|book| {
            let up = book.peers().map(|host| host.id);
            let up: Vec<HostId> = up.filter(|id| book.is_up(*id)).collect();
            for host in up.into_iter().filter(|host| !live.contains(host)) {
                book.down(host, now);
            }
            book.expire(now);
        });
    }
}

async fn datagrams(node: &Node, connection: &Connection, host: HostId) -> quinn::ConnectionError {
    loop {
        let packet = match connection.read_datagram().await {
            Ok(packet) => packet,
            Err(ended) => return ended,
        };
        let taken = node.swim(|swim, now| {
            let book = node.gossip.book.lock();
            let known = |id| id == node.me || book.is_peer(id);
            swim.receive(host, &packet, known, now)
        });
        if taken.is_err() {
            count(&node.counted.packets_refused);
        }
    }
}
