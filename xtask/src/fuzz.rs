//! `fuzz`: libFuzzer on everything that reads what others have written.
//!
//! The fuzzer is compiled with the coverage that the stable compiler's LLVM has, so no nightly
//! toolchain is needed. Corpora and crashes are kept in `target/fuzz`; what was found and fixed
//! belongs below `overlay-dp/fuzz/regressions/<target>/`, by a name that says what it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, output, root, run, step};
use crate::{ebpf, packages};

/// Coverage of branches and comparisons, as libFuzzer wants it.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer, in seconds, is as bad as one that crashes.
const SLOW: u32 = 10;
/// Larger messages than this are only refused for their size.
const LARGEST: u32 = 8192;

/// Runs one target or all, so many seconds each.
///
/// # Errors
/// When it can't be built, or there is no such target. A target that fails is no error but the
/// exit code, after all have run.
pub fn fuzz(only: Option<&str>, seconds: u32) -> Result<ExitCode> {
    let targets = targets()?;
    if let Some(name) = only
        && !targets.iter().any(|target| target == name)
    {
        bail!("no target '{name}': there are {}", targets.join(", "));
    }
    packages::ensure(&packages::FUZZ)?;
    // The agent's crate has it inside.
    ebpf::build()?;
    let program = build()?;
    let mut failed = Vec::new();
    for target in targets {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        step(format!("fuzzing {target} for {seconds} s"));
        if !run_target(&program, &target, seconds)? {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    step(format!(
        "FAILED: {}; see target/fuzz/crashes",
        failed.join(", ")
    ));
    Ok(ExitCode::FAILURE)
}

/// The names in overlay-fuzz's own list.
fn targets() -> Result<Vec<String>> {
    let path = root().join("overlay-dp/fuzz/src/lib.rs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = text.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("name: \"")?.strip_suffix("\",")?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

fn build() -> Result<PathBuf> {
    let host = output(Command::new("rustc").args(["-vV"])).context("rustc tells nothing")?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for what it compiles")?;
    let target_dir = root().join("target/fuzz/build");
    step("building the fuzzer (the first time, all that overlay-dp consists of)");
    // With a target of its own, so that build scripts and macros get no coverage.
    run(cargo()
        .args(["build", "--release", "--target", host, "--manifest-path"])
        .arg(root().join("overlay-dp/fuzz/libfuzzer/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("RUSTFLAGS", COVERAGE))?;
    Ok(target_dir.join(host).join("release/overlay-libfuzzer"))
}

/// Whether it found nothing.
fn run_target(program: &Path, target: &str, seconds: u32) -> Result<bool> {
    let dir = root().join("target/fuzz");
    let (corpus, crashes) = (dir.join("corpus").join(target), dir.join("crashes"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&crashes)?;
    let prefix = format!("-artifact_prefix={}/{target}-", crashes.display());
    let mut command = Command::new(program);
    command
        .env("OVERLAY_FUZZ_TARGET", target)
        .env("OVERLAY_FUZZ_CORPUS", &corpus)
        .args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={SLOW}"),
            format!("-max_len={LARGEST}"),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
            prefix,
        ])
        .arg(&corpus);
    let found = root().join("overlay-dp/fuzz/regressions").join(target);
    if found.is_dir() {
        command.arg(found);
    }
    let status = command.status().context("can't start the fuzzer")?;
    Ok(status.success())
}
