//! `build-ebpf`: overlay-ebpf → target/ebpf/overlay-ebpf.o.
//!
//! The target needs a `core` of its own, hence a Rust that takes unstable options and has the
//! library's source: a rustup nightly with rust-src, or Debian's rustc-web.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::process::{find_program, foreign_cargo, output, root, run, step};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// bpf-linker reads bitcode of its own LLVM and of older ones, never of newer ones.
const LINKER_LLVM: u32 = 22;
/// `rust-version` of overlay-common.
const OLDEST_RUST: (u32, u32) = (1, 95);

/// Compiles the programs and returns the object's path. Quick when nothing has changed.
///
/// # Errors
/// When a tool is missing and can't be installed, or the programs don't compile.
pub fn build() -> Result<PathBuf> {
    build_of(root())
}

/// The same of another copy of the sources, below which the object is left.
///
/// # Errors
/// As [`build`].
pub fn build_of(source: &Path) -> Result<PathBuf> {
    let toolchain = toolchain()?;
    let linker = linker(&toolchain)?;
    step(format!("building overlay-ebpf with {}", toolchain.name));
    let started = Instant::now();
    let target_dir = root().join("target/ebpf-build");
    run(toolchain
        .unstable_cargo()
        .current_dir(source.join("overlay-ebpf"))
        .args(["build", "--release", "-Zbuild-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // --btf: the kernel wants types of maps and functions; they come from debug info.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Cdebuginfo=2\x1f-Ctarget-cpu=v3\x1f-Clink-arg=--btf",
        ))?;

    let linked = target_dir.join(TARGET).join("release/overlay-ebpf");
    let object = source.join("target/ebpf/overlay-ebpf.o");
    let changed = publish(&linked, &object)
        .with_context(|| format!("can't copy {} to {}", linked.display(), object.display()))?;
    step(format!(
        "target/ebpf/overlay-ebpf.o {} ({:.1} s)",
        if changed { "written" } else { "is up to date" },
        started.elapsed().as_secs_f32()
    ));
    Ok(object)
}

/// Copies only what differs: the agent's build script watches the file's time.
fn publish(linked: &Path, object: &Path) -> std::io::Result<bool> {
    let new = fs::read(linked)?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    if let Some(dir) = object.parent() {
        fs::create_dir_all(dir)?;
    }
    let partial = object.with_extension("o.partial");
    fs::write(&partial, new)?;
    fs::rename(&partial, object)?;
    Ok(true)
}

/// A Rust that can build `core` for [`TARGET`].
struct Toolchain {
    name: String,
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    fn cargo(&self) -> Command {
        foreign_cargo(&self.cargo, &self.rustc)
    }

    /// RUSTC_BOOTSTRAP lets a stable compiler take `-Z`; a nightly ignores it.
    fn unstable_cargo(&self) -> Command {
        let mut command = self.cargo();
        command.env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

fn toolchain() -> Result<Toolchain> {
    if let Some(found) = rustup_nightlies()
        .into_iter()
        .find(|found| usable(found).is_ok())
    {
        return Ok(found);
    }
    let debian = || Toolchain {
        name: "Debian's rustc".to_owned(),
        cargo: "/usr/bin/cargo".into(),
        rustc: "/usr/bin/rustc".into(),
    };
    if usable(&debian()).is_err() {
        if find_program("rustup").is_some() && find_program("apt-get").is_none() {
            eprintln!("Install a toolchain for the eBPF programs with:");
            eprintln!("    rustup toolchain install nightly --profile minimal -c rust-src");
            bail!("the eBPF programs need a rustup nightly with rust-src");
        }
        // Whatever is there is too old or incomplete: all three, so that they fit each other.
        packages::install(&packages::EBPF_RUST)?;
        usable(&debian())?;
    }
    Ok(debian())
}

fn rustup_nightlies() -> Vec<Toolchain> {
    let Some(rustup) = find_program("rustup") else {
        return Vec::new();
    };
    let list = output(Command::new(&rustup).args(["toolchain", "list"])).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| {
            let rustc =
                output(Command::new(&rustup).args(["which", "--toolchain", name, "rustc"]))?;
            let rustc = PathBuf::from(rustc.trim());
            Some(Toolchain {
                name: format!("rustup's {name}"),
                cargo: rustc.with_file_name("cargo"),
                rustc,
            })
        })
        .collect()
}

/// Whether the compiler is there, has its library's source, and fits our code and linker.
fn usable(toolchain: &Toolchain) -> Result<()> {
    let name = &toolchain.name;
    if !toolchain.cargo.is_file() {
        bail!("{name} has no cargo");
    }
    let rustc = |arguments: &[&str]| {
        output(
            Command::new(&toolchain.rustc)
                .args(arguments)
                .env_remove("LD_LIBRARY_PATH"),
        )
        .with_context(|| format!("{name} does not run"))
    };
    let version = rustc(&["-vV"])?;
    let (major, minor) = version_of(&version, "release: ").context("rustc without a version")?;
    if (major, minor) < OLDEST_RUST {
        let (m, n) = OLDEST_RUST;
        bail!("{name} is {major}.{minor}, older than {m}.{n}");
    }
    let (llvm, _) = version_of(&version, "LLVM version: ").context("rustc without LLVM")?;
    if llvm > LINKER_LLVM {
        bail!(
            "{name} has LLVM {llvm}, which bpf-linker {LINKER_VERSION} with LLVM {LINKER_LLVM} can't read"
        );
    }
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
    {
        bail!("{name} has no source of the core library");
    }
    Ok(())
}

/// The first two numbers after `field` in `rustc -vV`.
fn version_of(text: &str, field: &str) -> Option<(u32, u32)> {
    let version = text.lines().find_map(|line| line.strip_prefix(field))?;
    let mut numbers = version.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The pinned bpf-linker in target/tools, compiled now if it is not there.
fn linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let linker = tools.join("bin/bpf-linker");
    let version = output(Command::new(&linker).arg("--version")).unwrap_or_default();
    if version.split_whitespace().last() == Some(LINKER_VERSION) {
        return Ok(linker);
    }
    packages::ensure(&packages::EBPF_LINKER)?;
    step(format!(
        "compiling bpf-linker {LINKER_VERSION} into target/tools (once, a few minutes)"
    ));
    run(toolchain
        .cargo()
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(&tools)
        // Not a project of this workspace: its target directory must not be ours.
        .current_dir("/")
        .env("LLVM_PREFIX", "/usr/lib/llvm-22"))?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn reads_rustc_versions() {
        let text = "rustc 1.97.0-nightly (abc 2026-01-01)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(version_of(text, "release: "), Some((1, 97)));
        assert_eq!(version_of(text, "LLVM version: "), Some((22, 1)));
        assert_eq!(version_of(text, "host: "), None);
    }
}
