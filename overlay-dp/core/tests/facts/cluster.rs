//! Hosts that hold addresses in a cluster that loses, delays and repeats their requests, cuts them
//! off, restarts and removes them. Each has a copy of the facts that lags behind.

use std::collections::{BTreeMap, BTreeSet};

use overlay_core::facts::{Command, Facts, Refusal};
use overlay_core::holdings::{GiveBack, Holdings, Need};
use overlay_core::model::Vni;
use proptest::prelude::*;

use crate::{Rig, id};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    /// It arrives; the answer does not.
    NoReply,
    /// It arrives some time, after its sender stopped waiting.
    Late,
    /// It arrives now, and once more some time.
    Twice,
    /// It was never sent, and the sender knows.
    NotSent,
}

#[derive(Clone, Debug)]
enum Step {
    Attach(u64, usize, Fate),
    AttachTo(u64, usize, u32, Fate),
    Detach(u64, usize),
    Sync(u64),
    Return(u64, Fate),
    Want(u64, Fate),
    Cut(u64, bool),
    Restart(u64),
    Remove(u64),
    /// One of the late requests arrives.
    Deliver(usize),
}

const HOSTS: u64 = 4;

fn step() -> impl Strategy<Value = Step> {
    let fate = || {
        prop_oneof![
            6 => Just(Fate::Done),
            1 => Just(Fate::NoReply),
            2 => Just(Fate::Late),
            1 => Just(Fate::Twice),
            1 => Just(Fate::NotSent),
        ]
    };
    let host = || 1..=HOSTS;
    prop_oneof![
        12 => (host(), 0..2_usize, fate()).prop_map(|(a, b, c)| Step::Attach(a, b, c)),
        3 => (host(), 0..2_usize, 0..15_u32, fate()).prop_map(|(a, b, c, d)| Step::AttachTo(a, b, c, d)),
        8 => (host(), 0..20_usize).prop_map(|(a, b)| Step::Detach(a, b)),
        8 => host().prop_map(Step::Sync),
        8 => (host(), fate()).prop_map(|(a, b)| Step::Return(a, b)),
        6 => (host(), fate()).prop_map(|(a, b)| Step::Want(a, b)),
        2 => (host(), any::<bool>()).prop_map(|(a, b)| Step::Cut(a, b)),
        2 => host().prop_map(Step::Restart),
        1 => (2..=HOSTS).prop_map(Step::Remove),
        6 => (0..9_usize).prop_map(Step::Deliver),
    ]
}

struct Node {
    number: u64,
    holdings: Holdings,
    facts: Facts,
    /// An older copy, which is what is on its disk.
    old_facts: Facts,
    /// Its holdings on disk.
    saved: Vec<u8>,
    endpoints: Vec<(Vni, u32)>,
    cut: bool,
}

struct Cluster {
    rig: Rig,
    networks: Vec<Vni>,
    nodes: BTreeMap<u64, Node>,
    late: Vec<Command>,
}

impl Cluster {
    fn new(hosts: u64, subnets: &[&str]) -> Cluster {
        let mut rig = Rig::new(hosts);
        let networks = subnets.iter().map(|subnet| rig.network(subnet)).collect();
        let facts = rig.facts().clone();
        let node = |number| Node {
            number,
            holdings: Holdings::new(),
            facts: facts.clone(),
            old_facts: facts.clone(),
            saved: postcard::to_stdvec(&Holdings::new()).unwrap(),
            endpoints: Vec::new(),
            cut: false,
        };
        Cluster {
            nodes: (1..=hosts).map(|number| (number, node(number))).collect(),
            rig,
            networks,
            late: Vec::new(),
        }
    }

    /// Sends a request; `None` when the sender learns nothing.
    fn send(&mut self, number: u64, command: Command, fate: Fate) -> Option<Result<(), Refusal>> {
        if self.nodes[&number].cut {
            return None;
        }
        match fate {
            Fate::Done => Some(self.rig.apply(command).map(drop)),
            Fate::NoReply => {
                let _ = self.rig.apply(command);
                None
            }
            Fate::Late => {
                self.late.push(command);
                None
            }
            Fate::Twice => {
                self.late.push(command.clone());
                Some(self.rig.apply(command).map(drop))
            }
            Fate::NotSent => None,
        }
    }

    fn sync(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).unwrap();
        if !node.cut {
            node.old_facts = node.facts.clone();
            let news = self.rig.machine.since(node.facts.version());
            node.facts.update(news).unwrap();
        }
    }

    /// As an agent does it: take, ask, take again, make do with a spare, give up.
    fn attach(
        &mut self,
        number: u64,
        vni: Vni,
        offset: Option<u32>,
        fate: Fate,
    ) -> Result<u32, Option<Refusal>> {
        let me = id(number);
        let node = self.nodes.get_mut(&number).unwrap();
        let network = node.facts.network(vni).unwrap();
        let ip = offset.and_then(|offset| network.address_at(offset).first().copied());
        let mut taken = node.holdings.take(&node.facts, me, vni, ip);
        let mut refusal = None;
        if let Err(Need::Ask(want)) = taken {
            let command = Command::Grant {
                host: me,
                vni,
                want,
            };
            match self.send(number, command, fate) {
                // An answer comes with the facts.
                Some(answer) => {
                    self.sync(number);
                    refusal = answer.err();
                }
                None => refusal = None,
            }
            let node = self.nodes.get_mut(&number).unwrap();
            taken = node.holdings.take(&node.facts, me, vni, ip);
            if taken.is_err() && ip.is_none() {
                let spare = node.holdings.take_spare(&node.facts, me, vni);
                taken = spare.map_or(taken, Ok);
            }
            if taken.is_err() {
                node.holdings.gave_up(&node.facts, vni, ip);
            }
        }
        let offset = taken.map_err(|_| refusal)?;
        let node = self.nodes.get_mut(&number).unwrap();
        node.endpoints.push((vni, offset));
        Ok(offset)
    }

    fn detach(&mut self, number: u64, index: usize) {
        let node = self.nodes.get_mut(&number).unwrap();
        if index < node.endpoints.len() {
            let (vni, offset) = node.endpoints.swap_remove(index);
            node.holdings.free(vni, offset);
        }
    }

    fn returns(&mut self, number: u64, fate: Fate) -> Vec<GiveBack> {
        let node = self.nodes.get_mut(&number).unwrap();
        if node.cut {
            return Vec::new();
        }
        let surplus = node.holdings.surplus(&node.facts, id(number));
        let all = node.holdings.returns(&node.facts, id(number));
        let mut returned = BTreeMap::<Vni, (u64, usize)>::new();
        for back in &all {
            let (offsets, macs) = returned.entry(back.vni).or_default();
            *offsets += back.ranges.iter().map(|range| range.count()).sum::<u64>();
            *macs += back.macs.len();
        }
        let surplus = surplus.iter().map(|s| (s.vni, (s.offsets as u64, s.macs)));
        assert_eq!(surplus.collect::<BTreeMap<_, _>>(), returned);
        node.saved = postcard::to_stdvec(&node.holdings).unwrap();
        for back in &all {
            let answer = self.send(number, back.clone().command(id(number)), fate);
            let known = matches!(answer, Some(Err(_))) || matches!(fate, Fate::NotSent);
            if known {
                self.nodes
                    .get_mut(&number)
                    .unwrap()
                    .holdings
                    .return_failed(back);
            }
        }
        all
    }

    fn wants(&mut self, number: u64, fate: Fate) {
        let node = &self.nodes[&number];
        for (vni, want) in node.holdings.wants(&node.facts, id(number)) {
            let host = id(number);
            self.send(number, Command::Grant { host, vni, want }, fate);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Deliver(index) if index < self.late.len() => {
                let command = self.late.swap_remove(index);
                let _ = self.rig.apply(command);
            }
            Step::Deliver(_) => {}
            Step::Attach(number, ..)
            | Step::AttachTo(number, ..)
            | Step::Detach(number, _)
            | Step::Sync(number)
            | Step::Return(number, _)
            | Step::Want(number, _)
            | Step::Cut(number, _)
            | Step::Restart(number)
            | Step::Remove(number)
                if !self.nodes.contains_key(&number) => {}
            Step::Attach(number, network, fate) => {
                let vni = self.networks[network];
                let _ = self.attach(number, vni, None, fate);
            }
            Step::AttachTo(number, network, offset, fate) => {
                let vni = self.networks[network];
                let _ = self.attach(number, vni, Some(offset), fate);
            }
            Step::Detach(number, index) => self.detach(number, index),
            Step::Sync(number) => self.sync(number),
            Step::Return(number, fate) => drop(self.returns(number, fate)),
            Step::Want(number, fate) => self.wants(number, fate),
            Step::Cut(number, cut) => self.nodes.get_mut(&number).unwrap().cut = cut,
            Step::Restart(number) => {
                let node = self.nodes.get_mut(&number).unwrap();
                node.holdings = postcard::from_bytes(&node.saved).unwrap();
                node.facts = node.old_facts.clone();
                for (vni, offset) in &node.endpoints {
                    node.holdings.keep(*vni, *offset);
                }
            }
            Step::Remove(number) => {
                self.rig
                    .apply(Command::HostRemove { id: id(number) })
                    .unwrap();
                self.nodes.remove(&number);
            }
        }
    }

    /// No address is in use twice, and each belongs to the host that uses it.
    fn check(&self) {
        let mut seen = BTreeSet::new();
        for node in self.nodes.values() {
            for (vni, offset) in &node.endpoints {
                assert!(seen.insert((vni, offset)), "{vni} {offset} is in use twice");
                let owner = self.rig.facts().owner(*vni, *offset);
                assert_eq!(owner, Some(id(node.number)), "{vni} {offset}");
            }
        }
    }

    /// Everybody can be reached and has nothing to hide: hosts give back until nothing changes.
    fn settle(&mut self) {
        for _ in 0..6 {
            let numbers: Vec<u64> = self.nodes.keys().copied().collect();
            for number in numbers {
                self.nodes.get_mut(&number).unwrap().cut = false;
                self.sync(number);
                self.returns(number, Fate::Done);
                self.wants(number, Fate::Done);
                self.check();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_address_twice_and_none_leaked(steps in proptest::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new(HOSTS, &["10.0.0.0/28", "10.0.1.0/24"]);
        for step in &steps {
            cluster.step(step);
            cluster.check();
        }
        for command in std::mem::take(&mut cluster.late) {
            let _ = cluster.rig.apply(command);
            cluster.check();
        }
        cluster.settle();
        let numbers: Vec<u64> = cluster.nodes.keys().copied().collect();
        for number in numbers {
            while !cluster.nodes[&number].endpoints.is_empty() {
                cluster.detach(number, 0);
            }
            for vni in cluster.networks.clone() {
                cluster.rig.apply(Command::Unwant { host: id(number), vni }).unwrap();
            }
        }
        cluster.settle();
        for vni in &cluster.networks {
            let facts = cluster.rig.facts();
            prop_assert_eq!(facts.participants(*vni), BTreeSet::new());
            prop_assert!(facts.wanted(*vni).is_empty());
        }
        for node in cluster.nodes.values() {
            let mut fresh = Holdings::new();
            fresh.returns(&node.facts, id(node.number));
            prop_assert_eq!(&node.holdings, &fresh, "nothing is remembered");
        }
    }
}

/// Many hosts fill a network: each single address gets used, however they were handed out before,
/// and the next attach is an error that tells the counts.
fn fill(subnet: &str, hosts: u64, size: usize) {
    let mut cluster = Cluster::new(hosts, &[subnet]);
    let vni = cluster.networks[0];
    let mut used = 0;
    let attach = |cluster: &mut Cluster, number: u64| {
        let mut last = None;
        for _ in 0..3 {
            match cluster.attach(number, vni, None, Fate::Done) {
                Ok(_) => return Ok(()),
                Err(refusal) => last = refusal,
            }
            cluster.settle();
        }
        Err(last)
    };
    // The first host comes and goes a lot, and leaves the growth of its holdings behind.
    for _ in 0..size / 3 {
        attach(&mut cluster, 1).unwrap();
    }
    for _ in 0..size / 3 - 1 {
        cluster.detach(1, 0);
    }
    used += 1;
    let refusal = 'full: loop {
        for number in 1..=hosts {
            match attach(&mut cluster, number) {
                Ok(()) => used += 1,
                Err(refusal) => break 'full refusal,
            }
            cluster.check();
        }
    };
    assert_eq!(used, size);
    let refusal = refusal.unwrap();
    assert!(
        matches!(&refusal, Refusal::Exhausted { size: all, holders, .. }
            if *all == size as u64 && holders.contains(" by host")),
        "{refusal}"
    );
}

#[test]
fn a_slash_29_is_used_up_to_the_last_address() {
    for hosts in 1..=8 {
        fill("10.0.0.0/29", hosts, 5);
    }
}

#[test]
fn a_slash_24_is_used_up_to_the_last_address() {
    for hosts in [1, 3, 20] {
        fill("10.0.0.0/24", hosts, 253);
    }
}

#[test]
fn a_host_that_is_cut_off_attaches_from_its_spares() {
    let mut cluster = Cluster::new(2, &["10.0.0.0/24"]);
    let vni = cluster.networks[0];
    cluster.attach(1, vni, None, Fate::Done).unwrap();
    cluster.settle();
    cluster.nodes.get_mut(&1).unwrap().cut = true;
    for _ in 0..8 {
        cluster.attach(1, vni, None, Fate::Done).unwrap();
    }
    cluster.attach(1, vni, None, Fate::Done).unwrap_err();
    // Reached again, those are ordinary addresses, and there are new spares.
    cluster.settle();
    let grants: Vec<_> = cluster.rig.facts().grants(id(1), vni).collect();
    let spares = grants.iter().filter(|grant| grant.spare);
    assert_eq!(spares.map(|grant| grant.range.count()).sum::<u64>(), 8);
    let node = &cluster.nodes[&1];
    assert!(node.holdings.wants(&node.facts, id(1)).is_empty());
}
