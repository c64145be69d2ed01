//! `test` and `ci`: all that a change must pass.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, find_program, is_root, output, root, run, step};
use crate::{dist, ebpf, kernels, packages, previous};

/// Format, lints, docs and every test. `strict` fails where something would be skipped.
///
/// # Errors
/// At the first that does not pass. Failed tests are no error but the exit code, so that the
/// test runner's summary stays the last thing printed.
pub fn all(strict: bool) -> Result<ExitCode> {
    if !is_root() {
        if strict {
            bail!("end-to-end tests need root, and CI=true forbids to skip them");
        }
        step("NOT ROOT: all end-to-end tests and those that load BPF programs ARE SKIPPED");
    } else {
        packages::ensure(&packages::LAB)?;
        // One test makes a package and installs it in a copy of this system.
        packages::ensure(&packages::DEB)?;
        dist::cargo_deb()?;
    }
    ensure_component("rustfmt", "fmt")?;
    ensure_component("clippy", "clippy")?;
    ebpf::build()?;

    step("checking the format");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo()
        .args(["fmt", "--check", "--manifest-path"])
        .arg(root().join("overlay-ebpf/Cargo.toml")))?;
    step("clippy");
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("building the docs");
    run(cargo()
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    step("doc tests");
    run(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
    let previous = if is_root() { previous::build()? } else { None };
    let kernels = other_kernels(strict)?;
    step("building and running the tests");
    let tests = tests(
        &["--workspace", "--lib", "--bins", "--tests"],
        strict,
        previous,
    )?;
    if !kernels {
        step("THE TESTS ON OTHER KERNELS FAILED: see above, or run `cargo xtask kernels`");
        return Ok(ExitCode::FAILURE);
    }
    Ok(tests)
}

/// The data path's tests on other kernels; whether they passed, or can't be run here.
fn other_kernels(strict: bool) -> Result<bool> {
    if !is_root() {
        return Ok(true);
    }
    match packages::ensure(&packages::KERNELS) {
        Ok(()) => kernels::run(None, None),
        Err(error) if strict => Err(error),
        Err(error) => {
            step(format!(
                "NO QEMU ({error:#}): LINUX 6.1 AND 6.12 ARE NOT TRIED"
            ));
            Ok(true)
        }
    }
}

/// Unit tests.
///
/// # Errors
/// When the eBPF programs, which the agent includes, don't compile.
pub fn quick() -> Result<ExitCode> {
    ebpf::build()?;
    step("building and running the unit tests");
    tests(&["--workspace", "--lib", "--bins"], false, None)
}

fn tests(which: &[&str], strict: bool, previous: Option<PathBuf>) -> Result<ExitCode> {
    let nextest = find_program("cargo-nextest").is_some();
    let mut command = cargo();
    if nextest {
        let config = root().join(".ci/nextest.toml");
        command
            .args(["nextest", "run", "--no-fail-fast", "--config-file"])
            .arg(config)
            .args(which);
    } else {
        // One at a time: labs share the machine's two cores, and some tests count lost packets.
        command
            .args(["test", "--no-fail-fast"])
            .args(which)
            .args(["--", "--test-threads=1"]);
    }
    // The tests are about the binary that is built with them.
    command.env_remove("OVERLAY_DP_BIN");
    if let Some(previous) = previous {
        command.env(previous::VARIABLE, previous);
    }
    if strict {
        command.env("CI", "true");
    }
    let status = command.status().context("can't start cargo")?;
    overlay_lab::remove_stale();
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// rustup's minimal profile comes without `name`, which gives cargo its `subcommand`.
fn ensure_component(name: &str, subcommand: &str) -> Result<()> {
    if output(cargo().args([subcommand, "--version"])).is_some() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!("cargo {subcommand} is missing: install {name} as your Rust was installed");
    }
    step(format!(
        "installing rustup's component {name}, for cargo {subcommand}"
    ));
    run(Command::new("rustup").args(["component", "add", name]))
}
