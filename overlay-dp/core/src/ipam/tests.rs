use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const HOST: HostId = HostId(1);
const OTHER: HostId = HostId(2);

fn spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    let subnet = subnet.map(|text| text.parse().unwrap());
    NetworkSpec {
        name: name.into(),
        subnet,
        ..NetworkSpec::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn with_network(subnet: Option<&str>) -> (Ipam, Vni) {
    let mut ipam = Ipam::default();
    let vni = ipam.create(&spec("net", subnet), &[]).unwrap().vni;
    (ipam, vni)
}

#[test]
fn the_first_network_and_addresses_are_dockers() {
    let mut ipam = Ipam::default();
    let first = ipam.create(&spec("uber-net", None), &[]).unwrap();
    assert_eq!(first.subnet.to_string(), "10.0.0.0/24");
    assert_eq!((first.gateway, first.vni.get()), (ip("10.0.0.1"), 4096));
    let second = ipam.create(&spec("other", None), &[]).unwrap();
    assert_eq!(
        (second.subnet.to_string().as_str(), second.vni.get()),
        ("10.0.1.0/24", 4097)
    );

    let a = ipam
        .lease(HOST, &LeaseSpec::any(first.vni, "test.1"))
        .unwrap();
    let b = ipam
        .lease(OTHER, &LeaseSpec::any(first.vni, "test.2"))
        .unwrap();
    assert_eq!(
        (a.ip, a.mac.to_string().as_str()),
        (ip("10.0.0.2"), "02:42:0a:00:00:02")
    );
    assert_eq!(b.ip, ip("10.0.0.3"));
}

#[test]
fn subnets_in_use_are_passed_over_or_refused() {
    let mut ipam = Ipam::default();
    let avoid = ["0.0.0.0/0", "10.0.0.0/23", "10.0.2.5/32"].map(|net| net.parse().unwrap());
    let network = ipam.create(&spec("a", None), &avoid).unwrap();
    assert_eq!(network.subnet.to_string(), "10.0.3.0/24");

    let mut refused = |subnet: &str| ipam.create(&spec("b", Some(subnet)), &avoid).unwrap_err();
    assert!(matches!(refused("10.0.0.0/8"), Error::Overlap { .. }));
    assert!(matches!(refused("10.0.1.0/24"), Error::Route { .. }));
    assert!(matches!(refused("192.168.0.1/24"), Error::HostBits { .. }));
    assert!(matches!(refused("192.168.0.0/31"), Error::Size(_)));
    assert!(matches!(refused("0.0.0.0/4"), Error::Size(_)));
    assert!(matches!(refused("127.0.0.0/24"), Error::Reserved(_)));
    assert!(matches!(refused("255.0.0.0/8"), Error::Reserved(_)));
    assert!(matches!(refused("fd00::/64"), Error::Ipv6(_)));
    let error = refused("192.168.0.1/24").to_string();
    assert_eq!(
        error,
        "192.168.0.1/24 is an address, not a subnet: write 192.168.0.0/24"
    );
}

#[test]
fn names_gateways_and_vnis_are_checked() {
    let (mut ipam, vni) = with_network(Some("10.9.0.0/24"));
    assert!(matches!(
        ipam.create(&spec("net", None), &[]),
        Err(Error::NetworkExists(_))
    ));
    assert!(matches!(
        ipam.create(&spec("no net", None), &[]),
        Err(Error::Name(_))
    ));
    let mut wanted = NetworkSpec {
        vni: Some(vni),
        ..spec("b", Some("10.8.0.0/24"))
    };
    assert!(matches!(
        ipam.create(&wanted, &[]),
        Err(Error::VniTaken { .. })
    ));
    for gateway in ["10.8.0.0", "10.8.0.255", "10.7.0.1", "fe80::1"] {
        wanted = NetworkSpec {
            vni: None,
            gateway: Some(ip(gateway)),
            ..wanted
        };
        assert!(
            matches!(ipam.create(&wanted, &[]), Err(Error::Gateway { .. })),
            "{gateway}"
        );
    }
    wanted = NetworkSpec {
        vni: Vni::new(7),
        gateway: Some(ip("10.8.0.254")),
        ..wanted
    };
    let network = ipam.create(&wanted, &[]).unwrap();
    assert_eq!((network.vni.get(), network.gateway), (7, ip("10.8.0.254")));
    assert_eq!(
        ipam.lease(HOST, &LeaseSpec::any(network.vni, "e"))
            .unwrap()
            .ip,
        ip("10.8.0.1")
    );
}

#[test]
fn a_vni_is_not_used_again_at_once() {
    let (mut ipam, vni) = with_network(None);
    ipam.remove("net").unwrap();
    let again = ipam.create(&spec("net", None), &[]).unwrap();
    assert_eq!((vni.get(), again.vni.get()), (4096, 4097));
    assert_eq!(again.subnet.to_string(), "10.0.0.0/24");
}

#[test]
fn what_is_taken_or_out_of_range_is_refused() {
    let (mut ipam, vni) = with_network(None);
    let any = LeaseSpec::any(vni, "e");
    let lease = ipam.lease(HOST, &any).unwrap();
    assert_eq!(
        ipam.lease(HOST, &any),
        Ok(lease.clone()),
        "a repeated request"
    );
    assert!(matches!(ipam.lease(OTHER, &any), Err(Error::Taken { .. })));

    let other = LeaseSpec::any(vni, "f");
    let taken = LeaseSpec {
        ip: Some(lease.ip),
        ..other.clone()
    };
    let error = ipam.lease(OTHER, &taken).unwrap_err().to_string();
    assert!(
        error.starts_with("address 10.0.0.2 in network 'net' belongs to endpoint e"),
        "{error}"
    );
    for bad in ["10.0.0.0", "10.0.0.255", "10.0.1.2", "fe80::2"] {
        let bad = LeaseSpec {
            ip: Some(ip(bad)),
            ..other.clone()
        };
        assert!(
            matches!(ipam.lease(OTHER, &bad), Err(Error::Address { .. })),
            "{bad:?}"
        );
    }
    let gateway = LeaseSpec {
        ip: Some(ip("10.0.0.1")),
        ..other.clone()
    };
    assert_eq!(
        ipam.lease(OTHER, &gateway),
        Err(Error::GatewayLeased(ip("10.0.0.1")))
    );
    let same_mac = LeaseSpec {
        mac: Some(lease.mac),
        ..other.clone()
    };
    assert!(matches!(
        ipam.lease(OTHER, &same_mac),
        Err(Error::Taken { .. })
    ));
    for bad in [
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:42:0a:00:00:01",
    ] {
        let bad = LeaseSpec {
            mac: Some(bad.parse().unwrap()),
            ..other.clone()
        };
        assert!(
            matches!(ipam.lease(OTHER, &bad), Err(Error::Mac(_))),
            "{bad:?}"
        );
    }
    // Somebody's own choice of a MAC does not get in the way of the address it would go with.
    let chosen = MacAddr::from_ipv4(Ipv4Addr::new(10, 0, 0, 4));
    let chosen = LeaseSpec {
        mac: Some(chosen),
        ..LeaseSpec::any(vni, "g")
    };
    assert_eq!(ipam.lease(HOST, &chosen).unwrap().ip, ip("10.0.0.3"));
    assert_eq!(ipam.lease(HOST, &other).unwrap().ip, ip("10.0.0.5"));
}

#[test]
fn only_its_owner_releases_a_lease_and_a_used_network_stays() {
    let (mut ipam, vni) = with_network(None);
    let lease = ipam.lease(HOST, &LeaseSpec::any(vni, "e")).unwrap();
    assert!(ipam.release(OTHER, vni, lease.ip, "e").is_err());
    assert!(ipam.release(HOST, vni, lease.ip, "x").is_err());
    let error = ipam.remove("net").unwrap_err().to_string();
    assert_eq!(
        error,
        "network 'net' is in use by e: remove these containers first"
    );
    assert_eq!(ipam.release(HOST, vni, lease.ip, "e"), Ok(lease));
    for i in 0..8 {
        ipam.lease(HOST, &LeaseSpec::any(vni, format!("e{i}")))
            .unwrap();
    }
    assert!(
        ipam.remove("net")
            .unwrap_err()
            .to_string()
            .contains("e4 and 3 more")
    );
    ipam.release_host(HOST);
    assert!(ipam.remove("net").is_ok());
    assert!(matches!(ipam.remove("net"), Err(Error::NoNetwork(_))));
}

#[test]
fn a_full_subnet_says_so_and_a_released_address_rests() {
    let (mut ipam, vni) = with_network(Some("10.0.0.0/29"));
    for (i, wanted) in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]
        .iter()
        .enumerate()
    {
        let lease = ipam
            .lease(HOST, &LeaseSpec::any(vni, format!("e{i}")))
            .unwrap();
        assert_eq!(lease.ip, ip(wanted));
    }
    ipam.release(HOST, vni, ip("10.0.0.2"), "e0").unwrap();
    assert_eq!(
        ipam.lease(HOST, &LeaseSpec::any(vni, "e4")).unwrap().ip,
        ip("10.0.0.6")
    );
    assert_eq!(
        ipam.lease(HOST, &LeaseSpec::any(vni, "e5")).unwrap().ip,
        ip("10.0.0.2")
    );
    let error = ipam
        .lease(HOST, &LeaseSpec::any(vni, "e6"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no free address left in 10.0.0.0/29"),
        "{error}"
    );
}

#[test]
fn state_survives_json() {
    let (mut ipam, vni) = with_network(None);
    ipam.lease(HOST, &LeaseSpec::any(vni, "e")).unwrap();
    let text = serde_json::to_string(&ipam).unwrap();
    assert_eq!(serde_json::from_str::<Ipam>(&text).unwrap(), ipam);
}

#[derive(Clone, Debug)]
enum Step {
    Lease {
        host: u64,
        name: u8,
        ip: Option<u8>,
        mac: Option<u8>,
    },
    Release {
        nth: usize,
    },
    Leave {
        host: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lease = (
        0..4u64,
        any::<u8>(),
        prop::option::weighted(0.2, any::<u8>()),
    )
        .prop_flat_map(|(host, name, ip)| {
            let mac = prop::option::weighted(0.1, any::<u8>());
            mac.prop_map(move |mac| Step::Lease {
                host,
                name,
                ip,
                mac,
            })
        });
    prop_oneof![
        6 => lease,
        3 => any::<usize>().prop_map(|nth| Step::Release { nth }),
        1 => (0..4u64).prop_map(|host| Step::Leave { host }),
    ]
}

proptest! {
    #[test]
    fn leases_are_unique_and_never_the_gateway(
        prefix in 25..=30u8,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let (mut ipam, vni) = with_network(Some(&format!("10.0.0.0/{prefix}")));
        let network = ipam.networks().next().unwrap().clone();
        let IpNetwork::V4(subnet) = network.subnet else { unreachable!() };
        let room = (1usize << (32 - prefix)) - 3;
        let mut model: HashMap<IpAddr, Lease> = HashMap::new();
        for step in steps {
            match step {
                Step::Lease { host, name, ip, mac } => {
                    let wanted = LeaseSpec {
                        vni,
                        endpoint: format!("e{name}"),
                        ip: ip.map(|last| Ipv4Addr::new(10, 0, 0, last).into()),
                        mac: mac.map(|last| MacAddr([2, 0x42, 10, 0, 0, last])),
                    };
                    match ipam.lease(HostId(host), &wanted) {
                        Ok(lease) => {
                            let IpAddr::V4(ip) = lease.ip else { unreachable!() };
                            prop_assert!(is_host_address(subnet, ip));
                            prop_assert_ne!(lease.ip, network.gateway);
                            prop_assert_ne!(lease.mac, network.gateway_mac());
                            prop_assert!(wanted.ip.is_none_or(|ip| ip == lease.ip));
                            prop_assert!(wanted.mac.is_none_or(|mac| mac == lease.mac));
                            let before = model.insert(lease.ip, lease.clone());
                            prop_assert!(before.is_none_or(|before| before == lease));
                        }
                        // Without special wishes only a full subnet refuses.
                        Err(Error::Exhausted { .. }) => {
                            let macs = model.values().filter(|l| match l.ip {
                                IpAddr::V4(ip) => l.mac != MacAddr::from_ipv4(ip),
                                IpAddr::V6(_) => true,
                            });
                            prop_assert!(model.len() + macs.count() >= room);
                        }
                        Err(_) => {}
                    }
                }
                Step::Release { nth } => {
                    let Some(lease) = model.values().nth(nth % model.len().max(1)).cloned() else {
                        continue;
                    };
                    prop_assert!(ipam.release(lease.host, vni, lease.ip, &lease.endpoint).is_ok());
                    model.remove(&lease.ip);
                }
                Step::Leave { host } => {
                    ipam.release_host(HostId(host));
                    model.retain(|_, lease| lease.host != HostId(host));
                }
            }
            let leases: Vec<&Lease> = ipam.leases(Some(vni)).collect();
            prop_assert_eq!(leases.len(), model.len());
            let names: HashSet<&str> = leases.iter().map(|l| l.endpoint.as_str()).collect();
            let macs: HashSet<MacAddr> = leases.iter().map(|l| l.mac).collect();
            prop_assert_eq!((names.len(), macs.len()), (model.len(), model.len()));
        }
    }
}
