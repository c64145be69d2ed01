//! No crash loses what was agreed on.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Cluster, SHORT, first_facts, network};
use overlay_core::facts::StateMachine;
use overlay_core::model::HostId;
use overlay_raft::{OpenError, ProposeError, Raft, Timings};
use tokio::time::sleep;

#[tokio::test]
async fn all_crash_at_once_and_know_what_was_agreed_on() {
    let mut cluster = Cluster::of(3).await;
    for round in 0..3 {
        let name = format!("n{round}");
        cluster.propose(network(name.as_str())).await;
        // The file as it is at this moment, on a majority or more.
        for id in 1..=3 {
            let dir = cluster.path(id);
            std::fs::copy(dir.join("raft.redb"), dir.join("copy")).unwrap();
        }
        for id in 1..=3 {
            cluster.kill(id);
            let dir = cluster.path(id);
            std::fs::rename(dir.join("copy"), dir.join("raft.redb")).unwrap();
        }
        for id in 1..=3 {
            cluster.open(id).await;
        }
        cluster.propose(network(format!("after{round}"))).await;
        cluster.await_equal(&[1, 2, 3]).await;
        assert!(cluster.networks(1).contains(&name), "{round}");
    }
}

/// What each proposal came to.
#[derive(Default)]
struct Outcomes {
    done: BTreeSet<String>,
    not_done: BTreeSet<String>,
}

#[tokio::test]
async fn crashes_loss_and_partitions_lose_and_invent_nothing() {
    let timings = Timings {
        snapshot_every: 30,
        keep: 5,
        ..SHORT
    };
    let mut cluster = Cluster::grown(5, timings).await;
    let all = [1, 2, 3, 4, 5];
    cluster.net.delay.store(4_000, Ordering::Relaxed);
    cluster.net.loss.store(2, Ordering::Relaxed);
    let mut outcomes = Outcomes::default();
    let start = Instant::now();
    for round in 0.. {
        // A busy machine gets more time to get something done.
        let enough = start.elapsed() > Duration::from_secs(5) && outcomes.done.len() > 10;
        if enough || start.elapsed() > Duration::from_secs(30) {
            break;
        }
        match round % 8 {
            2 => cluster.crash(rand::random_range(1..=5)).await,
            4 => {
                let first = rand::random_range(1..=5);
                cluster.net.cut_off(&[first, first % 5 + 1], &all);
            }
            6 => cluster.net.heal(),
            _ => {}
        }
        write_some(&cluster, round, &mut outcomes).await;
    }
    cluster.net.heal();
    cluster.net.loss.store(0, Ordering::Relaxed);
    cluster.propose(network("last")).await;
    cluster.await_equal(&all).await;
    let networks = cluster.networks(1);
    let (done, not_done) = (outcomes.done, outcomes.not_done);
    eprintln!(
        "{} done, {} certainly not, {} there",
        done.len(),
        not_done.len(),
        networks.len()
    );
    assert!(done.len() > 10, "hardly anything got done");
    assert!(
        done.is_subset(&networks),
        "lost: {:?}",
        done.difference(&networks)
    );
    assert!(
        not_done.is_disjoint(&networks),
        "done all the same: {not_done:?}"
    );
}

/// A few proposals at every manager at once, as a cluster of impatient clients does.
async fn write_some(cluster: &Cluster, round: u32, outcomes: &mut Outcomes) {
    let mut tasks = tokio::task::JoinSet::new();
    for (id, raft) in &cluster.managers {
        let (raft, name) = (raft.clone(), format!("r{round}.m{id}"));
        tasks.spawn(async move {
            let limit = Duration::from_millis(150);
            (
                tokio::time::timeout(limit, raft.propose(network(name.as_str()))).await,
                name,
            )
        });
    }
    for (result, name) in tasks.join_all().await {
        match result {
            Ok(Ok(_)) => outcomes.done.insert(name),
            Ok(Err(ProposeError::Unknown)) | Err(_) => false,
            Ok(Err(_)) => outcomes.not_done.insert(name),
        };
    }
}

const DIR: &str = "OVERLAY_RAFT_TEST_DIR";
const ROUND: &str = "OVERLAY_RAFT_TEST_ROUND";

/// The child of the next test: writes, and says what is done, until it is killed.
#[tokio::test]
#[ignore = "run by kill_9_in_a_loop"]
async fn child() {
    let dir = std::path::PathBuf::from(std::env::var_os(DIR).unwrap());
    let round = std::env::var(ROUND).unwrap();
    let timings = Timings {
        snapshot_every: 20,
        keep: 5,
        ..SHORT
    };
    let wire = || {
        std::sync::Arc::new(common::Wire {
            net: Default::default(),
            me: HostId(1),
        })
    };
    let raft = match Raft::bootstrap(&dir, HostId(1), first_facts(), wire(), timings).await {
        Err(OpenError::Exists(_)) => Raft::open(&dir, HostId(1), wire(), timings).await,
        made => made,
    };
    let raft = raft.unwrap();
    for n in 0.. {
        let name = format!("r{round}.n{n}");
        raft.propose(network(name.as_str())).await.unwrap();
        println!("\ndone {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_a_loop() {
    let mut cluster = Cluster::one().await;
    cluster.get(1).shutdown().await;
    cluster.kill(1);
    let dir = cluster.path(7);
    let mut done = BTreeSet::new();
    for round in 0..10 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args([
                "child",
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIR, &dir)
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let names = lines.map_while(Result::ok);
            names
                .filter_map(|l| l.strip_prefix("done ").map(str::to_owned))
                .collect::<Vec<_>>()
        });
        sleep(Duration::from_millis(rand::random_range(20..500))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        done.extend(reader.join().unwrap());
    }
    let timings = Timings {
        snapshot_every: 20,
        keep: 5,
        ..SHORT
    };
    let raft = Raft::open(&dir, HostId(1), cluster.wire(1), timings)
        .await
        .unwrap();
    raft.ensure_linear().await.unwrap();
    let names = |m: &StateMachine| m.facts().networks().map(|n| n.name.clone()).collect();
    let networks: BTreeSet<String> = raft.read(names).unwrap();
    eprintln!("{} done, {} there", done.len(), networks.len());
    assert!(!done.is_empty());
    assert!(
        done.is_subset(&networks),
        "lost: {:?}",
        done.difference(&networks)
    );
    // Besides them only what was killed before it could say so: one per round.
    assert!(networks.len() <= done.len() + 10);
}
