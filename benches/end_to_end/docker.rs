//! Docker's own overlay: on each host a daemon, both in one swarm, and a container with each.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use overlay_lab::{Dockerd, Lab, Ns, ping, wait_until};

const NETWORK: &str = "bench";
const WORKING: Duration = Duration::from_secs(30);

/// A swarm of two, until it is dropped.
pub struct Docker {
    /// The containers on host1 and host2.
    pub ends: [Ns; 2],
    pub ips: [IpAddr; 2],
    _swarm: Swarm,
}

/// The first one is the manager, and the last one to go.
struct Swarm(Vec<Dockerd>);

/// That Docker can be started.
pub fn check_installed() -> Result<()> {
    Dockerd::check_installed()
}

impl Docker {
    /// Connects a container on host1 with one on host2.
    pub fn start(lab: &Lab) -> Result<Docker> {
        let mut swarm = Swarm(Vec::new());
        // Both at once.
        for number in [1, 2] {
            swarm.0.push(Dockerd::start(lab, number)?);
        }
        for daemon in &mut swarm.0 {
            daemon.wait()?;
            daemon.load_image(&[])?;
        }
        let [manager, worker] = &swarm.0[..] else {
            bail!("a swarm is of two");
        };
        let at = manager.host().ip;
        let listen = |ip| format!("--advertise-addr {ip} --listen-addr {ip}:2377");
        manager.docker(&format!("swarm init {}", listen(at)))?;
        let token = manager.docker("swarm join-token -q worker")?;
        let listen = listen(worker.host().ip);
        worker.docker(&format!("swarm join {listen} --token {token} {at}:2377"))?;
        manager.docker(&format!(
            "network create -d overlay --attachable --subnet 10.77.0.0/24 {NETWORK}"
        ))?;
        let container = |daemon: &Dockerd, name: &str| {
            daemon.run(name, &format!("--network {NETWORK}"))?;
            daemon.adopt(lab, name, NETWORK)
        };
        let (end1, ip1) = container(manager, "docker1")?;
        let (end2, ip2) = container(worker, "docker2")?;
        wait_until("Docker's overlay works", WORKING, || {
            ping(&end1, ip2, 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
        })?;
        Ok(Docker {
            ends: [end1, end2],
            ips: [ip1, ip2],
            _swarm: swarm,
        })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}
