//! Three managers and a worker, and what happens when managers come and go:
//!
//! ```text
//!   host1 127.T.0.1 ── host2 127.T.0.2 ── host3 127.T.0.3     managers
//!            └──────────── host4 127.T.0.4 ──────┘            worker
//! ```

mod common;

use std::time::{Duration, Instant};

use common::*;
use overlay_cluster::{Cluster, Error, Event, Start, describe_backup, stored};
use overlay_core::facts::{NetworkSpec, Want};
use tempfile::TempDir;

async fn three(test: u8) -> [TestHost; 3] {
    log();
    let one = first(test).await;
    let two = join_manager(test, 2, &one).await;
    let three = join_manager(test, 3, &one).await;
    [one, two, three]
}

fn spec(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manager_is_hardly_noticed() {
    let mut hosts: Vec<TestHost> = three(10).await.into();
    let mut worker = join(10, 4, &hosts[1]).await;
    worker.network("before").await;
    let leads = |host: &TestHost| host.cluster.control().leader == Some(host.id());
    let at = hosts.iter().position(leads).expect("a leader");
    let gone = hosts.remove(at);
    gone.cluster.clone().shutdown().await;
    let began = Instant::now();
    let network = worker.network("after").await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    worker
        .events_until(|event| *event == Event::MemberDown(gone.id()))
        .await;
    let began = Instant::now();
    let a = worker.attach(network.vni, "a").await;
    assert!(began.elapsed() < Duration::from_secs(1));
    for host in &hosts {
        until("all know it", || {
            host.cluster.facts(|facts| {
                facts.network_named("after").is_some() && facts.check(worker.id(), &a).is_ok()
            })
        })
        .await;
    }
    // It comes back and hears what it has missed.
    let back = start(gone.dir, gone.config, Start::Resume).await;
    until("it is as the others", || {
        back.cluster.control().version == hosts[0].cluster.control().version
            && back.cluster.control().quorum
    })
    .await;
    assert!(back.cluster.networks().contains(&network));
    let status = worker.cluster.control();
    assert_eq!(status.managers.len(), 3);
    assert!(status.quorum);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_reads_gossip_and_publishing_go_on() {
    let [mut one, two, three] = three(11).await;
    let worker = join(11, 4, &one).await;
    let network = worker.network("net").await;
    let spare = worker.cluster.grant(network.vni, Want::Addresses(8)).await;
    let spare = spare.unwrap()[0];
    one.attach(network.vni, "one").await;
    let token = one.token().await;
    two.cluster.clone().shutdown().await;
    three.cluster.clone().shutdown().await;
    until("nobody leads", || !one.cluster.control().quorum).await;
    until("the worker sees it", || !worker.cluster.control().quorum).await;

    // A container with an address from before is attached, and everybody hears of it.
    let endpoint = worker.endpoint(network.vni, "late", spare.first + 3);
    worker.cluster.publish(endpoint.clone()).unwrap();
    one.events_until(|event| *event == up(worker.id(), &endpoint))
        .await;
    assert_eq!(
        worker.cluster.network("net").await.unwrap(),
        Some(network.clone())
    );
    let looked = worker.cluster.look_up(network.vni).await;
    assert_eq!(looked.len(), 2, "{looked:?}");
    assert_eq!(one.token().await, token);
    one.cluster.backup().await.unwrap();

    for host in [&one, &worker] {
        let began = Instant::now();
        let refused = host.cluster.network_create(spec("no"), Vec::new()).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::NoManager { .. }), "{error}");
        assert!(error.to_string().contains("go on"), "{error}");
        assert!(
            began.elapsed() < Duration::from_secs(7),
            "{:?}",
            began.elapsed()
        );
    }
    // One more, and they agree again.
    let _two = start(two.dir, two.config, Start::Resume).await;
    until("a majority", || one.cluster.control().quorum).await;
    worker.network("yes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_become_managers_and_workers_again() {
    log();
    let one = first(12).await;
    let two = join(12, 2, &one).await;
    let three = join(12, 3, &one).await;
    let refused = two.cluster.set_role(two.id(), true).await.unwrap_err();
    assert!(matches!(refused, Error::Denied(_)), "{refused}");
    let refused = two.cluster.token(false).await.unwrap_err();
    assert!(matches!(refused, Error::NotManager(_)), "{refused}");
    for host in [&two, &three] {
        one.cluster.set_role(host.id(), true).await.unwrap();
        assert!(stored(host.dir.path()).unwrap().unwrap().manager);
        assert!(host.cluster.me().manager);
    }
    assert_eq!(two.token().await, one.token().await);
    // New hosts can join at any of them, and any of them can go.
    let four = join(12, 4, &three).await;
    one.cluster.set_role(one.id(), false).await.unwrap();
    until("host1 is no manager", || {
        !stored(one.dir.path()).unwrap().unwrap().manager
    })
    .await;
    assert!(one.cluster.token(false).await.is_err());
    four.network("net").await;
    one.network("net2").await;
    three.cluster.set_role(two.id(), false).await.unwrap();
    four.network("net3").await;
    let last = three.cluster.set_role(three.id(), false).await.unwrap_err();
    assert!(matches!(last, Error::Refused(_)), "{last}");
    // And once more, from scratch.
    three.cluster.set_role(one.id(), true).await.unwrap();
    assert_eq!(one.token().await, three.token().await);
    // A manager that leaves takes nothing with it.
    three.cluster.clone().leave().await.unwrap();
    until("host3 is gone", || one.cluster.members().len() == 3).await;
    four.network("net4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_comes_back_from_disk() {
    let hosts = three(13).await;
    let worker = join(13, 4, &hosts[0]).await;
    let network = worker.network("net").await;
    let a = worker.attach(network.vni, "a").await;
    let version = worker.cluster.control().version;
    let mut all: Vec<TestHost> = hosts.into_iter().chain([worker]).collect();
    for host in &all {
        host.cluster.clone().shutdown().await;
    }
    let mut back = Vec::new();
    for host in all.drain(..) {
        back.push(start(host.dir, host.config, Start::Resume).await);
    }
    assert!(back[3].cluster.control().version >= version);
    back[3].cluster.publish(a.clone()).unwrap();
    until("a majority", || back[0].cluster.control().quorum).await;
    back[3].network("again").await;
    assert_eq!(back[1].cluster.token(true).await.unwrap(), {
        back[2].cluster.token(true).await.unwrap()
    });
    let found = back[0].cluster.look_up(network.vni).await;
    assert_eq!(found, vec![(back[3].id(), a)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_is_found_by_the_other_hosts() {
    let [one, two, three] = three(14).await;
    let mut worker = join(14, 4, &one).await;
    let network = worker.network("net").await;
    let old = worker.attach(network.vni, "old").await;
    let backup = two.cluster.backup().await.unwrap();
    let what = describe_backup(&backup).unwrap();
    assert!(
        what.contains("4 hosts") && what.contains("1 networks"),
        "{what}"
    );
    let new = worker.attach(network.vni, "new").await;
    // Two of three managers are lost for good; the third is there, but can't agree on anything.
    one.cluster.clone().shutdown().await;
    two.cluster.clone().shutdown().await;
    let dir = TempDir::new().unwrap();
    let settings = config(14, 9, &dir);
    let damaged = Start::Restore(backup[..backup.len() - 1].to_vec());
    assert!(Cluster::start(settings.clone(), damaged).await.is_err());
    assert_eq!(stored(dir.path()).unwrap(), None);
    let restored = start(dir, settings, Start::Restore(backup)).await;
    until("the others follow it", || {
        let of = |host: &TestHost| host.cluster.control();
        of(&worker).managers == vec![restored.id()] && of(&three).managers == vec![restored.id()]
    })
    .await;
    // What came after the backup is void, until the worker claims it again.
    let down = worker
        .cluster
        .facts(|f| f.check(worker.id(), &new).is_err());
    assert!(down && worker.cluster.facts(|f| f.check(worker.id(), &old).is_ok()));
    let more = restored.cluster.grant(network.vni, Want::Addresses(1));
    let error = more.await.unwrap_err().to_string();
    assert!(error.contains("claim"), "{error}");
    let claim = worker.cluster.grant(network.vni, Want::Ip(new.ips[0]));
    claim.await.unwrap();
    let found = restored.cluster.look_up(network.vni).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(!worker.events_now().contains(&Event::Expelled));
    until("host3 is a worker now", || {
        !stored(three.dir.path()).unwrap().unwrap().manager
    })
    .await;
    three.network("later").await;
}
