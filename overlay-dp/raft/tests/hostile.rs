//! Whatever a network brings: an answer that refuses, and agreement goes on.

mod common;

use std::sync::{Arc, Mutex};

use common::{Cluster, SHORT, Wire, network};
use overlay_core::model::HostId;
use overlay_raft::{MAX_MESSAGE, Raft, Transport, Unreachable};

/// Keeps what passes.
struct Tap {
    wire: Arc<Wire>,
    seen: Mutex<Vec<(HostId, Vec<u8>)>>,
}

impl Transport for Tap {
    async fn call(&self, to: HostId, request: Vec<u8>) -> Result<Vec<u8>, Unreachable> {
        self.seen.lock().unwrap().push((to, request.clone()));
        self.wire.call(to, request).await
    }
}

/// A cluster whose first manager is tapped, and what it said to the second.
async fn tapped() -> (Cluster, Vec<Vec<u8>>) {
    let mut cluster = Cluster::of(3).await;
    cluster.get(1).shutdown().await;
    cluster.kill(1);
    let tap = Arc::new(Tap {
        wire: cluster.wire(1),
        seen: Mutex::default(),
    });
    let raft = Raft::open(&cluster.path(1), HostId(1), tap.clone(), SHORT)
        .await
        .unwrap();
    cluster.put(1, raft);
    cluster.propose(network("a")).await;
    cluster.await_equal(&[1, 2, 3]).await;
    for id in [2, 3] {
        // Now it must ask for votes, and then lead.
        cluster.net.cut_off(&[id], &[1, 2, 3]);
        tokio::time::sleep(SHORT.election.1 * 3).await;
        cluster.net.heal();
        cluster.propose(network(format!("without{id}"))).await;
    }
    cluster.await_equal(&[1, 2, 3]).await;
    let seen = tap.seen.lock().unwrap();
    let to_second = seen.iter().filter(|(to, _)| *to == HostId(2));
    let messages: Vec<Vec<u8>> = to_second.map(|(_, bytes)| bytes.clone()).collect();
    drop(seen);
    assert!(!messages.is_empty());
    (cluster, messages)
}

async fn goes_on(cluster: &Cluster) {
    cluster.propose(network("goes-on")).await;
    cluster.await_equal(&[1, 2, 3]).await;
    for id in 1..=3 {
        assert_eq!(cluster.get(id).status().stopped, None, "{id}");
    }
}

#[tokio::test]
async fn malformed_bytes_are_refused() {
    let (cluster, messages) = tapped().await;
    let target = cluster.get(2);
    for bytes in [
        &b""[..],
        &[0],
        &[1],
        &[255; 64],
        &[1; 64],
        &vec![1; MAX_MESSAGE + 1],
    ] {
        assert!(!target.handle(HostId(1), bytes).await.is_empty());
    }
    for _ in 0..2000 {
        let mut bytes = vec![0; rand::random_range(1..200)];
        rand::fill(&mut bytes[..]);
        bytes[0] = 1;
        target.handle(HostId(1), &bytes).await;
    }
    // Cut short, and longer than they say.
    for message in &messages {
        let cut = &message[..rand::random_range(0..message.len())];
        target.handle(HostId(1), cut).await;
        let mut longer = message.clone();
        longer.push(0);
        target.handle(HostId(1), &longer).await;
    }
    goes_on(&cluster).await;
}

#[tokio::test]
async fn nobody_speaks_for_another() {
    let (cluster, messages) = tapped().await;
    let term = cluster.get(2).status().term;
    for message in &messages {
        for from in [2, 3, 99] {
            let answer = cluster.get(2).handle(HostId(from), message).await;
            assert!(answer.len() < 24, "{answer:?}");
        }
    }
    goes_on(&cluster).await;
    assert!(cluster.get(2).status().term <= term + 2);
}

#[tokio::test]
async fn a_host_that_is_no_manager_is_not_listened_to() {
    for size in [1, 3] {
        let cluster = Cluster::of(size).await;
        let all: Vec<u64> = (1..=size).collect();
        cluster.await_equal(&all).await;
        // Longer than what was heard before counts.
        tokio::time::sleep(SHORT.election.1 * 12).await;
        // A file of its own, in which it is the only voter. Its term is that of a cluster without a
        // lost leader, and its id the higher one: whoever listens takes its log for the own one.
        let tap = Arc::new(Tap {
            wire: cluster.wire(66),
            seen: Mutex::default(),
        });
        let dir = cluster.path(66);
        let evil = Raft::bootstrap(&dir, HostId(66), common::first_facts(), tap.clone(), SHORT)
            .await
            .unwrap();
        evil.propose(network("evil")).await.unwrap();
        tokio::time::sleep(SHORT.election.1 * 5).await;
        assert!(tap.seen.lock().unwrap().len() > 2, "it said nothing");
        cluster.propose(network("goes-on")).await;
        cluster.await_equal(&all).await;
        for id in all {
            let status = cluster.get(id).status();
            assert_eq!(status.stopped, None, "{id}");
            assert!(
                status.leader.is_some_and(|leader| leader != HostId(66)),
                "{id}"
            );
            assert!(!cluster.networks(id).contains("evil"), "{id}");
        }
    }
}
