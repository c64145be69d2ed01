//! The topology.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::AgentProc;
use crate::ns::Ns;
use crate::process::{Background, Done};
use crate::remove::{LABS, lock_lab, remove_lab, remove_stale};

/// What to build.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// How many hosts, each in a subnet of its own behind the router.
    pub hosts: usize,
    /// How many empty namespaces for containers.
    pub containers: usize,
    /// MTU of all underlay links, in bytes.
    pub mtu: u32,
}

impl Default for LabSpec {
    /// Two hosts, two containers, Ethernet's MTU.
    fn default() -> Self {
        LabSpec {
            hosts: 2,
            containers: 2,
            mtu: 1500,
        }
    }
}

/// One host: its namespace, underlay address, and the `overlay-dp` instance that belongs to it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Ns,
    /// Address of its eth0.
    pub ip: Ipv4Addr,
    /// Value of `OVERLAY_DP_INSTANCE` for all that runs on it.
    pub instance: String,
    bin: Arc<RwLock<PathBuf>>,
    pub(crate) log: PathBuf,
}

impl Host {
    /// The router's end of its cable.
    pub(crate) fn router_port(&self) -> String {
        format!("to-{}", self.ns.label())
    }

    /// From now on this is the overlay-dp binary that is run on this host; what runs goes on.
    pub fn install(&self, bin: &Path) {
        *self.bin.write().unwrap_or_else(PoisonError::into_inner) = bin.to_owned();
    }

    /// The overlay-dp binary.
    pub(crate) fn bin(&self) -> PathBuf {
        let bin = self.bin.read().unwrap_or_else(PoisonError::into_inner);
        bin.clone()
    }

    /// `overlay-dp …` on this host, the words of `line` split at blanks.
    pub fn overlay_cmd(&self, line: &str) -> Command {
        let mut command = self.ns.cmd(self.bin(), line.split_whitespace());
        command.env("OVERLAY_DP_INSTANCE", &self.instance);
        command
    }

    /// As [`Host::overlay_cmd`], run by a program that changes its privileges or its view of the
    /// system, such as `setpriv …`.
    pub fn overlay_cmd_under(&self, wrapper: &str, line: &str) -> Command {
        let words = wrapper.split_whitespace().map(OsStr::new);
        let bin = self.bin();
        let words = words.chain([bin.as_os_str()]);
        let mut command = self
            .ns
            .cmd("env", words.chain(line.split_whitespace().map(OsStr::new)));
        command.env("OVERLAY_DP_INSTANCE", &self.instance);
        command
    }

    /// Runs `overlay-dp …` and returns what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0; shows all that it wrote.
    pub fn overlay(&self, line: &str) -> Result<String> {
        self.overlay_any(line)?
            .ok()
            .with_context(|| format!("on {}", self.ns.label()))
    }

    /// Runs `overlay-dp …`, whatever its exit code.
    ///
    /// # Errors
    /// When it can't be started or takes longer than 30 s.
    pub fn overlay_any(&self, line: &str) -> Result<Done> {
        Background::start(self.overlay_cmd(line))?.finish(Duration::from_secs(30))
    }

    /// Runs `overlay-dp …`, which must fail and say why: see [`Done::fails_with`].
    ///
    /// # Errors
    /// When it does not.
    pub fn overlay_fails(&self, line: &str, words: &[&str]) -> Result<()> {
        self.overlay_any(line)?
            .fails_with(words)
            .with_context(|| format!("on {}", self.ns.label()))
    }

    /// Runs `overlay-dp … --json` and returns what it printed.
    ///
    /// # Errors
    /// As [`Host::overlay`], and when it is not JSON.
    pub fn overlay_json(&self, line: &str) -> Result<serde_json::Value> {
        let text = self.overlay(&format!("{line} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("overlay-dp {line}: not JSON: {text}"))
    }
}

/// What a test has to verify at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Agents {
    /// Nothing: there never was one, or all are gone on purpose.
    #[default]
    None,
    /// Agents have been started.
    Started,
    /// Since the last one was, `verify` has found nothing.
    Verified,
}

/// The whole lab. Removed with all that runs in it when dropped.
#[derive(Debug)]
pub struct Lab {
    id: String,
    router: Ns,
    hosts: Vec<Host>,
    containers: Vec<Ns>,
    mtu: u32,
    agents: Mutex<Agents>,
    /// Held while this lab is in use: see [`remove_stale`].
    _lock: File,
    kept: bool,
}

impl Lab {
    /// Builds it. `bin` is the overlay-dp binary that its hosts run, unless the environment's
    /// `OVERLAY_DP_BIN` names another. Labs whose maker has died are removed first.
    ///
    /// # Errors
    /// When this process is not root's, or a command fails; nothing is left behind then.
    pub fn new(spec: &LabSpec, bin: &Path) -> Result<Lab> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "a lab of network namespaces needs root"
        );
        remove_stale();
        let bin = std::env::var_os("OVERLAY_DP_BIN").map_or_else(|| bin.to_owned(), PathBuf::from);
        let bin = bin
            .canonicalize()
            .with_context(|| format!("no binary {}", bin.display()))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("odp-{}-{count}", std::process::id());
        let lock = lock_lab(&id)?;
        Lab::build(spec, &bin, &id, lock).inspect_err(|_| remove_lab(&id))
    }

    fn build(spec: &LabSpec, bin: &Path, id: &str, lock: File) -> Result<Lab> {
        let dir = Path::new(LABS).join(id);
        fs::create_dir_all(&dir)?;
        let router = Ns::create(id, "router")?;
        router.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let hosts = (1..=spec.hosts)
            .map(|number| {
                let host = Host {
                    ns: Ns::create(id, &format!("host{number}"))?,
                    ip: underlay_ip(number)?,
                    instance: format!("{id}-host{number}"),
                    bin: Arc::new(RwLock::new(bin.to_owned())),
                    log: dir.join(format!("host{number}.log")),
                };
                connect(&router, &host, spec.mtu)?;
                Ok(host)
            })
            .collect::<Result<_>>()?;
        let containers = (1..=spec.containers)
            .map(|number| Ns::create(id, &format!("c{number}")))
            .collect::<Result<_>>()?;
        Ok(Lab {
            id: id.to_owned(),
            router,
            hosts,
            containers,
            mtu: spec.mtu,
            agents: Mutex::default(),
            _lock: lock,
            kept: false,
        })
    }

    /// What all names of this lab begin with.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The router between the hosts.
    pub fn router(&self) -> &Ns {
        &self.router
    }

    /// Host `number`, from 1. Panics when the lab has fewer.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Container namespace `number`, from 1. Panics when the lab has fewer.
    pub fn c(&self, number: usize) -> &Ns {
        &self.containers[number - 1]
    }

    /// The container namespaces that the spec asked for.
    pub fn containers(&self) -> &[Ns] {
        &self.containers
    }

    /// Another empty namespace, which is none of [`Lab::containers`].
    ///
    /// # Errors
    /// When the name is taken.
    pub fn add_container(&self, label: &str) -> Result<Ns> {
        Ns::create(&self.id, label)
    }

    /// Takes in the namespace that somebody else, such as Docker, has made for a process. What
    /// then still runs in it is ended with the lab; the namespace itself is its maker's.
    ///
    /// # Errors
    /// When there is no such process, or the name is taken.
    pub fn adopt(&self, label: &str, pid: u32) -> Result<Ns> {
        Ns::adopt(&self.id, label, pid)
    }

    /// A directory that is removed with this lab.
    pub fn dir(&self) -> PathBuf {
        Path::new(LABS).join(&self.id)
    }

    /// Runs `overlay-dp attach --iface eth0 <args>` on host `number` and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready within 30 s; shows its log.
    pub fn start_agent(&self, number: usize, args: &str) -> Result<AgentProc> {
        self.set_agents(Agents::Started);
        AgentProc::start(self.host(number), args)
    }

    /// As [`Lab::start_agent`], without waiting for anything.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_agent(&self, number: usize, args: &str) -> Result<AgentProc> {
        self.set_agents(Agents::Started);
        AgentProc::spawn(self.host(number), args)
    }

    /// Says that all agents are gone on purpose: there is nothing to verify when the test ends.
    pub fn ends_without_agents(&self) {
        self.set_agents(Agents::None);
    }

    pub(crate) fn agents(&self) -> Agents {
        *self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_agents(&self, agents: Agents) {
        *self.agents.lock().unwrap_or_else(PoisonError::into_inner) = agents;
    }

    /// The end of each agent's log, for the reader of a failure.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            if let Ok(log) = fs::read_to_string(&host.log) {
                text += &format!(
                    "--- log of the agent on {}\n{}",
                    host.ns.label(),
                    tail(&log, 80)
                );
            }
        }
        text
    }

    /// Leaves the lab standing, with the agents in it, until [`crate::remove_kept`].
    ///
    /// # Errors
    /// When its directory can't be written; it is removed then.
    pub fn keep(mut self, agents: Vec<AgentProc>) -> Result<()> {
        File::create(Path::new(LABS).join(&self.id).join("kept"))?;
        agents.into_iter().for_each(AgentProc::leave);
        self.kept = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if !self.kept {
            remove_lab(&self.id);
        }
    }
}

/// 172.31.1.5, 192.168.1.5, 172.31.2.5, 172.31.3.5, …
fn underlay_ip(number: usize) -> Result<Ipv4Addr> {
    Ok(match number {
        1 => Ipv4Addr::new(172, 31, 1, 5),
        2 => Ipv4Addr::new(192, 168, 1, 5),
        _ => Ipv4Addr::new(
            172,
            31,
            u8::try_from(number - 1).context("too many hosts")?,
            5,
        ),
    })
}

pub(crate) fn connect(router: &Ns, host: &Host, mtu: u32) -> Result<()> {
    let ns = &host.ns;
    let port = host.router_port();
    let [a, b, c, _] = host.ip.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    ns.run(&format!(
        "ip link add eth0 mtu {mtu} type veth peer name {port} mtu {mtu} netns {}",
        router.name()
    ))?;
    ns.run(&format!("ip addr add {}/24 dev eth0", host.ip))?;
    router.run(&format!("ip addr add {gateway}/24 dev {port}"))?;
    // A frame that XDP redirects into a veth is dropped unless the far end has NAPI.
    router.run(&format!("ethtool -K {port} gro on"))?;
    router.run(&format!("ip link set {port} up"))?;
    ns.run("ip link set eth0 up")?;
    ns.run(&format!("ip route add default via {gateway}"))?;
    Ok(())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let mut text = all[all.len().saturating_sub(lines)..].join("\n");
    text.push('\n');
    text
}
