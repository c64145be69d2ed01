use overlay_core::ipam::{LeaseSpec, NetworkSpec};

use super::*;
use crate::pki::{Identity, new_request};
use crate::token::new_secret;

const MANAGER: HostId = HostId(1);

fn info(n: u8) -> HostInfo {
    HostInfo {
        name: format!("host{n}"),
        vtep: [192, 168, 0, n].into(),
        data_port: 4789,
        control_port: 2377,
        gossip_port: 7946,
    }
}

fn state() -> Stored {
    let authority = Authority::new().unwrap();
    let (key, csr) = new_request().unwrap();
    let cert = authority.certify(&csr, MANAGER, true).unwrap();
    let identity = Identity {
        ca: authority.cert.clone(),
        cert,
        key,
    };
    let hosts = vec![info(1).host(MANAGER, true)];
    let facts = Facts {
        version: 100,
        manager: MANAGER,
        hosts,
        networks: vec![],
    };
    Stored::new(
        MANAGER,
        identity,
        facts,
        Some(Manager::new(authority, new_secret())),
    )
}

fn context(new_id: u64, live: &dyn Fn(HostId) -> bool) -> Context<'_> {
    // A clock that stands still: versions rise all the same.
    Context {
        now: 5,
        new_id: HostId(new_id),
        live,
    }
}

fn join_as(state: &mut Stored, id: u64, info: &HostInfo, live: bool) -> Result<Reply, Error> {
    let (_, csr) = new_request().unwrap();
    join(state, &csr, info, &context(id, &|_| live))
}

fn ask(state: &mut Stored, from: u64, request: Request) -> Result<Reply, Error> {
    handle(state, HostId(from), &request, &context(0, &|_| true))
}

#[test]
fn the_secret_is_compared_whole() {
    let state = state();
    let manager = state.manager.unwrap();
    let secret = manager.token().unwrap().secret;
    assert!(manager.admits(&secret));
    for byte in 0..secret.len() {
        let mut wrong = secret;
        wrong[byte] ^= 1;
        assert!(!manager.admits(&wrong));
    }
}

#[test]
fn a_vtep_is_taken_over_from_a_dead_host_only() {
    let mut state = state();
    join_as(&mut state, 2, &info(2), true).unwrap();
    let create = NetworkSpec {
        name: "net".into(),
        ..NetworkSpec::default()
    };
    ask(
        &mut state,
        2,
        Request::NetworkCreate {
            spec: create,
            avoid: vec![],
        },
    )
    .unwrap();
    let vni = state.facts.networks[0].vni;
    ask(&mut state, 2, Request::Lease(LeaseSpec::any(vni, "e"))).unwrap();

    assert!(join_as(&mut state, 3, &info(2), true).is_err());
    assert!(
        join_as(&mut state, 3, &info(1), false).is_err(),
        "the manager's own"
    );
    let version = state.facts.version;
    join_as(&mut state, 3, &info(2), false).unwrap();
    assert!(state.facts.version > version);
    let ids: Vec<u64> = state.facts.hosts.iter().map(|host| host.id.0).collect();
    assert_eq!(ids, [1, 3]);
    assert!(ask(&mut state, 3, Request::NetworkRemove { name: "net".into() }).is_ok());
    let error = ask(&mut state, 2, Request::Leases).unwrap_err().to_string();
    assert!(error.contains("no member"), "{error}");
    assert!(matches!(
        ask(&mut state, 2, Request::Leave),
        Ok(Reply::Done)
    ));
}

#[test]
fn what_hosts_say_of_themselves_is_checked() {
    let mut state = state();
    let bad = |change: fn(&mut HostInfo)| {
        let mut info = info(9);
        change(&mut info);
        info
    };
    for info in [
        bad(|i| i.name = "a b".into()),
        bad(|i| i.vtep = [0, 0, 0, 0].into()),
        bad(|i| i.vtep = [224, 0, 0, 1].into()),
        bad(|i| i.gossip_port = 0),
    ] {
        assert!(join_as(&mut state, 9, &info, true).is_err(), "{info:?}");
        assert!(ask(&mut state, 1, Request::Update(info)).is_err());
    }
    assert!(join(&mut state, b"no csr", &info(9), &context(9, &|_| true)).is_err());
    assert!(
        join_as(&mut state, 1, &info(9), true).is_err(),
        "a taken id"
    );
    join_as(&mut state, 2, &info(2), true).unwrap();
    assert!(
        ask(&mut state, 2, Request::Update(info(1))).is_err(),
        "another's VTEP"
    );
    ask(&mut state, 2, Request::Update(info(7))).unwrap();
    assert_eq!(
        state.facts.host(HostId(2)),
        Some(&info(7).host(HostId(2), false))
    );
}

#[test]
fn a_network_avoids_the_underlay() {
    let mut state = state();
    let mut near = info(2);
    near.vtep = [10, 0, 0, 7].into();
    join_as(&mut state, 2, &near, true).unwrap();
    let spec = NetworkSpec {
        name: "net".into(),
        ..NetworkSpec::default()
    };
    let avoid = vec!["10.0.1.0/24".parse().unwrap()];
    ask(&mut state, 2, Request::NetworkCreate { spec, avoid }).unwrap();
    assert_eq!(state.facts.networks[0].subnet.to_string(), "10.0.2.0/24");
    let subnet = Some("192.168.0.0/16".parse().unwrap());
    let spec = NetworkSpec {
        name: "b".into(),
        subnet,
        ..NetworkSpec::default()
    };
    assert!(
        ask(
            &mut state,
            2,
            Request::NetworkCreate {
                spec,
                avoid: vec![]
            }
        )
        .is_err()
    );
}

#[test]
fn a_member_alone_decides_nothing() {
    let mut state = state();
    state.manager = None;
    assert!(ask(&mut state, 1, Request::Leases).is_err());
    assert!(join_as(&mut state, 2, &info(2), true).is_err());
}
