//! Any facts in any order, against a model that works everything out anew after each of them.

use std::collections::{BTreeMap, BTreeSet};

use overlay_common::layout::{
    FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::wire::{Ip16, UNSPECIFIED, map_v4};
use overlay_core::model::Endpoint;
use overlay_core::tables::MapContents;
use proptest::prelude::*;

use super::maps::drain;
use super::*;

#[derive(Clone, Debug)]
enum Fact {
    Mtu(u32),
    NetworkAdd(Network),
    NetworkRemove(Vni),
    VtepAdd(IpAddr),
    VtepRemove(IpAddr),
    NextHop(IpAddr, Option<NextHop>),
    Up(IpAddr, Endpoint),
    Down(IpAddr, Endpoint),
    StaticAdd(StaticEntry),
    StaticRemove(Vni, MacAddr),
    PortUp(u32, Endpoint),
    PortDown(u32),
}

/// Few of everything, so that claims conflict and facts meet their opposites.
fn facts() -> impl Strategy<Value = Vec<Fact>> {
    let vtep = || (1..4_u8).prop_map(|last| IpAddr::from([192, 0, 2, last]));
    let number = || 1..3_u32;
    let endpoint = || {
        let ips = prop::collection::vec(1..5_u8, 0..3);
        (0..3_usize, number(), 1..5_u8, ips).prop_map(|(name, number, last, ips)| Endpoint {
            name: ["a", "b", "c"][name].to_owned(),
            vni: vni(number),
            mac: mac(last),
            ips: ips
                .into_iter()
                .map(|last| IpAddr::from([10, 0, 0, last]))
                .collect(),
            aliases: Vec::new(),
            service: None,
            router: false,
            unready: false,
        })
    };
    let gateway = (number(), 1..3_u8).prop_map(|(number, last)| Network {
        gateway: IpAddr::from([10, 0, 0, last]),
        ..network(number)
    });
    let hop = (vtep(), prop::option::of(1..3_u32));
    let fact = prop_oneof![
        1 => (1400..1402_u32).prop_map(Fact::Mtu),
        3 => gateway.prop_map(Fact::NetworkAdd),
        1 => number().prop_map(|n| Fact::NetworkRemove(vni(n))),
        3 => vtep().prop_map(Fact::VtepAdd),
        1 => vtep().prop_map(Fact::VtepRemove),
        2 => hop.prop_map(|(vtep, hop)| Fact::NextHop(vtep, hop.map(super::hop))),
        6 => (vtep(), endpoint()).prop_map(|(vtep, e)| Fact::Up(vtep, e)),
        4 => (vtep(), endpoint()).prop_map(|(vtep, e)| Fact::Down(vtep, e)),
        3 => (vtep(), endpoint()).prop_map(|(vtep, e)| {
            Fact::StaticAdd(StaticEntry { vni: e.vni, mac: e.mac, vtep, ips: e.ips })
        }),
        2 => (number(), 1..5_u8).prop_map(|(n, m)| Fact::StaticRemove(vni(n), mac(m))),
        4 => (1..4_u32, endpoint()).prop_map(|(i, e)| Fact::PortUp(i, e)),
        2 => (1..4_u32).prop_map(Fact::PortDown),
    ];
    prop::collection::vec(fact, 1..60)
}

fn tell(tables: &mut Tables, fact: &Fact) {
    match fact.clone() {
        Fact::Mtu(mtu) => tables.set_mtu(mtu),
        Fact::NetworkAdd(network) => tables.network_add(network),
        Fact::NetworkRemove(vni) => tables.network_remove(vni),
        Fact::VtepAdd(vtep) => tables.vtep_add(vtep).unwrap(),
        Fact::VtepRemove(vtep) => tables.vtep_remove(vtep),
        Fact::NextHop(vtep, hop) => tables.next_hop(vtep, hop),
        Fact::Up(vtep, endpoint) => tables.endpoint_up(vtep, &endpoint).unwrap(),
        Fact::Down(vtep, endpoint) => tables.endpoint_down(vtep, &endpoint),
        Fact::StaticAdd(entry) => tables.static_add(entry).unwrap(),
        Fact::StaticRemove(vni, mac) => drop(tables.static_remove(vni, mac)),
        Fact::PortUp(ifindex, endpoint) => tables.port_up(ifindex, &endpoint).unwrap(),
        Fact::PortDown(ifindex) => tables.port_down(ifindex),
    }
}

/// Best first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Gateway,
    /// With how many endpoints were behind any port before.
    Port(u32, u32),
    Static(MacAddr, IpAddr),
    Host(IpAddr, String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Mac(Vni, MacAddr),
    Ip(Vni, Ip16),
}

#[derive(Default)]
struct Model {
    mtu: u32,
    networks: BTreeMap<Vni, Network>,
    hosts: BTreeSet<IpAddr>,
    hops: BTreeMap<IpAddr, NextHop>,
    endpoints: BTreeMap<(IpAddr, Vni, String), Endpoint>,
    statics: BTreeMap<(Vni, MacAddr), StaticEntry>,
    ports: BTreeMap<u32, (u32, Endpoint)>,
    ports_ever: u32,
    /// The claims in the order in which they were made.
    claims: Vec<(Key, Owner)>,
}

fn ip16(ip: &IpAddr) -> Ip16 {
    match ip {
        IpAddr::V4(ip) => map_v4(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn same(a: &Endpoint, b: &Endpoint) -> bool {
    let set = |e: &Endpoint| e.ips.iter().copied().collect::<BTreeSet<_>>();
    a.mac == b.mac && set(a) == set(b)
}

impl Model {
    fn tell(&mut self, fact: &Fact) {
        match fact.clone() {
            Fact::Mtu(mtu) => self.mtu = mtu,
            Fact::NetworkAdd(network) => drop(self.networks.insert(network.vni, network)),
            Fact::NetworkRemove(vni) => drop(self.networks.remove(&vni)),
            Fact::VtepAdd(vtep) => drop(self.hosts.insert(vtep)),
            Fact::VtepRemove(vtep) => {
                self.hosts.remove(&vtep);
                self.endpoints.retain(|(of, _, _), _| *of != vtep);
            }
            Fact::NextHop(vtep, Some(hop)) if self.knows(&vtep) => {
                self.hops.insert(vtep, hop);
            }
            Fact::NextHop(vtep, _) => drop(self.hops.remove(&vtep)),
            Fact::Up(vtep, e) => drop(self.endpoints.insert((vtep, e.vni, e.name.clone()), e)),
            Fact::Down(vtep, e) => {
                let key = (vtep, e.vni, e.name.clone());
                if self.endpoints.get(&key).is_some_and(|held| same(held, &e)) {
                    self.endpoints.remove(&key);
                }
            }
            Fact::StaticAdd(entry) => drop(self.statics.insert((entry.vni, entry.mac), entry)),
            Fact::StaticRemove(vni, mac) => drop(self.statics.remove(&(vni, mac))),
            Fact::PortUp(ifindex, e) => {
                let held = self.ports.get(&ifindex);
                let again = held.is_some_and(|(_, held)| {
                    held.vni == e.vni && same(held, &e) && held.ips.first() == e.ips.first()
                });
                if !again {
                    self.ports_ever += 1;
                    self.ports.insert(ifindex, (self.ports_ever, e));
                }
            }
            Fact::PortDown(ifindex) => drop(self.ports.remove(&ifindex)),
        }
        let hops = std::mem::take(&mut self.hops);
        self.hops = hops
            .into_iter()
            .filter(|(vtep, _)| self.knows(vtep))
            .collect();
        self.order_claims();
    }

    fn knows(&self, vtep: &IpAddr) -> bool {
        self.hosts.contains(vtep) || self.statics.values().any(|entry| entry.vtep == *vtep)
    }

    /// Who says that a MAC and addresses belong together.
    fn sayings(&self) -> Vec<(Vni, Owner, MacAddr, Vec<IpAddr>)> {
        let mut all = Vec::new();
        for n in self.networks.values() {
            all.push((n.vni, Owner::Gateway, n.gateway_mac(), vec![n.gateway]));
        }
        for (ifindex, (nth, e)) in &self.ports {
            all.push((e.vni, Owner::Port(*nth, *ifindex), e.mac, e.ips.clone()));
        }
        for s in self.statics.values() {
            all.push((s.vni, Owner::Static(s.mac, s.vtep), s.mac, s.ips.clone()));
        }
        for ((vtep, _, name), e) in &self.endpoints {
            if self.hosts.contains(vtep) {
                all.push((
                    e.vni,
                    Owner::Host(*vtep, name.clone()),
                    e.mac,
                    e.ips.clone(),
                ));
            }
        }
        all
    }

    fn order_claims(&mut self) {
        let mut made = Vec::new();
        for (vni, owner, mac, ips) in self.sayings() {
            made.push((Key::Mac(vni, mac), owner.clone()));
            for ip in &ips {
                made.push((Key::Ip(vni, ip16(ip)), owner.clone()));
            }
        }
        self.claims.retain(|claim| made.contains(claim));
        for claim in made {
            if !self.claims.contains(&claim) {
                self.claims.push(claim);
            }
        }
    }

    fn winner(&self, key: &Key) -> Option<&Owner> {
        let class = |owner: &Owner| match owner {
            Owner::Gateway => 0,
            Owner::Port(..) => 1,
            Owner::Static(..) => 2,
            Owner::Host(..) => 3,
        };
        let claims = self.claims.iter().filter(|(of, _)| of == key);
        claims
            .map(|(_, owner)| owner)
            .min_by_key(|owner| class(owner))
    }

    fn contents(&self) -> MapContents {
        let mut maps = MapContents::default();
        for vtep in self
            .hosts
            .iter()
            .chain(self.statics.values().map(|s| &s.vtep))
        {
            let hop = self.hops.get(vtep);
            let entry = VtepEntry {
                src_ip: map_v4([172, 31, 1, 5]),
                ifindex: hop.map_or(0, |hop| hop.ifindex),
                mtu: hop.map_or(0, |hop| hop.mtu),
                src_mac: hop.map_or([0; 6], |hop| hop.src_mac),
                dst_mac: hop.map_or([0; 6], |hop| hop.dst_mac),
            };
            maps.vteps.insert(ip16(vtep), entry);
        }
        let mut active = BTreeSet::new();
        for (ifindex, (_, e)) in &self.ports {
            if self.networks.contains_key(&e.vni) {
                active.insert(e.vni);
                let ip4 = e.ips.first().map_or([0; 4], |ip| match ip {
                    IpAddr::V4(ip) => ip.octets(),
                    IpAddr::V6(_) => panic!("not made"),
                });
                let entry = PortEntry {
                    vni: e.vni.get(),
                    mtu: self.mtu,
                    mac: e.mac.0,
                    _zero: [0; 2],
                    ip4,
                    ip6: [UNSPECIFIED; 2],
                    flags: 0,
                    rate: 0,
                    burst_ns: 0,
                };
                maps.ports.insert(*ifindex, entry);
            }
        }
        for vni in &active {
            maps.networks
                .insert(vni.get(), NetworkEntry::closed(self.mtu));
        }
        for (vni, owner, mac, ips) in self.sayings() {
            if !active.contains(&vni) {
                continue;
            }
            let entry = match owner {
                Owner::Gateway => None,
                Owner::Port(_, ifindex) => Some(FdbEntry::local(ifindex)),
                Owner::Static(_, vtep) | Owner::Host(vtep, _) => {
                    Some(FdbEntry::remote(ip16(&vtep)))
                }
            };
            if let (Some(entry), true) = (entry, self.winner(&Key::Mac(vni, mac)) == Some(&owner)) {
                maps.fdb.insert(FdbKey::new(vni.get(), mac.0), entry);
            }
            for ip in ips.iter().map(ip16) {
                if self.winner(&Key::Ip(vni, ip)) == Some(&owner) {
                    let key = NeighbourKey::new(vni.get(), ip);
                    maps.neighbours.insert(
                        key,
                        NeighbourEntry {
                            mac: mac.0,
                            _zero: [0; 2],
                        },
                    );
                }
            }
        }
        maps
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After each fact the maps are what the model says; and `drain` sees that the updates lead
    /// there without a broken reference and without one that is for nothing.
    #[test]
    fn the_maps_are_what_the_model_says(facts in facts(), lazily in any::<bool>()) {
        let mut tables = tables();
        let mut maps = MapContents::default();
        let mut model = Model { mtu: MTU, ..Model::default() };
        for fact in &facts {
            tell(&mut tables, fact);
            model.tell(fact);
            prop_assert_eq!(tables.snapshot(), model.contents(), "after {:?}", fact);
            if !lazily {
                drain(&mut tables, &mut maps);
            }
        }
        drain(&mut tables, &mut maps);
    }

    /// When every fact is taken back, nothing is left.
    #[test]
    fn nothing_is_left(facts in facts()) {
        let mut tables = tables();
        let mut maps = MapContents::default();
        for fact in &facts {
            tell(&mut tables, fact);
        }
        for last in 1..4 {
            tables.vtep_remove(IpAddr::from([192, 0, 2, last]));
            tables.port_down(last.into());
        }
        for number in 1..3 {
            for last in 1..5 {
                tables.static_remove(vni(number), mac(last));
            }
            tables.network_remove(vni(number));
        }
        drain(&mut tables, &mut maps);
        prop_assert_eq!(maps, MapContents::default());
        prop_assert_eq!(tables.fdb().count() + tables.vteps().count(), 0);
    }
}
