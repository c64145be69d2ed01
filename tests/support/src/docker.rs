//! Real Docker daemons on hosts of a lab.
//!
//! A daemon sees this machine's files, but what it writes below /run, /etc and /var/lib nobody
//! else sees, and it is gone with it. All else is in the lab's directory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::lab::{Host, Lab};
use crate::ns::Ns;
use crate::process::{Background, Done, program, wait_until};

/// Programs, and Debian's packages that have them.
const NEEDED: [(&str, &str); 6] = [
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
];

/// Run with a directory below /run, a host name and dockerd's arguments, in a mount and a UTS
/// namespace of its own.
const DAEMON: &str = r#"
set -e
dir=$1 private=$1/private
mkdir -p $private
mount -t tmpfs overlay-lab $private
for tree in etc var/lib; do
    mkdir -p $private/$tree $private/work/$tree
    mount -t overlay -o lowerdir=/$tree,upperdir=$private/$tree,workdir=$private/work/$tree \
        overlay-lab /$tree
done
mkdir -p $private$dir
mount --bind $dir $private$dir
mount --rbind $private/run /run
mkdir -p /etc/docker/plugins
echo unix://$dir/overlay-dp.sock > /etc/docker/plugins/overlay-dp.spec
if [ -e $dir/resolv.conf ]; then
    rm -f /etc/resolv.conf
    cp $dir/resolv.conf /etc/resolv.conf
fi
hostname $2
shift 2
exec dockerd "$@"
"#;

/// The image that [`Dockerd::load_image`] makes.
pub const IMAGE: &str = "overlay-lab";
const STARTING: Duration = Duration::from_secs(60);
const ENDING: Duration = Duration::from_secs(20);
/// No container outlives this, whatever becomes of its daemon.
const AT_MOST_SECONDS: u32 = 3600;

/// One host's dockerd. It is stopped when dropped; its containers should be gone by then.
#[derive(Debug)]
pub struct Dockerd {
    host: Host,
    dir: PathBuf,
    running: Option<Background>,
}

impl Dockerd {
    /// That Docker can be started.
    ///
    /// # Errors
    /// When a program is missing; says which packages have it.
    pub fn check_installed() -> Result<()> {
        let missing = NEEDED.iter().filter(|(name, _)| program(name).is_none());
        let (names, mut packages): (Vec<&str>, Vec<&str>) = missing.copied().unzip();
        packages.dedup();
        ensure!(
            names.is_empty(),
            "for real Docker daemons, {} must be installed: apt-get install \
             --no-install-recommends {} (its service need not run)",
            names.join(", "),
            packages.join(" ")
        );
        Ok(())
    }

    /// Where the daemon of host `number` has its things.
    pub fn dir(lab: &Lab, number: usize) -> PathBuf {
        lab.dir().join(format!("docker{number}"))
    }

    /// What an agent on host `number` needs to be told to be this daemon's plugin.
    pub fn agent_args(lab: &Lab, number: usize) -> String {
        let dir = Dockerd::dir(lab, number);
        let dir = dir.display();
        format!("--docker-plugin {dir}/overlay-dp.sock --docker-socket {dir}/docker.sock")
    }

    /// Starts one on host `number`, or starts it again. [`Dockerd::wait`] waits for it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(lab: &Lab, number: usize) -> Result<Dockerd> {
        let host = lab.host(number);
        let dir = Dockerd::dir(lab, number);
        fs::create_dir_all(&dir)?;
        // Instead of the machine's.
        fs::write(dir.join("daemon.json"), "{}")?;
        let name = host.ns.name();
        let at = dir.display();
        let line = format!(
            "--mount --uts --propagation private sh -c DAEMON daemon {at} {name} \
             --config-file {at}/daemon.json --data-root {at}/root --exec-root {at}/exec \
             --pidfile {at}/dockerd.pid -H unix://{at}/docker.sock --storage-driver vfs \
             --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /{name}"
        );
        let words = line
            .split_whitespace()
            .map(|word| if word == "DAEMON" { DAEMON } else { word });
        let running = Background::start(host.ns.cmd("unshare", words))?;
        Ok(Dockerd {
            host: host.clone(),
            dir,
            running: Some(running),
        })
    }

    /// Until it answers.
    ///
    /// # Errors
    /// When it ends instead; shows what it wrote.
    pub fn wait(&mut self) -> Result<()> {
        wait_until("dockerd answers", STARTING, || {
            !self.is_running() || self.docker("version").is_ok()
        })?;
        if self.is_running() {
            return Ok(());
        }
        let ended = self.running.take().context("dockerd was not started")?;
        ended.finish(ENDING)?.ok()?;
        bail!("dockerd has ended")
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(Background::is_running)
    }

    fn words(&self, line: &str) -> Vec<String> {
        let at = self.dir.display();
        let line = format!("--config {at}/client -H unix://{at}/docker.sock {line}");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Runs `docker …`, the words of `line` split at blanks, and returns what it printed without
    /// the end of the line.
    ///
    /// # Errors
    /// When it fails; shows all that it wrote.
    pub fn docker(&self, line: &str) -> Result<String> {
        let done = self.docker_any(line)?;
        let printed = done.ok().with_context(|| self.host.ns.label().to_owned())?;
        Ok(printed.trim_end().to_owned())
    }

    /// As [`Dockerd::docker`], whatever its exit code.
    ///
    /// # Errors
    /// When it can't be started or does not end.
    pub fn docker_any(&self, line: &str) -> Result<Done> {
        let command = self.host.ns.cmd(client(), self.words(line));
        Background::start(command)?.finish(STARTING)
    }

    /// One value of `docker inspect`, `what` as in `-f`.
    ///
    /// # Errors
    /// As [`Dockerd::docker`].
    pub fn inspect(&self, name: &str, what: &str) -> Result<String> {
        self.docker(&format!("inspect -f {{{{{what}}}}} {name}"))
    }

    /// Makes the image [`IMAGE`] of busybox, which must be Debian's busybox-static, and of other
    /// programs of this machine with the libraries that they need.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn load_image(&self, programs: &[&str]) -> Result<()> {
        let root = self.dir.join("image");
        fs::create_dir_all(root.join("etc"))?;
        fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/busybox\n")?;
        let mut files = vec![];
        for name in programs {
            let file = program(name).with_context(|| format!("no {name}"))?;
            files.extend(libraries(&self.host.ns, &file)?);
            fs::create_dir_all(root.join("bin"))?;
            fs::copy(&file, root.join("bin").join(name))?;
        }
        if let Some(libc) = files.iter().find(|file| file.ends_with("libc.so.6")) {
            let dir = libc.parent().unwrap_or(Path::new("/lib"));
            let found = ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"];
            let found = found.map(|name| dir.join(name));
            files.extend(found.into_iter().filter(|file| file.exists()));
        }
        for file in files {
            let to = root.join(file.strip_prefix("/").unwrap_or(&file));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(&file, &to)?;
        }
        let busybox = program("busybox").context("no busybox")?;
        fs::copy(busybox, root.join("busybox"))?;
        let image = self.dir.join("image.tar");
        let [from, to] = [root.display(), image.display()];
        self.host.ns.run(&format!("tar -cf {to} -C {from} ."))?;
        self.docker(&format!("import {to} {IMAGE}"))?;
        fs::remove_dir_all(&root)?;
        Ok(fs::remove_file(&image)?)
    }

    /// Starts a container that sleeps. `args` are those of `docker run`.
    ///
    /// # Errors
    /// As [`Dockerd::docker`].
    pub fn run(&self, name: &str, args: &str) -> Result<()> {
        let run = format!("run -d --name {name} {args} {IMAGE} /busybox sleep {AT_MOST_SECONDS}");
        self.docker(&run).map(drop)
    }

    /// Tells a container's namespace and its address in a network.
    ///
    /// # Errors
    /// When it has none.
    pub fn adopt(&self, lab: &Lab, name: &str, network: &str) -> Result<(Ns, IpAddr)> {
        let pid = self.inspect(name, ".State.Pid")?.parse()?;
        let ip = self.inspect(
            name,
            &format!(".NetworkSettings.Networks.{network}.IPAddress"),
        )?;
        Ok((lab.adopt(name, pid)?, ip.parse()?))
    }

    /// As [`Dockerd::docker`], also after a signal, and whatever comes of it.
    pub fn tidy(&self, line: &str) {
        let words = ["20".to_owned(), client().to_owned()].into_iter();
        let mut command = self.host.ns.cmd("timeout", words.chain(self.words(line)));
        // The lab ends what is left.
        let _ = command.stdin(Stdio::null()).output();
    }

    /// Stops it, and with it its containers, as a restart of its service does.
    pub fn stop(&mut self) {
        if let Some(daemon) = &mut self.running {
            daemon.signal(Signal::TERM);
            let began = Instant::now();
            while daemon.is_running() && began.elapsed() < ENDING {
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.running = None;
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if self.is_running() {
            let list = self.docker("ps -aq").unwrap_or_default();
            let all: Vec<&str> = list.split_whitespace().collect();
            if !all.is_empty() {
                self.tidy(&format!("rm -f {}", all.join(" ")));
            }
            self.tidy("swarm leave --force");
        }
        self.stop();
    }
}

/// Debian's client, which goes with Debian's daemon; another one may come first in the search path.
fn client() -> &'static str {
    match Path::new("/usr/bin/docker").exists() {
        true => "/usr/bin/docker",
        false => "docker",
    }
}

/// What a program is linked with.
fn libraries(ns: &Ns, file: &Path) -> Result<Vec<PathBuf>> {
    let listed = ns.run(&format!("ldd {}", file.display()))?;
    let words = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}
