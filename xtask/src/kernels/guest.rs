//! QEMU, and what the guest says on its console.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::debian::Kernel;

/// How a guest's CPUs are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The machine's own.
    Kvm,
    /// Emulated: ten to twenty times slower.
    Tcg,
}

impl Accel {
    /// What works here. A /dev/kvm without the CPU's extension is there on some virtual machines,
    /// and does not work.
    pub fn here() -> Accel {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let extension = cpus
            .split_whitespace()
            .any(|word| word == "vmx" || word == "svm");
        let opens = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        if extension && opens {
            Accel::Kvm
        } else {
            Accel::Tcg
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => [
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "max,la57=off",
            ],
        }
    }
}

/// What became of a guest.
#[derive(Debug, Default)]
pub struct Report {
    /// It came to its end, and not to a panic's or its time's.
    pub done: bool,
    /// Each job that ended, with its exit code and how long it took.
    pub jobs: Vec<(String, i32, Duration)>,
    /// Warnings of the kernel's.
    pub kernel: Vec<String>,
}

impl Report {
    /// Whether `name` was run and passed.
    pub fn passed(&self, name: &str) -> bool {
        self.jobs
            .iter()
            .any(|(job, code, _)| job == name && *code == 0)
    }
}

/// Boots `kernel` with `initramfs`, passes on what it says, and ends it after `limit`.
///
/// # Errors
/// When QEMU can't be started. All else is in the report.
pub fn boot(kernel: &Kernel, initramfs: &Path, accel: Accel, limit: Duration) -> Result<Report> {
    let mut qemu = Qemu(
        // It ends with this process, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-machine",
                "q35,graphics=off",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(accel.arguments())
            .args(["-smp", "2", "-m", "2048", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-kernel"])
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends QEMU. Mitigations are of no use in an emulation, and slow there.
            .args([
                "-append",
                "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start qemu-system-x86_64")?,
    );
    let console = qemu.0.stdout.take().context("no console")?;
    let (lines, received) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { break };
            if lines
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    let mut report = Report::default();
    let mut begun = Instant::now();
    let deadline = Instant::now() + limit;
    loop {
        match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => report.take(line.trim_end(), &kernel.release, &mut begun),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{}: not done after {} s", kernel.release, limit.as_secs());
                break;
            }
        }
    }
    Ok(report)
}

impl Report {
    fn take(&mut self, line: &str, release: &str, begun: &mut Instant) {
        // The firmware's last line has no end.
        let told = line.find("@@ ").map(|at| &line[at + 3..]);
        let words: Vec<&str> = told.unwrap_or_default().split(' ').collect();
        match words[..] {
            ["done"] => self.done = true,
            ["kernel", ..] => self.kernel.push(words[1..].join(" ")),
            ["begin", _] => *begun = Instant::now(),
            ["end", name, code] => {
                let code = code.parse().unwrap_or(-1);
                self.jobs.push((name.to_owned(), code, begun.elapsed()));
                return;
            }
            ["booted", _] => {}
            _ => {
                eprintln!("{release} | {line}");
                return;
            }
        }
        if let Some(told) = told {
            eprintln!("{release} | == {told}");
        }
    }
}

/// Ends it when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_what_the_guest_says() {
        let mut report = Report::default();
        let mut begun = Instant::now();
        for line in [
            "Booting from ROM..\u{1b}c@@ booted 6.1.0",
            "@@ begin a",
            "test x ... ok",
            "@@ end a 0",
            "@@ end b 101",
            "@@ kernel WARNING: CPU: 0",
        ] {
            report.take(line, "6.1.0", &mut begun);
        }
        assert!(!report.done && report.passed("a"));
        assert!(!report.passed("b") && !report.passed("c"));
        assert_eq!(report.kernel, ["WARNING: CPU: 0"]);
        report.take("@@ done", "6.1.0", &mut begun);
        assert!(report.done);
    }
}
