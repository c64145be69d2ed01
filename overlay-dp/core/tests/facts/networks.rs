//! Which networks there are.

use std::net::IpAddr;

use overlay_core::facts::{Change, Command, FactsNews, NetworkSpec, Refusal, Reply, Want};
use overlay_core::model::Network;

use crate::{Rig, ip, net, range, spec, vni};

fn refused(subnets: &[&str]) -> Refusal {
    Rig::new(1).create(spec("a", subnets)).unwrap_err()
}

fn text(network: &Network) -> Vec<String> {
    let families = network.subnets();
    families
        .map(|family| format!("{} {}", family.subnet, family.gateway))
        .collect()
}

#[test]
fn subnets_and_vnis_are_chosen_in_order() {
    let mut rig = Rig::new(1);
    let a = rig.create(spec("a", &[])).unwrap();
    let b = rig.create(spec("b", &[])).unwrap();
    assert_eq!(text(&a), ["10.0.0.0/24 10.0.0.1"]);
    assert_eq!(text(&b), ["10.0.1.0/24 10.0.1.1"]);
    assert_eq!((a.vni.get(), b.vni.get()), (4096, 4097));
    // The subnet is used again; the VNI is not, because stray frames may carry it yet.
    let name = "a".to_owned();
    assert_eq!(rig.apply(Command::NetworkRemove { name }), Ok(Reply::Done));
    let c = rig.create(spec("c", &[])).unwrap();
    assert_eq!((c.subnet, c.vni.get()), (net("10.0.0.0/24"), 4098));
}

#[test]
fn what_is_in_the_way_is_passed_over() {
    let mut rig = Rig::new(1);
    rig.network("10.0.1.128/25");
    let avoid = [
        "10.0.0.0/30",
        "0.0.0.0/0",
        "::/0",
        "10.0.2.0/23",
        "172.16.0.0/12",
    ];
    let network = rig.create_avoiding(spec("a", &[]), &avoid).unwrap();
    assert_eq!(network.subnet, net("10.0.4.0/24"));
    let everything = ["10.0.0.0/8"];
    let refusal = rig.create_avoiding(spec("b", &[]), &everything);
    assert_eq!(refusal, Err(Refusal::NoSubnet));
    let wider = ["0.0.0.0/1"];
    let refusal = rig.create_avoiding(spec("b", &[]), &wider);
    assert_eq!(refusal, Err(Refusal::NoSubnet));
}

#[test]
fn two_families() {
    let mut rig = Rig::new(1);
    let dual = NetworkSpec {
        ipv6: true,
        ..spec("a", &[])
    };
    let dual = rig.create(dual).unwrap();
    assert_eq!(
        text(&dual),
        [
            "10.0.0.0/24 10.0.0.1",
            "fd12:3456:789a::/64 fd12:3456:789a::1"
        ]
    );
    let next = NetworkSpec {
        ipv6: true,
        ..spec("b", &["192.168.0.0/16"])
    };
    let next = rig.create(next).unwrap();
    assert_eq!(
        text(&next),
        [
            "192.168.0.0/16 192.168.0.1",
            "fd12:3456:789a:1::/64 fd12:3456:789a:1::1"
        ]
    );
    let only6 = rig.create(spec("c", &["fd00:1::/80"])).unwrap();
    assert_eq!(text(&only6), ["fd00:1::/80 fd00:1::1"]);
    let given6 = NetworkSpec {
        ipv6: true,
        ..spec("d", &["fd00:2::/112"])
    };
    let given6 = rig.create(given6).unwrap();
    assert_eq!(
        text(&given6),
        ["10.0.1.0/24 10.0.1.1", "fd00:2::/112 fd00:2::1"]
    );
    let both = rig
        .create(spec("e", &["fd00:3::/126", "10.9.0.0/16"]))
        .unwrap();
    assert_eq!(text(&both)[0], "10.9.0.0/16 10.9.0.1");
    assert_eq!(both.usable(), range(1, 2), "what both families have");
}

#[test]
fn subnets_are_refused() {
    assert!(matches!(
        refused(&["10.0.0.1/24"]),
        Refusal::HostBits { .. }
    ));
    assert!(matches!(refused(&["fd00::1/64"]), Refusal::HostBits { .. }));
    for size in [
        "10.0.0.0/31",
        "11.0.0.0/32",
        "8.0.0.0/7",
        "fd00::/63",
        "fd00::/127",
    ] {
        assert_eq!(refused(&[size]), Refusal::Size(net(size)));
    }
    for reserved in [
        "127.0.0.0/24",
        "169.254.1.0/24",
        "224.0.0.0/24",
        "255.0.0.0/8",
        "0.0.0.0/8",
        "fe80::/64",
        "ff02::/64",
        "::ffff:0:0/96",
        "::/64",
    ] {
        assert_eq!(refused(&[reserved]), Refusal::Reserved(net(reserved)));
    }
    assert!(matches!(
        refused(&["10.0.0.0/24", "10.1.0.0/24"]),
        Refusal::Family { .. }
    ));
    assert!(
        matches!(refused(&["172.31.0.0/24"]), Refusal::Route { .. }),
        "a VTEP"
    );
    let mut rig = Rig::new(1);
    rig.create(spec("a", &["10.1.0.0/16", "fd00::/64"]))
        .unwrap();
    for other in ["10.1.2.0/24", "10.0.0.0/8", "fd00::/80"] {
        let refusal = rig.create(spec("b", &[other])).unwrap_err();
        assert!(matches!(refusal, Refusal::Overlap { network, .. } if network == "a"));
    }
    let refusal = rig.create_avoiding(spec("b", &["192.168.0.0/24"]), &["192.168.0.64/26"]);
    assert!(matches!(refusal, Err(Refusal::Route { .. })));
    assert_eq!(
        rig.create(spec("a", &[])),
        Err(Refusal::NetworkExists("a".into()))
    );
    assert!(matches!(
        rig.create(spec("a b", &[])),
        Err(Refusal::Name(_))
    ));
}

#[test]
fn gateways() {
    let create = |subnets: &[&str], gateways: &[&str]| {
        let gateways: Vec<IpAddr> = gateways.iter().map(|text| ip(text)).collect();
        Rig::new(1).create(NetworkSpec {
            gateways,
            ..spec("a", subnets)
        })
    };
    let both = create(&["10.0.0.0/24", "fd00::/64"], &["fd00::ff", "10.0.0.254"]).unwrap();
    assert_eq!(
        text(&both),
        ["10.0.0.0/24 10.0.0.254", "fd00::/64 fd00::ff"]
    );
    for (subnet, bad) in [
        ("10.0.0.0/24", "10.0.1.1"),
        ("10.0.0.0/24", "10.0.0.0"),
        ("10.0.0.0/24", "10.0.0.255"),
        ("10.0.0.0/24", "fd00::1"),
        ("fd00::/64", "10.0.0.1"),
        ("fd00::/64", "fd00::"),
        // Its MAC address would be that of fd00::1.
        ("fd00::/64", "fd00::1:0:1"),
    ] {
        assert_eq!(
            create(&[subnet], &[bad]),
            Err(Refusal::Gateway(ip(bad))),
            "{bad}"
        );
    }
    let two = create(&["10.0.0.0/24"], &["10.0.0.1", "10.0.0.2"]);
    assert!(matches!(two, Err(Refusal::Family { .. })));
}

#[test]
fn an_ip_range_bounds_what_is_chosen() {
    let create = |rig: &mut Rig, range: &str| {
        rig.create(NetworkSpec {
            ip_range: Some(net(range)),
            ..spec("a", &["10.0.0.0/24"])
        })
    };
    for bad in [
        "10.0.1.0/25",
        "10.0.0.0/16",
        "fd00::/64",
        "10.0.0.0/32",
        "10.0.0.1/32",
    ] {
        let refusal = create(&mut Rig::new(1), bad);
        assert_eq!(refusal, Err(Refusal::IpRange(net(bad))), "{bad}");
    }
    let mut rig = Rig::new(2);
    let vni = create(&mut rig, "10.0.0.128/30").unwrap().vni;
    assert_eq!(
        rig.ask(1, vni, Want::Addresses(9)).unwrap(),
        [range(128, 131)]
    );
    let refusal = rig.ask(2, vni, Want::Addresses(1)).unwrap_err();
    assert!(matches!(refusal, Refusal::Exhausted { size: 4, .. }));
    assert_eq!(rig.ask_ip(2, vni, "10.0.0.7").unwrap(), [range(7, 7)]);
}

#[test]
fn a_network_in_use_stays() {
    let mut rig = Rig::new(2);
    let vni = rig.create(spec("a", &[])).unwrap().vni;
    rig.ask(2, vni, Want::Addresses(3)).unwrap();
    let remove = || Command::NetworkRemove { name: "a".into() };
    let refusal = rig.apply(remove()).unwrap_err();
    let line = "network 'a' is in use on 3 by host2: remove the containers there first";
    assert_eq!(refusal.to_string(), line);
    rig.give_back(2, vni, 0, u32::MAX);
    rig.apply(remove()).unwrap();
    assert_eq!(rig.apply(remove()), Err(Refusal::NoNetwork("a".into())));
    assert_eq!(
        rig.ask(2, vni, Want::Addresses(1)),
        Err(Refusal::NoVni(vni))
    );
}

#[test]
fn a_chosen_vni() {
    let mut rig = Rig::new(1);
    let with = |name: &str, number| NetworkSpec {
        vni: Some(vni(number)),
        ..spec(name, &[])
    };
    rig.create(with("a", 4096)).unwrap();
    let refusal = rig.create(with("b", 4096)).unwrap_err();
    assert!(matches!(refusal, Refusal::VniTaken { network, .. } if network == "a"));
    assert_eq!(rig.create(spec("b", &[])).unwrap().vni.get(), 4097);
    assert_eq!(
        rig.create(with("c", 16_777_215)).unwrap().vni.get(),
        16_777_215
    );
}

#[test]
fn four_thousand_networks_and_no_more() {
    let mut rig = Rig::new(1);
    for number in 0..4096 {
        rig.create(spec(&format!("n{number}"), &[])).unwrap();
    }
    let refusal = rig.create(spec("more", &[]));
    assert_eq!(refusal, Err(Refusal::TooManyNetworks));
}

#[test]
fn a_copy_learns_of_a_network_by_a_change() {
    let mut rig = Rig::new(1);
    let before = rig.facts().version();
    let network = rig.create(spec("a", &[])).unwrap();
    let pool = range(1, 254);
    let FactsNews::Changes { after, changes, .. } = rig.machine.since(before) else {
        panic!("one change");
    };
    assert_eq!(
        (after, changes),
        (before, vec![Change::NetworkSet { network, pool }])
    );
}
