//! Who may use which address.

use overlay_core::facts::{
    Command, FactsNews, MAX_HOST_OFFSETS, MAX_PIECES, NetworkSpec, Refusal, Want, Wanted,
};

use crate::{Rig, id, ip, mac, net, range, spec};

#[test]
fn the_lowest_free_addresses() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    assert_eq!(rig.ask(1, vni, Want::Addresses(1)).unwrap(), [range(2, 2)]);
    assert_eq!(rig.ask(2, vni, Want::Addresses(3)).unwrap(), [range(3, 5)]);
    rig.give_back(2, vni, 4, 4);
    let two = rig.ask(1, vni, Want::Addresses(2)).unwrap();
    assert_eq!(two, [range(4, 4), range(6, 6)]);
    let facts = rig.facts();
    assert_eq!(
        facts.granted(id(1), vni),
        [range(2, 2), range(4, 4), range(6, 6)]
    );
    assert_eq!(facts.owner(vni, 5), Some(id(2)));
    assert_eq!((facts.owner(vni, 1), facts.owner(vni, 7)), (None, None));
    assert_eq!(facts.participants(vni).len(), 2);
    assert_eq!(facts.networks_of(id(1)), [vni]);
}

#[test]
fn every_address_of_a_small_network_can_be_had() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/29");
    assert_eq!(rig.ask(1, vni, Want::Addresses(4)).unwrap(), [range(2, 5)]);
    assert_eq!(rig.ask(2, vni, Want::Addresses(4)).unwrap(), [range(6, 6)]);
    let refusal = rig.ask(2, vni, Want::Addresses(1)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "network 'n1' has no free address left: all 5 are held, 4 by host1, 1 by host2; remove a \
         container, or try again when hosts have given back what they do not use"
    );
    let waits = Wanted {
        host: id(2),
        want: Want::Addresses(1),
    };
    assert_eq!(rig.facts().wanted(vni), [waits]);
    // Asked again it is no news.
    let version = rig.facts().version();
    rig.ask(2, vni, Want::Addresses(1)).unwrap_err();
    assert_eq!(rig.facts().version(), version);
    rig.give_back(1, vni, 5, 5);
    assert_eq!(
        rig.ask(1, vni, Want::Spare(1)).unwrap(),
        [],
        "somebody waits"
    );
    assert_eq!(rig.ask(2, vni, Want::Addresses(1)).unwrap(), [range(5, 5)]);
    assert!(rig.facts().wanted(vni).is_empty(), "it has what it wanted");
}

#[test]
fn one_by_one_while_somebody_waits_until_it_gives_up() {
    let mut rig = Rig::new(3);
    let vni = rig.network("10.0.0.0/29");
    rig.ask(1, vni, Want::Addresses(5)).unwrap();
    rig.ask(2, vni, Want::Addresses(1)).unwrap_err();
    rig.give_back(1, vni, 2, 6);
    assert_eq!(rig.ask(3, vni, Want::Addresses(4)).unwrap(), [range(2, 2)]);
    let unwant = Command::Unwant { host: id(2), vni };
    rig.apply(unwant.clone()).unwrap();
    let version = rig.facts().version();
    rig.apply(unwant).unwrap();
    assert_eq!(rig.facts().version(), version);
    assert_eq!(rig.ask(3, vni, Want::Addresses(4)).unwrap(), [range(3, 6)]);
}

#[test]
fn spares_come_from_the_end_and_stay_below_a_quarter() {
    let mut rig = Rig::new(9);
    let vni = rig.network("10.0.0.0/24");
    let mut all = 0;
    assert_eq!(rig.ask(1, vni, Want::Spare(8)).unwrap(), [range(240, 247)]);
    assert_eq!(rig.ask(2, vni, Want::Spare(8)).unwrap(), [range(232, 239)]);
    for number in 3..=9 {
        let spares = rig.ask(number, vni, Want::Spare(8)).unwrap();
        all += spares.iter().map(|range| range.count()).sum::<u64>();
    }
    assert_eq!(16 + all, 62, "7 × 8, 4 and 2, of at most 63");
    assert!(rig.facts().grant(vni, 247).unwrap().spare);
    // Taken into use it is none any more, and there is room for another.
    rig.ask_ip(1, vni, "10.0.0.247").unwrap();
    assert!(!rig.facts().grant(vni, 247).unwrap().spare);
    assert_eq!(rig.facts().spares_left(vni, 8), 2);
    let tiny = rig.network("10.1.0.0/30");
    assert_eq!(rig.ask(1, tiny, Want::Spare(8)).unwrap(), []);
}

#[test]
fn an_address_by_name() {
    let mut rig = Rig::new(2);
    let dual = NetworkSpec {
        gateways: vec![ip("fd00::9")],
        ..spec("a", &["10.0.0.0/24", "fd00::/64"])
    };
    let vni = rig.create(dual).unwrap().vni;
    assert_eq!(rig.ask_ip(1, vni, "10.0.0.7").unwrap(), [range(7, 7)]);
    assert_eq!(
        rig.ask_ip(1, vni, "fd00::7").unwrap(),
        [range(7, 7)],
        "the same"
    );
    let refusal = rig.ask_ip(2, vni, "10.0.0.7").unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Taken { host, .. } if *host == id(1)),
        "{refusal}"
    );
    assert_eq!(rig.facts().wanted(vni)[0].want, Want::Ip(ip("10.0.0.7")));
    for gateway in ["10.0.0.1", "fd00::9"] {
        let refusal = rig.ask_ip(1, vni, gateway);
        assert_eq!(refusal, Err(Refusal::GatewayWanted(ip(gateway))));
    }
    let bad = [
        "10.0.0.0",
        "10.0.0.255",
        "10.0.1.2",
        "fd00::",
        "fd01::2",
        "0.0.0.0",
        // The other family's gateway has this offset.
        "10.0.0.9",
        "fd00::1",
        // Beyond what IPv4 has.
        "fd00::ff",
        "fd00::1:0:0:2",
    ];
    for bad in bad {
        let refusal = rig.ask_ip(1, vni, bad).unwrap_err();
        assert!(matches!(refusal, Refusal::Address { .. }), "{bad}");
    }
    rig.give_back(1, vni, 7, 7);
    assert_eq!(rig.ask_ip(2, vni, "10.0.0.7").unwrap(), [range(7, 7)]);
    assert!(rig.facts().wanted(vni).is_empty());
}

#[test]
fn only_the_owner_gives_back() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(4)).unwrap();
    rig.ask(2, vni, Want::Addresses(4)).unwrap();
    let version = rig.facts().version();
    rig.give_back(1, vni, 6, u32::MAX);
    assert_eq!(rig.facts().version(), version);
    rig.give_back(1, vni, 0, u32::MAX);
    assert_eq!(rig.facts().granted(id(1), vni), []);
    assert_eq!(rig.facts().granted(id(2), vni), [range(6, 9)]);
}

#[test]
fn a_late_return_does_not_take_what_was_granted_anew() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(4)).unwrap();
    let seen = rig.facts().version();
    // The host changes its mind, and says so by asking.
    rig.ask_ip(1, vni, "10.0.0.3").unwrap();
    rig.give_back_seen(1, vni, range(2, 5), seen);
    assert_eq!(rig.facts().granted(id(1), vni), [range(3, 3)]);
    // Sent twice, and granted anew in between.
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    rig.give_back_seen(1, vni, range(2, 5), seen);
    assert_eq!(rig.facts().granted(id(1), vni), [range(2, 3)]);
}

#[test]
fn mac_addresses() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    rig.ask_mac(1, vni, "02:11:22:33:44:55").unwrap();
    rig.ask_mac(1, vni, "02:11:22:33:44:55").unwrap();
    assert_eq!(
        rig.facts().claimed_macs(id(1), vni),
        [mac("02:11:22:33:44:55")]
    );
    assert!(
        rig.facts().participants(vni).is_empty(),
        "no address, no endpoint"
    );
    let refusal = rig.ask_mac(2, vni, "02:11:22:33:44:55").unwrap_err();
    assert!(matches!(refusal, Refusal::Taken { host, .. } if host == id(1)));
    for bad in [
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "02:42:0a:00:00:01",
        "02:42:0a:00:00:07",
    ] {
        assert_eq!(rig.ask_mac(1, vni, bad), Err(Refusal::Mac(mac(bad))));
    }
    // Of another subnet it is nobody's.
    rig.ask_mac(1, vni, "02:42:0a:00:01:07").unwrap();
    let release = |number, seen| Command::Return {
        host: id(number),
        vni,
        ranges: Vec::new(),
        macs: vec![mac("02:11:22:33:44:55")],
        seen,
    };
    let now = rig.facts().version();
    rig.apply(release(2, now)).unwrap();
    assert_eq!(rig.facts().claimed_macs(id(1), vni).len(), 2);
    rig.apply(release(1, now)).unwrap();
    assert_eq!(
        rig.facts().claimed_macs(id(1), vni),
        [mac("02:42:0a:00:01:07")]
    );
}

#[test]
fn the_mac_of_an_ipv6_gateway_is_nobodys() {
    let mut rig = Rig::new(1);
    let vni = rig.network("fd00::/80");
    let bad = "02:42:00:00:00:01";
    assert_eq!(rig.ask_mac(1, vni, bad), Err(Refusal::Mac(mac(bad))));
    rig.ask_mac(1, vni, "02:43:00:00:00:01").unwrap();
}

#[test]
fn one_host_can_not_have_everything() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/8");
    assert_eq!(
        rig.ask(1, vni, Want::Addresses(u32::MAX)).unwrap(),
        [range(2, 65_537)]
    );
    let refusal = rig.ask(1, vni, Want::Addresses(1));
    assert_eq!(refusal, Err(Refusal::TooManyAddresses { held: 65_536 }));
    assert!(rig.ask_ip(1, vni, "10.200.0.1").is_err());
    assert_eq!(rig.ask(1, vni, Want::Spare(8)).unwrap(), []);
    assert_eq!(
        rig.ask(2, vni, Want::Addresses(1)).unwrap(),
        [range(65_538, 65_538)]
    );
    for second in 1..4 {
        let vni = rig.network(&format!("11.{second}.0.0/16"));
        let most = rig.ask(1, vni, Want::Addresses(u32::MAX)).unwrap();
        assert_eq!(most, [range(2, 65_534)]);
    }
    let last = rig.network("13.0.0.0/16");
    assert_eq!(
        rig.ask(1, last, Want::Addresses(99)).unwrap(),
        [range(2, 10)]
    );
    let refusal = rig.ask(1, last, Want::Addresses(1));
    let held = MAX_HOST_OFFSETS;
    assert_eq!(refusal, Err(Refusal::TooManyAddresses { held }));
}

#[test]
fn requests_have_a_size() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/16");
    let seen = rig.facts().version();
    let ranges = vec![range(2, 2); MAX_PIECES + 1];
    let back = Command::Return {
        host: id(1),
        vni,
        ranges,
        macs: Vec::new(),
        seen,
    };
    assert_eq!(rig.apply(back), Err(Refusal::TooLong));
    let avoid = vec![net("1.0.0.0/8"); MAX_PIECES + 1];
    let create = Command::NetworkCreate {
        spec: spec("a", &[]),
        avoid,
    };
    assert_eq!(rig.apply(create), Err(Refusal::TooLong));
}

#[test]
fn a_large_network_costs_nothing() {
    let mut rig = Rig::new(1);
    let empty = postcard::to_stdvec(&rig.machine).unwrap().len();
    for subnet in ["10.0.0.0/8", "fd00::/64"] {
        let vni = rig.network(subnet);
        rig.ask(1, vni, Want::Addresses(60_000)).unwrap();
        rig.ask(1, vni, Want::Spare(64)).unwrap();
    }
    let bytes = postcard::to_stdvec(&rig.machine).unwrap().len();
    assert!(bytes - empty < 1000, "{bytes}");
}

#[test]
fn a_copy_too_far_behind_gets_everything() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    let mut copy = rig.facts().clone();
    let old = copy.version();
    for _ in 0..5000 {
        rig.ask_ip(1, vni, "10.0.0.9").unwrap();
    }
    let news = rig.machine.since(old);
    assert!(matches!(&news, FactsNews::Snapshot(_)));
    assert!(copy.update(news).unwrap());
    assert_eq!(&copy, rig.facts());
    rig.ask_ip(1, vni, "10.0.0.10").unwrap();
    let news = rig.machine.since(copy.version());
    assert!(matches!(&news, FactsNews::Changes { changes, .. } if changes.len() == 1));
    // A run of changes with a hole is none.
    let mut behind = overlay_core::facts::Facts::default();
    assert!(behind.update(news.clone()).is_err());
    assert!(copy.update(news).unwrap());
    assert_eq!(&copy, rig.facts());
}
