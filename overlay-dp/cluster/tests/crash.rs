//! kill -9 of the manager at any moment: what it has promised holds, and nothing is damaged.
//!
//! ```text
//!   this test ── runs itself as ──► manager on 127.38.0.1, taking one address after the other
//!       └── reads the addresses that it prints, kills it, starts again from its state directory
//! ```

mod common;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use overlay_cluster::{Cluster, Config, Start, stored};
use overlay_core::facts::{NetworkSpec, Want};
use tempfile::TempDir;

const DIR: &str = "OVERLAY_CLUSTER_CRASH_DIR";
const PORTS: [u16; 2] = [42_377, 47_946];

fn settings(dir: &Path) -> Config {
    Config {
        control_port: PORTS[0],
        gossip_port: PORTS[1],
        ..Config::new(dir, "crash", "127.38.0.1".parse().unwrap())
    }
}

/// The victim; a test like any other when nobody asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Some(dir) = env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let how = if stored(dir).unwrap().is_some() {
        Start::Resume
    } else {
        Start::New
    };
    let (cluster, _events) = Cluster::start(settings(dir), how).await.unwrap();
    let network = match cluster.networks().pop() {
        Some(network) => network,
        None => {
            let spec = NetworkSpec {
                name: "net".into(),
                subnets: vec!["10.0.0.0/16".parse().unwrap()],
                ..Default::default()
            };
            cluster.network_create(spec, Vec::new()).await.unwrap()
        }
    };
    loop {
        let granted = cluster.grant(network.vni, Want::Addresses(1)).await;
        println!("\ngranted {}", granted.unwrap()[0].first);
    }
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_keeps_its_promises() {
    let dir = TempDir::new().unwrap();
    let mut promised: Vec<u32> = Vec::new();
    for round in 0..8 {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut victim = Victim(child);
        let lines = BufReader::new(victim.0.stdout.take().unwrap()).lines();
        let before = promised.len();
        let kill_after = 3 + round * 5;
        for line in lines.map_while(Result::ok) {
            if let Some(offset) = line.strip_prefix("granted ") {
                promised.push(offset.parse().unwrap());
            }
            if promised.len() == before + kill_after {
                // Somewhere in the next write, which takes a millisecond or so.
                tokio::time::sleep(Duration::from_micros(300 * round as u64)).await;
                victim.0.kill().unwrap();
            }
        }
        drop(victim);
        assert!(
            promised.len() >= before + kill_after,
            "the victim died by itself"
        );
        assert!(stored(dir.path()).unwrap().unwrap().manager);
    }
    let (cluster, _events) = Cluster::start(settings(dir.path()), Start::Resume)
        .await
        .unwrap();
    let network = cluster.networks().pop().unwrap();
    let me = cluster.me().id;
    let held = || cluster.facts(|facts| facts.granted(me, network.vni));
    until("all that was promised is there", || {
        let held = held();
        let kept = |offset: &u32| held.iter().any(|range| range.contains(*offset));
        promised.iter().all(kept)
    })
    .await;
    promised.sort_unstable();
    promised.dedup();
    // At most the one that was on its way at each kill comes on top.
    let kept: u64 = held().iter().map(|range| range.count()).sum();
    assert!(
        kept <= promised.len() as u64 + 8,
        "{kept} of {}",
        promised.len()
    );
    until("the lonely manager is a cluster", || {
        cluster.members().len() == 1
    })
    .await;
}
