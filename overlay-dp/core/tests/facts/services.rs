//! Services: which can be made, and what they stand in the way of.

use overlay_core::facts::{Command, NetworkSpec, RecordFault, Refusal, Reply, ServiceSpec, Want};
use overlay_core::model::{Endpoint, EndpointMode, Protocol, Service, ServicePort};

use super::*;

fn published(host_port: u16, port: u16) -> ServicePort {
    ServicePort {
        host_port,
        port,
        protocol: Protocol::Tcp,
    }
}

fn make(
    rig: &mut Rig,
    name: &str,
    network: &str,
    publish: &[ServicePort],
) -> Result<Service, Refusal> {
    make_as(
        rig,
        ServiceSpec {
            name: name.into(),
            network: network.into(),
            publish: publish.to_vec(),
            ..ServiceSpec::default()
        },
    )
}

fn make_as(rig: &mut Rig, spec: ServiceSpec) -> Result<Service, Refusal> {
    match rig.apply(Command::ServiceCreate { spec, from: None })? {
        Reply::Service(service) => Ok(service),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_is_made_and_removed() {
    let mut rig = Rig::new(1);
    let network = rig.create(spec("net", &[])).unwrap();
    let service = make(&mut rig, "web", "net", &[published(8080, 80)]).unwrap();
    assert_eq!((service.name.as_str(), service.vni), ("web", network.vni));
    let named = rig.machine.facts().service("web").cloned();
    assert_eq!(named, Some(service));

    // It holds its network, its name and its port.
    let name = "net".to_owned();
    let remove = Command::NetworkRemove { name };
    assert!(matches!(
        rig.apply(remove.clone()),
        Err(Refusal::HasServices { .. })
    ));
    let again = make(&mut rig, "web", "net", &[]);
    assert_eq!(again, Err(Refusal::ServiceExists("web".into())));
    let port = make(&mut rig, "api", "net", &[published(8080, 81)]);
    assert!(
        matches!(port, Err(Refusal::Published { port: 8080, ref service, .. }) if service == "web")
    );
    let udp = ServicePort {
        protocol: Protocol::Udp,
        ..published(8080, 81)
    };
    make(&mut rig, "api", "net", &[udp]).unwrap();

    for name in ["web", "api"] {
        let name = name.to_owned();
        rig.apply(Command::ServiceRemove { name }).unwrap();
    }
    let name = "web".to_owned();
    let gone = rig.apply(Command::ServiceRemove { name });
    assert_eq!(gone, Err(Refusal::NoService("web".into())));
    rig.apply(remove).unwrap();
}

#[test]
fn what_can_be_no_service_is_refused() {
    let mut rig = Rig::new(1);
    rig.create(spec("net", &[])).unwrap();
    rig.create(NetworkSpec {
        internal: true,
        encrypted: false,
        multicast: None,
        ..spec("closed", &[])
    })
    .unwrap();
    assert!(matches!(
        make(&mut rig, "-", "net", &[]),
        Err(Refusal::Name(_))
    ));
    let nowhere = make(&mut rig, "web", "nowhere", &[]);
    assert_eq!(nowhere, Err(Refusal::NoNetwork("nowhere".into())));
    let closed = make(&mut rig, "web", "closed", &[published(80, 80)]);
    assert_eq!(closed, Err(Refusal::Internal("closed".into())));
    make(&mut rig, "inside", "closed", &[]).unwrap();
    let zero = make(&mut rig, "web", "net", &[published(0, 80)]);
    assert_eq!(zero, Err(Refusal::PortZero));
    let twice = make(
        &mut rig,
        "web",
        "net",
        &[published(80, 1), published(80, 2)],
    );
    assert!(matches!(twice, Err(Refusal::Published { .. })));
    let many: Vec<ServicePort> = (1..200).map(|port| published(port, port)).collect();
    assert_eq!(
        make(&mut rig, "web", "net", &many),
        Err(Refusal::TooManyServices)
    );
}

/// A service with an address of its own on the network "net".
fn at(rig: &mut Rig, name: &str, address: Option<&str>) -> Result<Service, Refusal> {
    make_as(
        rig,
        ServiceSpec {
            name: name.into(),
            network: "net".into(),
            ip: address.map(ip),
            ..ServiceSpec::default()
        },
    )
}

#[test]
fn a_vip_is_nobody_elses_address() {
    let mut rig = Rig::new(2);
    let net = spec("net", &["10.0.0.0/28", "fd00::/64"]);
    let vni = rig.create(net).unwrap().vni;
    assert_eq!(at(&mut rig, "web", None).unwrap().vip, Some(2));
    assert_eq!(at(&mut rig, "api", Some("fd00::3")).unwrap().vip, Some(3));
    let vip_at = |rig: &Rig, offset| Some(rig.facts().vip_at(vni, offset)?.name.clone());
    assert_eq!(vip_at(&rig, 3), Some("api".into()));
    assert_eq!((vip_at(&rig, 4), vip_at(&rig, 1)), (None, None));

    // Not leased, neither by the number nor by the address, and so no endpoint's.
    assert_eq!(rig.ask(1, vni, Want::Addresses(2)), Ok(vec![range(4, 5)]));
    let of_web = |ip| Refusal::OfService {
        ip,
        service: "web".into(),
    };
    for address in ["10.0.0.2", "fd00::2"] {
        let refused = of_web(ip(address));
        assert_eq!(rig.ask_ip(1, vni, address), Err(refused.clone()));
        assert_eq!(at(&mut rig, "db", Some(address)), Err(refused));
    }
    let endpoint = Endpoint {
        name: "thief".into(),
        vni,
        mac: mac("02:42:0a:00:00:02"),
        ips: vec![ip("10.0.0.2")],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    };
    let checked = rig.facts().check(id(1), &endpoint);
    assert!(matches!(checked, Err(RecordFault::NotGranted { .. })));
    // A return of what was never its own takes nothing.
    rig.give_back(1, vni, 1, 14);
    assert_eq!(vip_at(&rig, 2), Some("web".into()));

    // What it leaves is free again, for anybody.
    let name = "web".to_owned();
    rig.apply(Command::ServiceRemove { name }).unwrap();
    assert_eq!(vip_at(&rig, 2), None);
    assert_eq!(rig.ask(2, vni, Want::Addresses(1)), Ok(vec![range(2, 2)]));
    let taken = at(&mut rig, "web", Some("10.0.0.2"));
    assert!(matches!(taken, Err(Refusal::Taken { host, .. }) if host == id(2)));
    // Its host can leave it to the service, and no other one.
    let left_by = |number| Command::ServiceCreate {
        spec: ServiceSpec {
            name: "web".into(),
            network: "net".into(),
            ip: Some(ip("10.0.0.2")),
            ..ServiceSpec::default()
        },
        from: Some(id(number)),
    };
    let other = rig.apply(left_by(1));
    assert!(matches!(other, Err(Refusal::Taken { .. })));
    rig.apply(left_by(2)).unwrap();
    assert_eq!(vip_at(&rig, 2), Some("web".into()));
    assert_eq!(rig.facts().granted(id(2), vni), []);
}

#[test]
fn what_can_be_no_vip_is_refused() {
    let mut rig = Rig::new(1);
    let vni = rig.create(spec("net", &["10.0.0.0/29"])).unwrap().vni;
    let gateway = at(&mut rig, "web", Some("10.0.0.1"));
    assert_eq!(gateway, Err(Refusal::GatewayWanted(ip("10.0.0.1"))));
    for outside in ["10.0.0.0", "10.0.0.7", "10.0.1.2", "fd00::2"] {
        let refused = at(&mut rig, "web", Some(outside));
        assert!(
            matches!(refused, Err(Refusal::Address { .. })),
            "{refused:?}"
        );
    }
    let rr = |address: Option<&str>| ServiceSpec {
        name: "rr".into(),
        network: "net".into(),
        mode: EndpointMode::Dnsrr,
        ip: address.map(ip),
        ..ServiceSpec::default()
    };
    let with = make_as(&mut rig, rr(Some("10.0.0.2")));
    assert_eq!(with, Err(Refusal::NoVip(ip("10.0.0.2"))));
    let without = make_as(&mut rig, rr(None)).unwrap();
    assert_eq!((without.vip, without.mode()), (None, EndpointMode::Dnsrr));

    rig.ask(1, vni, Want::Addresses(3)).unwrap();
    at(&mut rig, "a", None).unwrap();
    at(&mut rig, "b", None).unwrap();
    let none = at(&mut rig, "c", None).unwrap_err().to_string();
    assert!(
        none.contains("all 5 are held, 3 by host1, 2 by services"),
        "{none}"
    );
}
