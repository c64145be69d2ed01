//! Services: which can be made, and what they stand in the way of.

use overlay_core::facts::{Command, NetworkSpec, Refusal, Reply, ServiceSpec};
use overlay_core::model::{Protocol, Service, ServicePort};

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
    let spec = ServiceSpec {
        name: name.into(),
        network: network.into(),
        publish: publish.to_vec(),
    };
    match rig.apply(Command::ServiceCreate { spec })? {
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
