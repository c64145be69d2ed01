//! Snapshots: short logs, and managers that lag behind them.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Cluster, SHORT, file, network};
use overlay_core::facts::{Command, StateMachine};
use overlay_raft::{ProposeError, Timings};

const OFTEN: Timings = Timings {
    snapshot_every: 40,
    keep: 5,
    ..SHORT
};

#[tokio::test]
async fn a_manager_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = Cluster::grown(3, OFTEN).await;
    cluster.kill(3);
    for n in 0..80 {
        cluster.propose(network(format!("n{n}"))).await;
    }
    cluster.open(3).await;
    cluster.await_equal(&[1, 2, 3]).await;
    // It keeps what it got.
    let facts = cluster.get(3).read(StateMachine::clone);
    for id in 1..=3 {
        cluster.kill(id);
    }
    cluster.open(3).await;
    assert_eq!(cluster.get(3).read(StateMachine::clone), facts);
    cluster.open(1).await;
    cluster.propose(network("more")).await;
    cluster.await_equal(&[1, 3]).await;
}

#[tokio::test]
async fn a_large_snapshot_travels_in_pieces() {
    let mut cluster = Cluster::grown(1, OFTEN).await;
    // Rotated tokens are the quickest way to a large state.
    let secret = vec![7; 400_000];
    for manager in [true, false] {
        cluster
            .propose(Command::TokenRotate {
                manager,
                secret: secret.clone(),
            })
            .await;
    }
    for n in 0..60 {
        cluster.propose(network(format!("n{n}"))).await;
    }
    cluster.open(2).await;
    let host = common::host(2, true);
    cluster
        .propose(Command::HostAdd {
            host,
            replace: None,
        })
        .await;
    cluster.await_voters(&[1, 2]).await;
    cluster.await_equal(&[1, 2]).await;
    let largest = cluster.net.largest.load(Ordering::Relaxed);
    assert!(largest < 600_000, "{largest}");
    let secret = vec![7; overlay_raft::MAX_COMMAND];
    let refused = cluster
        .get(1)
        .propose(Command::TokenRotate {
            manager: true,
            secret,
        })
        .await;
    assert!(matches!(refused, Err(ProposeError::TooLarge(_))));
}

#[tokio::test]
async fn the_file_does_not_grow_without_end() {
    let mut cluster = Cluster::grown(1, OFTEN).await;
    let size = |cluster: &Cluster| std::fs::metadata(file(&cluster.path(1))).unwrap().len();
    for n in 0..60 {
        cluster.propose(network(format!("a{n}"))).await;
        cluster
            .propose(Command::NetworkRemove {
                name: format!("a{n}"),
            })
            .await;
    }
    let middle = size(&cluster);
    for n in 0..60 {
        cluster.propose(network(format!("b{n}"))).await;
        cluster
            .propose(Command::NetworkRemove {
                name: format!("b{n}"),
            })
            .await;
    }
    assert!(size(&cluster) <= middle * 2, "{middle} {}", size(&cluster));
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.crash(1).await;
    cluster.get(1).ensure_linear().await.unwrap();
    assert!(cluster.networks(1).is_empty());
}
