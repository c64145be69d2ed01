//! The thread that has a network and a mount namespace of its own, and what it starts.
//!
//! Namespaces are a thread's: what this one starts is born in them, and the rest of the process
//! stays on the host. The thread lives as long as the command, and the kernel kills the command
//! when the thread is gone, however that happens.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use tokio::sync::oneshot;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The namespaces, before the command is there.
pub struct Inside {
    thread: Pid,
    start: mpsc::Sender<Start>,
}

/// What the thread is to start.
struct Start {
    command: Vec<OsString>,
    resolv_conf: String,
    started: oneshot::Sender<Result<OwnedFd>>,
    ended: oneshot::Sender<io::Result<ExitStatus>>,
}

/// The command.
pub struct Process {
    pidfd: OwnedFd,
    /// How it ended.
    pub ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Inside {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// Without the privilege to.
    pub fn make() -> Result<Inside> {
        let (start, starts) = mpsc::channel::<Start>();
        let (made, is_made) = mpsc::sync_channel(1);
        let body = move || {
            let namespaces = make_namespaces();
            let failed = namespaces.is_err();
            if made.send(namespaces.map(|()| gettid())).is_err() || failed {
                return;
            }
            if let Ok(start) = starts.recv() {
                start.carry_out();
            }
        };
        thread::Builder::new()
            .name("container".to_owned())
            .spawn(body)?;
        let thread = is_made.recv().map_err(|_| anyhow!("its thread has ended"));
        let thread = thread?.context("can't make a network namespace: run as root")?;
        Ok(Inside { thread, start })
    }

    /// Where the network namespace is found.
    pub fn netns(&self) -> PathBuf {
        let [process, thread] = [getpid(), self.thread].map(|pid| pid.as_raw_nonzero());
        PathBuf::from(format!("/proc/{process}/task/{thread}/ns/net"))
    }

    /// Starts the command.
    ///
    /// # Errors
    /// With the [`io::Error`] when there is no such command, or it can't be run.
    pub async fn start(self, command: &[OsString], resolv_conf: String) -> Result<Process> {
        let lost = || anyhow!("the command's thread has ended");
        let (started, is_started) = oneshot::channel();
        let (tell, ended) = oneshot::channel();
        let start = Start {
            command: command.to_vec(),
            resolv_conf,
            started,
            ended: tell,
        };
        self.start.send(start).map_err(|_| lost())?;
        let pidfd = is_started.await.map_err(|_| lost())??;
        Ok(Process { pidfd, ended })
    }
}

impl Process {
    /// Sends a signal; no error if it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

impl Start {
    fn carry_out(self) {
        let spawned = cover_resolv_conf(&self.resolv_conf).and_then(|()| spawn(&self.command));
        match spawned {
            Ok((mut child, pidfd)) => {
                // Whoever waits may be gone; the command is to be waited for all the same.
                let _ = self.started.send(Ok(pidfd));
                let _ = self.ended.send(child.wait());
            }
            Err(error) => {
                let _ = self.started.send(Err(error));
            }
        }
    }
}

fn make_namespaces() -> io::Result<()> {
    // SAFETY: without `FILES` the thread keeps the process's table of file descriptors, so none
    // that another thread knows goes away.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?;
    // What the host mounts is seen here, and what is mounted here not there.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// A file of this mount namespace's own in front of the host's.
fn cover_resolv_conf(text: &str) -> Result<()> {
    if !Path::new(RESOLV_CONF).exists() {
        eprintln!(
            "overlay-dp: there is no {RESOLV_CONF} here to stand in for: the command won't know the network's names"
        );
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    // The command may be another user's, and the umask anything.
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    mount_bind(file.path(), RESOLV_CONF)
        .map_err(|error| anyhow!("can't mount a file over {RESOLV_CONF}: {error}"))
    // Its name goes now; the mount keeps the file.
}

fn spawn(words: &[OsString]) -> Result<(Child, OwnedFd)> {
    let (program, args) = words.split_first().context("no command")?;
    let parent = getpid();
    let mut command = Command::new(program);
    command.args(args);
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Too late if the parent has died meanwhile.
            match getppid() == Some(parent) {
                true => Ok(()),
                false => Err(rustix::io::Errno::SRCH.into()),
            }
        });
    }
    let mut child = command.spawn()?;
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(anyhow!("can't watch the command: {error}"))
        }
    }
}
