//! What the tests of several modules need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{Command, NetworkSpec, Range, Reply, Secrets, StateMachine, Want};
use overlay_core::model::{Endpoint, Host, HostId, Network, Vni};

use crate::wire::Position;
use crate::{Book, Event};

pub const ME: HostId = HostId(1);
pub const PEER: HostId = HostId(2);
pub const THIRD: HostId = HostId(3);
pub const RETENTION: Duration = Duration::from_secs(600);

pub fn host(id: HostId) -> Host {
    Host {
        id,
        name: format!("host{}", id.0),
        vtep: [192, 0, 2, id.0 as u8].into(),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager: id == ME,
    }
}

pub fn at(incarnation: u64, seq: u64) -> Position {
    Position { incarnation, seq }
}

/// Managers, and the book of a host that hears of everything at once.
pub struct World {
    pub managers: StateMachine,
    index: u64,
    pub book: Book,
    pub now: Instant,
}

impl World {
    /// Three hosts.
    pub fn new() -> World {
        let managers = StateMachine::new(host(ME), Secrets::default(), [0xfd, 0, 0, 0, 0, 1], 1);
        let now = Instant::now();
        let facts = Arc::new(managers.facts().clone());
        let mut world = World {
            managers,
            index: 0,
            book: Book::new(ME, facts, 1, RETENTION, now),
            now,
        };
        for id in [PEER, THIRD] {
            let add = Command::HostAdd {
                host: host(id),
                replace: None,
            };
            world.agree(add);
        }
        world.hear();
        world.events();
        world
    }

    /// The managers agree on something that the book does not know yet.
    pub fn agree(&mut self, command: Command) -> Reply {
        self.index += 1;
        self.managers.apply(self.index, &command).unwrap()
    }

    pub fn hear(&mut self) {
        let news = self.managers.since(self.book.facts().version());
        self.book.take_facts(news, self.now).unwrap();
        assert_eq!(**self.book.facts(), *self.managers.facts());
    }

    pub fn network(&mut self, name: &str) -> Network {
        self.create(NetworkSpec {
            name: name.into(),
            ..NetworkSpec::default()
        })
    }

    pub fn network_of(&mut self, subnet: &str) -> Network {
        self.create(NetworkSpec {
            name: "large".into(),
            subnets: vec![subnet.parse().unwrap()],
            ..NetworkSpec::default()
        })
    }

    fn create(&mut self, spec: NetworkSpec) -> Network {
        let avoid = Vec::new();
        match self.agree(Command::NetworkCreate { spec, avoid }) {
            Reply::Network(network) => network,
            other => panic!("{other:?}"),
        }
    }

    pub fn grant(&mut self, host: HostId, vni: Vni, count: u32) -> Vec<Range> {
        let want = Want::Addresses(count);
        match self.agree(Command::Grant { host, vni, want }) {
            Reply::Granted(ranges) => ranges,
            other => panic!("{other:?}"),
        }
    }

    pub fn give_back(&mut self, host: HostId, vni: Vni, range: Range) {
        let seen = self.managers.facts().version();
        let (ranges, macs) = (vec![range], vec![]);
        self.agree(Command::Return {
            host,
            vni,
            ranges,
            macs,
            seen,
        });
    }

    /// The book's host is interested in these.
    pub fn attach(&mut self, networks: &[&Network]) {
        let vnis = networks.iter().map(|network| network.vni);
        self.book.set_interest(vnis.collect());
    }

    pub fn snapshot(&mut self, host: HostId, vni: Vni, at: Position, endpoints: &[&Endpoint]) {
        let endpoints = endpoints.iter().map(|e| Arc::new((*e).clone())).collect();
        self.book.snapshot(host, vni, at, true, (endpoints, None));
    }

    pub fn events(&mut self) -> Vec<Event> {
        let events = std::iter::from_fn(|| self.book.poll_event());
        events.filter(|e| *e != Event::FactsChanged).collect()
    }
}

pub fn endpoint(network: &Network, offset: u32) -> Endpoint {
    Endpoint {
        name: format!("e{offset}"),
        vni: network.vni,
        mac: network.mac_at(offset),
        ips: network.address_at(offset),
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}
