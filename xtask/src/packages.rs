//! The one place that knows which Debian packages are needed, and that installs them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{find_program, is_root, run, step};

/// A Debian package, and how to see that what we need of it is there.
#[derive(Clone, Copy)]
pub struct Package {
    name: &'static str,
    why: &'static str,
    /// A program's name, or an absolute path.
    proof: &'static str,
}

const fn package(name: &'static str, proof: &'static str, why: &'static str) -> Package {
    Package { name, why, proof }
}

/// A Rust that can compile `core` for BPF, next to whatever Rust the user has.
pub const EBPF_RUST: [Package; 3] = [
    package("rustc-web", "/usr/bin/rustc", "compiles the eBPF programs"),
    package(
        "rust-web-src",
        "/usr/lib/rustlib/src/rust/library/core/Cargo.toml",
        "source of Rust's core library, compiled for BPF",
    ),
    package("cargo-web", "/usr/bin/cargo", "builds the eBPF programs"),
];

/// What bpf-linker is compiled against.
pub const EBPF_LINKER: [Package; 2] = [
    package(
        "llvm-22-dev",
        "/usr/lib/llvm-22/lib/libLLVM.so",
        "bpf-linker is compiled against it",
    ),
    package("gcc", "cc", "links bpf-linker"),
];

/// What the lab, the tests and the demo run.
pub const LAB: [Package; 23] = [
    package("iproute2", "nstat", "namespaces, links, kernel counters"),
    package("iputils-ping", "ping", "checks round trips and MTU"),
    package("iputils-arping", "/usr/bin/arping", "checks ARP"),
    package("iperf3", "iperf3", "TCP and UDP load"),
    package("bind9-dnsutils", "dig", "asks for names"),
    package(
        "traceroute",
        "traceroute",
        "checks that the overlay is one hop",
    ),
    package("ethtool", "ethtool", "sets offloads of the lab's links"),
    package("procps", "sysctl", "turns the lab's router on"),
    package(
        "chromium",
        "chromium",
        "shows the status page, without a window",
    ),
    package(
        "prometheus",
        "prometheus",
        "reads the metrics, and runs the dashboard's queries",
    ),
    package(
        "nftables",
        "nft",
        "ways out of networks, and published ports",
    ),
    package(
        "iptables",
        "iptables",
        "Docker does not start without; stands for it, dropping what is forwarded",
    ),
    package("tshark", "tshark", "decrypts what encrypted networks send"),
    package("tcpdump", "tcpdump", "for looking at frames in a kept lab"),
    package(
        "bpftool",
        "bpftool",
        "for looking at programs and maps in a kept lab",
    ),
    package("podman", "podman", "containers by CNI and netavark"),
    package("runc", "runc", "runs podman's and Docker's containers"),
    package("conmon", "conmon", "watches podman's containers"),
    // A busybox that is linked with libraries would not run in there.
    package(
        "busybox-static",
        "/usr/share/doc/busybox-static/copyright",
        "what is in containers",
    ),
    package("docker.io", "dockerd", "containers of Docker's"),
    package("containerd", "containerd", "watches Docker's containers"),
    package("util-linux", "setpriv", "runs the agent as systemd does"),
    package("systemd", "systemd-analyze", "checks the unit"),
];

/// What boots other kernels, beside [`LAB`], which the guests get.
pub const KERNELS: [Package; 3] = [
    package(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "boots the kernels that the data path is tested on",
    ),
    package("kmod", "depmod", "loads those kernels' modules"),
    package("binutils", "strip", "makes the tests fit into a guest"),
];

/// What libFuzzer is compiled by.
pub const FUZZ: [Package; 1] = [package("g++", "c++", "compiles libFuzzer")];

/// What makes a Debian package.
pub const DEB: [Package; 2] = [
    package(
        "dpkg-dev",
        "dpkg-shlibdeps",
        "finds what the package depends on",
    ),
    package(
        "binutils",
        "strip",
        "leaves debug information out of the package",
    ),
];

impl Package {
    fn is_missing(&self) -> bool {
        if self.proof.starts_with('/') {
            !Path::new(self.proof).exists()
        } else {
            find_program(self.proof).is_none()
        }
    }
}

/// Installs those of `packages` that are missing, saying which and why before it starts.
///
/// # Errors
/// When they can't be installed; the commands to do it by hand have been printed then.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<Package> = packages
        .iter()
        .copied()
        .filter(Package::is_missing)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs `packages` at their newest version, whether or not some version is there.
///
/// # Errors
/// As [`ensure`].
pub fn install(packages: &[Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    let debian = find_program("apt-get").is_some();
    if !debian || !is_root() {
        eprintln!("These are needed:");
        list(packages);
        if debian {
            eprintln!("Install them with:");
            eprintln!(
                "    sudo apt-get update && sudo apt-get install -y {}",
                names.join(" ")
            );
            bail!("packages are missing and only root can install them");
        }
        eprintln!("These are Debian's names; install what your distribution calls them.");
        bail!("packages are missing and this is no Debian, so they can't be installed for you");
    }
    step("installing Debian packages with apt-get:");
    list(packages);
    run(apt_get().arg("update").arg("-qq"))?;
    run(apt_get()
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&names))?;
    if let Some(package) = packages.iter().find(|package| package.is_missing()) {
        bail!(
            "apt-get installed {} but there is no {}: is it another release than Debian 12?",
            package.name,
            package.proof
        );
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Unattended upgrades may be at it.
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn list(packages: &[Package]) {
    for package in packages {
        eprintln!("    {:<14} {}", package.name, package.why);
    }
}
