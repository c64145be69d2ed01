//! Random commands against a naive model: one owner for each offset, written down one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_core::facts::{
    Command, Facts, Range, Ranges, Refusal, Reply, ServiceSpec, StateMachine, Version, Want,
};
use overlay_core::model::{HostId, MacAddr, Network, Vni};
use proptest::prelude::*;

use crate::{Rig, host, id, ip, mac, range, spec};

const HOSTS: u64 = 5;
const SERVICES: usize = 4;
/// Of different kinds: small, dual, without IPv4.
const NETWORKS: [&[&str]; 3] = [
    &["10.0.0.0/28"],
    &["10.0.1.0/27", "fd00::/64"],
    &["fd01::/124"],
];

#[derive(Clone, Debug)]
enum Step {
    Join(u64, Option<u64>),
    Leave(u64),
    Role(u64, bool),
    Create(usize),
    Remove(usize),
    Grant(u64, usize, Want),
    /// The last number is how many versions ago it was decided.
    Return(u64, usize, Vec<Range>, Vec<MacAddr>, u64),
    Unwant(u64, usize),
    Serve(usize, usize, Option<IpAddr>),
    Unserve(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let host = 1..=HOSTS;
    let network = 0..NETWORKS.len();
    let span = (0..40_u32, 0..9_u32).prop_map(|(first, more)| range(first, first + more));
    prop_oneof![
        2 => (host.clone(), proptest::option::of(host.clone())).prop_map(|(a, b)| Step::Join(a, b)),
        1 => host.clone().prop_map(Step::Leave),
        1 => (host.clone(), any::<bool>()).prop_map(|(a, b)| Step::Role(a, b)),
        2 => network.clone().prop_map(Step::Create),
        1 => network.clone().prop_map(Step::Remove),
        12 => (host.clone(), network.clone(), want()).prop_map(|(a, b, c)| Step::Grant(a, b, c)),
        8 => (
            host.clone(),
            network.clone(),
            proptest::collection::vec(span, 0..4),
            proptest::collection::vec(any_mac(), 0..2),
            0..6_u64,
        ).prop_map(|(a, b, c, d, e)| Step::Return(a, b, c, d, e)),
        1 => (host, network.clone()).prop_map(|(a, b)| Step::Unwant(a, b)),
        4 => (0..SERVICES, network, proptest::option::of(address()))
            .prop_map(|(a, b, c)| Step::Serve(a, b, c)),
        3 => (0..SERVICES).prop_map(Step::Unserve),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    let bases = ["10.0.0.0", "10.0.1.0", "fd00::", "fd01::"].map(ip);
    (0..bases.len(), 0..34_u32).prop_map(move |(base, offset)| match bases[base] {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + offset).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(offset)).into(),
    })
}

fn want() -> impl Strategy<Value = Want> {
    prop_oneof![
        3 => (0..9_u32).prop_map(Want::Addresses),
        2 => (0..9_u32).prop_map(Want::Spare),
        4 => address().prop_map(Want::Ip),
        2 => any_mac().prop_map(Want::Mac),
    ]
}

fn any_mac() -> impl Strategy<Value = MacAddr> {
    let all = [
        "06:00:00:00:00:01",
        "06:00:00:00:00:02",
        "02:42:0a:00:00:03",
        "01:00:00:00:00:00",
    ];
    proptest::sample::select(all.map(mac).to_vec())
}

/// Who has what, one by one.
#[derive(Default)]
struct Model {
    hosts: BTreeMap<HostId, bool>,
    networks: BTreeMap<usize, Naive>,
}

struct Naive {
    network: Network,
    /// Those that can be had, found by trying all addresses.
    offsets: BTreeSet<u32>,
    /// With the version that granted it.
    owner: BTreeMap<u32, (HostId, Version)>,
    spares: BTreeSet<u32>,
    macs: BTreeMap<MacAddr, (HostId, Version)>,
    /// Services, with their own offsets.
    services: BTreeMap<usize, u32>,
}

impl Naive {
    fn new(network: &Network) -> Naive {
        let good = |offset: &u32| {
            let ips = network.address_at(*offset);
            let last = |ip| {
                let family = network.subnet_of(ip);
                family.is_some_and(|family| family.subnet.broadcast() == ip)
            };
            ips.len() == network.subnets().count()
                && !ips.iter().any(|ip| last(*ip))
                && !network
                    .gateways()
                    .any(|ip| network.offset_of(ip) == Some(*offset))
        };
        Naive {
            network: network.clone(),
            offsets: (1..70).filter(good).collect(),
            owner: BTreeMap::new(),
            spares: BTreeSet::new(),
            macs: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    fn free(&self) -> Vec<u32> {
        let all = self.offsets.iter().copied();
        let vip = |offset: &u32| self.services.values().any(|vip| vip == offset);
        all.filter(|offset| !self.owner.contains_key(offset) && !vip(offset))
            .collect()
    }

    fn give(&mut self, offsets: &[u32], host: HostId, spare: bool, version: Version) {
        for offset in offsets {
            self.owner.insert(*offset, (host, version));
            if spare {
                self.spares.insert(*offset);
            } else {
                self.spares.remove(offset);
            }
        }
    }

    fn forget(&mut self, gone: impl Fn(u32, HostId, Version) -> bool) {
        self.owner
            .retain(|offset, (host, since)| !gone(*offset, *host, *since));
        let owner = &self.owner;
        self.spares.retain(|offset| owner.contains_key(offset));
    }
}

impl Model {
    fn forget_host(&mut self, gone: HostId) {
        self.hosts.remove(&gone);
        for naive in self.networks.values_mut() {
            naive.forget(|_, host, _| host == gone);
            naive.macs.retain(|_, (host, _)| *host != gone);
        }
    }

    fn last_manager(&self, id: HostId) -> bool {
        self.hosts
            .iter()
            .all(|(host, manager)| !manager || *host == id)
    }

    /// What a command does, by the words of the rules; then the answer has to be this.
    fn expect(
        &mut self,
        step: &Step,
        version: Version,
        seen: Version,
        got: &Result<Reply, Refusal>,
    ) {
        match step {
            Step::Join(number, replace) => {
                let (new, old) = (
                    id(*number),
                    replace.map(id).filter(|old| self.hosts.contains_key(old)),
                );
                let again = self.hosts.get(&new) == Some(&false);
                let taken = self.hosts.contains_key(&new) && old != Some(new);
                let headless = old.is_some_and(|old| self.last_manager(old));
                assert_eq!(got.is_ok(), again || !(taken || headless));
                if got.is_ok() && !again {
                    old.into_iter().for_each(|old| self.forget_host(old));
                    self.hosts.insert(new, false);
                }
            }
            Step::Leave(number) => {
                let gone = id(*number);
                let ok = self.hosts.contains_key(&gone) && !self.last_manager(gone);
                assert_eq!(got.is_ok(), ok);
                if ok {
                    self.forget_host(gone);
                }
            }
            Step::Role(number, manager) => {
                let who = id(*number);
                let held = self.hosts.get(&who).copied();
                let ok =
                    held.is_some() && (*manager || held == Some(false) || !self.last_manager(who));
                assert_eq!(got.is_ok(), ok);
                if ok {
                    self.hosts.insert(who, *manager);
                }
            }
            Step::Create(number) => {
                assert_eq!(got.is_ok(), !self.networks.contains_key(number));
                if let Ok(Reply::Network(network)) = got {
                    self.networks.insert(*number, Naive::new(network));
                }
            }
            Step::Remove(number) => {
                let unused = self
                    .networks
                    .get(number)
                    .is_some_and(|naive| naive.owner.is_empty() && naive.services.is_empty());
                assert_eq!(got.is_ok(), unused);
                if unused {
                    self.networks.remove(number);
                }
            }
            Step::Grant(number, network, want) => {
                let host = id(*number);
                let member = self.hosts.contains_key(&host);
                match self.networks.get_mut(network).filter(|_| member) {
                    Some(naive) => expect_grant(naive, host, *want, version, got),
                    None => assert!(got.is_err()),
                }
            }
            Step::Return(number, network, ranges, macs, _) => {
                let host = id(*number);
                let member = self.hosts.contains_key(&host);
                let naive = self.networks.get_mut(network).filter(|_| member);
                assert_eq!(got.is_ok(), naive.is_some());
                if let Some(naive) = naive {
                    let old = |owner: HostId, since| owner == host && since <= seen;
                    let named = |offset| ranges.iter().any(|range| range.contains(offset));
                    naive.forget(|offset, owner, since| old(owner, since) && named(offset));
                    naive
                        .macs
                        .retain(|mac, (owner, since)| !(old(*owner, *since) && macs.contains(mac)));
                }
            }
            Step::Unwant(number, network) => {
                let ok =
                    self.hosts.contains_key(&id(*number)) && self.networks.contains_key(network);
                assert_eq!(got.is_ok(), ok);
            }
            Step::Serve(number, network, ip) => {
                let mut all = self.networks.values();
                let exists = all.any(|naive| naive.services.contains_key(number));
                let naive = self.networks.get_mut(network).filter(|_| !exists);
                let free = naive.as_ref().map(|naive| naive.free()).unwrap_or_default();
                let vip = match ip {
                    None => free.first().copied(),
                    Some(ip) => {
                        let naive = naive.as_ref();
                        let offset = naive.and_then(|naive| naive.network.offset_of(*ip));
                        offset.filter(|offset| free.contains(offset))
                    }
                };
                let got = match got {
                    Ok(Reply::Service(service)) => service.vip,
                    _ => None,
                };
                assert_eq!(got, vip);
                if let (Some(naive), Some(vip)) = (naive, vip) {
                    naive.services.insert(*number, vip);
                }
            }
            Step::Unserve(number) => {
                let all = self.networks.values_mut();
                let gone = all.filter_map(|naive| naive.services.remove(number));
                assert_eq!(got.is_ok(), gone.count() > 0);
            }
        }
    }
}

fn expect_grant(
    naive: &mut Naive,
    host: HostId,
    want: Want,
    version: Version,
    got: &Result<Reply, Refusal>,
) {
    let free = naive.free();
    let granted = match got {
        Ok(Reply::Granted(ranges)) => ranges.iter().flat_map(|r| r.first..=r.last).collect(),
        _ => Vec::new(),
    };
    match want {
        Want::Addresses(count) => {
            // How many depends on who waits; that it is the lowest, and none only if none is left.
            assert!(granted.len() <= count.max(1) as usize);
            assert_eq!(granted, free[..granted.len()]);
            assert_eq!(got.is_ok(), !free.is_empty());
            assert_eq!(granted.is_empty(), free.is_empty());
            naive.give(&granted, host, false, version);
        }
        Want::Spare(count) => {
            assert!(got.is_ok() && granted.len() <= count as usize);
            assert!(granted.iter().all(|offset| free.contains(offset)));
            naive.give(&granted, host, true, version);
            assert!(granted.is_empty() || naive.spares.len() * 4 < naive.offsets.len());
        }
        Want::Ip(ip) => {
            let offset = naive.network.offset_of(ip);
            let offset = offset.filter(|offset| naive.offsets.contains(offset));
            let owner = offset.and_then(|offset| naive.owner.get(&offset));
            let vip = naive.services.values().any(|vip| Some(*vip) == offset);
            let ok = offset.is_some() && !vip && owner.is_none_or(|(owner, _)| *owner == host);
            assert_eq!(got.is_ok(), ok);
            if let Some(offset) = offset.filter(|_| ok) {
                assert_eq!(granted, [offset]);
                naive.give(&[offset], host, false, version);
            }
        }
        Want::Mac(mac) => {
            let derived = (0..70).any(|offset| naive.network.mac_at(offset) == mac);
            let other = naive
                .macs
                .get(&mac)
                .is_some_and(|(owner, _)| *owner != host);
            assert_eq!(got.is_ok(), mac.is_unicast() && !derived && !other);
            if got.is_ok() {
                naive.macs.insert(mac, (host, version));
            }
        }
    }
}

/// The facts say what the model has.
fn compare(facts: &Facts, model: &Model) {
    let hosts: BTreeMap<_, _> = facts.hosts().map(|host| (host.id, host.manager)).collect();
    assert_eq!(hosts, model.hosts);
    assert_eq!(facts.networks().count(), model.networks.len());
    for naive in model.networks.values() {
        let vni = naive.network.vni;
        for offset in 0..70 {
            let owner = naive.owner.get(&offset);
            assert_eq!(facts.owner(vni, offset), owner.map(|(host, _)| *host));
            let grant = facts.grant(vni, offset);
            assert_eq!(
                grant.map(|grant| grant.since),
                owner.map(|(_, since)| *since)
            );
            let spare = naive.spares.contains(&offset);
            assert_eq!(grant.is_some_and(|grant| grant.spare), spare);
            assert_eq!(
                facts.is_usable(vni, offset),
                naive.offsets.contains(&offset)
            );
            let vip = facts.vip_at(vni, offset).map(|service| &service.name);
            let its = |(number, vip): (&usize, &u32)| (*vip == offset).then(|| service(*number));
            assert_eq!(vip, naive.services.iter().find_map(its).as_ref());
        }
        let participants: BTreeSet<_> = naive.owner.values().map(|(host, _)| *host).collect();
        assert_eq!(facts.participants(vni), participants);
        for number in 1..=HOSTS {
            let host = id(number);
            let own = naive.owner.iter().filter(|(_, (owner, _))| *owner == host);
            let own: Ranges = own.map(|(offset, _)| Range::one(*offset)).collect();
            assert_eq!(facts.granted(host, vni), own.iter().collect::<Vec<_>>());
            assert_eq!(facts.networks_of(host).contains(&vni), !own.is_empty());
            let macs = naive.macs.iter().filter(|(_, (owner, _))| *owner == host);
            let macs: Vec<_> = macs.map(|(mac, _)| *mac).collect();
            assert_eq!(facts.claimed_macs(host, vni), macs);
        }
    }
}

fn service(number: usize) -> String {
    format!("s{number}")
}

fn command(step: &Step, vnis: &BTreeMap<usize, Vni>, seen: Version) -> Command {
    let vni = |network: &usize| vnis.get(network).copied().unwrap_or(Vni::MAX);
    match step {
        Step::Join(number, replace) => Command::HostAdd {
            host: host(*number),
            replace: replace.map(id),
        },
        Step::Leave(number) => Command::HostRemove { id: id(*number) },
        Step::Role(number, manager) => Command::SetRole {
            id: id(*number),
            manager: *manager,
        },
        Step::Create(number) => Command::NetworkCreate {
            spec: spec(&format!("n{number}"), NETWORKS[*number]),
            avoid: Vec::new(),
        },
        Step::Remove(number) => Command::NetworkRemove {
            name: format!("n{number}"),
        },
        Step::Grant(number, network, want) => Command::Grant {
            host: id(*number),
            vni: vni(network),
            want: *want,
        },
        Step::Return(number, network, ranges, macs, _) => Command::Return {
            host: id(*number),
            vni: vni(network),
            ranges: ranges.clone(),
            macs: macs.clone(),
            seen,
        },
        Step::Unwant(number, network) => Command::Unwant {
            host: id(*number),
            vni: vni(network),
        },
        Step::Serve(number, network, ip) => Command::ServiceCreate {
            spec: ServiceSpec {
                name: service(*number),
                network: format!("n{network}"),
                ip: *ip,
                ..ServiceSpec::default()
            },
            from: None,
        },
        Step::Unserve(number) => Command::ServiceRemove {
            name: service(*number),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn commands_do_what_the_rules_say(steps in proptest::collection::vec(step(), 1..80)) {
        let mut rig = Rig::new(1);
        let mut model = Model::default();
        model.hosts.insert(id(1), true);
        let mut versions = vec![rig.facts().version()];
        for step in &steps {
            let ago = match step {
                Step::Return(.., ago) => *ago as usize,
                _ => 0,
            };
            let seen = versions[versions.len().saturating_sub(1 + ago)];
            let vnis = model.networks.iter().map(|(number, naive)| (*number, naive.network.vni));
            let command = command(step, &vnis.collect(), seen);
            let got = rig.apply(command);
            let version = Version { epoch: 1, index: rig.index };
            model.expect(step, version, seen, &got);
            compare(rig.facts(), &model);
            versions.push(rig.facts().version());
        }
    }

    /// Copies that follow by changes, from whatever version, and repeated ones too, are what the
    /// managers have; and the state survives being written down.
    #[test]
    fn copies_follow(
        steps in proptest::collection::vec(step(), 1..60),
        pulls in proptest::collection::vec((0..4_usize, 0..12_usize), 60),
    ) {
        let mut rig = Rig::new(1);
        let mut past: Vec<Facts> = vec![rig.facts().clone()];
        let mut copies = vec![rig.facts().clone(), Facts::default(), Facts::default(), rig.facts().clone()];
        let mut vnis = BTreeMap::new();
        for (step, (number, ago)) in steps.iter().zip(&pulls) {
            let seen = past[past.len().saturating_sub(1 + ago)].version();
            let reply = rig.apply(command(step, &vnis, seen));
            if let (Step::Create(number), Ok(Reply::Network(network))) = (step, reply) {
                vnis.insert(*number, network.vni);
            }
            past.push(rig.facts().clone());

            let bytes = postcard::to_stdvec(&rig.machine).unwrap();
            let back: StateMachine = postcard::from_bytes(&bytes).unwrap();
            prop_assert_eq!(&back, &rig.machine);
            let text = serde_json::to_string(rig.facts()).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Facts>(&text).unwrap(), rig.facts());

            // From before the copy's version: what it has already comes again.
            let from = past[past.len().saturating_sub(1 + ago)].version();
            let news = back.since(from);
            let copy = &mut copies[*number];
            let before = copy.clone();
            if copy.update(news).is_err() {
                prop_assert_eq!(&*copy, &before);
                prop_assert!(copy.version() < from);
                let news = back.since(copy.version());
                copy.update(news).unwrap();
            }
            if from < rig.facts().version() {
                prop_assert_eq!(&*copy, rig.facts());
            }
        }
        for copy in &mut copies {
            let news = rig.machine.since(copy.version());
            copy.update(news).unwrap();
            prop_assert_eq!(&*copy, rig.facts());
        }
    }
}
