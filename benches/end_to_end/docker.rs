//! Docker's own overlay: on each host a daemon, both in one swarm, and a container with each.
//!
//! The daemons see this machine's files, but what they write below /run, /etc and /var/lib nobody
//! else sees, and it is gone with them. All else is in the lab's directory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{Background, Host, Lab, Ns, ping, program, wait_until};
use rustix::process::Signal;

/// Programs, and Debian's packages that have them.
const NEEDED: [(&str, &str); 6] = [
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
];

/// Run with a directory below /run, a host name and dockerd's arguments, in a mount and a UTS
/// namespace of its own.
const DAEMON: &str = r#"
set -e
dir=$1 private=$1/private
mkdir -p $private
mount -t tmpfs overlay-lab $private
for tree in etc var/lib; do
    mkdir -p $private/$tree $private/work/$tree
    mount -t overlay -o lowerdir=/$tree,upperdir=$private/$tree,workdir=$private/work/$tree \
        overlay-lab /$tree
done
mkdir -p $private$dir
mount --bind $dir $private$dir
mount --rbind $private/run /run
hostname $2
shift 2
exec dockerd "$@"
"#;

const NETWORK: &str = "bench";
const IMAGE: &str = "overlay-lab";
const STARTING: Duration = Duration::from_secs(30);
const ENDING: Duration = Duration::from_secs(20);
/// No container outlives this, whatever becomes of its daemon.
const AT_MOST_SECONDS: u32 = 3600;

/// A swarm of two, until it is dropped.
pub struct Docker {
    /// The containers on host1 and host2.
    pub ends: [Ns; 2],
    pub ips: [IpAddr; 2],
    _swarm: Swarm,
}

/// The first one is the manager, and the last one to go.
struct Swarm(Vec<Daemon>);

/// One host's dockerd.
struct Daemon {
    host: Host,
    dir: PathBuf,
    running: Option<Background>,
}

/// That Docker can be started.
pub fn check_installed() -> Result<()> {
    let missing = NEEDED.iter().filter(|(name, _)| program(name).is_none());
    let (names, mut packages): (Vec<&str>, Vec<&str>) = missing.copied().unzip();
    packages.dedup();
    ensure!(
        names.is_empty(),
        "to compare with Docker, {} must be installed: \
         apt-get install --no-install-recommends {} (its service need not run)",
        names.join(", "),
        packages.join(" ")
    );
    Ok(())
}

impl Docker {
    /// Connects a container on host1 with one on host2.
    pub fn start(lab: &Lab) -> Result<Docker> {
        let mut swarm = Swarm(Vec::new());
        // Both at once.
        for number in [1, 2] {
            swarm.0.push(Daemon::start(lab, number)?);
        }
        let busybox = program("busybox").context("no busybox")?;
        let image = lab.dir().join("image.tar");
        lab.router().run(&format!(
            "tar -chf {} -C {} busybox",
            image.display(),
            busybox.parent().unwrap_or(Path::new("/")).display()
        ))?;
        for daemon in &mut swarm.0 {
            daemon.wait()?;
            daemon.docker(&format!("import {} {IMAGE}", image.display()))?;
        }
        let [manager, worker] = &swarm.0[..] else {
            bail!("a swarm is of two");
        };
        let at = manager.host.ip;
        let listen = |ip| format!("--advertise-addr {ip} --listen-addr {ip}:2377");
        manager.docker(&format!("swarm init {}", listen(at)))?;
        let token = manager.docker("swarm join-token -q worker")?;
        let listen = listen(worker.host.ip);
        worker.docker(&format!("swarm join {listen} --token {token} {at}:2377"))?;
        manager.docker(&format!(
            "network create -d overlay --attachable --subnet 10.77.0.0/24 {NETWORK}"
        ))?;
        let (end1, ip1) = manager.container(lab, "docker1")?;
        let (end2, ip2) = worker.container(lab, "docker2")?;
        wait_until("Docker's overlay works", STARTING, || {
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

impl Daemon {
    fn start(lab: &Lab, number: usize) -> Result<Daemon> {
        let host = lab.host(number);
        let dir = lab.dir().join(format!("docker{number}"));
        fs::create_dir_all(&dir)?;
        // Instead of the machine's.
        fs::write(dir.join("daemon.json"), "{}")?;
        let name = host.ns.name();
        let at = dir.display();
        let line = format!(
            "--mount --uts --propagation private sh -c DAEMON daemon {at} {name} \
             --config-file {at}/daemon.json --data-root {at}/root --exec-root {at}/exec \
             --pidfile {at}/dockerd.pid -H unix://{at}/docker.sock --storage-driver vfs \
             --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /{name}"
        );
        let words = line
            .split_whitespace()
            .map(|word| if word == "DAEMON" { DAEMON } else { word });
        let running = Background::start(host.ns.cmd("unshare", words))?;
        Ok(Daemon {
            host: host.clone(),
            dir,
            running: Some(running),
        })
    }

    /// Until it answers.
    fn wait(&mut self) -> Result<()> {
        wait_until("dockerd answers", STARTING, || {
            !self.is_running() || self.docker("version").is_ok()
        })?;
        if self.is_running() {
            return Ok(());
        }
        let ended = self.running.take().context("dockerd was not started")?;
        ended.finish(ENDING)?.ok()?;
        bail!("dockerd has ended")
    }

    fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(Background::is_running)
    }

    fn words(&self, line: &str) -> Vec<String> {
        let at = self.dir.display();
        let line = format!("--config {at}/client -H unix://{at}/docker.sock {line}");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Runs `docker …`, and returns what it printed without the end of the line.
    fn docker(&self, line: &str) -> Result<String> {
        let command = self.host.ns.cmd("docker", self.words(line));
        let done = Background::start(command)?.finish(STARTING)?;
        let printed = done.ok().with_context(|| self.host.ns.label().to_owned())?;
        Ok(printed.trim_end().to_owned())
    }

    /// Starts a container, and tells its namespace and address.
    fn container(&self, lab: &Lab, name: &str) -> Result<(Ns, IpAddr)> {
        let run = format!(
            "run -d --name {name} --network {NETWORK} {IMAGE} /busybox sleep {AT_MOST_SECONDS}"
        );
        self.docker(&run)
            .context("a container of busybox, which must be Debian's busybox-static")?;
        let told = |what: &str| self.docker(&format!("inspect -f {{{{{what}}}}} {name}"));
        let pid = told(".State.Pid")?.parse()?;
        let ip = told(&format!(".NetworkSettings.Networks.{NETWORK}.IPAddress"))?;
        Ok((lab.adopt(name, pid)?, ip.parse()?))
    }

    /// As [`Daemon::docker`], also after a signal, and whatever comes of it.
    fn tidy(&self, line: &str) {
        let words = ["20".to_owned(), "docker".to_owned()].into_iter();
        let mut command = self.host.ns.cmd("timeout", words.chain(self.words(line)));
        // The lab ends what is left.
        let _ = command.stdin(Stdio::null()).output();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.tidy("rm -f docker1 docker2");
            self.tidy("swarm leave --force");
        }
        if let Some(daemon) = &mut self.running {
            daemon.signal(Signal::TERM);
            let began = Instant::now();
            while daemon.is_running() && began.elapsed() < ENDING {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
