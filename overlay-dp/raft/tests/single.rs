//! One manager: start, agree, stop, go on.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Cluster, SHORT, file, first_facts, host, network};
use overlay_core::facts::{Refusal, Reply, StateMachine};
use overlay_core::model::HostId;
use overlay_raft::{BackupError, OpenError, ProposeError, Raft};

#[tokio::test]
async fn one_manager_agrees_with_itself_and_remembers() {
    let mut cluster = Cluster::one().await;
    let (version, reply) = cluster.get(1).propose(network("a")).await.unwrap();
    assert!(matches!(reply, Reply::Network(network) if network.name == "a"));
    assert_eq!(version.epoch, 1);
    let (later, _) = cluster.get(1).propose(network("b")).await.unwrap();
    assert!(later > version, "{later:?} {version:?}");
    assert_eq!(*cluster.get(1).applied().borrow(), later);
    let refused = cluster.get(1).propose(network("a")).await;
    assert!(
        matches!(
            refused,
            Err(ProposeError::Refused(Refusal::NetworkExists(_)))
        ),
        "{refused:?}"
    );
    cluster.get(1).ensure_linear().await.unwrap();
    let status = cluster.get(1).status();
    assert_eq!((status.leader, status.quorum), (Some(HostId(1)), true));
    assert_eq!(status.last_applied, later.index + 1);

    let before = cluster.get(1).read(StateMachine::clone);
    cluster.get(1).shutdown().await;
    cluster.kill(1);
    cluster.open(1).await;
    cluster.get(1).ensure_linear().await.unwrap();
    assert_eq!(cluster.get(1).read(StateMachine::clone), before);
    let (last, _) = cluster.get(1).propose(network("c")).await.unwrap();
    assert!(last > later);
}

#[tokio::test]
async fn the_file_is_for_root_only() {
    let cluster = Cluster::one().await;
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(cluster.path(1)), 0o700);
    assert_eq!(mode(file(&cluster.path(1))), 0o600);
}

#[tokio::test]
async fn a_file_is_opened_once_and_by_its_owner() {
    let mut cluster = Cluster::one().await;
    let (dir, wire) = (cluster.path(1), cluster.wire(1));
    let again = Raft::open(&dir, HostId(1), wire.clone(), SHORT).await;
    assert!(matches!(again, Err(OpenError::InUse(_))));
    let anew = Raft::bootstrap(&dir, HostId(1), first_facts(), wire.clone(), SHORT).await;
    assert!(matches!(anew, Err(OpenError::Exists(_))));
    cluster.get(1).shutdown().await;
    let other = Raft::open(&dir, HostId(7), wire, SHORT).await;
    assert!(matches!(other, Err(OpenError::OtherHost { .. })));
    cluster.kill(1);
    cluster.open(1).await;
}

#[tokio::test]
async fn an_empty_manager_has_no_facts_and_leads_nobody() {
    let mut cluster = Cluster::one().await;
    cluster.open(9).await;
    let empty = cluster.get(9);
    assert_eq!(empty.read(|_| ()), None);
    assert_eq!(empty.backup(), Err(BackupError::Empty));
    assert_eq!(
        empty.propose(network("a")).await,
        Err(ProposeError::NoQuorum)
    );
    assert!(!empty.status().quorum);
}

#[tokio::test]
async fn a_backup_becomes_a_cluster_of_another_epoch() {
    let cluster = Cluster::one().await;
    cluster.propose(network("kept")).await;
    let backup = cluster.get(1).backup().unwrap();
    cluster.propose(network("lost")).await;

    let restored = Cluster {
        managers: Default::default(),
        ..Cluster::one().await
    };
    let (dir, wire) = (restored.path(5), restored.wire(5));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let raft = Raft::restore(&dir, host(5, true), &backup, wire.clone(), SHORT)
        .await
        .unwrap();
    let (version, _) = raft.propose(network("new")).await.unwrap();
    assert!(version.epoch >= now.as_secs());
    // Also within the same second, or when the clock went back.
    let (dir, later) = (restored.path(7), raft.backup().unwrap());
    let next = Raft::restore(&dir, host(7, true), &later, restored.wire(7), SHORT).await;
    let next = next.unwrap().read(|m| m.facts().version().epoch);
    assert!(next > Some(version.epoch));
    let dir = restored.path(5);
    assert!(version.index > cluster.get(1).read(|m| m.facts().version().index).unwrap() - 2);
    let facts = raft.read(|m| m.facts().clone()).unwrap();
    assert!(facts.network_named("kept").is_some() && facts.network_named("lost").is_none());
    assert_eq!(
        facts.managers().map(|h| h.id).collect::<Vec<_>>(),
        [HostId(5)]
    );
    assert_eq!(
        raft.read(|m| m.secrets().clone()),
        cluster.get(1).read(|m| m.secrets().clone())
    );
    let again = Raft::restore(&dir, host(5, true), &backup, wire.clone(), SHORT).await;
    assert!(matches!(again, Err(OpenError::Exists(_))));

    for at in 0..backup.len() {
        let mut bad = backup.clone();
        bad[at] ^= 1;
        let dir = restored.path(6);
        let refused = Raft::restore(&dir, host(6, true), &bad, wire.clone(), SHORT).await;
        assert!(matches!(refused, Err(OpenError::Backup(_))), "byte {at}");
        assert!(!dir.exists());
    }
    for len in 0..backup.len() {
        let refused = Raft::restore(
            &dir,
            host(6, true),
            &backup[..len],
            Arc::clone(&wire),
            SHORT,
        )
        .await;
        assert!(matches!(refused, Err(OpenError::Backup(_))), "length {len}");
    }
}
