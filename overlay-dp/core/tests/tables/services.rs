//! A service's own addresses, and whose slots they have.

use overlay_common::layout::{FDB_BACKEND, FdbKey, PORT_BACKEND};
use overlay_common::service::{SLOTS, SlotKey};
use overlay_common::wire::{Ip16, ip16};
use overlay_core::model::Endpoint;
use overlay_core::tables::{MapContents, MapUpdate};

use super::maps::drain;
use super::*;

const VIP: &str = "10.0.0.200";

fn task(number: u8, service: Option<&str>) -> Endpoint {
    Endpoint {
        name: format!("web.{number}"),
        vni: vni(1),
        mac: mac(number),
        ips: vec![IpAddr::from([10, 0, 0, number]), "fe80::1".parse().unwrap()],
        aliases: Vec::new(),
        service: service.map(str::to_owned),
        router: false,
        unready: false,
    }
}

fn set_vip(tables: &mut Tables, ips: &[IpAddr]) {
    tables.service_set(vni(1), "web", mac(200), ips).unwrap();
}

fn vip() -> IpAddr {
    VIP.parse().unwrap()
}

/// How many slots of the VIP each address has.
fn shares(contents: &MapContents) -> Vec<(Ip16, usize)> {
    let mut shares = std::collections::BTreeMap::new();
    for slot in 0..SLOTS {
        let key = SlotKey::new(1, ip16(vip()), slot);
        if let Some(peer) = contents.slots.get(&key) {
            *shares.entry(peer.ip).or_insert(0) += 1;
        }
    }
    assert_eq!(shares.values().sum::<usize>(), contents.slots.len());
    shares.into_iter().collect()
}

#[test]
fn backends_on_all_hosts_share_the_slots_while_they_are_there() {
    let mut tables = tables();
    let mut maps = MapContents::default();
    tables.network_add(network(1));
    let far: IpAddr = [192, 0, 2, 2].into();
    tables.vtep_add(far).unwrap();
    // In whatever order it becomes known.
    tables.endpoint_up(far, &task(3, Some("web"))).unwrap();
    set_vip(&mut tables, &[vip()]);
    tables.port_up(7, &task(2, Some("web"))).unwrap();
    tables.port_up(8, &task(4, None)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps, tables.snapshot());
    let own = |number: u8| ip16([10, 0, 0, number].into());
    let halves = shares(&maps);
    assert_eq!(
        halves.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(),
        [own(2), own(3)]
    );
    assert!(halves.iter().all(|(_, slots)| *slots >= 510), "{halves:?}");
    let flags = |number| maps.fdb[&FdbKey::new(1, mac(number).0)];
    assert!(flags(2).is_backend() && flags(3).is_backend() && !flags(4).is_backend());
    assert!(flags(200).is_service() && flags(200).port().is_none());
    assert_eq!(maps.ports[&7].flags & PORT_BACKEND, PORT_BACKEND);
    assert_eq!(maps.ports[&8].flags & PORT_BACKEND, 0);
    assert_eq!(FDB_BACKEND, 1);

    // Its host is gone: its slots are the other's.
    tables.vtep_remove(far);
    drain(&mut tables, &mut maps);
    assert_eq!(shares(&maps), [(own(2), SLOTS as usize)]);
    // It is of no service any more.
    tables.port_up(7, &task(2, None)).unwrap();
    drain(&mut tables, &mut maps);
    assert!(shares(&maps).is_empty());
    assert_eq!(maps, tables.snapshot());
}

#[test]
fn who_is_not_ready_has_no_slots_unless_nobody_is() {
    let mut tables = tables();
    let mut maps = MapContents::default();
    tables.network_add(network(1));
    set_vip(&mut tables, &[vip()]);
    let far: IpAddr = [192, 0, 2, 2].into();
    tables.vtep_add(far).unwrap();
    let of = |number, unready| Endpoint {
        unready,
        ..task(number, Some("web"))
    };
    // Whether the near one and the far one are unready, and who has slots then.
    for (near, away, having) in [
        (true, true, &[2, 3][..]),
        (false, true, &[2]),
        (false, false, &[2, 3]),
        (true, false, &[3]),
        (true, true, &[2, 3]),
    ] {
        tables.port_up(7, &of(2, near)).unwrap();
        tables.endpoint_up(far, &of(3, away)).unwrap();
        let updates = drain(&mut tables, &mut maps);
        let cuts = |update: &MapUpdate| matches!(update, MapUpdate::DelPort(_));
        assert!(!updates.iter().any(cuts), "{updates:?}");
        let have: Vec<Ip16> = shares(&maps).into_iter().map(|(ip, _)| ip).collect();
        let wanted = having.iter().map(|last| ip16([10, 0, 0, *last].into()));
        assert!(have.iter().copied().eq(wanted), "{near} {away}: {have:?}");
        // Their connections stay.
        for number in [2, 3] {
            assert!(maps.fdb[&FdbKey::new(1, mac(number).0)].is_backend());
        }
    }
}

#[test]
fn a_port_becomes_a_backend_while_it_carries_traffic() {
    let mut tables = tables();
    let mut maps = MapContents::default();
    tables.network_add(network(1));
    set_vip(&mut tables, &[vip()]);
    tables.port_up(7, &task(2, None)).unwrap();
    drain(&mut tables, &mut maps);
    for service in [Some("web"), Some("other"), Some("web"), None] {
        tables.port_up(7, &task(2, service)).unwrap();
        let breaks = |update: &MapUpdate| {
            use MapUpdate::{DelFdb, DelNetwork, DelPort};
            matches!(update, DelPort(_) | DelNetwork(_) | DelFdb(_))
        };
        let updates = drain(&mut tables, &mut maps);
        assert!(!updates.iter().any(breaks), "{updates:?}");
        let is_backend = maps.ports[&7].flags & PORT_BACKEND != 0;
        assert_eq!(is_backend, service.is_some());
        assert_eq!(maps.slots.is_empty(), service != Some("web"));
    }
}

#[test]
fn a_service_that_is_gone_leaves_nothing() {
    let mut tables = tables();
    let mut maps = MapContents::default();
    tables.network_add(network(1));
    tables.port_up(7, &task(2, Some("web"))).unwrap();
    drain(&mut tables, &mut maps);
    let before = maps.clone();
    set_vip(&mut tables, &[vip()]);
    drain(&mut tables, &mut maps);
    assert_eq!(shares(&maps).len(), 1);
    // Telling it again changes nothing.
    let version = tables.version();
    set_vip(&mut tables, &[vip()]);
    assert_eq!(tables.version(), version);
    set_vip(&mut tables, &[]);
    drain(&mut tables, &mut maps);
    assert_eq!(maps, before);
    set_vip(&mut tables, &[vip()]);
    tables.port_down(7);
    drain(&mut tables, &mut maps);
    assert_eq!(maps, MapContents::default());
}

#[test]
fn an_endpoint_that_moves_is_a_backend_all_the_time() {
    let mut tables = tables();
    tables.network_add(network(1));
    set_vip(&mut tables, &[vip()]);
    tables.port_up(7, &task(9, None)).unwrap();
    let hosts: [IpAddr; 2] = [[192, 0, 2, 2].into(), [192, 0, 2, 3].into()];
    for host in hosts {
        tables.vtep_add(host).unwrap();
        tables.endpoint_up(host, &task(2, Some("web"))).unwrap();
    }
    tables.endpoint_down(hosts[0], &task(2, Some("web")));
    assert_eq!(shares(&tables.snapshot()).len(), 1);
    tables.endpoint_down(hosts[1], &task(2, Some("web")));
    assert_eq!(tables.snapshot().slots.len(), 0);
}
