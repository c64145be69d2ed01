//! Who is a member.

use overlay_core::facts::{Command, FactsNews, MAX_HOSTS, Refusal, Want};
use overlay_core::model::Host;

use crate::{Rig, host, id, ip, spec};

fn add(rig: &mut Rig, host: Host, replace: Option<u64>) -> Result<(), Refusal> {
    let replace = replace.map(id);
    rig.apply(Command::HostAdd { host, replace }).map(drop)
}

fn set_role(rig: &mut Rig, number: u64, manager: bool) -> Result<(), Refusal> {
    let id = id(number);
    rig.apply(Command::SetRole { id, manager }).map(drop)
}

fn remove(rig: &mut Rig, number: u64) -> Result<(), Refusal> {
    rig.apply(Command::HostRemove { id: id(number) }).map(drop)
}

#[test]
fn a_host_joins_once_and_asking_again_is_no_error() {
    let mut rig = Rig::new(2);
    let version = rig.facts().version();
    add(&mut rig, host(2), None).unwrap();
    assert_eq!(rig.facts().version(), version, "nothing changed");
    let other = Host {
        name: "other".into(),
        ..host(2)
    };
    assert_eq!(add(&mut rig, other, None), Err(Refusal::HostExists(id(2))));
}

#[test]
fn no_two_hosts_have_one_vtep() {
    let mut rig = Rig::new(2);
    let twin = Host {
        vtep: host(2).vtep,
        ..host(3)
    };
    let refusal = add(&mut rig, twin.clone(), None).unwrap_err();
    assert!(matches!(refusal, Refusal::VtepTaken { host, .. } if host == id(2)));
    // Its predecessor is dead: in its place, and what that held is free.
    let vni = rig.network("10.0.0.0/24");
    rig.ask(2, vni, Want::Addresses(4)).unwrap();
    add(&mut rig, twin.clone(), Some(2)).unwrap();
    assert_eq!(rig.facts().host(id(2)), None);
    assert_eq!(rig.facts().host(id(3)), Some(&twin));
    assert!(rig.facts().participants(vni).is_empty());
}

#[test]
fn vteps_and_networks_do_not_overlap() {
    let mut rig = Rig::new(1);
    rig.network("10.0.0.0/24");
    let inside = Host {
        vtep: ip("10.0.0.7"),
        ..host(2)
    };
    let refusal = add(&mut rig, inside, None).unwrap_err();
    assert!(matches!(refusal, Refusal::VtepInNetwork { .. }));
    for bad in ["0.0.0.0", "239.1.1.1", "255.255.255.255", "::", "ff02::1"] {
        let vtep = ip(bad);
        let refusal = add(&mut rig, Host { vtep, ..host(2) }, None);
        assert_eq!(refusal, Err(Refusal::Vtep(vtep)));
    }
}

#[test]
fn all_hosts_have_one_data_port() {
    let mut rig = Rig::new(1);
    let other = Host {
        data_port: 8472,
        ..host(2)
    };
    let refusal = add(&mut rig, other, None).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::DataPort {
            port: 8472,
            cluster: 4789
        }
    );
}

/// Else encrypted networks between them would be silent.
#[test]
fn all_hosts_have_one_esp_port() {
    let mut rig = Rig::new(1);
    let other = Host {
        esp_port: 4501,
        ..host(2)
    };
    let refusal = add(&mut rig, other, None).unwrap_err();
    let wanted = Refusal::EspPort {
        port: 4501,
        cluster: 4500,
    };
    assert_eq!(refusal, wanted);
    // Nor can one change it while there are others; the only one may.
    let update = |esp_port| Command::HostUpdate {
        id: id(1),
        name: "one".into(),
        vtep: host(1).vtep,
        data_port: 4789,
        esp_port,
        control_port: 2377,
        gossip_port: 7946,
    };
    rig.apply(update(4501)).unwrap();
    rig.apply(update(4500)).unwrap();
    add(&mut rig, host(2), None).unwrap();
    assert_eq!(rig.apply(update(4501)), Err(wanted));
}

#[test]
fn the_last_manager_stays() {
    let mut rig = Rig::new(3);
    assert_eq!(remove(&mut rig, 1), Err(Refusal::LastManager(id(1))));
    assert_eq!(
        set_role(&mut rig, 1, false),
        Err(Refusal::LastManager(id(1)))
    );
    let heir = Host {
        vtep: host(1).vtep,
        ..host(4)
    };
    assert_eq!(
        add(&mut rig, heir, Some(1)),
        Err(Refusal::LastManager(id(1)))
    );
    set_role(&mut rig, 2, true).unwrap();
    remove(&mut rig, 1).unwrap();
    let managers: Vec<_> = rig.facts().managers().map(|host| host.id).collect();
    assert_eq!(managers, [id(2)]);
    assert_eq!(set_role(&mut rig, 7, true), Err(Refusal::NoHost(id(7))));
    assert_eq!(remove(&mut rig, 7), Err(Refusal::NoHost(id(7))));
}

#[test]
fn a_host_moves_to_another_address_and_keeps_its_role() {
    let mut rig = Rig::new(2);
    let update = |vtep| Command::HostUpdate {
        id: id(1),
        name: "moved".into(),
        vtep,
        data_port: 4789,
        esp_port: 4500,
        control_port: 1,
        gossip_port: 2,
    };
    assert!(rig.apply(update(host(2).vtep)).is_err());
    rig.apply(update(ip("2001:db8::7"))).unwrap();
    let moved = rig.facts().host(id(1)).unwrap();
    assert!(moved.manager && moved.vtep == ip("2001:db8::7") && moved.gossip_port == 2);
}

#[test]
fn a_thousand_hosts_and_no_more() {
    let mut rig = Rig::new(MAX_HOSTS as u64);
    assert_eq!(rig.join(1001), Err(Refusal::TooManyHosts));
    // In the place of another there is room.
    add(&mut rig, host(1001), Some(1000)).unwrap();
}

#[test]
fn a_removed_host_gets_nothing_more() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/29");
    rig.ask(2, vni, Want::Addresses(5)).unwrap();
    rig.ask(1, vni, Want::Addresses(1)).unwrap_err();
    remove(&mut rig, 2).unwrap();
    assert_eq!(
        rig.ask(2, vni, Want::Addresses(1)),
        Err(Refusal::NoHost(id(2)))
    );
    assert_eq!(rig.ask(1, vni, Want::Addresses(9)).unwrap().len(), 1);
}

#[test]
fn tokens_change_nothing_public_and_are_not_printed() {
    let mut rig = Rig::new(1);
    let version = rig.facts().version();
    for (manager, secret) in [(true, b"m".to_vec()), (false, b"w".to_vec())] {
        rig.apply(Command::TokenRotate { manager, secret }).unwrap();
    }
    assert_eq!(rig.machine.secrets().manager_token, b"m");
    assert_eq!(rig.machine.secrets().worker_token, b"w");
    assert_eq!(rig.machine.since(version), FactsNews::Nothing);
    let bytes = format!("{:?}", b"geheim");
    assert!(!format!("{:?}", rig.machine).contains(&bytes));
}

#[test]
fn a_restored_cluster_has_one_manager_and_the_next_epoch() {
    let mut rig = Rig::new(3);
    set_role(&mut rig, 2, true).unwrap();
    let network = rig.create(spec("net", &[])).unwrap();
    rig.ask(3, network.vni, Want::Addresses(2)).unwrap();
    let before = rig.facts().version();
    let heir = Host {
        vtep: host(1).vtep,
        ..host(9)
    };
    let mut restored = rig.machine.restored(heir);
    let facts = restored.facts();
    let managers: Vec<_> = facts.managers().map(|host| host.id).collect();
    assert_eq!(managers, [id(9)]);
    assert_eq!(facts.host(id(1)), None, "it had the same VTEP");
    assert_eq!(facts.network_named("net"), Some(&network));
    assert!(facts.version() > before);
    assert!(matches!(restored.since(before), FactsNews::Snapshot(_)));
    let name = "net2".to_owned();
    let create = Command::NetworkCreate {
        spec: spec(&name, &[]),
        avoid: Vec::new(),
    };
    restored.apply(1, &create).unwrap();
    assert_eq!(
        restored.facts().network_named("net2").unwrap().vni.get(),
        4097
    );
}
