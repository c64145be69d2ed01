//! Several managers: promotion, demotion, loss, partition.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE, SHORT, eventually, host, network};
use overlay_core::facts::Command;
use overlay_core::model::HostId;
use overlay_raft::ProposeError;
use tokio::time::sleep;

#[tokio::test]
async fn managers_are_promoted_and_all_have_the_facts() {
    let cluster = Cluster::of(5).await;
    cluster.propose(network("a")).await;
    cluster.await_equal(&[1, 2, 3, 4, 5]).await;
    let leader = cluster.await_leader().await;
    let follower = (1..=5).find(|id| *id != leader).unwrap();
    eventually("the follower's leader", || {
        cluster.get(follower).leader() == Some(HostId(leader))
    })
    .await;
    let refused = cluster.get(follower).propose(network("b")).await;
    assert_eq!(refused, Err(ProposeError::NotLeader(Some(HostId(leader)))));
}

#[tokio::test]
async fn a_worker_becomes_a_manager_and_a_worker_again() {
    let mut cluster = Cluster::of(3).await;
    cluster
        .propose(Command::HostAdd {
            host: host(4, false),
            replace: None,
        })
        .await;
    sleep(SHORT.heartbeat * 4).await;
    assert_eq!(cluster.get(1).status().voters.len(), 3);
    cluster.open(4).await;
    cluster
        .propose(Command::SetRole {
            id: HostId(4),
            manager: true,
        })
        .await;
    cluster.await_voters(&[1, 2, 3, 4]).await;
    assert!(cluster.get(4).reconcile(Duration::from_secs(5)).await);
    cluster
        .propose(Command::SetRole {
            id: HostId(4),
            manager: false,
        })
        .await;
    cluster.await_voters(&[1, 2, 3]).await;
    eventually("no trace of it", || {
        cluster
            .leader()
            .is_some_and(|l| l.status().learners.is_empty())
    })
    .await;
    // It knows, and does not disturb the others.
    let term = cluster.leader().unwrap().status().term;
    assert!(!cluster.get(4).status().voters.contains(&HostId(4)));
    sleep(SHORT.election.1 * 6).await;
    assert_eq!(cluster.leader().unwrap().status().term, term);
    // And once more.
    cluster.get(4).shutdown().await;
    cluster.kill(4);
    std::fs::remove_dir_all(cluster.path(4)).unwrap();
    cluster.open(4).await;
    cluster
        .propose(Command::SetRole {
            id: HostId(4),
            manager: true,
        })
        .await;
    cluster.await_voters(&[1, 2, 3, 4]).await;
    cluster.await_equal(&[1, 2, 3, 4]).await;
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over() {
    let mut cluster = Cluster::of(3).await;
    for left in [2, 1] {
        let leader = cluster.await_leader().await;
        cluster
            .propose(Command::HostRemove { id: HostId(leader) })
            .await;
        let rest: Vec<u64> = cluster
            .managers
            .keys()
            .copied()
            .filter(|id| *id != leader)
            .collect();
        assert_eq!(rest.len(), left);
        let start = Instant::now();
        cluster.await_voters(&rest).await;
        eventually("the next leader", || {
            cluster.leader_id().is_some_and(|next| next != leader)
        })
        .await;
        eprintln!("handed over in {:?}", start.elapsed());
        cluster.kill(leader);
        cluster.propose(network(format!("after{leader}"))).await;
        cluster.await_equal(&rest).await;
    }
}

#[tokio::test]
async fn a_lost_minority_is_unnoticed() {
    for dead in 1..=3 {
        let mut cluster = Cluster::of(3).await;
        cluster.await_leader().await;
        cluster.kill(dead);
        cluster.propose(network("a")).await;
        cluster.open(dead).await;
        cluster.await_equal(&[1, 2, 3]).await;
    }
}

#[tokio::test]
async fn two_of_five_may_be_lost_at_once() {
    let mut cluster = Cluster::of(5).await;
    let leader = cluster.await_leader().await;
    cluster.kill(leader);
    cluster.kill(leader % 5 + 1);
    cluster.propose(network("a")).await;
    let rest: Vec<u64> = cluster.managers.keys().copied().collect();
    cluster.await_equal(&rest).await;
}

#[tokio::test]
async fn without_quorum_reads_go_on_and_it_heals_by_itself() {
    let cluster = Cluster::of(3).await;
    cluster.propose(network("a")).await;
    cluster.await_equal(&[1, 2, 3]).await;
    let leader = cluster.await_leader().await;
    for id in 1..=3 {
        cluster.net.cut_off(&[id], &[1, 2, 3]);
    }
    // What is proposed before the loss shows may or may not happen.
    let first = cluster.get(leader).propose(network("open")).await;
    assert_eq!(first, Err(ProposeError::Unknown));
    for id in 1..=3 {
        let start = Instant::now();
        let refused = cluster.get(id).propose(network("never")).await;
        assert_eq!(refused, Err(ProposeError::NoQuorum), "{id}");
        assert!(start.elapsed() < SHORT.propose + Duration::from_millis(200));
        assert_eq!(
            cluster.get(id).ensure_linear().await,
            Err(ProposeError::NoQuorum)
        );
        let status = cluster.get(id).status();
        assert_eq!((status.leader, status.quorum), (None, false), "{id}");
        assert!(cluster.networks(id).contains("a"));
    }
    cluster.net.heal();
    cluster.propose(network("b")).await;
    cluster.await_equal(&[1, 2, 3]).await;
    assert!(!cluster.networks(1).contains("never"));
}

#[tokio::test]
async fn an_old_leader_that_was_cut_off_loses_what_nobody_confirmed() {
    let cluster = Cluster::of(3).await;
    let old = cluster.await_leader().await;
    cluster.net.cut_off(&[old], &[1, 2, 3]);
    let lost = cluster.get(old).propose(network("lost"));
    let elsewhere = async {
        let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
        eventually("another leader", || {
            others
                .iter()
                .any(|id| cluster.get(*id).leader() == Some(HostId(*id)))
        })
        .await;
        for id in &others {
            if cluster.get(*id).propose(network("won")).await.is_ok() {
                return;
            }
        }
        panic!("nobody took it");
    };
    let (lost, ()) = tokio::join!(lost, elsewhere);
    assert_eq!(lost, Err(ProposeError::Unknown));
    cluster.net.heal();
    cluster.await_equal(&[1, 2, 3]).await;
    assert_eq!(cluster.networks(old), BTreeSet::from(["won".to_owned()]));
}

#[tokio::test]
async fn a_read_after_ensure_linear_has_what_was_agreed_before() {
    let cluster = Cluster::of(3).await;
    cluster.net.delay.store(10_000, Ordering::Relaxed);
    for round in 0..10 {
        let name = format!("n{round}");
        cluster.propose(network(name.as_str())).await;
        let id = round % 3 + 1;
        cluster.get(id).ensure_linear().await.unwrap();
        assert!(cluster.networks(id).contains(&name), "{round}");
    }
}

#[tokio::test]
async fn a_demotion_waits_until_it_can_be_finished() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.await_leader().await;
    let [dead, other] = [1, 2, 3]
        .into_iter()
        .filter(|id| *id != leader)
        .collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    cluster.kill(dead);
    sleep(SHORT.election.1 * 3).await;
    // Voters would be the leader and the dead one: no majority.
    cluster
        .propose(Command::SetRole {
            id: HostId(other),
            manager: false,
        })
        .await;
    sleep(SHORT.election.1 * 2).await;
    cluster.propose(network("goes-on")).await;
    assert_eq!(cluster.get(leader).status().voters.len(), 3);
    cluster.open(dead).await;
    let (a, b) = (leader.min(dead), leader.max(dead));
    cluster.await_voters(&[a, b]).await;
}

#[tokio::test]
async fn a_manager_that_lost_its_file_comes_back_as_a_new_one() {
    let mut cluster = Cluster::of(3).await;
    cluster.propose(network("a")).await;
    for id in 1..=3 {
        cluster.get(id).shutdown().await;
        cluster.kill(id);
        std::fs::remove_dir_all(cluster.path(id)).unwrap();
        cluster.open(id).await;
        cluster.propose(network(format!("without{id}"))).await;
        cluster.await_equal(&[1, 2, 3]).await;
        cluster.await_voters(&[1, 2, 3]).await;
    }
}

#[tokio::test]
async fn a_new_manager_follows_though_the_first_snapshot_names_only_one_that_is_gone() {
    let mut cluster = Cluster::of(3).await;
    cluster.propose(Command::HostRemove { id: HostId(1) }).await;
    cluster.await_voters(&[2, 3]).await;
    cluster.kill(1);
    cluster.open(4).await;
    cluster
        .propose(Command::HostAdd {
            host: host(4, false),
            replace: None,
        })
        .await;
    cluster
        .propose(Command::SetRole {
            id: HostId(4),
            manager: true,
        })
        .await;
    cluster.await_voters(&[2, 3, 4]).await;
    cluster.await_equal(&[2, 3, 4]).await;
}

#[tokio::test]
async fn former_managers_of_a_restored_cluster_stay_out() {
    let mut cluster = Cluster::of(3).await;
    cluster.propose(network("a")).await;
    cluster.await_equal(&[1, 2, 3]).await;
    let backup = cluster.get(2).backup().unwrap();
    cluster.kill(1);
    cluster.kill(3);
    cluster.get(2).shutdown().await;
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.path(2)).unwrap();
    let (dir, wire) = (cluster.path(2), cluster.wire(2));
    let raft = overlay_raft::Raft::restore(&dir, host(2, true), &backup, wire, SHORT).await;
    cluster.put(2, raft.unwrap());
    cluster.propose(network("b")).await;
    // They still agree with each other, on what is void.
    cluster.open(1).await;
    cluster.open(3).await;
    sleep(SHORT.election.1 * 5).await;
    let status = cluster.get(2).status();
    assert_eq!(status.voters, BTreeSet::from([HostId(2)]));
    assert_eq!(status.leader, Some(HostId(2)));
    assert!(cluster.networks(2).contains("b") && !cluster.networks(1).contains("b"));
    // Made managers anew they come with nothing.
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.path(1)).unwrap();
    cluster.open(1).await;
    cluster
        .get(2)
        .propose(Command::SetRole {
            id: HostId(1),
            manager: true,
        })
        .await
        .unwrap();
    cluster.await_voters(&[1, 2]).await;
    assert!(cluster.networks(1).contains("b"));
}

#[tokio::test]
async fn one_that_was_away_follows_managers_that_it_never_heard_of() {
    let mut cluster = Cluster::of(3).await;
    cluster.kill(3);
    for id in [4, 5] {
        cluster.open(id).await;
        cluster
            .propose(Command::HostAdd {
                host: host(id, true),
                replace: None,
            })
            .await;
        let voters: Vec<u64> = (1..=id).collect();
        eventually("the voters", || {
            cluster.get(id).status().voters.len() == voters.len()
        })
        .await;
    }
    // One of the two leads: the third manager knows neither.
    let start = Instant::now();
    while cluster.await_leader().await < 4 {
        assert!(start.elapsed() < PATIENCE, "never one of the new ones");
        let leader = cluster.await_leader().await;
        cluster.net.cut_off(&[leader], &[1, 2, 4, 5]);
        sleep(SHORT.election.1 * 4).await;
        cluster.net.heal();
        sleep(SHORT.election.1).await;
    }
    cluster.open(3).await;
    cluster.await_equal(&[1, 2, 3, 4, 5]).await;
}
