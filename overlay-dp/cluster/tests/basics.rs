//! Two or three hosts, one cluster:
//!
//! ```text
//!   host1 127.T.0.1 (manager) ── host2 127.T.0.2
//!            └────── host3 127.T.0.3 ──────┘
//! ```

mod common;

use std::time::{Duration, Instant};

use common::*;
use overlay_cluster::{Error, Event, MemberState, Start, stored};
use overlay_core::facts::{Facts, Refusal, Want};

fn member_up(id: overlay_core::model::HostId) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::MemberUp(host) if host.id == id)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_share_networks_addresses_and_endpoints() {
    log();
    let mut one = first(1).await;
    let network = one.network("uber-net").await;
    assert_eq!(network.subnet.to_string(), "10.0.0.0/24");
    assert_eq!(network.vni.get(), 4096);
    let mut two = join(1, 2, &one).await;
    assert_eq!(
        two.cluster.networks(),
        vec![network.clone()],
        "known from the join on"
    );
    assert_eq!(two.telling().await, Event::NetworkAdded(network.clone()));
    assert_eq!(one.telling().await, Event::NetworkAdded(network.clone()));
    one.events_until(member_up(two.id())).await;
    two.events_until(member_up(one.id())).await;

    let b = two.attach(network.vni, "test.2").await;
    let a = one.attach(network.vni, "test.1").await;
    let began = Instant::now();
    two.events_until(|event| *event == up(one.id(), &a)).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    one.events_until(|event| *event == up(two.id(), &b)).await;
    assert_eq!(
        (b.ips[0].to_string(), a.ips[0].to_string()),
        ("10.0.0.2".into(), "10.0.0.3".into())
    );
    for host in [&one, &two] {
        let mut all = host.cluster.endpoints(network.vni);
        all.sort_by_key(|(_, endpoint)| endpoint.name.clone());
        assert_eq!(all, vec![(one.id(), a.clone()), (two.id(), b.clone())]);
    }

    // Made by a member, a network is known there at once, and on the manager.
    let second = two.network("second").await;
    assert_eq!(
        two.cluster.networks(),
        vec![network.clone(), second.clone()]
    );
    let added = Event::NetworkAdded(second.clone());
    one.events_until(|event| *event == added).await;
    two.cluster.network_remove("second").await.unwrap();
    let removed = Event::NetworkRemoved(second);
    one.events_until(|event| *event == removed).await;
    let error = two.cluster.network_remove("uber-net").await.unwrap_err();
    assert!(
        matches!(error, Error::Refused(Refusal::InUse { .. })),
        "{error}"
    );

    // What another host has is refused; what is given back is not.
    let taken = one.cluster.grant(network.vni, Want::Ip(b.ips[0])).await;
    let error = taken.unwrap_err();
    assert!(
        matches!(error, Error::Refused(Refusal::Taken { .. })),
        "{error}"
    );
    two.cluster.withdraw(network.vni, "test.2");
    one.events_until(|event| *event == down(two.id(), &b)).await;
    let (held, seen) = two
        .cluster
        .facts(|facts| (facts.granted(two.id(), network.vni), facts.version()));
    let back = two.cluster.give_back(network.vni, held, Vec::new(), seen);
    back.await.unwrap();
    assert_eq!(
        two.cluster.facts(|facts| facts.networks_of(two.id())),
        vec![]
    );
    one.cluster
        .grant(network.vni, Want::Ip(b.ips[0]))
        .await
        .unwrap();
    until("both alive, with a round trip", || {
        [&one, &two].iter().all(|host| {
            let members = host.cluster.members();
            members.len() == 2
                && members.iter().all(|m| m.state == MemberState::Alive)
                && members
                    .iter()
                    .all(|m| m.me == (m.host.id == host.id()) && m.me != m.rtt.is_some())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_made_elsewhere_just_now_can_be_used() {
    log();
    let one = first(7).await;
    let two = join(7, 2, &one).await;
    for n in 0..20 {
        let fresh = one.network(&format!("found{n}")).await;
        let found = two.cluster.network(&fresh.name).await.unwrap();
        assert_eq!(found, Some(fresh));
        let fresh = one.network(&format!("used{n}")).await;
        two.attach(fresh.vni, "e").await;
    }
    assert_eq!(two.cluster.network("none").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_hears_of_its_own_networks_and_can_look_at_others() {
    log();
    let one = first(8).await;
    let network = one.network("net").await;
    let mut two = join(8, 2, &one).await;
    let mut three = join(8, 3, &one).await;
    let c = three.attach(network.vni, "c").await;
    until("the grant is known", || {
        let takes_part = |facts: &Facts| facts.participants(network.vni).contains(&three.id());
        two.cluster.facts(takes_part)
    })
    .await;
    let found = two.cluster.look_up(network.vni).await;
    assert_eq!(found, vec![(three.id(), c.clone())]);
    assert_eq!(two.cluster.endpoints(network.vni), vec![]);
    let told = |events: Vec<Event>| events.iter().any(|e| matches!(e, Event::EndpointUp { .. }));
    assert!(!told(two.events_now()));

    two.attached(network.vni);
    two.events_until(|event| *event == up(three.id(), &c)).await;
    two.cluster.set_interest(Default::default());
    two.events_until(|event| *event == down(three.id(), &c))
        .await;
    // A host that is gone for good does not hold up who looks.
    three.events_now();
    two.attached(network.vni);
    two.events_until(|event| *event == up(three.id(), &c)).await;
    three.cluster.clone().shutdown().await;
    two.events_until(|event| *event == Event::MemberDown(three.id()))
        .await;
    assert_eq!(
        two.cluster.endpoints(network.vni),
        vec![(three.id(), c.clone())]
    );
    two.cluster.forget_host(three.id());
    two.events_until(|event| *event == down(three.id(), &c))
        .await;
    let began = Instant::now();
    assert_eq!(two.cluster.look_up(network.vni).await, vec![]);
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    let three = three.restart().await;
    three.cluster.publish(c.clone()).unwrap();
    two.events_until(|event| *event == up(three.id(), &c)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_hears_every_other_and_a_leaver_is_forgotten() {
    log();
    let one = first(2).await;
    let network = one.network("net").await;
    let mut two = join(2, 2, &one).await;
    let mut three = join(2, 3, &one).await;
    let c = three.attach(network.vni, "c").await;
    let b = two.attach(network.vni, "b").await;
    two.events_until(|event| *event == up(three.id(), &c)).await;
    three.events_until(|event| *event == up(two.id(), &b)).await;

    let (gone, dir) = (two.id(), two.dir.path().to_owned());
    two.cluster.clone().leave().await.unwrap();
    assert_eq!(stored(&dir).unwrap(), None);
    assert!(!two.events_now().contains(&Event::Expelled));
    let seen = three
        .events_until(|event| *event == Event::MemberLeft(gone))
        .await;
    assert!(seen.contains(&down(gone, &b)), "{seen:?}");
    until("the roster has two", || three.cluster.members().len() == 2).await;
    assert_eq!(one.cluster.members().len(), 2);
    // Its address is free again.
    one.cluster
        .grant(network.vni, Want::Ip(b.ips[0]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_needs_no_token_and_does_not_flap() {
    log();
    let mut one = first(3).await;
    let network = one.network("net").await;
    let mut two = join(3, 2, &one).await;
    let a = one.attach(network.vni, "a").await;
    let kept = two.attach(network.vni, "kept").await;
    let lost = two.attach(network.vni, "lost").await;
    one.events_until(|event| *event == up(two.id(), &lost))
        .await;
    two.events_until(|event| *event == up(one.id(), &a)).await;

    let id = two.id();
    let mut two = two.restart().await;
    assert_eq!(two.id(), id);
    assert_eq!(two.telling().await, Event::NetworkAdded(network.clone()));
    two.cluster.publish(kept.clone()).unwrap();
    two.attached(network.vni);
    two.events_until(|event| *event == up(one.id(), &a)).await;
    assert_eq!(
        one.events_now()
            .iter()
            .filter(|e| matches!(e, Event::EndpointDown { .. }))
            .count(),
        0
    );
    two.cluster.settled();
    let seen = one.events_until(|event| *event == down(id, &lost)).await;
    let of_kept = |event: &&Event| **event == up(id, &kept) || **event == down(id, &kept);
    assert_eq!(seen.iter().find(of_kept), None, "{seen:?}");
    let held = two.cluster.facts(|facts| facts.granted(id, network.vni));
    assert_eq!(held.iter().map(|range| range.count()).sum::<u64>(), 2);

    // The manager, too: token, networks and grants are as before.
    let token = one.token().await;
    let mut one = one.restart().await;
    assert_eq!(one.token().await, token);
    assert_eq!(one.cluster.networks(), vec![network.clone()]);
    one.cluster.publish(a.clone()).unwrap();
    one.attached(network.vni);
    one.events_until(|event| *event == up(id, &kept)).await;
    let next = one.attach(network.vni, "next").await;
    assert_eq!(next.ips[0].to_string(), "10.0.0.5");
    let d = two.attach(network.vni, "d").await;
    one.events_until(|event| *event == up(id, &d)).await;
    let seen = two.events_now();
    assert!(!seen.contains(&down(one.id(), &a)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_manager_only_agreements_wait() {
    log();
    let mut one = first(4).await;
    let network = one.network("net").await;
    let mut two = join(4, 2, &one).await;
    let three = join(4, 3, &one).await;
    let a = one.attach(network.vni, "a").await;
    let b = two.attach(network.vni, "b").await;
    one.events_until(|event| *event == up(two.id(), &b)).await;
    two.events_until(|event| *event == up(one.id(), &a)).await;
    let c = three.attach(network.vni, "c").await;
    two.events_until(|event| *event == up(three.id(), &c)).await;
    until("host3 hears", || {
        three.cluster.endpoints(network.vni).len() == 3
    })
    .await;

    one.cluster.clone().shutdown().await;
    // It is seen to be down, and its endpoint stays; between the others life goes on.
    let began = Instant::now();
    let seen = two
        .events_until(|event| *event == Event::MemberDown(one.id()))
        .await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert!(!seen.contains(&down(one.id(), &a)), "{seen:?}");
    assert_eq!(two.cluster.endpoints(network.vni).len(), 3);
    three.cluster.withdraw(network.vni, "c");
    let began = Instant::now();
    two.events_until(|event| *event == down(three.id(), &c))
        .await;
    assert!(began.elapsed() < Duration::from_secs(1));
    let spec = overlay_core::facts::NetworkSpec {
        name: "x".into(),
        ..Default::default()
    };
    let error = two.cluster.network_create(spec, Vec::new()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NoManager { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&one.control_addr()) && text.contains("go on"),
        "{text}"
    );
    assert!(!two.cluster.control().quorum);

    // It comes back with its endpoint as it was: nothing flaps.
    two.events_now();
    let one = start(one.dir, one.config, Start::Resume).await;
    one.cluster.publish(a.clone()).unwrap();
    one.cluster.settled();
    let seen = two
        .events_until(|event| matches!(event, Event::MemberUp(host) if host.id == one.id()))
        .await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    two.network("x").await;
    assert!(two.cluster.endpoints(network.vni).contains(&(one.id(), a)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_moved_is_found() {
    log();
    let mut one = first(6).await;
    let mut two = join(6, 2, &one).await;
    two.events_until(member_up(one.id())).await;
    let id = two.id();
    two.cluster.shutdown().await;
    let mut settings = config(6, 22, &two.dir);
    settings.host_name = "renamed".into();
    let mut two = start(two.dir, settings, Start::Resume).await;
    until("the new address is in the roster", || {
        let members = one.cluster.members();
        members
            .iter()
            .any(|m| m.host.id == id && m.host.vtep == two.config.vtep && m.host.name == "renamed")
    })
    .await;
    let network = one.network("net").await;
    two.attach(network.vni, "b").await;
    let a = one.attach(network.vni, "a").await;
    two.events_until(|event| *event == up(one.id(), &a)).await;

    // Without a stop, too: nothing goes down for it.
    one.events_now();
    let vtep = "127.6.0.23".parse().unwrap();
    two.cluster.set_vtep(vtep).await.unwrap();
    assert_eq!(two.cluster.me().vtep, vtep);
    let moved = |event: &Event| matches!(event, Event::MemberUp(host) if host.vtep == vtep);
    let seen = one.events_until(moved).await;
    assert!(
        !seen
            .iter()
            .any(|e| matches!(e, Event::EndpointDown { .. } | Event::MemberLeft(_))),
        "{seen:?}"
    );
    let b2 = two.attach(network.vni, "b2").await;
    one.events_until(|event| *event == up(id, &b2)).await;

    // The manager itself moves: it calls the others, who learn where it is.
    let vtep = "127.6.0.11".parse().unwrap();
    one.cluster.set_vtep(vtep).await.unwrap();
    until("the manager's new address is known", || {
        let members = two.cluster.members();
        members
            .iter()
            .any(|m| m.host.id == one.id() && m.host.vtep == vtep)
    })
    .await;
    two.network("after").await;
}
