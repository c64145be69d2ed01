//! A podman on a host of the lab: all that it keeps is in the lab's directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Background, Done, Host, Lab, program};

use super::BIN;

/// Programs, and Debian's packages that have them.
const NEEDED: [(&str, &str); 4] = [
    ("podman", "podman"),
    ("runc", "runc"),
    ("conmon", "conmon"),
    ("busybox", "busybox-static"),
];

const PATIENCE: Duration = Duration::from_secs(60);
/// No container outlives this, whatever becomes of the test.
const AT_MOST_SECONDS: u32 = 600;
const IMAGE: &str = "overlay-lab";

/// Whether podman is installed. Its lack fails under `CI=true`.
pub fn is_installed() -> bool {
    let missing = NEEDED.iter().filter(|(name, _)| program(name).is_none());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "no {missing:?}, and CI=true forbids to skip this");
    eprintln!("SKIPPED: needs {missing:?}");
    false
}

/// A mount namespace with another Debian, whose podman is taken: see `with_netavark`.
const ELSEWHERE: &str = "OVERLAY_DP_PODMAN_MOUNTS";

/// `podman`, or how it is called elsewhere.
fn words() -> Vec<String> {
    match std::env::var(ELSEWHERE) {
        Ok(file) => ["nsenter", &format!("--mount={file}"), "podman"]
            .map(str::to_owned)
            .to_vec(),
        Err(_) => vec!["podman".to_owned()],
    }
}

/// How podman makes networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Until podman 5.
    Cni,
    /// With plugins from podman 4.5.
    Netavark,
}

/// Whether this podman has plugins for that.
pub fn has(backend: Backend) -> bool {
    let words = words();
    let version = Command::new(&words[0])
        .args(&words[1..])
        .arg("--version")
        .output();
    let version = version.map(|output| output.stdout).unwrap_or_default();
    let version = String::from_utf8_lossy(&version).into_owned();
    let number = version.split_whitespace().last().unwrap_or_default();
    let mut numbers = number.split('.').map_while(|part| part.parse::<u32>().ok());
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let has = match backend {
        Backend::Cni => number < (5, 0),
        Backend::Netavark => number >= (4, 5),
    };
    if !has {
        let version = version.trim();
        eprintln!(
            "SKIPPED: {version} has no plugins for {backend:?}; {ELSEWHERE} may name another"
        );
    }
    has
}

/// Gone with all its containers when dropped.
pub struct Podman {
    host: Host,
    dir: PathBuf,
}

impl Podman {
    /// With a network backend, `cni` or `netavark`.
    pub fn new(lab: &Lab, number: usize, backend: &str) -> Result<Podman> {
        let dir = lab.dir().join(format!("podman{number}"));
        for part in ["root", "run", "tmp", "net", "plugins", "rootfs"] {
            fs::create_dir_all(dir.join(part))?;
        }
        // A copy, as it may be looked at from elsewhere.
        fs::copy(BIN, dir.join("plugins/overlay-dp"))?;
        let at = dir.display();
        let conf = format!(
            r#"[engine]
cgroup_manager="cgroupfs"
events_logger="file"
runtime="runc"
lock_type="file"
[containers]
default_ulimits=["nofile=1024:4096","nproc=1024:4096"]
[network]
network_backend="{backend}"
cni_plugin_dirs=["{at}/plugins","/usr/lib/cni"]
netavark_plugin_dirs=["{at}/plugins"]
network_config_dir="{at}/net"
"#
        );
        fs::write(dir.join("containers.conf"), conf)?;
        let podman = Podman {
            host: lab.host(number).clone(),
            dir,
        };
        podman.import()?;
        Ok(podman)
    }

    /// A network that podman reads and does not make.
    pub fn conflist(&self, text: &str) -> Result<()> {
        Ok(fs::write(
            self.dir.join("net/10-overlay-dp.conflist"),
            text,
        )?)
    }

    /// An image of busybox, and places for this machine's programs.
    fn import(&self) -> Result<()> {
        let rootfs = self.dir.join("rootfs");
        for part in ["etc", "usr", "tmp", "proc", "sys", "dev", "run"] {
            fs::create_dir_all(rootfs.join(part))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(link), rootfs.join(link))?;
        }
        let busybox = program("busybox").context("no busybox")?;
        fs::copy(busybox, rootfs.join("busybox"))?;
        fs::write(rootfs.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        let image = self.dir.join("image.tar");
        let tar = Command::new("tar")
            .arg("-cf")
            .arg(&image)
            .arg("-C")
            .arg(&rootfs)
            .arg(".")
            .status()?;
        ensure!(tar.success(), "tar failed");
        self.run(&format!("import {} {IMAGE}", image.display()))
            .map(drop)
    }

    fn command(&self, words: impl IntoIterator<Item = String>) -> Command {
        let at = self.dir.display();
        let state =
            format!("--root {at}/root --runroot {at}/run --tmpdir {at}/tmp --storage-driver vfs");
        let state: Vec<String> = state.split(' ').map(str::to_owned).collect();
        let mut all = self::words();
        all.extend(state);
        all.extend(words);
        let mut command = self.host.ns.cmd(&all[0], &all[1..]);
        command
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("OVERLAY_DP_INSTANCE", &self.host.instance);
        command
    }

    /// Runs `podman …`, the words of `line` split at blanks, and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let printed = self.run_any(line)?.ok();
        let printed = printed.with_context(|| format!("on {}", self.host.ns.label()))?;
        Ok(printed.trim_end().to_owned())
    }

    /// As [`Podman::run`], whatever its exit code.
    pub fn run_any(&self, line: &str) -> Result<Done> {
        let words = line.split_whitespace().map(str::to_owned);
        Background::start(self.command(words))?.finish(PATIENCE)
    }

    /// Starts a container that stays, with options such as `--network`.
    pub fn container(&self, name: &str, options: &str) -> Result<()> {
        let run = format!(
            "run -d --name {name} --cap-add NET_RAW --cgroup-parent /{} -v /usr:/usr:ro {options} \
             {IMAGE} /busybox sleep {AT_MOST_SECONDS}",
            // The lab removes control groups that begin as its namespaces do.
            self.host.ns.name()
        );
        self.run(&run).map(drop)
    }

    /// Whether a container pings what it calls so.
    pub fn pings(&self, from: &str, to: &str) -> bool {
        let ping = format!("exec {from} ping -q -c 1 -W 1 {to}");
        self.run_any(&ping).is_ok_and(|done| done.status.success())
    }

    /// All that podman knows of a container's network.
    pub fn networks(&self, name: &str) -> Result<serde_json::Value> {
        let told = self.run(&format!("inspect {name}"))?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        Ok(told[0]["NetworkSettings"]["Networks"].clone())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Also after a signal, and whatever comes of it.
        let line = "rm -f -a -t 0 --volumes";
        let mut command = self.command(line.split(' ').map(str::to_owned));
        let _ = command.stdin(Stdio::null()).output();
    }
}
