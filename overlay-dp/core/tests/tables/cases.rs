use std::net::IpAddr;

use overlay_common::layout::{FdbEntry, FdbKey, NeighbourEntry, NeighbourKey};
use overlay_common::wire::{UNSPECIFIED, map_v4};
use overlay_core::model::{Endpoint, MacAddr};
use overlay_core::tables::{Error, MAX_IPS, MapContents, MapUpdate, Origin, Tables};

use super::maps::drain;
use super::*;

const A: &str = "192.168.1.5";
const B: &str = "192.168.2.5";

fn key(last: u8) -> FdbKey {
    FdbKey::new(1, mac(last).0)
}

fn neighbour_key(last: u8) -> NeighbourKey {
    NeighbourKey::new(1, map_v4([10, 0, 0, last]))
}

fn behind(vtep: &str) -> FdbEntry {
    let IpAddr::V4(v4) = ip(vtep) else { panic!() };
    FdbEntry::remote(map_v4(v4.octets()))
}

/// Network 1 with a port, 9, and the hosts A and B.
fn attached() -> (Tables, MapContents) {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.network_add(network(1));
    tables.vtep_add(ip(A)).unwrap();
    tables.vtep_add(ip(B)).unwrap();
    tables.port_up(9, &endpoint("mine", 1, 9)).unwrap();
    drain(&mut tables, &mut maps);
    (tables, maps)
}

#[test]
fn a_network_is_in_the_maps_while_a_port_is_in_it() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.network_add(network(1));
    tables.vtep_add(ip(A)).unwrap();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.vteps.len(), 1);
    assert_eq!(
        (maps.fdb.len(), maps.neighbours.len(), maps.networks.len()),
        (0, 0, 0)
    );

    tables.port_up(9, &endpoint("mine", 1, 9)).unwrap();
    let updates = drain(&mut tables, &mut maps);
    assert_eq!(maps.networks[&1].mtu, MTU);
    assert_eq!(maps.fdb[&key(2)], behind(A));
    assert_eq!(maps.fdb[&key(9)], FdbEntry::local(9));
    assert_eq!(maps.fdb.len(), 2);
    // Two addresses of each endpoint, and the gateway's.
    assert_eq!(maps.neighbours.len(), 5);
    let gateway = NeighbourEntry {
        mac: [2, 0x42, 10, 0, 0, 1],
        _zero: [0; 2],
    };
    assert_eq!(maps.neighbours[&neighbour_key(1)], gateway);
    let place = |wanted: fn(&MapUpdate) -> bool| updates.iter().position(wanted).unwrap();
    let network = place(|u| matches!(u, MapUpdate::SetNetwork(..)));
    assert!(place(|u| matches!(u, MapUpdate::SetFdb(_, e) if e.port().is_none())) < network);
    assert!(network < place(|u| matches!(u, MapUpdate::SetPort(..))));

    tables.port_down(9);
    drain(&mut tables, &mut maps);
    assert_eq!(maps.vteps.len(), 1);
    let vteps = maps.vteps.clone();
    assert_eq!(
        maps,
        MapContents {
            vteps,
            ..MapContents::default()
        }
    );
}

#[test]
fn facts_may_come_in_any_order() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.port_up(9, &endpoint("mine", 1, 9)).unwrap();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    assert_eq!(drain(&mut tables, &mut maps), []);
    assert!(tables.port_entry(9).is_none());
    tables.network_add(network(1));
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb.len(), 1);
    tables.vtep_add(ip(A)).unwrap();
    let updates = drain(&mut tables, &mut maps);
    assert!(matches!(updates[0], MapUpdate::SetVtep(..)));
    assert_eq!(maps.fdb[&key(2)], behind(A));
}

#[test]
fn what_is_said_again_changes_nothing() {
    let (mut tables, mut maps) = attached();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    tables.static_add(static_entry(1, 3, "192.0.2.1")).unwrap();
    tables.next_hop(ip(A), Some(hop(4)));
    drain(&mut tables, &mut maps);
    let version = tables.version();

    tables.set_mtu(MTU);
    tables.network_add(network(1));
    tables.vtep_add(ip(A)).unwrap();
    tables.next_hop(ip(A), Some(hop(4)));
    tables.next_hop(ip("192.0.2.77"), Some(hop(4)));
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    tables.static_add(static_entry(1, 3, "192.0.2.1")).unwrap();
    tables.port_up(9, &endpoint("mine", 1, 9)).unwrap();
    tables.port_down(77);
    tables.vtep_remove(ip("192.0.2.77"));
    tables.network_remove(vni(77));
    tables.endpoint_down(ip(B), &endpoint("a", 1, 2));
    assert!(!tables.static_remove(vni(1), mac(77)));
    assert_eq!(tables.poll_update(), None);
    assert_eq!(tables.version(), version);
}

#[test]
fn the_first_claim_counts_until_it_is_withdrawn() {
    let (mut tables, mut maps) = attached();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    tables.endpoint_up(ip(B), &endpoint("b", 1, 2)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(2)], behind(A));
    let rows: Vec<_> = tables.fdb().filter(|row| row.mac == mac(2)).collect();
    let [a, b] = &rows[..] else {
        panic!("{rows:?}")
    };
    assert_eq!(
        (a.origin, a.effective, a.installed),
        (Origin::Host(ip(A)), true, true)
    );
    assert_eq!(
        (b.origin, b.effective, b.installed),
        (Origin::Host(ip(B)), false, false)
    );
    assert_eq!(a.ips, endpoint("", 1, 2).ips);

    tables.endpoint_down(ip(A), &endpoint("a", 1, 2));
    // One step, no moment without an entry.
    assert_eq!(
        drain(&mut tables, &mut maps),
        [MapUpdate::SetFdb(key(2), behind(B))]
    );
    // It comes back last.
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    assert_eq!(drain(&mut tables, &mut maps), []);
}

#[test]
fn ports_come_before_statics_and_statics_before_hosts() {
    let (mut tables, mut maps) = attached();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    tables.static_add(static_entry(1, 2, B)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(2)], behind(B));
    tables.port_up(4, &endpoint("mine2", 1, 2)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(2)], FdbEntry::local(4));
    tables.port_down(4);
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(2)], behind(B));
    assert!(tables.static_remove(vni(1), mac(2)));
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(2)], behind(A));
}

#[test]
fn nobody_takes_the_gateways_place() {
    let (mut tables, mut maps) = attached();
    let mut thief = endpoint("thief", 1, 1);
    assert_eq!(thief.mac, network(1).gateway_mac());
    tables.endpoint_up(ip(A), &thief).unwrap();
    thief.name = "thief2".to_owned();
    thief.mac = mac(66);
    tables.port_up(4, &thief).unwrap();
    drain(&mut tables, &mut maps);
    assert!(!maps.fdb.contains_key(&key(1)));
    assert_eq!(maps.neighbours[&neighbour_key(1)].mac, mac(1).0);
}

#[test]
fn an_endpoint_may_change() {
    let (mut tables, mut maps) = attached();
    let old = endpoint("a", 1, 2);
    tables.endpoint_up(ip(A), &old).unwrap();
    // B waits for the address, A keeps its place while it changes its MAC.
    tables
        .endpoint_up(
            ip(B),
            &Endpoint {
                mac: mac(70),
                ..endpoint("b", 1, 2)
            },
        )
        .unwrap();
    let new = Endpoint {
        mac: mac(3),
        ..old.clone()
    };
    tables.endpoint_up(ip(A), &new).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb.get(&key(2)), None);
    assert_eq!(maps.fdb[&key(3)], behind(A));
    assert_eq!(maps.neighbours[&neighbour_key(2)].mac, mac(3).0);
    // News of the old one's end come late.
    tables.endpoint_down(ip(A), &old);
    assert_eq!(drain(&mut tables, &mut maps), []);
    tables.endpoint_down(ip(A), &new);
    drain(&mut tables, &mut maps);
    assert_eq!(maps.neighbours[&neighbour_key(2)].mac, mac(70).0);
}

#[test]
fn a_vtep_goes_with_its_endpoints_but_not_with_its_statics() {
    let (mut tables, mut maps) = attached();
    tables.endpoint_up(ip(A), &endpoint("a", 1, 2)).unwrap();
    tables.static_add(static_entry(1, 3, A)).unwrap();
    drain(&mut tables, &mut maps);
    tables.vtep_remove(ip(A));
    drain(&mut tables, &mut maps);
    assert_eq!(maps.vteps.len(), 2);
    assert_eq!(maps.fdb.get(&key(2)), None);
    assert_eq!(maps.fdb[&key(3)], behind(A));
    assert!(tables.static_remove(vni(1), mac(3)));
    let updates = drain(&mut tables, &mut maps);
    assert!(matches!(updates.last(), Some(MapUpdate::DelVtep(_))));
    // What the host said before is not heard again.
    tables.vtep_add(ip(A)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb.get(&key(2)), None);
    assert_eq!(tables.vteps().count(), 2);
}

#[test]
fn statics_may_be_behind_any_vtep_and_move() {
    let (mut tables, mut maps) = attached();
    tables.static_add(static_entry(1, 3, "192.0.2.1")).unwrap();
    tables.next_hop(ip("192.0.2.1"), Some(hop(4)));
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(3)], behind("192.0.2.1"));
    let row = tables.fdb().find(|row| row.mac == mac(3)).unwrap();
    assert_eq!(
        (row.origin, row.next_hop),
        (Origin::Static(ip("192.0.2.1")), Some(hop(4)))
    );
    tables.static_add(static_entry(1, 3, "192.0.2.2")).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(3)], behind("192.0.2.2"));
    assert_eq!(maps.vteps.len(), 3);
    assert_eq!(tables.vteps().filter(|vtep| !vtep.host).count(), 1);
}

#[test]
fn next_hops() {
    let (mut tables, mut maps) = attached();
    let entry = |maps: &MapContents| maps.vteps[behind(A).vtep()];
    assert_eq!(entry(&maps).ifindex, 0);
    assert_eq!(entry(&maps).src_ip, map_v4([172, 31, 1, 5]));
    tables.next_hop(ip(A), Some(hop(4)));
    drain(&mut tables, &mut maps);
    assert_eq!((entry(&maps).ifindex, entry(&maps).mtu), (4, MTU));
    assert_eq!(entry(&maps).src_ip, map_v4([172, 31, 1, 5]));
    assert_eq!(tables.vteps().filter_map(|vtep| vtep.next_hop).count(), 1);
    tables.next_hop(ip(A), None);
    drain(&mut tables, &mut maps);
    assert_eq!(entry(&maps).ifindex, 0);
}

#[test]
fn port_entries() {
    let (mut tables, mut maps) = attached();
    let more = Endpoint {
        ips: ["fd00::1", "10.0.0.7", "fd00::2", "fd00::3", "10.0.0.8"]
            .map(ip)
            .to_vec(),
        ..endpoint("more", 1, 7)
    };
    tables.port_up(4, &more).unwrap();
    let bare = Endpoint {
        ips: vec![],
        ..endpoint("bare", 1, 8)
    };
    tables.port_up(5, &bare).unwrap();
    tables.set_mtu(1400);
    drain(&mut tables, &mut maps);
    let port = maps.ports[&4];
    let IpAddr::V6(fd1) = ip("fd00::1") else {
        panic!()
    };
    let IpAddr::V6(fd2) = ip("fd00::2") else {
        panic!()
    };
    assert_eq!(port.ip6, [fd1.octets(), fd2.octets()]);
    assert_eq!((port.ip4, port.vni, port.mtu), ([10, 0, 0, 7], 1, 1400));
    assert_eq!(
        (maps.ports[&5].ip4, maps.ports[&5].ip6),
        ([0; 4], [UNSPECIFIED; 2])
    );
    assert_eq!(maps.networks[&1].mtu, 1400);
    assert_eq!(tables.local().mtu, 1400);
    // Another endpoint behind the same ifindex.
    tables.port_up(5, &endpoint("other", 2, 8)).unwrap();
    drain(&mut tables, &mut maps);
    assert!(!maps.ports.contains_key(&5));
}

#[test]
fn a_networks_gateway_may_change_and_the_network_go() {
    let (mut tables, mut maps) = attached();
    let mut changed = network(1);
    changed.gateway = ip("10.0.0.254");
    tables.network_add(changed);
    drain(&mut tables, &mut maps);
    assert!(!maps.neighbours.contains_key(&neighbour_key(1)));
    assert_eq!(maps.neighbours[&neighbour_key(254)].mac, mac(254).0);
    tables.network_remove(vni(1));
    drain(&mut tables, &mut maps);
    assert!(maps.ports.is_empty() && maps.fdb.is_empty() && maps.neighbours.is_empty());
    assert_eq!(tables.network(vni(1)), None);
    tables.network_add(network(1));
    drain(&mut tables, &mut maps);
    assert_eq!(maps.fdb[&key(9)], FdbEntry::local(9));
}

#[test]
fn what_is_refused() {
    let (mut tables, _) = attached();
    let own = ip("172.31.1.5");
    assert_eq!(tables.vtep_add(own), Err(Error::OwnVtep(own)));
    assert_eq!(
        tables.endpoint_up(own, &endpoint("a", 1, 2)),
        Err(Error::OwnVtep(own))
    );
    assert_eq!(
        tables.static_add(static_entry(1, 2, "172.31.1.5")),
        Err(Error::OwnVtep(own))
    );
    assert_eq!(
        tables.vtep_add(ip("fd00::5")),
        Err(Error::OtherFamily(ip("fd00::5"), own))
    );
    for bad in ["::", "::1", "::5", "ff02::1", "fe80::5"] {
        assert_eq!(tables.vtep_add(ip(bad)), Err(Error::Vtep(ip(bad))));
    }
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert_eq!(tables.vtep_add(ip(bad)), Err(Error::Vtep(ip(bad))));
        let endpoint = Endpoint {
            ips: vec![ip(bad)],
            ..endpoint("a", 1, 2)
        };
        assert_eq!(
            tables.endpoint_up(ip(A), &endpoint),
            Err(Error::Ip(ip(bad)))
        );
    }
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let endpoint = Endpoint {
        mac: group,
        ..endpoint("a", 1, 2)
    };
    assert_eq!(tables.port_up(3, &endpoint), Err(Error::Mac(group)));
    let ips: Vec<IpAddr> = (0..17).map(|last| IpAddr::from([10, 0, 1, last])).collect();
    assert_eq!(ips.len(), MAX_IPS + 1);
    let endpoint = Endpoint {
        ips,
        mac: mac(2),
        ..endpoint
    };
    assert_eq!(
        tables.endpoint_up(ip(A), &endpoint),
        Err(Error::TooManyAddresses(17))
    );
    assert_eq!(
        tables.port_up(0, &super::endpoint("a", 1, 2)),
        Err(Error::Ifindex)
    );
    assert_eq!(tables.poll_update(), None);
}

/// All hosts claim one MAC and one address, and many endpoints come and go: seconds if any step
/// were linear in them, minutes if quadratic.
#[test]
fn many() {
    const MANY: u32 = 20_000;
    let (mut tables, _) = attached();
    let vtep = |n: u32| IpAddr::from((0x0b00_0000 + n).to_be_bytes());
    let one = endpoint("one", 1, 2);
    let own = |n: u32| {
        let v4 = std::net::Ipv4Addr::from((10 << 24) + (1 << 16) + n);
        let mac = MacAddr::from_ipv4(v4);
        Endpoint {
            mac,
            ips: vec![v4.into()],
            ..endpoint("own", 1, 3)
        }
    };
    for n in 1..=MANY {
        tables.vtep_add(vtep(n)).unwrap();
        tables.endpoint_up(vtep(n), &one).unwrap();
        tables.endpoint_up(vtep(n), &own(n)).unwrap();
    }
    assert_eq!(
        tables.fdb_entry(&key(2)).unwrap().vtep(),
        &map_v4([11, 0, 0, 1])
    );
    for n in 1..MANY {
        tables.endpoint_down(vtep(n), &one);
        tables.vtep_remove(vtep(n));
    }
    let last = FdbEntry::remote(map_v4([11, 0, 0x4e, 0x20]));
    assert_eq!(tables.fdb_entry(&key(2)), Some(&last));
    while tables.poll_update().is_some() {}
    assert_eq!(tables.snapshot().fdb.len(), 3);
}
