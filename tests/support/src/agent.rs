//! An `overlay-dp attach` that runs on a host of the lab.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Host;
use crate::process::{emulated, search_path, wait_until};

const READY: Duration = Duration::from_secs(30);
const STOPPED: Duration = Duration::from_secs(10);

/// A running agent. SIGTERM when dropped, SIGKILL if it does not heed that.
#[derive(Debug)]
pub struct AgentProc {
    child: Child,
    host: Host,
    left: bool,
}

impl AgentProc {
    pub(crate) fn start(host: &Host, args: &str) -> Result<AgentProc> {
        // An emulated CPU may be too slow for a handshake; people would try again, too.
        let mut tries = if emulated() { 5 } else { 1 };
        loop {
            let mut agent = AgentProc::spawn(host, args)?;
            tries -= 1;
            match agent.wait_ready() {
                Err(error) if tries == 0 || agent.is_running() => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(agent),
            }
        }
    }

    pub(crate) fn spawn(host: &Host, args: &str) -> Result<AgentProc> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&host.log)?;
        // A hostname of its own, so that people can tell the hosts apart in tables. Each of these
        // programs becomes the next one, so the child's PID is the agent's.
        let child = Command::new("unshare")
            .args(["--uts", "sh", "-c", r#"hostname "$0" && exec "$@""#])
            .arg(host.ns.label())
            .arg("nsenter")
            .arg(format!("--net={}", host.ns.path().display()))
            .arg(host.bin())
            .args(["attach", "--iface", "eth0"])
            .args(args.split_whitespace())
            .env("PATH", search_path())
            .env("OVERLAY_DP_INSTANCE", &host.instance)
            // The log is a file, and ends up in test reports.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then ends its agents in order.
            .process_group(0)
            .spawn()
            .context("can't start an agent")?;
        Ok(AgentProc {
            child,
            host: host.clone(),
            left: false,
        })
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut ended = None;
        let what = format!("the agent on {} is ready", self.host.ns.label());
        wait_until(&what, READY, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
                || self
                    .host
                    .overlay_any("status --json")
                    .is_ok_and(|done| done.status.success())
        })
        .with_context(|| self.log())?;
        if let Some(status) = ended {
            bail!(
                "the agent on {} ended ({status}):\n{}",
                self.host.ns.label(),
                self.log()
            );
        }
        Ok(())
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it writes its log, together with those that ran on this host before.
    pub fn log_path(&self) -> &Path {
        &self.host.log
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.host.log).unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it as the out-of-memory killer would: it can undo nothing.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Asks it to end, as systemd does, and waits for that.
    ///
    /// # Errors
    /// When it does not end within 10 s; it is killed then.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for an end it was asked for by other means, such as `overlay-dp detach`.
    ///
    /// # Errors
    /// As [`AgentProc::stop`].
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        wait_until("the agent ends", STOPPED, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .with_context(|| self.log())?;
        status.context("it has no exit status")
    }

    pub(crate) fn leave(mut self) {
        self.left = true;
    }

    fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            // It is our unreaped child: its PID can't be another process's.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }
}

impl Drop for AgentProc {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        self.signal(Signal::TERM);
        // Not `ended`: after Ctrl-C that would not wait.
        for _ in 0..STOPPED.as_millis() / 20 {
            if !self.is_running() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
