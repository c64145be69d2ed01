//! `man` and `deb`: what is made from the binary for those who install it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cargo, output, root, run, step};
use crate::{ebpf, packages};

const CARGO_DEB_VERSION: &str = "3.8.0";

/// Where Debian's shells look for completions, below /usr/share, with the names of their files.
const COMPLETIONS: [(&str, &str, &str); 3] = [
    ("bash", "bash-completion/completions", "overlay-dp"),
    ("zsh", "zsh/vendor-completions", "_overlay-dp"),
    ("fish", "fish/vendor_completions.d", "overlay-dp.fish"),
];

/// Where container runtimes look for plugins, each with the way to /usr/bin from there.
const PLUGINS: [&str; 2] = ["cni/overlay-dp", "netavark/overlay-dp"];

/// Writes the manual pages to target/man.
///
/// # Errors
/// When the binary can't be built or run.
pub fn man() -> Result<()> {
    ebpf::build()?;
    let dir = root().join("target/man");
    write_man(&binary("dev")?, &dir)?;
    step(format!("{} pages in {}", count(&dir)?, dir.display()));
    Ok(())
}

/// Makes target/debian/overlay-dp_*.deb of an optimized build, or of a quick one.
///
/// # Errors
/// When a tool is missing and can't be installed, or something can't be built.
pub fn deb(debug: bool) -> Result<PathBuf> {
    packages::ensure(&packages::DEB)?;
    ebpf::build()?;
    let cargo_deb = cargo_deb()?;
    let profile = if debug { "dev" } else { "release" };
    let binary = binary(profile)?;
    assets(&binary)?;
    step("packaging");
    let dir = root().join("target/debian");
    run(Command::new(cargo_deb)
        .current_dir(root())
        .args([
            "--package",
            "overlay-dp",
            "--no-build",
            "--no-dbgsym",
            "--strip",
        ])
        .args(["--profile", profile, "--output"])
        .arg(format!("{}/", dir.display())))?;
    let made = newest(&dir)?;
    step(format!("{} written", made.display()));
    Ok(made)
}

/// Builds the binary.
fn binary(profile: &str) -> Result<PathBuf> {
    step(format!("building overlay-dp ({profile})"));
    run(cargo().args(["build", "--package", "overlay-dp", "--profile", profile]))?;
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(root().join("target").join(dir).join("overlay-dp"))
}

fn write_man(binary: &Path, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    run(Command::new(binary).arg("man").arg(dir))
}

/// What cargo-deb takes up besides the binary: see `overlay-dp/Cargo.toml`.
fn assets(binary: &Path) -> Result<()> {
    let dir = root().join("target/deb-assets");
    let _ = fs::remove_dir_all(&dir);
    write_man(binary, &dir.join("man"))?;
    for (shell, place, name) in COMPLETIONS {
        let script = output(Command::new(binary).args(["completion", shell]))
            .with_context(|| format!("no completion for {shell}"))?;
        let place = dir.join("share").join(place);
        fs::create_dir_all(&place)?;
        fs::write(place.join(name), script)?;
    }
    for plugin in PLUGINS {
        let link = dir.join("lib").join(plugin);
        fs::create_dir_all(link.parent().context("a plugin without a directory")?)?;
        symlink("../../bin/overlay-dp", link)?;
    }
    Ok(())
}

/// The pinned cargo-deb in target/tools, compiled now if it is not there.
///
/// # Errors
/// When it can't be compiled.
pub fn cargo_deb() -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let program = tools.join("bin/cargo-deb");
    let version = output(Command::new(&program).arg("--version")).unwrap_or_default();
    if version.split_whitespace().last() == Some(CARGO_DEB_VERSION) {
        return Ok(program);
    }
    step(format!(
        "compiling cargo-deb {CARGO_DEB_VERSION} into target/tools (once, a few minutes)"
    ));
    run(cargo()
        .args([
            "install",
            "cargo-deb",
            "--version",
            CARGO_DEB_VERSION,
            "--locked",
            "--force",
        ])
        .arg("--root")
        .arg(&tools)
        // Not a project of this workspace: its target directory must not be ours.
        .current_dir("/"))?;
    Ok(program)
}

fn count(dir: &Path) -> Result<usize> {
    Ok(fs::read_dir(dir)?.count())
}

fn newest(dir: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(dir)?.flatten().map(|file| file.path());
    let debs = files.filter(|file| file.extension().is_some_and(|ext| ext == "deb"));
    let newest = debs.max_by_key(|file| fs::metadata(file).and_then(|m| m.modified()).ok());
    newest.with_context(|| format!("no package in {}", dir.display()))
}
