//! Two or three hosts, one cluster:
//!
//! ```text
//!   host1 127.T.0.1 (manager) ── host2 127.T.0.2
//!            └────── host3 127.T.0.3 ──────┘
//! ```

mod common;

use std::time::{Duration, Instant};

use common::*;
use overlay_cluster::{Error, Event, LeaseSpec, MemberState, NetworkSpec, Start, stored};
use tempfile::TempDir;

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
    assert_eq!(two.event().await, Event::NetworkAdded(network.clone()));
    assert_eq!(one.event().await, Event::NetworkAdded(network.clone()));
    one.events_until(member_up(two.id())).await;
    two.events_until(member_up(one.id())).await;

    let a = one.attach(network.vni, "test.1").await;
    let began = Instant::now();
    assert_eq!(two.event().await, up(one.id(), &a));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let b = two.attach(network.vni, "test.2").await;
    assert_eq!(one.event().await, up(two.id(), &b));
    assert_eq!(
        (a.ips[0].to_string(), b.ips[0].to_string()),
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
    assert_eq!(one.event().await, Event::NetworkAdded(second.clone()));
    two.cluster.network_remove("second").await.unwrap();
    assert_eq!(one.event().await, Event::NetworkRemoved(second));
    let error = two
        .cluster
        .network_remove("uber-net")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("in use by test.1, test.2"), "{error}");

    two.cluster.withdraw(network.vni, "test.2");
    assert_eq!(one.event().await, down(two.id(), &b));
    two.cluster
        .release(network.vni, b.ips[0], "test.2")
        .await
        .unwrap();
    assert!(
        one.cluster
            .release(network.vni, b.ips[0], "test.2")
            .await
            .is_err()
    );
    assert_eq!(two.cluster.leases().await.unwrap(), vec![]);
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
async fn every_host_hears_every_other_and_a_leaver_is_forgotten() {
    log();
    let one = first(2).await;
    let network = one.network("net").await;
    let mut two = join(2, 2, &one).await;
    let mut three = join(2, 3, &one).await;
    let c = three.attach(network.vni, "c").await;
    two.events_until(|event| *event == up(three.id(), &c)).await;
    let b = two.attach(network.vni, "b").await;
    three.events_until(|event| *event == up(two.id(), &b)).await;

    let (gone, dir) = (two.id(), two.dir.path().to_owned());
    two.cluster.clone().leave().await.unwrap();
    assert_eq!(stored(&dir).unwrap(), None);
    let seen = three
        .events_until(|event| *event == Event::MemberLeft(gone))
        .await;
    assert!(seen.contains(&down(gone, &b)), "{seen:?}");
    until("the roster has two", || three.cluster.members().len() == 2).await;
    assert_eq!(one.cluster.members().len(), 2);
    // Its lease is free again.
    one.cluster
        .lease(LeaseSpec {
            ip: Some(b.ips[0]),
            ..LeaseSpec::any(network.vni, "b")
        })
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
    assert_eq!(two.event().await, Event::NetworkAdded(network.clone()));
    two.cluster.publish(kept.clone()).unwrap();
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
    let leases = two.cluster.leases().await.unwrap();
    assert_eq!(leases.len(), 2, "{leases:?}");

    // The manager, too: token, networks and leases are as before.
    let token = one.token();
    let mut one = one.restart().await;
    assert_eq!(one.token(), token);
    assert_eq!(one.cluster.networks(), vec![network.clone()]);
    one.cluster.publish(a.clone()).unwrap();
    one.events_until(|event| *event == up(id, &kept)).await;
    let next = one
        .cluster
        .lease(LeaseSpec::any(network.vni, "next"))
        .await
        .unwrap();
    assert_eq!(next.ip.to_string(), "10.0.0.5");
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

    one.cluster.clone().shutdown().await;
    let spec = NetworkSpec {
        name: "x".into(),
        ..NetworkSpec::default()
    };
    let error = two
        .cluster
        .network_create(spec, Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::ManagerUnreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&one.control_addr()) && text.contains("go on"),
        "{text}"
    );

    // It is seen to be down, and its endpoint stays; between the others life goes on.
    let seen = two
        .events_until(|event| *event == Event::MemberDown(one.id()))
        .await;
    assert!(!seen.contains(&down(one.id(), &a)), "{seen:?}");
    assert_eq!(two.cluster.endpoints(network.vni).len(), 3);
    three.cluster.withdraw(network.vni, "c");
    let began = Instant::now();
    assert_eq!(two.event().await, down(three.id(), &c));
    assert!(began.elapsed() < Duration::from_secs(1));
    until("two of three alive", || {
        let members = two.cluster.members();
        members
            .iter()
            .filter(|m| m.state == MemberState::Alive)
            .count()
            == 2
    })
    .await;

    // It comes back with its endpoint as it was: nothing flaps.
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
async fn a_host_that_stays_down_loses_its_endpoints_in_the_end() {
    log();
    let dir = TempDir::new().unwrap();
    let mut settings = config(5, 1, &dir);
    settings.retention = Duration::from_secs(2);
    let mut one = start(dir, settings, Start::New).await;
    let network = one.network("net").await;
    let two = join(5, 2, &one).await;
    let b = two.attach(network.vni, "b").await;
    one.events_until(|event| *event == up(two.id(), &b)).await;
    two.cluster.clone().shutdown().await;
    one.events_until(|event| *event == Event::MemberDown(two.id()))
        .await;
    let began = Instant::now();
    assert_eq!(one.event().await, down(two.id(), &b));
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // And has them again when it is back.
    let two = two.restart().await;
    two.cluster.publish(b.clone()).unwrap();
    one.events_until(|event| *event == up(two.id(), &b)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_moved_is_found() {
    log();
    let one = first(6).await;
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
    let a = one.attach(network.vni, "a").await;
    two.events_until(|event| *event == up(one.id(), &a)).await;

    // The manager itself moves: it calls the others, who learn where it is.
    one.cluster.shutdown().await;
    let settings = config(6, 11, &one.dir);
    let one = start(one.dir, settings, Start::Resume).await;
    until("the manager's new address is known", || {
        let members = two.cluster.members();
        members
            .iter()
            .any(|m| m.host.id == one.id() && m.host.vtep == one.config.vtep)
    })
    .await;
    two.network("after").await;
}
