use overlay_core::facts::{Command, FactsNews, NetworkSpec, Reply, Version, Want};
use overlay_core::model::MacAddr;

use super::*;
use crate::testing::{ME, PEER, RETENTION, THIRD, World, at, endpoint, host};

fn up(host: HostId, endpoint: &Endpoint) -> Event {
    let endpoint = endpoint.clone();
    Event::EndpointUp { host, endpoint }
}

fn down(host: HostId, endpoint: &Endpoint) -> Event {
    let endpoint = endpoint.clone();
    Event::EndpointDown { host, endpoint }
}

#[test]
fn an_endpoint_is_told_when_the_facts_allow_it_and_as_long_as_they_do() {
    let mut world = World::new();
    let net = world.network("net");
    world.hear();
    world.attach(&[&net]);
    assert_eq!(world.events(), [Event::NetworkAdded(net.clone())]);
    let first = world.grant(PEER, net.vni, 1)[0];
    let e = endpoint(&net, first.first);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), [], "not a participant");
    assert!(!world.book.follows(PEER));

    world.hear();
    assert!(world.book.follows(PEER));
    assert_eq!(world.book.unheard(net.vni), [PEER]);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), [up(PEER, &e)]);
    assert_eq!(world.book.unheard(net.vni), []);

    // Ahead of the facts: waits for its grant. Somebody else's does so for ever.
    let second = world.grant(PEER, net.vni, 1)[0];
    let ahead = endpoint(&net, second.first);
    let foreign = endpoint(&net, second.first + 9);
    let both = [&ahead, &foreign].map(|e| Change::Up(Arc::new(e.clone())));
    let taken = world.book.changes(PEER, net.vni, 1, 2, both.to_vec());
    assert_eq!((taken, world.events()), (Ok(()), vec![]));
    world.hear();
    assert_eq!(world.events(), [up(PEER, &ahead)]);
    assert_eq!(world.book.endpoints(net.vni).len(), 2);

    world.give_back(PEER, net.vni, second);
    world.hear();
    assert_eq!(world.events(), [down(PEER, &ahead)]);
    world.give_back(PEER, net.vni, first);
    world.hear();
    assert_eq!(world.events(), [down(PEER, &e)]);
    assert!(!world.book.follows(PEER), "nothing is followed there");
}

#[test]
fn a_claimed_mac_comes_and_goes() {
    let mut world = World::new();
    let net = world.network("net");
    let range = world.grant(PEER, net.vni, 1)[0];
    world.hear();
    world.attach(&[&net]);
    world.events();
    let mac = MacAddr([2, 0, 0, 0, 0, 7]);
    let e = Endpoint {
        mac,
        ..endpoint(&net, range.first)
    };
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), []);
    world.agree(Command::Grant {
        host: PEER,
        vni: net.vni,
        want: Want::Mac(mac),
    });
    world.hear();
    assert_eq!(world.events(), [up(PEER, &e)]);
    let seen = world.managers.facts().version();
    world.agree(Command::Return {
        host: PEER,
        vni: net.vni,
        ranges: vec![],
        macs: vec![mac],
        seen,
    });
    world.hear();
    assert_eq!(world.events(), [down(PEER, &e)]);
}

#[test]
fn an_address_that_changes_hands_goes_down_before_it_comes_up() {
    for (from, to) in [(PEER, THIRD), (THIRD, PEER)] {
        let mut world = World::new();
        let net = world.network("net");
        let range = world.grant(from, net.vni, 1)[0];
        world.grant(from, net.vni, 1);
        world.grant(to, net.vni, 1);
        world.hear();
        world.attach(&[&net]);
        let e = endpoint(&net, range.first);
        world.snapshot(from, net.vni, at(1, 1), &[&e]);
        world.snapshot(to, net.vni, at(1, 1), &[&e]);
        world.events();
        world.give_back(from, net.vni, range);
        assert_eq!(world.grant(to, net.vni, 1), [range]);
        world.hear();
        assert_eq!(world.events(), [down(from, &e), up(to, &e)]);
    }
}

#[test]
fn interest_decides_what_is_kept_and_what_is_told() {
    let mut world = World::new();
    let (a, b) = (world.network("a"), world.network("b"));
    let mut endpoints = Vec::new();
    for net in [&a, &b] {
        let range = world.grant(PEER, net.vni, 1)[0];
        endpoints.push(endpoint(net, range.first));
    }
    world.hear();
    world.attach(&[&a]);
    world.events();
    let [in_a, in_b] = &endpoints[..] else {
        unreachable!()
    };
    world.snapshot(PEER, a.vni, at(1, 1), &[in_a]);
    world.snapshot(PEER, b.vni, at(1, 1), &[in_b]);
    assert_eq!(world.events(), [up(PEER, in_a)]);
    assert_eq!(world.book.endpoints(b.vni), []);

    // Looked at, it is known but not told; attached then, it is told at once.
    world.book.look(b.vni);
    world.snapshot(PEER, b.vni, at(1, 1), &[in_b]);
    assert_eq!(world.events(), []);
    assert_eq!(world.book.endpoints(b.vni), [(PEER, in_b.clone())]);
    world.attach(&[&b]);
    assert_eq!(world.events(), [down(PEER, in_a), up(PEER, in_b)]);
    assert_eq!(world.book.endpoints(a.vni), []);
    world.attach(&[]);
    assert_eq!(world.events(), [down(PEER, in_b)]);
    assert_eq!(world.book.endpoints(b.vni).len(), 1);
    world.book.look_away(b.vni);
    world.book.look_away(b.vni);
    assert_eq!(world.book.endpoints(b.vni), []);
    assert_eq!(world.book.wanted(PEER).count(), 0);
}

#[test]
fn a_removed_host_takes_its_endpoints_with_it_and_strangers_have_none() {
    let mut world = World::new();
    let net = world.network("net");
    let range = world.grant(PEER, net.vni, 1)[0];
    world.hear();
    world.attach(&[&net]);
    let e = endpoint(&net, range.first);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    world.snapshot(HostId(9), net.vni, at(1, 1), &[&e]);
    world.book.up(HostId(9));
    assert_eq!(
        world.events(),
        [Event::NetworkAdded(net.clone()), up(PEER, &e)]
    );
    world.agree(Command::HostRemove { id: PEER });
    world.hear();
    assert_eq!(world.events(), [down(PEER, &e), Event::MemberLeft(PEER)]);
    assert!(!world.book.is_peer(PEER));

    world.agree(Command::SetRole {
        id: THIRD,
        manager: true,
    });
    world.agree(Command::HostRemove { id: ME });
    world.hear();
    assert_eq!(world.events(), [Event::Expelled]);
}

#[test]
fn a_network_that_is_another_one_now_takes_its_endpoints_along() {
    let mut world = World::new();
    let net = world.network("net");
    world.hear();
    world.attach(&[&net]);
    world.events();
    world.agree(Command::NetworkRemove { name: "net".into() });
    let spec = NetworkSpec {
        name: "other".into(),
        vni: Some(net.vni),
        ..NetworkSpec::default()
    };
    let avoid = Vec::new();
    let made = world.agree(Command::NetworkCreate { spec, avoid });
    let Reply::Network(other) = made else {
        panic!("{made:?}")
    };
    let range = world.grant(PEER, other.vni, 1)[0];
    world.hear();
    let changed = [
        Event::NetworkRemoved(net),
        Event::NetworkAdded(other.clone()),
    ];
    assert_eq!(world.events(), changed);
    let e = endpoint(&other, range.first);
    world.snapshot(PEER, other.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), [up(PEER, &e)]);
}

#[test]
fn a_snapshot_of_the_facts_does_what_the_changes_would() {
    let mut world = World::new();
    let (net, gone) = (world.network("net"), world.network("gone"));
    let kept = world.grant(PEER, net.vni, 1)[0];
    let lost = world.grant(PEER, net.vni, 1)[0];
    world.hear();
    world.attach(&[&net]);
    world.events();
    let (kept, taken) = (endpoint(&net, kept.first), endpoint(&net, lost.first));
    world.snapshot(PEER, net.vni, at(1, 1), &[&kept, &taken]);
    world.events();

    world.give_back(PEER, net.vni, lost);
    world.agree(Command::NetworkRemove {
        name: "gone".into(),
    });
    let added = world.network("added");
    world.agree(Command::HostRemove { id: THIRD });
    let late = world.book.facts().version();
    let FactsNews::Changes { version, .. } = world.managers.since(late) else {
        panic!("few changes")
    };
    let gap = FactsNews::Changes {
        after: version,
        version: Version {
            index: 99,
            ..version
        },
        changes: vec![],
    };
    assert!(world.book.take_facts(gap, world.now).is_err());
    let facts = Arc::new(world.managers.facts().clone());
    assert!(world.book.replace_facts(facts.clone(), world.now));
    assert!(!world.book.replace_facts(facts, world.now));
    let expected = [
        Event::MemberLeft(THIRD),
        Event::NetworkRemoved(gone),
        Event::NetworkAdded(added),
        down(PEER, &taken),
    ];
    assert_eq!(world.events(), expected);

    // A restored cluster is of a later epoch, however low its versions are.
    let restored = world.managers.clone().restored(host(ME));
    let facts = restored.facts().clone();
    assert!(facts.version().index < world.book.facts().version().index);
    let news = FactsNews::Snapshot(facts);
    assert_eq!(world.book.take_facts(news, world.now), Ok(true));
    assert_eq!(world.events(), []);
    let old = world.managers.since(Version::default());
    assert_eq!(world.book.take_facts(old, world.now), Ok(false));
}

#[test]
fn endpoints_outlive_their_hosts_agent_until_they_are_forgotten() {
    let mut world = World::new();
    let net = world.network("net");
    let range = world.grant(PEER, net.vni, 1)[0];
    world.hear();
    world.attach(&[&net]);
    world.events();
    let (now, e) = (world.now, endpoint(&net, range.first));
    world.book.up(PEER);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    world.book.expire(now + 2 * RETENTION);
    assert_eq!(world.events(), [Event::MemberUp(host(PEER)), up(PEER, &e)]);
    world.book.down(PEER, now);
    world.book.expire(now + RETENTION - Duration::from_secs(1));
    assert_eq!(world.events(), [Event::MemberDown(PEER)]);
    world.book.expire(now + RETENTION);
    assert_eq!(world.events(), [down(PEER, &e)]);
    world.book.up(PEER);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), [Event::MemberUp(host(PEER)), up(PEER, &e)]);
    world.book.forget(PEER);
    assert_eq!(world.events(), [down(PEER, &e)]);
    world.snapshot(PEER, net.vni, at(1, 1), &[&e]);
    assert_eq!(world.events(), [up(PEER, &e)]);
}
