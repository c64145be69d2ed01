//! Running programs with a deadline, and ending them by PID.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(2);

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM make every wait of this library fail, so that the lab is
/// unwound and removed, instead of ending this process. A second one ends it at once.
///
/// # Errors
/// When the handlers can't be installed.
pub fn stop_on_signals() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag))?;
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Whether to go on.
///
/// # Errors
/// When [`stop_on_signals`] was called and a signal has come.
pub fn check_signals() -> Result<()> {
    if STOP.get().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Whether this machine's CPUs are emulated, as `cargo xtask kernels` says: then all waits of this
/// library may take longer, and loads are a twentieth.
pub fn emulated() -> bool {
    std::env::var_os("OVERLAY_LAB_EMULATED").is_some()
}

/// How long what takes `timeout` at most may take here.
fn patient(timeout: Duration) -> Duration {
    if emulated() { timeout * 6 } else { timeout }
}

/// Asks until the answer is yes.
///
/// # Errors
/// When it is not within `timeout`; `what` says what was waited for.
pub fn wait_until(what: &str, timeout: Duration, mut yes: impl FnMut() -> bool) -> Result<()> {
    let timeout = patient(timeout);
    let deadline = Instant::now() + timeout;
    while !yes() {
        check_signals()?;
        if Instant::now() > deadline {
            bail!("{what}: not within {} s", timeout.as_secs_f32());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program that has ended.
#[derive(Debug)]
pub struct Done {
    /// Its command line.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Done {
    /// Its standard output.
    ///
    /// # Errors
    /// When its exit code is not 0; the error shows all that it wrote.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!(
                "{} failed ({})\n{}{}",
                self.command,
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout)
    }

    /// That it failed, and said why in one line, the last one, which has all `words`, in whatever
    /// case. A log may come before.
    ///
    /// # Errors
    /// When it did not; shows all that it wrote.
    pub fn fails_with(&self, words: &[&str]) -> Result<()> {
        let shown = format!("{}:\n{}{}", self.command, self.stdout, self.stderr);
        ensure!(!self.status.success(), "did not fail: {shown}");
        let is_error = |line: &&str| line.starts_with("overlay-dp: ") || line.starts_with("error:");
        let mut errors = self.stderr.lines().filter(is_error);
        let error = errors.next().with_context(|| shown.clone())?;
        ensure!(errors.next().is_none(), "{shown}");
        ensure!(self.stderr.trim_end().ends_with(error), "{shown}");
        let error = error.to_lowercase();
        for word in words {
            ensure!(
                error.contains(&word.to_lowercase()),
                "no '{word}' in {shown}"
            );
        }
        Ok(())
    }
}

/// A program that runs while the test goes on. Killed when dropped.
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Background {
    /// Starts it; what it writes is kept for [`Background::finish`].
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(mut command: Command) -> Result<Background> {
        let shown = shown(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {shown}"))?;
        Ok(Background {
            stdout: child.stdout.take().map(collect),
            stderr: child.stderr.take().map(collect),
            command: shown,
            child,
        })
    }

    /// Its process id; commands run by nsenter take over nsenter's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; no error if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            // It is our unreaped child: its PID can't be another process's.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `timeout`; it is killed then.
    pub fn finish(mut self, timeout: Duration) -> Result<Done> {
        let timeout = patient(timeout);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            let late = started.elapsed() > timeout;
            let interrupted = check_signals();
            if late || interrupted.is_err() {
                self.signal(Signal::KILL);
                self.child.wait()?;
                interrupted?;
                bail!(
                    "{} did not end within {} s\n{}{}",
                    self.command,
                    timeout.as_secs_f32(),
                    join(&mut self.stdout),
                    join(&mut self.stderr)
                );
            }
            thread::sleep(POLL);
        };
        Ok(Done {
            command: self.command.clone(),
            status,
            stdout: join(&mut self.stdout),
            stderr: join(&mut self.stderr),
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still of use to the reader of a failure.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn join(reader: &mut Option<JoinHandle<String>>) -> String {
    reader
        .take()
        .and_then(|reader| reader.join().ok())
        .unwrap_or_default()
}

/// Runs a program to its end, without heeding signals: for removing what was made.
pub(crate) fn tidy(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args).env("PATH", search_path());
    match command.stdin(Stdio::null()).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(_) => String::new(),
    }
}

/// PATH with the directories of administrators' programs, which not every shell has.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Where a program is, when it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The command line as typed, without the nsenter in front.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    if let Some(end) = words.iter().position(|word| word == "--") {
        words.drain(..=end);
    }
    words.join(" ")
}
