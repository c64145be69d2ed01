//! kill -9 of the manager at any moment: what it has promised holds, and nothing is damaged.
//!
//! ```text
//!   this test ── runs itself as ──► manager on 127.38.0.1, leasing one address after the other
//!       └── reads the leases that it prints, kills it, starts again from its state directory
//! ```

mod common;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use overlay_cluster::{Cluster, Config, LeaseSpec, Start, stored};
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
            let subnet = Some("10.0.0.0/16".parse().unwrap());
            let spec = overlay_cluster::NetworkSpec {
                name: "net".into(),
                subnet,
                ..Default::default()
            };
            cluster.network_create(spec, Vec::new()).await.unwrap()
        }
    };
    let first = cluster.leases().await.unwrap().len();
    for n in first.. {
        let lease = cluster
            .lease(LeaseSpec::any(network.vni, format!("e{n}")))
            .await
            .unwrap();
        println!("\nleased {} {}", lease.endpoint, lease.ip);
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
    let mut promised: Vec<(String, String)> = Vec::new();
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
            if let Some(lease) = line.strip_prefix("leased ") {
                let (name, ip) = lease.split_once(' ').unwrap();
                promised.push((name.to_owned(), ip.to_owned()));
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
    let kept: Vec<(String, String)> = cluster
        .leases()
        .await
        .unwrap()
        .into_iter()
        .map(|lease| (lease.endpoint, lease.ip.to_string()))
        .collect();
    for lease in &promised {
        assert!(kept.contains(lease), "{lease:?} was promised");
    }
    // At most the one that was on its way at each kill comes on top.
    assert!(
        kept.len() <= promised.len() + 8,
        "{} of {}",
        kept.len(),
        promised.len()
    );
    until("the lonely manager is a cluster", || {
        cluster.members().len() == 1
    })
    .await;
}
