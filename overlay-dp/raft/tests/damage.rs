//! A damaged file is an error that says what to do, or no harm; never a panic, never other facts.

mod common;

use common::{Cluster, SHORT, file, network};
use overlay_core::facts::StateMachine;
use overlay_core::model::HostId;
use overlay_raft::{OpenError, Raft};

async fn try_open(cluster: &Cluster, bytes: &[u8]) -> Result<Option<StateMachine>, OpenError> {
    let dir = cluster.path(2);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(file(&dir), bytes).unwrap();
    let raft = Raft::open(&dir, HostId(1), cluster.wire(1), SHORT).await?;
    raft.ensure_linear().await.unwrap();
    let facts = raft.read(StateMachine::clone);
    raft.shutdown().await;
    Ok(facts)
}

async fn written() -> (Cluster, Option<StateMachine>, Vec<u8>, Vec<u8>) {
    let mut cluster = Cluster::one().await;
    for n in 0..20 {
        cluster.propose(network(format!("n{n}"))).await;
    }
    let facts = cluster.get(1).read(StateMachine::clone);
    let crashed = std::fs::read(file(&cluster.path(1))).unwrap();
    cluster.get(1).shutdown().await;
    cluster.kill(1);
    let closed = std::fs::read(file(&cluster.path(1))).unwrap();
    (cluster, facts, crashed, closed)
}

/// Some of what redb reports comes as a panic, which is caught: no backtraces for these.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        if std::thread::current()
            .name()
            .is_some_and(|name| name.contains("damage"))
        {
            eprintln!("{info}");
        }
    }));
}

#[tokio::test]
async fn a_file_with_changed_bytes() {
    quiet();
    let (cluster, facts, crashed, closed) = written().await;
    assert_eq!(try_open(&cluster, &crashed).await.unwrap(), facts);
    assert_eq!(try_open(&cluster, &closed).await.unwrap(), facts);
    // Where there is something: changing unused zeros is no damage.
    let used: Vec<usize> = (0..closed.len()).filter(|at| closed[*at] != 0).collect();
    let mut refused = 0;
    for _ in 0..80 {
        let mut bad = closed.clone();
        let at = used[rand::random_range(0..used.len())];
        bad[at] ^= 1 << rand::random_range(0..8);
        match try_open(&cluster, &bad).await {
            Ok(found) => assert_eq!(found, facts, "byte {at}"),
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(
                    matches!(error, OpenError::Damaged { .. }),
                    "byte {at}: {text}"
                );
                assert!(
                    text.contains("move it away") && !text.contains('\n'),
                    "{text}"
                );
            }
        }
    }
    eprintln!("{refused} of 80 refused");
    assert!(refused > 0);
}

#[tokio::test]
async fn a_file_cut_short() {
    quiet();
    let (cluster, facts, _, closed) = written().await;
    for len in [
        0,
        1,
        100,
        4096,
        10_000,
        closed.len() / 2,
        closed.len() - 4096,
        closed.len() - 1,
    ] {
        match try_open(&cluster, &closed[..len]).await {
            Ok(found) => assert_eq!(found, facts, "length {len}"),
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Damaged { .. }),
                    "length {len}: {error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_is_something_else() {
    let (cluster, ..) = written().await;
    for bytes in [&b"hello\n"[..], &[0xff; 8192], &[0; 1 << 16]] {
        let error = try_open(&cluster, bytes).await.unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn what_a_crash_left_of_a_new_file_is_no_obstacle() {
    let mut cluster = Cluster::one().await;
    let dir = cluster.path(3);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("raft.redb.new"), b"half").unwrap();
    cluster.open(3).await;
    assert!(!dir.join("raft.redb.new").exists());
}
