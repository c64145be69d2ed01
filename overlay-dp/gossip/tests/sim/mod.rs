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

mod host;
mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use overlay_core::facts::{
    Command, Facts, NetworkSpec, Range, Refusal, Reply, Secrets, StateMachine, Want,
};
use overlay_core::model::{Endpoint, Host, HostId, Network, Vni};
use overlay_gossip::Event as Told;
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
        node.book.expire(local);
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

    // The agent.

    /// Gives the book's events to the agent.
    fn told(&mut self, n: usize) {
        let mut facts_changed = false;
        while let Some(event) = self.nodes[n].book.poll_event() {
            facts_changed |= event == Told::FactsChanged;
            self.measure(n, &event);
            let removed = match &event {
                Told::MemberLeft(host) => self.index.get(host).copied(),
                _ => None,
            };
            if let Some(dark) = self.nodes[n].hear(event)
                && self
                    .index
                    .get(&dark)
                    .is_some_and(|of| self.nodes[*of].state == State::Dark)
            {
                self.nodes[n].book.forget(dark);
            }
            if let Some(removed) = removed {
                let now = self.nodes[n].local(self.now);
                let id = self.nodes[removed].id;
                self.nodes[n].swim.remove(id, now);
                self.close(n, removed);
            }
        }
        if facts_changed {
            self.poll_all(n);
        }
    }

    fn measure(&mut self, n: usize, event: &Told) {
        match event {
            Told::EndpointUp { endpoint, .. } => {
                // Who came into the network later has waited for something else.
                let since = self.nodes[n].joined.get(&endpoint.vni).copied();
                if let Some(at) = self.measured.published.get(&endpoint.name).copied()
                    && since.is_none_or(|since| since < at)
                {
                    self.measured.convergence.push(self.now - at);
                }
            }
            Told::MemberDown(host) => {
                let Some(of) = self.index.get(host).copied() else {
                    return;
                };
                if self.nodes[of].state == State::Runs && !self.is_cut(n, of) {
                    self.measured.false_downs += 1;
                } else if let Some(at) = self.measured.died.get(&of) {
                    self.measured.detection.push(self.now - at);
                }
            }
            _ => {}
        }
    }

    /// A container of host `n` begins; `None` when no address can be had.
    pub fn attach(&mut self, n: usize, vni: Vni, name: &str) -> Option<Endpoint> {
        if self.nodes[n].free_offset(vni).is_none() {
            self.grant(n, vni, 4)?;
        }
        self.nodes[n].free_offset(vni)?;
        let node = &mut self.nodes[n];
        if !node.is_in(vni) {
            node.joined.insert(vni, self.now);
        }
        let (name, endpoint) = node.container(vni, name);
        node.has.insert((vni, name), endpoint.clone());
        let interest = node.has.keys().map(|(vni, _)| *vni).collect();
        node.book.set_interest(interest);
        self.publish(n, endpoint.clone());
        Some(endpoint)
    }

    /// Gives each host `each` containers in each of its networks, before anybody hears of it. Two
    /// hosts in each network have room for one more.
    pub fn populate(&mut self, networks_of: &[Vec<Vni>], each: u32) {
        let mut hosts_in: BTreeMap<Vni, u32> = BTreeMap::new();
        for (n, networks) in networks_of.iter().enumerate() {
            let host = self.nodes[n].id;
            for vni in networks.iter().copied() {
                self.raft_index += 1;
                let hosts = hosts_in.entry(vni).or_default();
                *hosts += 1;
                let want = Want::Addresses(each + u32::from(*hosts <= 2));
                let grant = Command::Grant { host, vni, want };
                self.managers.apply(self.raft_index, &grant).unwrap();
            }
        }
        self.share_facts();
        for (n, networks) in networks_of.iter().enumerate() {
            for vni in networks.iter().copied() {
                for c in 0..each {
                    let (name, endpoint) = self.nodes[n].container(vni, &format!("c{n}.{c}"));
                    self.nodes[n].book.own.publish(endpoint.clone());
                    self.nodes[n].has.insert((vni, name), endpoint);
                }
            }
            let node = &mut self.nodes[n];
            node.book.set_interest(networks.iter().copied().collect());
            node.book.own.settle();
        }
    }

    /// Publishes what a host has.
    pub fn publish(&mut self, n: usize, endpoint: Endpoint) {
        self.nodes[n].book.own.publish(endpoint);
        self.told(n);
        self.poll_all(n);
    }

    /// A container of host `n` ends.
    pub fn detach(&mut self, n: usize, vni: Vni, name: &str) {
        let node = &mut self.nodes[n];
        if let Some(endpoint) = node.has.remove(&(vni, name.to_owned())) {
            let offset = node.book.facts().network(vni);
            let offset = offset.and_then(|network| network.offset_of(endpoint.ips[0]));
            if let (Some(used), Some(offset)) = (node.used.get_mut(&vni), offset) {
                used.remove(&offset);
            }
        }
        node.book.own.withdraw(vni, name);
        let interest: BTreeSet<Vni> = node.has.keys().map(|(vni, _)| *vni).collect();
        node.book.set_interest(interest);
        self.told(n);
        self.poll_all(n);
    }

    // The managers.

    /// Lets the managers agree on something; `None` when host `n` does not reach a majority.
    pub fn agree(&mut self, n: usize, command: &Command) -> Option<Result<Reply, Refusal>> {
        if !self.has_quorum(n) {
            return None;
        }
        self.raft_index += 1;
        let outcome = self.managers.apply(self.raft_index, command);
        for manager in 0..self.nodes.len() {
            if self.is_manager(manager) && self.has_quorum(manager) {
                self.at(self.now + nanos(COMMIT), Event::Commit(manager));
            }
        }
        // The answer brings the facts along.
        let news = self.managers.since(self.nodes[n].book.facts().version());
        let now = self.nodes[n].local(self.now);
        let node = &mut self.nodes[n];
        node.book.take_facts(news, now).unwrap();
        self.told(n);
        Some(outcome)
    }

    fn grant(&mut self, n: usize, vni: Vni, count: u32) -> Option<Vec<Range>> {
        let host = self.nodes[n].id;
        let want = Want::Addresses(count);
        match self.agree(n, &Command::Grant { host, vni, want })? {
            Ok(Reply::Granted(ranges)) => Some(ranges),
            _ => None,
        }
    }

    pub fn create(&mut self, name: &str) -> Network {
        let spec = NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        };
        let avoid = Vec::new();
        let create = Command::NetworkCreate { spec, avoid };
        let by = (0..self.nodes.len()).find(|n| self.has_quorum(*n)).unwrap();
        match self.agree(by, &create) {
            Some(Ok(Reply::Network(network))) => network,
            other => panic!("{other:?}"),
        }
    }

    /// As [`World::create`], but nobody hears of it before [`World::share_facts`].
    pub fn create_quietly(&mut self, name: &str) -> Vni {
        self.raft_index += 1;
        let spec = NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        };
        let avoid = Vec::new();
        let create = Command::NetworkCreate { spec, avoid };
        match self.managers.apply(self.raft_index, &create) {
            Ok(Reply::Network(network)) => network.vni,
            other => panic!("{other:?}"),
        }
    }

    fn is_manager(&self, n: usize) -> bool {
        let host = self.managers.facts().host(self.nodes[n].id);
        host.is_some_and(|host| host.manager)
    }

    fn has_quorum(&self, n: usize) -> bool {
        let managers = (0..self.nodes.len()).filter(|of| self.is_manager(*of));
        let managers: Vec<usize> = managers.collect();
        let reached = managers
            .iter()
            .filter(|of| self.nodes[**of].state == State::Runs && !self.is_cut(n, **of));
        self.nodes[n].state == State::Runs && reached.count() * 2 > managers.len()
    }

    /// Whether any host reaches a majority of the managers.
    pub fn has_majority(&self) -> bool {
        (0..self.nodes.len()).any(|n| self.has_quorum(n))
    }

    fn hear_managers(&mut self, n: usize) {
        if self.is_manager(n) && self.has_quorum(n) {
            let news = self.managers.since(self.nodes[n].book.facts().version());
            let now = self.nodes[n].local(self.now);
            self.nodes[n].book.take_facts(news, now).unwrap();
            self.told(n);
        }
    }

    /// Gives facts to all hosts at once, as copies of one.
    pub fn share_facts(&mut self) {
        let facts: Arc<Facts> = Arc::new(self.managers.facts().clone());
        for n in 0..self.nodes.len() {
            let now = self.nodes[n].local(self.now);
            self.nodes[n].book.replace_facts(facts.clone(), now);
            self.told(n);
        }
    }

    // What goes wrong.

    /// The agent is killed. With `dark` the whole host is.
    pub fn kill(&mut self, n: usize, dark: bool) {
        self.nodes[n].state = if dark { State::Dark } else { State::Stopped };
        self.nodes[n].timer = None;
        self.measured.died.insert(n, self.now);
        for peer in self.nodes[n].linked.clone() {
            self.silence(n, peer);
        }
    }

    /// The agent starts again. A host that was dark has lost its containers; else those that ended
    /// meanwhile are not published again.
    pub fn restart(&mut self, n: usize) {
        for peer in self.nodes[n].linked.clone() {
            self.close(n, peer);
        }
        self.measured.died.remove(&n);
        if self.nodes[n].state == State::Dark {
            self.nodes[n].has.clear();
            self.nodes[n].used.clear();
        }
        let (spec, seed) = (self.spec, self.rng.random());
        self.nodes[n].restart(&spec, self.now, seed);
        self.begin(n);
        if self.is_manager(n) {
            self.hear_managers(n);
        }
        let has: Vec<Endpoint> = self.nodes[n].has.values().cloned().collect();
        for endpoint in has {
            self.publish(n, endpoint);
        }
    }

    /// Hosts whose groups differ are cut off from each other from now on.
    pub fn partition(&mut self, group: impl Fn(usize) -> u8) {
        let before = self.groups.clone();
        self.groups = (0..self.nodes.len()).map(group).collect();
        for a in 0..self.nodes.len() {
            for b in self.nodes[a].linked.clone() {
                if a < b && self.is_cut(a, b) && before[a] == before[b] {
                    self.silence(a, b);
                }
            }
        }
    }

    /// All hosts reach each other.
    pub fn heal(&mut self) {
        self.groups.fill(0);
        for n in 0..self.nodes.len() {
            self.hear_managers(n);
        }
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.groups[a] != self.groups[b]
    }

    pub fn runs(&self, n: usize) -> bool {
        self.nodes[n].state == State::Runs
    }

    /// Whether every agent that runs sees exactly what the members have in its networks, thinks
    /// exactly those that run to be there, and has the managers' facts.
    pub fn converged(&self) -> Result<(), String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let member = self.managers.facts().host(node.id).is_some();
            if node.state != State::Runs || !member {
                continue;
            }
            let facts = node.book.facts();
            if facts.version() != self.managers.facts().version() {
                return Err(format!("{n} has old facts: {:?}", facts.version()));
            }
            let mut expected = BTreeMap::new();
            for (m, other) in self.nodes.iter().enumerate() {
                let member = self.managers.facts().host(other.id).is_some();
                if m == n || !member {
                    continue;
                }
                if node.up.contains(&other.id) != (other.state == State::Runs) {
                    let state = node.swim.state(other.id);
                    return Err(format!("{m} is {:?}, at {n} {state:?}", other.state));
                }
                if other.state != State::Dark {
                    let wanted = other.has.iter().filter(|((vni, _), _)| node.is_in(*vni));
                    expected.extend(
                        wanted.map(|((vni, name), e)| ((*vni, other.id, name.clone()), e.clone())),
                    );
                }
            }
            if node.view != expected {
                let differs = |a: &View, b: &View| {
                    let only = a.iter().filter(|(key, e)| b.get(*key) != Some(*e));
                    only.map(|(key, _)| key.clone()).take(3).collect::<Vec<_>>()
                };
                let ghosts = differs(&node.view, &expected);
                let missing = differs(&expected, &node.view);
                return Err(format!("at {n}: ghosts {ghosts:?}, missing {missing:?}"));
            }
        }
        Ok(())
    }

    /// Whether two members hold one address, as far as any host was told.
    pub fn check_addresses(&self) {
        let mut owners = BTreeMap::new();
        for node in &self.nodes {
            for ((vni, name), endpoint) in &node.has {
                let before = owners.insert((*vni, endpoint.ips[0]), (node.id, name));
                assert_eq!(before, None, "seed {}: {:?}", self.spec.seed, endpoint.ips);
            }
        }
    }

    /// What all hosts have sent.
    pub fn traffic(&self) -> Traffic {
        let all = self.nodes.iter().map(|node| node.sent);
        all.fold(Traffic::default(), |sum, one| sum + one)
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
        control_port: 2377,
        gossip_port: 7946,
        manager,
    }
}
