//! The guest's file system: an initramfs with the tests, what they run, and the kernel's modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::debian::Kernel;
use crate::process::{find_program, output, root, run};

/// What the tests and the agent run. Busybox is for the rest.
const PROGRAMS: [&str; 21] = [
    "arping",
    "bridge",
    "busybox",
    "dig",
    "env",
    "ethtool",
    "ip",
    "iperf3",
    "kmod",
    "modprobe",
    "nft",
    "nsenter",
    "nstat",
    "ping",
    "setpriv",
    "ss",
    "sysctl",
    "tc",
    "tcpdump",
    "traceroute",
    "unshare",
];

/// Parts of the module tree that have to do with networks. Loaded when the kernel asks for them.
const MODULES: [&str; 6] = [
    "kernel/arch/x86/crypto",
    "kernel/crypto",
    "kernel/drivers/net",
    "kernel/lib",
    "kernel/net",
    "kernel/drivers/virtio",
];

/// Files of the agent's and of C libraries that programs look for.
const ETC: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
    ("etc/resolv.conf", ""),
    (
        "etc/protocols",
        "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nesp 50 ESP\nipv6-icmp 58 IPv6-ICMP\n",
    ),
];

/// A job of the guest: a program with its environment (`NAME=VALUE`) and arguments.
pub struct Job {
    pub name: String,
    pub env: Vec<String>,
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// Writes `file`, the initramfs for `kernel`. Programs of ours are where they are here, because
/// tests know the agent's and the eBPF object's absolute path.
///
/// # Errors
/// When a program is missing or a file can't be written.
pub fn write(file: &Path, kernel: &Kernel, ours: &[PathBuf], jobs: &[Job]) -> Result<()> {
    let tree = Tree::new(&file.with_extension("tree"))?;
    for program in PROGRAMS {
        let found = find_program(program).with_context(|| format!("no {program} here"))?;
        tree.program(&found)?;
    }
    for program in ours {
        tree.program(program)?;
        // Debug information is most of it, and all that does not fit into a guest.
        run(Command::new("strip").arg(tree.at(program)))?;
    }
    tree.copy(&root().join("target/ebpf/overlay-ebpf.o"))?;
    // Tests name files by the way through their crate's directory.
    fs::create_dir_all(tree.at(&root().join("overlay-dp")))?;
    tree.modules(kernel)?;
    for (path, text) in ETC {
        tree.text(path, text)?;
    }
    let lines: Vec<String> = jobs.iter().map(Job::line).collect();
    tree.text("jobs", &lines.concat())?;
    tree.text("init", include_str!("init.sh"))?;
    fs::set_permissions(tree.0.join("init"), fs::Permissions::from_mode(0o755))?;
    tree.pack(file)
}

impl Job {
    fn line(&self) -> String {
        // `read` wants something between the blanks.
        let env = format!("{},", self.env.join(","));
        let arguments = self.arguments.join(" ");
        format!(
            "{} {env} {} {arguments}\n",
            self.name,
            self.program.display()
        )
    }
}

/// The directory that becomes the guest's `/`. Removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(dir: &Path) -> Result<Tree> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        let tree = Tree(dir.to_owned());
        // As Debian has it: all in /usr.
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(dir.join("usr").join(name))?;
            symlink(format!("usr/{name}"), dir.join(name))?;
        }
        for name in ["etc", "proc", "sys", "dev", "run", "tmp", "var/lib"] {
            fs::create_dir_all(dir.join(name))?;
        }
        Ok(tree)
    }

    /// Where a file of this machine's is in the guest.
    fn at(&self, file: &Path) -> PathBuf {
        self.0.join(file.strip_prefix("/").unwrap_or(file))
    }

    fn copy(&self, file: &Path) -> Result<()> {
        let to = self.at(file);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::copy(file, &to).with_context(|| format!("can't copy {}", file.display()))?;
        Ok(())
    }

    fn text(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(path), text).with_context(|| format!("can't write {path}"))
    }

    /// A program and the libraries that it is linked with.
    fn program(&self, file: &Path) -> Result<()> {
        self.copy(file)?;
        // Fails for what is linked statically.
        let libraries = output(Command::new("ldd").arg(file)).unwrap_or_default();
        let libraries: BTreeSet<&Path> = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(Path::new)
            .collect();
        for library in libraries {
            if !self.at(library).exists() {
                self.copy(library)?;
            }
        }
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let to = self.0.join("usr/lib/modules").join(&kernel.release);
        for part in MODULES {
            let from = kernel.modules.join(part);
            // Built into some kernels.
            if from.is_dir() {
                let to = to.join(part);
                fs::create_dir_all(&to)?;
                run(Command::new("cp").arg("-rT").arg(from).arg(to))?;
            }
        }
        for list in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            fs::copy(kernel.modules.join(list), to.join(list))?;
        }
        let depmod = find_program("depmod").context("no depmod here")?;
        run(Command::new(depmod)
            .arg("-b")
            .arg(&self.0)
            .arg(&kernel.release))
    }

    /// Not compressed: an emulated CPU would take longer for that than QEMU for reading.
    fn pack(&self, file: &Path) -> Result<()> {
        let mut names = Vec::new();
        list(&self.0, Path::new(""), &mut names)?;
        let mut cpio = Command::new("busybox")
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(File::create(file)?)
            .stderr(Stdio::null())
            .spawn()
            .context("can't start busybox")?;
        let mut input = cpio.stdin.take().context("no pipe")?;
        input.write_all(names.join("\n").as_bytes())?;
        drop(input);
        ensure!(
            cpio.wait()?.success(),
            "busybox can't write {}",
            file.display()
        );
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All that is below `dir`, directories before what is in them.
fn list(root: &Path, dir: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        names.push(path.to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}
