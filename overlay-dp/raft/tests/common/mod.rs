//! Managers in one process, and a network between them that can do all a real one does wrong.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use overlay_core::facts::{Command, NetworkSpec, Secrets, StateMachine, Version};
use overlay_core::model::{Host, HostId};
use overlay_raft::{ProposeError, Raft, Timings, Transport, Unreachable};
use tempfile::TempDir;
use tokio::time::sleep;

/// Nothing here takes so long, also on a machine that does much else: who waits longer is stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const SHORT: Timings = Timings {
    heartbeat: Duration::from_millis(40),
    election: (Duration::from_millis(100), Duration::from_millis(160)),
    propose: Duration::from_millis(1500),
    snapshot_every: 2000,
    keep: 500,
};

/// The network. Managers are found in it by their ids; those that are not there are dead.
#[derive(Default)]
pub struct Net {
    managers: Mutex<BTreeMap<HostId, Raft>>,
    cut: Mutex<BTreeSet<(HostId, HostId)>>,
    /// Longest delay of a message, in microseconds.
    pub delay: AtomicU64,
    /// Messages lost, in percent.
    pub loss: AtomicU64,
    /// The largest message seen.
    pub largest: AtomicU64,
}

impl Net {
    pub fn add(&self, id: HostId, raft: &Raft) {
        self.managers.lock().unwrap().insert(id, raft.clone());
    }

    pub fn remove(&self, id: HostId) {
        let gone = self.managers.lock().unwrap().remove(&id);
        drop(gone);
    }

    /// Nothing gets through between one of `group` and anybody else.
    pub fn cut_off(&self, group: &[u64], all: &[u64]) {
        let mut cut = self.cut.lock().unwrap();
        for a in group {
            for b in all.iter().filter(|b| !group.contains(b)) {
                cut.insert((HostId(*a), HostId(*b)));
                cut.insert((HostId(*b), HostId(*a)));
            }
        }
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    async fn pass(&self, from: HostId, to: HostId) -> Result<(), Unreachable> {
        if rand::random_range(0..100) < self.loss.load(Ordering::Relaxed)
            || self.cut.lock().unwrap().contains(&(from, to))
        {
            // Whoever waits for it gives up by himself.
            sleep(Duration::from_secs(3600)).await;
        }
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            sleep(Duration::from_micros(rand::random_range(0..delay))).await;
        }
        Ok(())
    }
}

pub struct Wire {
    pub net: Arc<Net>,
    pub me: HostId,
}

impl Transport for Wire {
    async fn call(&self, to: HostId, request: Vec<u8>) -> Result<Vec<u8>, Unreachable> {
        assert!(request.len() <= overlay_raft::MAX_MESSAGE);
        self.net
            .largest
            .fetch_max(request.len() as u64, Ordering::Relaxed);
        self.net.pass(self.me, to).await?;
        let target = self.net.managers.lock().unwrap().get(&to).cloned();
        let target = target.ok_or_else(|| Unreachable("nobody there".to_owned()))?;
        let answer = target.handle(self.me, &request).await;
        drop(target);
        self.net.pass(to, self.me).await?;
        Ok(answer)
    }
}

pub struct Cluster {
    pub net: Arc<Net>,
    pub dir: TempDir,
    pub managers: BTreeMap<u64, Raft>,
    pub timings: Timings,
}

impl Cluster {
    /// The first manager.
    pub async fn one() -> Cluster {
        Cluster::with(SHORT).await
    }

    pub async fn with(timings: Timings) -> Cluster {
        // RUST_LOG=overlay_raft=debug,openraft=info shows what happens.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer();
        let _ = log.try_init();
        let mut cluster = Cluster {
            net: Arc::default(),
            dir: TempDir::new().unwrap(),
            managers: BTreeMap::new(),
            timings,
        };
        let (dir, wire) = (cluster.path(1), cluster.wire(1));
        let raft = Raft::bootstrap(&dir, HostId(1), first_facts(), wire, timings)
            .await
            .unwrap();
        cluster.put(1, raft);
        cluster
    }

    pub async fn of(size: u64) -> Cluster {
        Cluster::grown(size, SHORT).await
    }

    pub async fn grown(size: u64, timings: Timings) -> Cluster {
        let mut cluster = Cluster::with(timings).await;
        for id in 2..=size {
            cluster.open(id).await;
            cluster
                .propose(Command::HostAdd {
                    host: host(id, true),
                    replace: None,
                })
                .await;
        }
        let voters: Vec<u64> = (1..=size).collect();
        cluster.await_voters(&voters).await;
        cluster
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn wire(&self, id: u64) -> Arc<Wire> {
        Arc::new(Wire {
            net: self.net.clone(),
            me: HostId(id),
        })
    }

    pub fn put(&mut self, id: u64, raft: Raft) {
        self.net.add(HostId(id), &raft);
        self.managers.insert(id, raft);
    }

    /// Starts a manager on what is in its directory.
    pub async fn open(&mut self, id: u64) {
        let raft = Raft::open(&self.path(id), HostId(id), self.wire(id), self.timings).await;
        self.put(id, raft.unwrap());
    }

    /// Ends one without a word.
    pub fn kill(&mut self, id: u64) {
        self.net.remove(HostId(id));
        self.managers.remove(&id);
    }

    /// Ends one as a power cut does, and starts it from what its file has at this moment.
    pub async fn crash(&mut self, id: u64) {
        let (file, copy) = (self.path(id).join("raft.redb"), self.path(id).join("copy"));
        std::fs::copy(&file, &copy).unwrap();
        self.kill(id);
        std::fs::rename(copy, file).unwrap();
        self.open(id).await;
    }

    pub fn get(&self, id: u64) -> &Raft {
        &self.managers[&id]
    }

    /// Proposes where the leader is, until there is a certain answer.
    pub async fn propose(&self, command: Command) -> Version {
        let start = Instant::now();
        loop {
            if start.elapsed() > PATIENCE {
                let all: Vec<_> = self.managers.values().map(Raft::status).collect();
                panic!("no agreement in time: {all:#?}");
            }
            if let Some(raft) = self.leader() {
                match raft.propose(command.clone()).await {
                    Ok((version, _)) => return version,
                    Err(ProposeError::NotLeader(_) | ProposeError::NoQuorum) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The one that says so itself.
    pub fn leader(&self) -> Option<&Raft> {
        let leads = |(id, raft): &(&u64, &Raft)| raft.leader() == Some(HostId(**id));
        self.managers.iter().find(leads).map(|(_, raft)| raft)
    }

    pub fn leader_id(&self) -> Option<u64> {
        self.leader().and_then(Raft::leader).map(|id| id.0)
    }

    pub async fn await_leader(&self) -> u64 {
        eventually("a leader", || self.leader_id().is_some()).await;
        self.leader_id().unwrap()
    }

    pub async fn await_voters(&self, ids: &[u64]) {
        let wanted: BTreeSet<HostId> = ids.iter().copied().map(HostId).collect();
        eventually("the voters", || {
            ids.iter().all(|id| {
                let status = self.get(*id).status();
                status.voters == wanted && !status.changing && status.quorum
            })
        })
        .await;
    }

    /// All have applied the same.
    pub async fn await_equal(&self, ids: &[u64]) {
        eventually("equal facts", || {
            let first = self.get(ids[0]).read(StateMachine::clone);
            first.is_some()
                && ids
                    .iter()
                    .all(|id| self.get(*id).read(StateMachine::clone) == first)
        })
        .await;
    }

    pub fn networks(&self, id: u64) -> BTreeSet<String> {
        let names = |m: &StateMachine| m.facts().networks().map(|n| n.name.clone()).collect();
        self.get(id).read(names).unwrap_or_default()
    }
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub fn host(id: u64, manager: bool) -> Host {
    Host {
        id: HostId(id),
        name: format!("host{id}"),
        vtep: IpAddr::V4(Ipv4Addr::new(192, 0, 2, id as u8)),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager,
    }
}

pub fn first_facts() -> StateMachine {
    let secrets = Secrets {
        ca_cert: vec![1; 600],
        ca_key: vec![2; 120],
        worker_token: vec![3; 16],
        manager_token: vec![4; 16],
    };
    StateMachine::new(host(1, true), secrets, [0xfd, 1, 2, 3, 4, 5], 1)
}

pub fn network(name: impl Into<String>) -> Command {
    let spec = NetworkSpec {
        name: name.into(),
        ..NetworkSpec::default()
    };
    Command::NetworkCreate {
        spec,
        avoid: Vec::new(),
    }
}

pub fn file(dir: &Path) -> PathBuf {
    dir.join("raft.redb")
}
