//! Which endpoints a host may have.

use overlay_core::facts::{MAX_ALIASES, RecordFault, Want};
use overlay_core::model::{Endpoint, MacAddr, Vni};

use crate::{Rig, id, ip, mac, spec};

fn endpoint(vni: Vni, mac: MacAddr, ips: &[&str]) -> Endpoint {
    Endpoint {
        name: "web".into(),
        vni,
        mac,
        ips: ips.iter().map(|text| ip(text)).collect(),
        aliases: vec!["www".into()],
        service: Some("web".into()),
        router: false,
        unready: false,
    }
}

#[test]
fn an_endpoint_has_what_is_granted_to_its_host() {
    let mut rig = Rig::new(2);
    let net = spec("a", &["10.0.0.0/24", "fd00::/64"]);
    let vni = rig.create(net).unwrap().vni;
    rig.ask(1, vni, Want::Addresses(4)).unwrap();
    rig.ask_mac(1, vni, "06:00:00:00:00:01").unwrap();
    rig.ask_mac(2, vni, "06:00:00:00:00:02").unwrap();
    let own = mac("02:42:0a:00:00:02");
    let claimed = mac("06:00:00:00:00:01");
    let local = own.link_local().to_string();
    let check = |host, endpoint: &Endpoint| rig.facts().check(id(host), endpoint);

    let all = ["10.0.0.2", "fd00::2", &local];
    assert_eq!(check(1, &endpoint(vni, own, &all)), Ok(()));
    assert_eq!(check(1, &endpoint(vni, own, &["fd00::2"])), Ok(()));
    assert_eq!(check(1, &endpoint(vni, claimed, &["10.0.0.2"])), Ok(()));

    use RecordFault as F;
    let faults = [
        (own, vec![], F::Addresses),
        (own, vec![local.as_str()], F::Addresses),
        (own, vec!["10.0.0.2", "10.0.0.2"], F::Addresses),
        (own, vec!["10.0.0.2", "fd00::3"], F::Offsets),
        (own, vec!["10.0.1.2"], F::Address(ip("10.0.1.2"))),
        (
            own,
            vec!["10.0.0.2", "fe80::1"],
            F::LinkLocal(ip("fe80::1")),
        ),
        (
            mac("02:42:0a:00:00:03"),
            vec!["10.0.0.2"],
            F::Mac(mac("02:42:0a:00:00:03")),
        ),
        (
            mac("02:42:0a:00:00:01"),
            vec!["10.0.0.2"],
            F::Mac(mac("02:42:0a:00:00:01")),
        ),
        (
            mac("06:00:00:00:00:02"),
            vec!["10.0.0.2"],
            F::Mac(mac("06:00:00:00:00:02")),
        ),
    ];
    for (mac, ips, fault) in faults {
        assert_eq!(
            check(1, &endpoint(vni, mac, &ips)),
            Err(fault),
            "{mac} {ips:?}"
        );
    }
    for foreign in ["10.0.0.6", "10.0.0.1", "fd00::1"] {
        let fault = F::NotGranted {
            ip: ip(foreign),
            host: id(1),
        };
        assert_eq!(check(1, &endpoint(vni, own, &[foreign])), Err(fault));
    }
    let foreign = check(2, &endpoint(vni, own, &all)).unwrap_err();
    assert!(matches!(&foreign, F::NotGranted { .. }) && !foreign.is_lasting());
    assert_eq!(check(7, &endpoint(vni, own, &all)), Err(F::NoHost(id(7))));
    let nowhere = endpoint(crate::vni(9), own, &all);
    assert_eq!(check(1, &nowhere), Err(F::NoVni(crate::vni(9))));
}

#[test]
fn names_are_names() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    let good = endpoint(vni, mac("02:42:0a:00:00:02"), &["10.0.0.2"]);
    let check = |endpoint: &Endpoint| rig.facts().check(id(1), endpoint);
    assert_eq!(check(&good), Ok(()));
    let bad = || "a b".to_owned();
    let all = [
        Endpoint {
            name: bad(),
            ..good.clone()
        },
        Endpoint {
            aliases: vec![bad()],
            ..good.clone()
        },
        Endpoint {
            service: Some(bad()),
            ..good.clone()
        },
    ];
    for endpoint in all {
        let fault = check(&endpoint).unwrap_err();
        assert!(matches!(&fault, RecordFault::Name(_)) && fault.is_lasting());
    }
    let many = Endpoint {
        aliases: vec!["a".into(); MAX_ALIASES + 1],
        ..good
    };
    assert_eq!(check(&many), Err(RecordFault::Aliases));
}

#[test]
fn an_ipv6_network() {
    let mut rig = Rig::new(1);
    let only6 = rig.network("fd00:0:0:1::/64");
    rig.ask_ip(1, only6, "fd00:0:0:1::1:2").unwrap();
    let mac = mac("02:42:00:01:00:02");
    let good = endpoint(only6, mac, &["fd00:0:0:1::1:2"]);
    assert_eq!(rig.facts().check(id(1), &good), Ok(()));
}
