//! Running other programs: progress lines, and an environment without the outer cargo's traces.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Says what begins now.
pub fn step(text: impl AsRef<str>) {
    eprintln!("==> {}", text.as_ref());
}

/// Whether this process may administer the machine.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The cargo that runs this task, for builds with the workspace's own toolchain.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if names_xtask_package(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// A cargo of another toolchain. Nothing that the outer cargo, its rustup proxy or the user has
/// set for the workspace's own build reaches it, save how to get at registries.
pub fn foreign_cargo(cargo: &Path, rustc: &Path) -> Command {
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        if steers_build(&name) {
            command.env_remove(name);
        }
    }
    command.env("RUSTC", rustc);
    command
}

/// What cargo tells the program it runs (`CARGO_PKG_NAME`, …). Build scripts that watch such
/// variables would run again each time.
fn names_xtask_package(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

fn steers_build(name: &OsStr) -> bool {
    const KEPT: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_HOME",
        "RUST_BACKTRACE",
    ];
    let name = name.to_string_lossy();
    (name.starts_with("CARGO") || name.starts_with("RUST") || name == "LD_LIBRARY_PATH")
        && !KEPT.iter().any(|kept| name.starts_with(kept))
}

/// Runs a command in view of the user.
///
/// # Errors
/// When it can't be started, or its exit code is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("can't start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// What a command prints, or `None` when it can't be started or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Where a program is, looked up as a shell of root's would.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The command line, short enough for an error: the program's name and its arguments.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_toolchain_is_not_inherited() {
        for gone in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ] {
            assert!(steers_build(OsStr::new(gone)), "{gone}");
        }
        for kept in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "https_proxy",
        ] {
            assert!(!steers_build(OsStr::new(kept)), "{kept}");
        }
    }
}
