//! Undoing: at exit, at `detach`, after a failed start, and after an agent that died.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use overlay_host::Host;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::datapath::{PORT_PREFIX, PUNT_FAR, PUNT_NEAR};
use super::state::StateFile;
use super::{Agent, OnExit, Port};
use crate::api::Detached;
use crate::bpf::{Bpf, Site};
use crate::instance::Instance;

/// How long an exit waits for the manager to take an address back.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// Takes the instance's lock, which the kernel gives back when its holder dies.
pub fn lock(instance: &Instance) -> Result<OwnedFd> {
    let dir = instance.run_dir();
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    let path = instance.lock_file();
    let file = open(
        &path,
        OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )
    .with_context(|| format!("can't open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "an agent is running here already (instance '{}'): see 'overlay-dp status', or stop it with 'overlay-dp detach'",
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
    // Only an instance that was here may take interfaces away: another one's look the same.
    let was_here = instance.pin_dir().exists();
    if was_here {
        let ports = host
            .links_with_prefix(PORT_PREFIX)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "can't list the ports");
                Vec::new()
            });
        for name in ports
            .iter()
            .map(|l| l.name.as_str())
            .chain([PUNT_NEAR, PUNT_FAR])
        {
            match host.delete_link(name).await {
                Ok(true) => undone.push(format!("removed interface {name}")),
                Ok(false) => {}
                Err(error) => tracing::error!(interface = name, %error, "can't remove"),
            }
        }
        match Bpf::unpin_all(&instance.pin_dir()) {
            Ok(()) => undone.push(format!(
                "removed programs and maps in {}",
                instance.pin_dir().display()
            )),
            Err(error) => tracing::error!("{error:#}"),
        }
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
    let lock = lock(instance)?;
    let host = Host::new()?;
    detach_filters(instance);
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
    if overlay_host::kernel::tcx_supported().unwrap_or(true) {
        return;
    }
    let uplink = StateFile::in_dir(&instance.state_dir())
        .and_then(|f| f.load())
        .ok()
        .and_then(|s| s.uplink);
    if let Some(uplink) = uplink {
        crate::bpf::detach_filter(Site::Uplink, &uplink);
    }
}

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
        for port in self.detach_containers().await {
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
        self.detach_containers().await;
        // Addresses that the manager can't be told about now are given back at the next start.
        for release in self.releases.drain(..) {
            let _ = tokio::time::timeout(RELEASE_WAIT, release).await;
        }
        self.cluster.clone().shutdown().await;
        self.remove_datapath(false).await;
        Ok(())
    }

    async fn detach_containers(&mut self) -> Vec<Port> {
        let ports = self.state.ports.clone();
        for port in &ports {
            if let Err(error) = self.port_remove(port).await {
                tracing::error!(container = %port.endpoint.name, "{error:#}");
            }
        }
        ports
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
            ..
        } = self;
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
