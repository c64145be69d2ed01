//! One host: its clock, its agent, and what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::Facts;
use overlay_core::model::{Endpoint, HostId, Vni};
use overlay_core::multicast::Group;
use overlay_gossip::swim::Id;
use overlay_gossip::{Book, Event, Swim};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::wires::Traffic;
use super::{Nanos, RETENTION, Spec};

/// Whether the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Runs,
    /// The agent does not run, the data path does.
    Stopped,
    /// Without power.
    Dark,
}

/// What an agent knows of others.
pub type View = BTreeMap<(Vni, HostId, String), Endpoint>;

pub struct Node {
    pub id: HostId,
    pub state: State,
    pub swim: Swim,
    pub book: Book,
    /// Of the process.
    pub life: u64,
    /// The containers' endpoints.
    pub has: BTreeMap<(Vni, String), Endpoint>,
    /// Their offsets.
    pub used: BTreeMap<Vni, BTreeSet<u32>>,
    /// What the agent was told, unless it does not remember.
    pub view: View,
    /// Which groups have members elsewhere, as the agent was told.
    pub groups: BTreeMap<(Vni, HostId), BTreeSet<Group>>,
    pub up: BTreeSet<HostId>,
    /// How many endpoints of others it was told of.
    pub count: i64,
    /// When it got its first container in a network, unless from the beginning.
    pub joined: BTreeMap<Vni, Nanos>,
    networks: BTreeSet<Vni>,
    remembers: bool,
    /// Peers with a connection.
    pub linked: BTreeSet<usize>,
    /// There may be somebody to call.
    pub lonely: bool,
    /// When peers are called again, and how long the pause is.
    pub calls: BTreeMap<usize, (Nanos, Nanos)>,
    /// When SWIM's timer is due.
    pub timer: Option<Nanos>,
    pub sent: Traffic,
    base: Instant,
    /// Local nanoseconds in a true second.
    rate: u64,
}

impl Node {
    pub fn new(
        id: HostId,
        spec: &Spec,
        base: Instant,
        facts: Arc<Facts>,
        rng: &mut StdRng,
    ) -> Node {
        let (offset, rate) = if spec.skew {
            let rate = rng.random_range(990_000_000..=1_010_000_000);
            (Duration::from_millis(rng.random_range(0..3_600_000)), rate)
        } else {
            (Duration::ZERO, 1_000_000_000)
        };
        let swim = Swim::new(Id::new(id, 1), StdRng::seed_from_u64(rng.random()));
        let book = Book::new(id, facts, 1, RETENTION, base + offset);
        Node {
            id,
            state: State::Runs,
            swim,
            book,
            life: 1,
            has: BTreeMap::new(),
            used: BTreeMap::new(),
            view: BTreeMap::new(),
            up: BTreeSet::new(),
            groups: BTreeMap::new(),
            count: 0,
            joined: BTreeMap::new(),
            networks: BTreeSet::new(),
            remembers: spec.views,
            linked: BTreeSet::new(),
            lonely: true,
            calls: BTreeMap::new(),
            timer: None,
            sent: Traffic::default(),
            base: base + offset,
            rate,
        }
    }

    /// A new process, with the facts that the old one had.
    pub fn restart(&mut self, spec: &Spec, now: Nanos, seed: u64) {
        let facts = self.book.facts().clone();
        // Lives are taken from a clock that goes on while the process does not.
        self.life = (self.swim.me().life() + 1).max(self.life + 1);
        let id = Id::new(self.id, self.life);
        self.swim = Swim::new(id, StdRng::seed_from_u64(seed));
        self.book = Book::new(self.id, facts, self.life, RETENTION, self.local(now));
        let interest = self.has.keys().map(|(vni, _)| *vni).collect();
        self.book.set_interest(interest);
        self.state = State::Runs;
        self.view.clear();
        self.groups.clear();
        self.up.clear();
        self.count = 0;
        self.networks.clear();
        self.calls.clear();
        self.lonely = true;
        self.remembers = spec.views;
    }

    /// What this host's clock says.
    pub fn local(&self, now: Nanos) -> Instant {
        let elapsed = u128::from(now) * u128::from(self.rate) / 1_000_000_000;
        self.base + Duration::from_nanos(elapsed as u64)
    }

    /// When this host's clock will say that.
    pub fn true_time(&self, local: Instant) -> Nanos {
        let elapsed = local.saturating_duration_since(self.base).as_nanos();
        (elapsed * 1_000_000_000).div_ceil(u128::from(self.rate)) as Nanos
    }

    pub fn is_in(&self, vni: Vni) -> bool {
        let first = (vni, String::new());
        let next = self.has.range(first..).next();
        next.is_some_and(|((of, _), _)| *of == vni)
    }

    /// The groups that its containers in a network are members of.
    pub fn joined_groups(&self, vni: Vni) -> BTreeSet<Group> {
        let names = self.has.keys().filter(|(of, _)| *of == vni);
        let group = |name: &str| {
            let sum = name.bytes().fold(0_u8, u8::wrapping_add);
            Group::new([239, 1, 1, sum % 5].into())
        };
        names.filter_map(|(_, name)| group(name)).collect()
    }

    /// The networks that it has containers in.
    pub fn networks(&self) -> BTreeSet<Vni> {
        self.has.keys().map(|(vni, _)| *vni).collect()
    }

    pub fn free_offset(&self, vni: Vni) -> Option<u32> {
        let used = self.used.get(&vni);
        let granted = self.book.facts().granted(self.id, vni);
        let mut all = granted.iter().flat_map(|range| range.first..=range.last);
        all.find(|offset| used.is_none_or(|used| !used.contains(offset)))
    }

    /// A new container, at a free address.
    pub fn container(&mut self, vni: Vni, name: &str) -> (String, Endpoint) {
        let offset = self.free_offset(vni).unwrap();
        self.used.entry(vni).or_default().insert(offset);
        let network = self.book.facts().network(vni).unwrap();
        let endpoint = Endpoint {
            name: name.to_owned(),
            vni,
            mac: network.mac_at(offset),
            ips: network.address_at(offset),
            aliases: Vec::new(),
            service: None,
            router: false,
            unready: false,
        };
        (name.to_owned(), endpoint)
    }

    /// Takes an event, which must fit to those before. Returns a host that has just gone down.
    pub fn hear(&mut self, event: Event) -> Option<HostId> {
        let id = self.id;
        match event {
            Event::EndpointUp { .. } if !self.remembers => self.count += 1,
            Event::EndpointDown { .. } if !self.remembers => self.count -= 1,
            Event::MemberUp(host) => {
                self.up.insert(host.id);
            }
            Event::MemberDown(host) => {
                assert!(self.up.remove(&host), "{id}: {host} was not up");
                return Some(host);
            }
            Event::MemberLeft(host) => {
                self.up.remove(&host);
                let left = self.view.keys().find(|(_, owner, _)| *owner == host);
                assert_eq!(left, None, "{id}: {host} left endpoints");
            }
            Event::NetworkAdded(network) => {
                assert!(self.networks.insert(network.vni), "{id}: {network:?} twice");
            }
            Event::NetworkRemoved(network) => {
                assert!(self.networks.remove(&network.vni));
                let left = self.view.keys().find(|(vni, ..)| *vni == network.vni);
                assert_eq!(left, None, "{id}: {network:?} left endpoints");
            }
            Event::EndpointUp { host, endpoint } => {
                assert!(self.networks.contains(&endpoint.vni));
                let key = (endpoint.vni, host, endpoint.name.clone());
                let ip = endpoint.ips[0];
                let taken = self.view.range((endpoint.vni, HostId(0), String::new())..);
                let mut taken = taken.take_while(|((vni, ..), _)| *vni == endpoint.vni);
                let double = taken.find(|((_, owner, _), e)| *owner != host && e.ips[0] == ip);
                assert_eq!(double, None, "{id}: {ip} is at two hosts");
                let before = self.view.insert(key, endpoint);
                assert_eq!(before, None, "{id}: up twice");
            }
            Event::EndpointDown { host, endpoint } => {
                let key = (endpoint.vni, host, endpoint.name.clone());
                let before = self.view.remove(&key);
                assert_eq!(before, Some(endpoint), "{id}: down, but was not so");
            }
            Event::Groups { host, vni, groups } => {
                assert!(self.networks.contains(&vni) || groups.is_empty());
                match groups.is_empty() {
                    true => self.groups.remove(&(vni, host)),
                    false => self.groups.insert((vni, host), groups),
                };
            }
            Event::FactsChanged | Event::Expelled => {}
        }
        None
    }
}
