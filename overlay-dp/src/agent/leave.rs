//! Undoing: at exit, at `detach`, after a failed start, and after an agent that died.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use overlay_host::{Host, LinkInfo};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::state::Known;
use super::{Agent, OnExit, firewall, resolv_conf};
use crate::api::Detached;
use crate::bpf::{self, Bpf, Site};
use crate::docker;
use crate::instance::Instance;

/// How long an exit waits for the manager to take an address back.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// What one agent holds as long as it lives; the kernel gives it back when its holder dies.
pub struct Lock {
    _instance: OwnedFd,
    /// One agent for each network namespace: an abstract unix socket, which belongs to it.
    _namespace: UnixListener,
}

/// Takes the instance's lock and the network namespace's.
pub fn lock(instance: &Instance) -> Result<Lock> {
    let held = lock_instance(instance)?;
    let namespace = lock_namespace().inspect_err(|_| {
        // Nobody of this instance was here.
        if !instance.pin_dir().exists() {
            remove_dir(&instance.run_dir());
        }
    })?;
    Ok(Lock {
        _instance: held,
        _namespace: namespace,
    })
}

fn lock_namespace() -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name("overlay-dp")?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "another instance's agent is running in this network namespace: a host has one; to play \
             several hosts on one machine, give each a network namespace"
        ),
        _ => anyhow!("can't lock the network namespace: {error}"),
    })
}

fn lock_instance(instance: &Instance) -> Result<OwnedFd> {
    let dir = instance.run_dir();
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o711)
        .create(&dir)
        .with_context(|| format!("can't make {}", dir.display()))?;
    // Every file in there says for itself who may open it. Earlier agents let only root look.
    for dir in dir.ancestors().take(2) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
            .with_context(|| format!("can't let others pass through {}", dir.display()))?;
    }
    let path = instance.lock_file();
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::from_raw_mode(0o600))
        .with_context(|| format!("can't open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "an agent is running here already (instance '{}'): see 'overlay-dp status', or stop it \
             with 'overlay-dp detach'",
            instance.name()
        ),
        Err(error) => Err(error).with_context(|| format!("can't lock {}", path.display())),
    }
}

/// What was on the host before a start.
pub struct Before {
    datapath: bool,
    state: bool,
}

impl Before {
    /// Looks.
    pub fn look(instance: &Instance) -> Before {
        Before {
            datapath: Bpf::is_pinned(&instance.pin_dir()),
            state: instance.state_dir().exists(),
        }
    }

    /// Removes what a start that failed has made. A data path that an earlier agent left runs on.
    pub async fn restore(&self, instance: &Instance) {
        if self.datapath {
            return;
        }
        match Host::new() {
            Ok(host) => {
                let leftovers = Leftovers {
                    instance,
                    with_state: !self.state,
                };
                remove(&host, &leftovers).await;
            }
            Err(error) => tracing::error!(%error, "can't undo the start"),
        }
    }
}

/// What is to be removed.
pub struct Leftovers<'a> {
    /// Whose.
    pub instance: &'a Instance,
    /// Identity and membership as well.
    pub with_state: bool,
}

/// Removes everything of ours from the host, and says what that was. Goes on past errors.
pub async fn remove(host: &Host, leftovers: &Leftovers<'_>) -> Vec<String> {
    let mut undone = Vec::new();
    let instance = leftovers.instance;
    let owner = instance.owner();
    undone.extend(firewall::remove(instance));
    match host.links_owned_by(&owner).await {
        Ok(links) => {
            let indexes: Vec<u32> = links.iter().map(|link| link.index).collect();
            // Of a pair with both ends here, the one that was there first.
            let is_second = |link: &LinkInfo| {
                let peer = link.peer_index.filter(|_| link.link_netnsid.is_none());
                peer.is_some_and(|peer| peer < link.index && indexes.contains(&peer))
            };
            let named = links.iter().filter(|link| !is_second(link));
            let named = named.map(|link| format!("removed interface {}", link.name));
            match host.delete_links(&indexes, &owner).await {
                Ok(()) => undone.extend(named),
                Err(error) => tracing::error!(%error, "can't remove our interfaces"),
            }
        }
        Err(error) => tracing::error!(%error, "can't list our interfaces"),
    }
    detach_filters(instance);
    docker::clean_up(&instance.state_dir());
    if instance.pin_dir().exists() {
        match Bpf::unpin_all(&instance.pin_dir()) {
            Ok(()) => {
                undone.push(format!(
                    "removed programs and maps in {}",
                    instance.pin_dir().display()
                ));
            }
            Err(error) => tracing::error!("{error:#}"),
        }
    }
    if leftovers.with_state {
        remove_resolv_confs(instance);
    }
    if leftovers.with_state && remove_dir(&instance.state_dir()) {
        undone.push(format!("removed {}", instance.state_dir().display()));
    }
    if remove_dir(&instance.run_dir()) {
        undone.push(format!("removed {}", instance.run_dir().display()));
    }
    for dir in [instance.pin_dir(), instance.state_dir(), instance.run_dir()] {
        // The directory that all instances share goes with the last one.
        if let Some(parent) = dir.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    undone
}

fn remove_dir(dir: &Path) -> bool {
    match fs::remove_dir_all(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "can't remove");
            false
        }
    }
}

/// `detach` without an agent: removes what a dead one left.
///
/// # Errors
/// Without privileges, or when an agent runs after all.
pub async fn clean_up_after_dead_agent(instance: &Instance) -> Result<Detached> {
    let traces = [instance.pin_dir(), instance.state_dir(), instance.run_dir()];
    if !traces.iter().any(|dir| dir.exists()) {
        return Ok(Detached { undone: Vec::new() });
    }
    overlay_host::caps::check_privileges()?;
    let lock = lock_instance(instance)?;
    let host = Host::new()?;
    let undone = remove(
        &host,
        &Leftovers {
            instance,
            with_state: true,
        },
    )
    .await;
    drop(lock);
    Ok(Detached { undone })
}

/// Where programs are held by clsact filters, no pin removes them.
fn detach_filters(instance: &Instance) {
    let dir = instance.state_dir();
    if !dir.exists() {
        return;
    }
    let Ok(state) = Known::load(&dir) else {
        return;
    };
    let uplink = state.uplink();
    if let Some(Err(error)) = uplink.map(|name| bpf::detach_filter_of(Site::Uplink, name)) {
        tracing::error!("{error:#}");
    }
}

/// With the state goes what only the state knows of.
fn remove_resolv_confs(instance: &Instance) {
    let dir = instance.state_dir();
    if !dir.exists() {
        return;
    }
    if let Ok(state) = Known::load(&dir) {
        state.ports().for_each(resolv_conf::remove_of);
    }
}

/// The agent ended because its host is no member any more.
#[derive(Debug)]
pub struct Expelled;

impl Expelled {
    /// The program's exit status then: whoever starts it again is told not to, by this.
    pub const EXIT_STATUS: u8 = 3;
}

impl std::fmt::Display for Expelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "this host was removed from the cluster: its containers are detached; to come back, join with a token",
        )
    }
}

impl std::error::Error for Expelled {}

impl Agent {
    /// Whether this host may leave the cluster.
    pub(super) fn may_leave(&self, force: bool) -> Result<()> {
        let me = self.cluster.me();
        let members = self.cluster.members();
        let managers = members.iter().filter(|m| m.host.manager).count();
        if me.manager && managers == 1 && members.len() > 1 && !force {
            bail!(
                "this host is the cluster's only manager, and {} other hosts are left: without it they can't make \
                 networks or attach containers; detach them first, or use --force",
                members.len() - 1
            );
        }
        Ok(())
    }

    /// `detach`: leaves the cluster and removes everything.
    pub(super) async fn leave(mut self) -> Result<Detached> {
        let mut undone = Vec::new();
        let ports = self.ports_remove_all().await.into_iter();
        for port in ports.filter(|port| !port.endpoint.router) {
            undone.push(format!("detached container {}", port.endpoint.name));
        }
        if let Err(error) = self.cluster.clone().leave().await {
            tracing::warn!(%error, "the other hosts are not told: they will notice");
        }
        undone.push("left the cluster".to_owned());
        undone.extend(self.remove_datapath(true).await);
        Ok(Detached { undone })
    }

    /// Told to stop: undoes what `attach` did to the host, but stays a member.
    pub(super) async fn stop(mut self) -> Result<()> {
        if self.options.on_exit == OnExit::Keep {
            tracing::info!("stopping: the data path runs on");
            self.cluster.clone().shutdown().await;
            let _ = fs::remove_file(self.options.instance.socket());
            return Ok(());
        }
        tracing::info!("stopping: detaching containers and removing the data path");
        self.ports_remove_all().await;
        let (cluster, addresses) = (self.cluster.clone(), Arc::clone(&self.addresses));
        self.remove_datapath(false).await;
        addresses.settle(RELEASE_WAIT).await;
        cluster.shutdown().await;
        Ok(())
    }

    /// Something that the agent can't do without is gone: ends it, with the data path left to run
    /// for the next agent.
    pub(super) async fn give_up(self, why: String) -> anyhow::Error {
        self.cluster.clone().shutdown().await;
        let _ = fs::remove_file(self.options.instance.socket());
        anyhow!("{why}: start again to go on; what is attached runs on")
    }

    /// This host was removed from the cluster: what it has there is worth nothing any more.
    pub(super) async fn cut_off(mut self) -> anyhow::Error {
        self.ports_remove_all().await;
        let cluster = self.cluster.clone();
        self.remove_datapath(true).await;
        cluster.shutdown().await;
        Expelled.into()
    }

    async fn remove_datapath(mut self, with_state: bool) -> Vec<String> {
        if let Err(error) = self
            .bpf
            .detach(Site::Uplink, &self.uplink.name, self.uplink.ifindex)
        {
            tracing::error!("{error:#}");
        }
        let Agent {
            host,
            options,
            bpf,
            slow,
            firewall,
            ..
        } = self;
        firewall.stop().await;
        drop(slow);
        drop(bpf);
        remove(
            &host,
            &Leftovers {
                instance: &options.instance,
                with_state,
            },
        )
        .await
    }
}
