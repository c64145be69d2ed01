//! The agent of the commit before the last change, which upgrades are tested from.
//!
//! Its dependencies are mostly those that are compiled already, so it is built in the same target
//! directory, always from the same place: what takes time is the workspace's own crates.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::ebpf;
use crate::process::{cargo, output, root, run, step};

/// Where tests find its name.
pub const VARIABLE: &str = "OVERLAY_DP_PREVIOUS_BIN";
/// What an agent is made of.
const SOURCES: [&str; 4] = ["overlay-dp", "overlay-ebpf", "Cargo.lock", "Cargo.toml"];

/// Builds it, unless it is there; `None` where there is no such commit, which is said.
///
/// # Errors
/// When it can't be built.
pub fn build() -> Result<Option<PathBuf>> {
    let Some(commit) = commit() else {
        step("NO COMMIT BEFORE THIS ONE: upgrades are tested from this binary to itself");
        return Ok(None);
    };
    let dir = root().join("target/previous");
    let (binary, stamp) = (dir.join("overlay-dp"), dir.join("commit"));
    if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == commit) {
        return Ok(Some(binary));
    }
    step(format!("building the agent of commit {commit}"));
    let started = Instant::now();
    let source = dir.join("source");
    unpack(&commit, &source)?;
    object(&commit, &source)?;
    let target = root().join("target");
    run(cargo()
        .current_dir(&source)
        // With the features that all tests together have, or most dependencies were compiled anew:
        // a test, of whatever crate, is what brings those of dev-dependencies.
        .args([
            "build",
            "--workspace",
            "--bin",
            "overlay-dp",
            "--test",
            "lab",
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_INCREMENTAL", "0"))?;
    let copy = |from: &Path| -> Result<()> {
        // Not over one that runs.
        let partial = binary.with_extension("partial");
        fs::copy(from, &partial)?;
        fs::rename(&partial, &binary)?;
        Ok(fs::write(&stamp, &commit)?)
    };
    copy(&target.join("debug/overlay-dp")).context("can't keep the agent")?;
    fs::remove_dir_all(&source)?;
    step(format!(
        "target/previous/overlay-dp ({:.1} s)",
        started.elapsed().as_secs_f32()
    ));
    Ok(Some(binary))
}

/// The commit before the last one that changed an agent; the last one itself, if what is here
/// differs from that.
fn commit() -> Option<String> {
    let same = same_as("HEAD", &SOURCES)?;
    let last = git(["log", "-1", "--format=%H", "HEAD", "--"], &SOURCES)?;
    let commit = match same {
        true => format!("{}~1", last.trim()),
        false => "HEAD".to_owned(),
    };
    let commit = git(
        ["rev-parse", "--verify", "--quiet"],
        &[&format!("{commit}^{{commit}}")],
    )?;
    Some(commit.trim().to_owned())
}

/// Whether these files are as they were in a commit; `None` without git or such a commit.
fn same_as(commit: &str, files: &[&str]) -> Option<bool> {
    let mut diff = command(["diff", "--quiet", commit, "--"], files);
    let status = diff.stdin(Stdio::null()).stderr(Stdio::null()).status();
    match status.ok()?.code()? {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    }
}

fn unpack(commit: &str, source: &Path) -> Result<()> {
    if source.exists() {
        fs::remove_dir_all(source)?;
    }
    fs::create_dir_all(source)?;
    let archive = source.with_extension("tar");
    let to: OsString = format!("--output={}", archive.display()).into();
    run(command(["archive", "--format=tar"], &[])
        .arg(to)
        .arg(commit))?;
    run(Command::new("tar")
        .arg("--extract")
        // Cargo looks at the time: what was built last from here was another commit.
        .arg("--touch")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(source))?;
    Ok(fs::remove_file(archive)?)
}

/// Puts the commit's BPF object where its build looks for it.
fn object(commit: &str, source: &Path) -> Result<()> {
    let ours = root().join("target/ebpf/overlay-ebpf.o");
    let theirs = source.join("target/ebpf/overlay-ebpf.o");
    if same_as(commit, &["overlay-ebpf"]) != Some(true) {
        return ebpf::build_of(source).map(drop);
    }
    let Some(dir) = theirs.parent() else {
        bail!("{} has no directory", theirs.display());
    };
    fs::create_dir_all(dir)?;
    fs::copy(&ours, &theirs).with_context(|| format!("can't copy {}", ours.display()))?;
    Ok(())
}

fn git<const N: usize>(words: [&str; N], more: &[&str]) -> Option<String> {
    output(command(words, more).stderr(Stdio::null()))
}

fn command<const N: usize>(words: [&str; N], more: &[&str]) -> Command {
    let mut git = Command::new("git");
    // Whoever owns the files: a checkout of CI's may be another user's.
    git.args(["-c", "safe.directory=*"]);
    git.current_dir(root()).args(words).args(more);
    git
}
