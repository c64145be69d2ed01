//! The agreed facts: their rules case by case, then against a naive model, then with hosts that
//! hold addresses in a cluster that loses replies and falls apart.

mod check;
mod cluster;
mod grants;
mod holdings;
mod hosts;
mod model;
mod networks;
mod policies;
mod services;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_core::facts::{
    Command, Facts, NetworkSpec, Range, Refusal, Reply, Secrets, StateMachine, Version, Want,
};
use overlay_core::model::{Host, HostId, MacAddr, Network, Vni};

const ULA: [u8; 6] = [0xfd, 0x12, 0x34, 0x56, 0x78, 0x9a];

/// A state machine with its log.
struct Rig {
    machine: StateMachine,
    index: u64,
}

impl Rig {
    /// A cluster of so many hosts, the first of them its manager.
    fn new(hosts: u64) -> Rig {
        let secrets = Secrets {
            ca_key: b"geheim".to_vec(),
            ..Secrets::default()
        };
        let first = Host {
            manager: true,
            ..host(1)
        };
        let mut rig = Rig {
            machine: StateMachine::new(first, secrets, ULA, 1),
            index: 0,
        };
        for number in 2..=hosts {
            rig.join(number).unwrap();
        }
        rig
    }

    fn apply(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.index += 1;
        self.machine.apply(self.index, &command)
    }

    fn facts(&self) -> &Facts {
        self.machine.facts()
    }

    fn join(&mut self, number: u64) -> Result<Reply, Refusal> {
        self.apply(Command::HostAdd {
            host: host(number),
            replace: None,
        })
    }

    fn create(&mut self, spec: NetworkSpec) -> Result<Network, Refusal> {
        self.create_avoiding(spec, &[])
    }

    fn create_avoiding(&mut self, spec: NetworkSpec, avoid: &[&str]) -> Result<Network, Refusal> {
        let avoid = avoid.iter().map(|text| net(text)).collect();
        match self.apply(Command::NetworkCreate { spec, avoid })? {
            Reply::Network(network) => Ok(network),
            other => panic!("{other:?}"),
        }
    }

    /// A network with this subnet; its VNI.
    fn network(&mut self, subnet: &str) -> Vni {
        let name = format!("n{}", self.index);
        self.create(spec(&name, &[subnet])).unwrap().vni
    }

    fn ask(&mut self, number: u64, vni: Vni, want: Want) -> Result<Vec<Range>, Refusal> {
        let host = id(number);
        match self.apply(Command::Grant { host, vni, want })? {
            Reply::Granted(ranges) => Ok(ranges),
            other => panic!("{other:?}"),
        }
    }

    fn ask_ip(&mut self, number: u64, vni: Vni, text: &str) -> Result<Vec<Range>, Refusal> {
        self.ask(number, vni, Want::Ip(ip(text)))
    }

    fn ask_mac(&mut self, number: u64, vni: Vni, text: &str) -> Result<Reply, Refusal> {
        let want = Want::Mac(mac(text));
        let host = id(number);
        self.apply(Command::Grant { host, vni, want })
    }

    /// Gives back by the facts as they are.
    fn give_back(&mut self, number: u64, vni: Vni, first: u32, last: u32) {
        let seen = self.facts().version();
        self.give_back_seen(number, vni, range(first, last), seen);
    }

    fn give_back_seen(&mut self, number: u64, vni: Vni, range: Range, seen: Version) {
        self.apply(Command::Return {
            host: id(number),
            vni,
            ranges: vec![range],
            macs: Vec::new(),
            seen,
        })
        .unwrap();
    }
}

fn id(number: u64) -> HostId {
    HostId(number)
}

fn host(number: u64) -> Host {
    let low = u16::try_from(number).unwrap().to_be_bytes();
    Host {
        id: id(number),
        name: format!("host{number}"),
        vtep: IpAddr::from([172, 31, low[0], low[1]]),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager: false,
    }
}

fn spec(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        subnets: subnets.iter().map(|text| net(text)).collect(),
        ..NetworkSpec::default()
    }
}

fn range(first: u32, last: u32) -> Range {
    Range { first, last }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}
