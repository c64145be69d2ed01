//! One network namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Background, Done, search_path};

/// Longer than any command of a test takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A named network namespace. It outlives this handle: the lab removes it.
#[derive(Clone, Debug)]
pub struct Ns {
    name: String,
    label: String,
}

impl Ns {
    pub(crate) fn create(lab: &str, label: &str) -> Result<Ns> {
        let ns = Ns {
            name: format!("{lab}-{label}"),
            label: label.to_owned(),
        };
        ns.create_again()?;
        Ok(ns)
    }

    /// After [`Ns::delete`]: a new namespace of the same name.
    pub(crate) fn create_again(&self) -> Result<()> {
        let mut add = Command::new("ip");
        add.args(["netns", "add", &self.name])
            .env("PATH", search_path());
        Background::start(add)?.finish(TIMEOUT)?.ok()?;
        self.run("ip link set lo up").map(drop)
    }

    /// A name for the namespace of a process, which stays when this name is deleted and others
    /// are in it. Never this machine's own: a lab ends what runs in its namespaces.
    pub(crate) fn adopt(lab: &str, label: &str, pid: u32) -> Result<Ns> {
        let ns = Ns {
            name: format!("{lab}-{label}"),
            label: label.to_owned(),
        };
        ensure!(
            !is_own(Path::new(&format!("/proc/{pid}/ns/net"))),
            "process {pid} has no network namespace of its own"
        );
        let mut attach = Command::new("ip");
        attach
            .args(["netns", "attach", &ns.name, &pid.to_string()])
            .env("PATH", search_path());
        Background::start(attach)?.finish(TIMEOUT)?.ok()?;
        Ok(ns)
    }

    /// Its name on this machine, as `ip netns` and `--netns` take it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it stands for: `host1`, `c1`, …
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The file that names it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs inside. By nsenter and not `ip netns exec`, which would hide bpffs.
    pub fn cmd<I>(&self, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program)
            .args(args)
            .env("PATH", search_path());
        command
    }

    /// Runs a command line, whose words are split at blanks, and returns what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0 or it takes longer than a minute; shows all that it wrote.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_any(line)?
            .ok()
            .with_context(|| format!("in {}", self.label))
    }

    /// As [`Ns::run`], whatever its exit code.
    ///
    /// # Errors
    /// When it can't be started or takes longer than a minute.
    pub fn run_any(&self, line: &str) -> Result<Done> {
        self.start(line)?
            .finish(TIMEOUT)
            .with_context(|| format!("in {}", self.label))
    }

    /// Starts a command line, whose words are split at blanks, and returns while it runs.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, line: &str) -> Result<Background> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        Background::start(self.cmd(program, words))
    }

    /// Runs `job` on a thread that is inside, so that its sockets are too.
    ///
    /// # Errors
    /// When the namespace can't be entered, or the job fails or panics.
    pub fn within<T: Send>(&self, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("no netns {}", self.name))?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    job()
                })
                .join()
                .map_err(|_| anyhow!("a job inside {} panicked", self.label))?
        })
    }

    /// Removes its name. It is gone when the last process and interface hold has left it.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&self) -> Result<()> {
        let mut del = Command::new("ip");
        del.args(["netns", "del", &self.name])
            .env("PATH", search_path());
        Background::start(del)?.finish(TIMEOUT)?.ok().map(drop)
    }
}

/// Whether a file is the namespace of this process.
pub(crate) fn is_own(file: &Path) -> bool {
    let identity = |file: &Path| fs::metadata(file).map(|found| (found.dev(), found.ino()));
    let own = identity(Path::new("/proc/self/ns/net"));
    own.is_ok_and(|own| identity(file).is_ok_and(|found| found == own))
}
