//! A cluster in virtual time: real `Swim`s, `Book`s and sessions, on wires that delay, reorder,
//! lose and are cut, between hosts whose clocks differ. Everything follows from a seed; nobody
//! sleeps. Used by the tests beside it and by `benches/gossip.rs`.
//!
//! ```text
//!   host ── book, swim ──┐                          ┌── book, swim ── host
//!            follower ── ask ──►  stream: reliable, in order  ──► leader
//!              leader ◄── tell ──  delayed by loss            ◄── follower
//!                swim ◄─► datagrams: lost, reordered           ◄─► swim
//! ```
//!
//! Each pair of hosts has one connection, which ends when it was silent for [`IDLE`] and is made
//! again by whoever notices. The managers' Raft is one state machine here; a host reaches it when
//! it is on the side of the majority.

#![allow(dead_code, reason = "the tests and the bench use a part each")]

mod agent;
mod faults;
mod host;
mod managers;
mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use overlay_core::facts::{Command, Secrets, StateMachine};
use overlay_core::model::{Host, HostId};
use overlay_gossip::swim::{Id, Output};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use host::{Node, State, View};
use wires::Pair;
pub use wires::{Link, Traffic};

/// Nanoseconds of true time since the start.
pub type Nanos = u64;

pub fn nanos(duration: Duration) -> Nanos {
    duration.as_nanos() as Nanos
}

/// A silent connection ends after this long.
const IDLE: Duration = Duration::from_secs(8);
/// A restarted host says that it has settled after this long.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the managers take to agree.
const COMMIT: Duration = Duration::from_millis(4);
/// How often a host looks after its connections.
const DIAL: Duration = Duration::from_millis(250);
const RETENTION: Duration = Duration::from_secs(600);

/// What kind of cluster it is.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub hosts: usize,
    pub managers: usize,
    pub seed: u64,
    pub link: Link,
    /// Clocks that are off, and up to 1 % too fast or too slow.
    pub skew: bool,
    /// Every host follows every other one; else only those that it must.
    pub mesh: bool,
    /// The agents remember what they were told, and check it.
    pub views: bool,
}

impl Spec {
    pub fn new(hosts: usize, seed: u64) -> Spec {
        Spec {
            hosts,
            managers: hosts.min(3),
            seed,
            link: Link::lan(),
            skew: true,
            mesh: true,
            views: true,
        }
    }
}

enum Event {
    /// A host's SWIM is due.
    Timer(usize),
    Datagram {
        from: usize,
        to: usize,
        packet: Bytes,
    },
    /// The first frame of a channel is there.
    Arrive {
        pair: (usize, usize),
        number: u64,
        channel: usize,
    },
    /// A leader's digest is due.
    Digest {
        pair: (usize, usize),
        number: u64,
        side: usize,
    },
    /// The connection has been silent since `since`, if it was not used in between.
    Idle {
        pair: (usize, usize),
        number: u64,
    },
    Dial {
        host: usize,
        life: u64,
    },
    /// The managers' agreement reaches a manager.
    Commit(usize),
    Settle {
        host: usize,
        life: u64,
    },
}

/// The cluster.
pub struct World {
    pub spec: Spec,
    pub now: Nanos,
    pub rng: StdRng,
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    events: HashMap<u64, Event>,
    number: u64,
    pub nodes: Vec<Node>,
    index: HashMap<HostId, usize>,
    pairs: HashMap<(usize, usize), Pair>,
    /// Hosts of different groups don't reach each other.
    groups: Vec<u8>,
    pub managers: StateMachine,
    raft_index: u64,
    pub measured: Measured,
    /// Whether the agents' SWIM outputs are thrown away, to begin with a cluster that stands.
    quiet: bool,
}

/// What is measured on the way.
#[derive(Default)]
pub struct Measured {
    /// When endpoints of these names were published.
    pub published: HashMap<String, Nanos>,
    /// How long after that others were told.
    pub convergence: Vec<Nanos>,
    /// When hosts died.
    pub died: BTreeMap<usize, Nanos>,
    /// How long after that others were told.
    pub detection: Vec<Nanos>,
    /// A host was told that another one is down which was there and could be reached.
    pub false_downs: u64,
    pub events: u64,
}

impl World {
    /// The hosts are members, and run. Nobody has met anybody.
    pub fn new(spec: Spec) -> World {
        let mut rng = StdRng::seed_from_u64(spec.seed);
        let base = Instant::now() + Duration::from_secs(3600);
        let hosts: Vec<Host> = (0..spec.hosts)
            .map(|n| host(n, n < spec.managers))
            .collect();
        let ula = [0xfd, 0, 0, 0, 0, 1];
        let mut managers = StateMachine::new(hosts[0].clone(), Secrets::default(), ula, 1);
        let mut raft_index = 0;
        for host in &hosts[1..] {
            raft_index += 1;
            let add = Command::HostAdd {
                host: host.clone(),
                replace: None,
            };
            managers.apply(raft_index, &add).unwrap();
        }
        let facts = Arc::new(managers.facts().clone());
        let nodes = hosts.iter();
        let nodes: Vec<Node> = nodes
            .map(|host| Node::new(host.id, &spec, base, facts.clone(), &mut rng))
            .collect();
        let index = hosts.iter().enumerate();
        let mut world = World {
            spec,
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            number: 0,
            index: index.map(|(n, host)| (host.id, n)).collect(),
            groups: vec![0; nodes.len()],
            nodes,
            pairs: HashMap::new(),
            managers,
            raft_index,
            measured: Measured::default(),
            quiet: false,
        };
        for n in 0..spec.hosts {
            world.begin(n);
        }
        world
    }

    /// Makes everybody know everybody, without a packet.
    pub fn introduce_all(&mut self) {
        self.quiet = true;
        let ids: Vec<Id> = self.nodes.iter().map(|node| node.swim.me()).collect();
        for n in 0..self.nodes.len() {
            let now = self.nodes[n].local(self.now);
            for id in &ids {
                self.nodes[n].swim.connected(*id, now);
            }
            self.pump_swim(n);
        }
        self.quiet = false;
    }

    fn begin(&mut self, n: usize) {
        let life = self.nodes[n].life;
        let spread = self.rng.random_range(0..nanos(DIAL));
        self.at(self.now + spread, Event::Dial { host: n, life });
        let settle = self.now + nanos(SETTLE);
        self.at(settle, Event::Settle { host: n, life });
        self.told(n);
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.number += 1;
        self.events.insert(self.number, event);
        self.queue.push(Reverse((at.max(self.now), self.number)));
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + nanos(time);
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            self.measured.events += 1;
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        self.now = end;
    }

    /// Lets time pass until something holds; panics when it does not within `limit`. Returns how
    /// long it took.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&World) -> Result<(), String>,
    ) -> Duration {
        let start = self.now;
        loop {
            match holds(self) {
                Ok(()) => return Duration::from_nanos(self.now - start),
                Err(problem) => assert!(
                    self.now - start < nanos(limit),
                    "seed {}: {what}: {problem}",
                    self.spec.seed
                ),
            }
            self.run(Duration::from_millis(50));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Timer(n) => self.tick(n),
            Event::Datagram { from, to, packet } => self.datagram(from, to, &packet),
            Event::Arrive {
                pair,
                number,
                channel,
            } => self.arrive(pair, number, channel),
            Event::Digest { pair, number, side } => self.digest(pair, number, side),
            Event::Idle { pair, number } => self.idle(pair, number),
            Event::Dial { host, life } => self.dial(host, life),
            Event::Commit(n) => self.hear_managers(n),
            Event::Settle { host, life } => {
                let node = &mut self.nodes[host];
                if node.life == life && node.state == State::Runs && node.book.own.settle() {
                    // By now its containers have been asked.
                    for vni in node.book.facts().networks_of(node.id) {
                        self.tell_groups(host, vni);
                    }
                    self.poll_all(host);
                }
            }
        }
    }

    // SWIM.

    fn tick(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if node.state != State::Runs || node.timer != Some(now) {
            return;
        }
        node.timer = None;
        let local = node.local(now);
        node.swim.tick(local);
        self.pump_swim(n);
    }

    fn datagram(&mut self, from: usize, to: usize, packet: &[u8]) {
        if self.nodes[to].state != State::Runs || self.is_cut(from, to) {
            return;
        }
        let (sender, me) = (self.nodes[from].id, self.nodes[to].id);
        let node = &mut self.nodes[to];
        let now = node.local(self.now);
        let book = &node.book;
        let known = |id| id == me || book.is_peer(id);
        if !book.is_peer(sender) {
            return;
        }
        let taken = node.swim.receive(sender, packet, known, now);
        assert_eq!(taken, Ok(()), "packets of honest hosts are right");
        self.pump_swim(to);
    }

    /// Does what a host's SWIM wants, and sees to its timer.
    fn pump_swim(&mut self, n: usize) {
        let mut heard = false;
        while let Some(output) = self.nodes[n].swim.poll() {
            let local = self.nodes[n].local(self.now);
            match output {
                Output::Up(host) => {
                    self.nodes[n].book.up(host);
                    heard = true;
                    if let Some(peer) = self.index.get(&host).copied() {
                        self.poll_with(n, peer);
                    }
                }
                Output::Down(host) => {
                    self.nodes[n].book.down(host, local);
                    heard = true;
                }
                Output::Send(..) if self.quiet => {}
                Output::Send(to, packet) => {
                    if let Some(to) = self.index.get(&to).copied() {
                        self.send_datagram(n, to, packet);
                    }
                }
            }
        }
        if heard {
            self.told(n);
        }
        let node = &mut self.nodes[n];
        if let Some(due) = node.swim.deadline() {
            let at = node.true_time(due).max(self.now + 1);
            if node
                .timer
                .is_none_or(|timer| at < timer || timer < self.now)
            {
                node.timer = Some(at);
                self.at(at, Event::Timer(n));
            }
        }
    }
}

/// Ids that look like real ones, which are random.
fn host(n: usize, manager: bool) -> Host {
    let mixed = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Host {
        id: HostId(mixed ^ (mixed >> 29)),
        name: format!("host{n}"),
        vtep: Ipv4Addr::from_bits(0xc612_0000 + n as u32 + 1).into(),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager,
    }
}
