use overlay_core::model::MacAddr;

use super::*;

const ME: HostId = HostId(1);
const PEER: HostId = HostId(2);
const RETENTION: Duration = Duration::from_secs(600);

fn host(id: HostId) -> Host {
    Host {
        id,
        name: format!("host{}", id.0),
        vtep: [127, 0, 0, id.0 as u8].into(),
        data_port: 4789,
        control_port: 2377,
        gossip_port: 7946,
        manager: id == ME,
    }
}

fn network(vni: u32, subnet: &str) -> Network {
    let subnet: ipnetwork::IpNetwork = subnet.parse().unwrap();
    let gateway = match subnet.network() {
        std::net::IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() + 1).into(),
        ip => ip,
    };
    Network {
        name: format!("net{vni}"),
        vni: Vni::new(vni).unwrap(),
        subnet,
        gateway,
        ipv6: None,
    }
}

fn endpoint(vni: u32, ip: [u8; 4]) -> Endpoint {
    Endpoint {
        name: "e".into(),
        vni: Vni::new(vni).unwrap(),
        mac: MacAddr::from_ipv4(ip.into()),
        ips: vec![ip.into()],
        aliases: Vec::new(),
        service: None,
    }
}

fn facts(version: u64, hosts: &[HostId], networks: Vec<Network>) -> Facts {
    let hosts = hosts.iter().map(|id| host(*id)).collect();
    Facts {
        version,
        manager: ME,
        hosts,
        networks,
    }
}

fn events(book: &mut Book) -> Vec<Event> {
    std::iter::from_fn(|| book.poll_event()).collect()
}

fn book(facts: Facts, now: Instant) -> Book {
    Book::new(ME, facts, 1, RETENTION, now)
}

#[test]
fn an_endpoint_is_told_when_its_network_is_known_and_only_then() {
    let now = Instant::now();
    let mut book = book(facts(1, &[ME, PEER], vec![]), now);
    book.up(PEER);
    let e = endpoint(5, [10, 0, 0, 2]);
    let at = Position {
        incarnation: 1,
        seq: 1,
    };
    book.snapshot(PEER, at, true, vec![e.clone()], now);
    assert_eq!(events(&mut book), [Event::MemberUp(host(PEER))]);
    assert_eq!(book.endpoints(e.vni), []);

    let right = network(5, "10.0.0.0/24");
    let up = Event::EndpointUp {
        host: PEER,
        endpoint: e.clone(),
    };
    let down = Event::EndpointDown {
        host: PEER,
        endpoint: e.clone(),
    };
    assert!(book.set_facts(facts(2, &[ME, PEER], vec![right.clone()]), now));
    assert_eq!(
        events(&mut book),
        [Event::NetworkAdded(right.clone()), up.clone()]
    );
    assert_eq!(book.endpoints(e.vni), [(PEER, e)]);

    // The same VNI with another subnet is another network.
    let wrong = network(5, "10.0.1.0/24");
    assert!(book.set_facts(facts(3, &[ME, PEER], vec![wrong.clone()]), now));
    let removed = Event::NetworkRemoved(right.clone());
    assert_eq!(
        events(&mut book),
        [down, removed, Event::NetworkAdded(wrong.clone())]
    );
    assert!(book.set_facts(facts(4, &[ME, PEER], vec![right.clone()]), now));
    let expected = [Event::NetworkRemoved(wrong), Event::NetworkAdded(right), up];
    assert_eq!(events(&mut book), expected);
}

#[test]
fn old_facts_and_another_managers_are_passed_over() {
    let now = Instant::now();
    let mut book = book(facts(7, &[ME, PEER], vec![]), now);
    assert!(!book.set_facts(facts(7, &[ME], vec![]), now));
    assert!(!book.set_facts(facts(6, &[ME], vec![]), now));
    assert!(!book.set_facts(
        Facts {
            manager: PEER,
            ..facts(8, &[ME], vec![])
        },
        now
    ));
    assert!(book.is_peer(PEER));
}

#[test]
fn a_removed_host_takes_its_endpoints_with_it_and_strangers_have_none() {
    let now = Instant::now();
    let net = network(5, "10.0.0.0/24");
    let mut book = book(facts(1, &[ME, PEER], vec![net.clone()]), now);
    let e = endpoint(5, [10, 0, 0, 2]);
    let at = Position {
        incarnation: 1,
        seq: 1,
    };
    book.snapshot(PEER, at, true, vec![e.clone()], now);
    book.snapshot(HostId(3), at, true, vec![e.clone()], now);
    book.up(HostId(3));
    events(&mut book);
    assert!(book.set_facts(facts(2, &[ME], vec![net]), now));
    let down = Event::EndpointDown {
        host: PEER,
        endpoint: e,
    };
    assert_eq!(events(&mut book), [down, Event::MemberLeft(PEER)]);
    assert_eq!(book.have(PEER), Position::default());
}

#[test]
fn a_leaver_is_told_once() {
    let now = Instant::now();
    let mut book = book(facts(1, &[ME, PEER], vec![]), now);
    book.snapshot(
        PEER,
        Position {
            incarnation: 1,
            seq: 0,
        },
        true,
        vec![],
        now,
    );
    book.up(PEER);
    events(&mut book);
    book.changes(PEER, 1, 1, vec![Change::Left], now).unwrap();
    assert_eq!(events(&mut book), [Event::MemberLeft(PEER)]);
    book.up(PEER);
    book.down(PEER, now);
    assert!(book.has_left(PEER));
    assert!(book.set_facts(facts(2, &[ME], vec![]), now));
    assert_eq!(events(&mut book), []);
}

#[test]
fn endpoints_outlive_their_hosts_agent_for_the_retention() {
    let now = Instant::now();
    let net = network(5, "10.0.0.0/24");
    let mut book = book(facts(1, &[ME, PEER], vec![net]), now);
    let e = endpoint(5, [10, 0, 0, 2]);
    let at = Position {
        incarnation: 1,
        seq: 1,
    };
    book.up(PEER);
    book.snapshot(PEER, at, true, vec![e.clone()], now);
    events(&mut book);
    book.expire(now + 2 * RETENTION);
    assert_eq!(events(&mut book), [], "it is up");
    book.down(PEER, now);
    book.expire(now + RETENTION - Duration::from_secs(1));
    assert_eq!(events(&mut book), [Event::MemberDown(PEER)]);
    book.expire(now + RETENTION);
    let down = Event::EndpointDown {
        host: PEER,
        endpoint: e.clone(),
    };
    assert_eq!(events(&mut book), [down]);
    book.up(PEER);
    book.snapshot(PEER, at, true, vec![e.clone()], now);
    let up = Event::EndpointUp {
        host: PEER,
        endpoint: e,
    };
    assert_eq!(events(&mut book), [Event::MemberUp(host(PEER)), up]);
}
