//! What the agent keeps of root's privileges, and who may use it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{Background, Host, LabSpec, Overlay, test};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::BIN;

const SOON: Duration = Duration::from_secs(30);

/// CAP_NET_BIND_SERVICE, _NET_ADMIN, _NET_RAW, _SYS_PTRACE, _SYS_ADMIN.
const NEEDED: u64 = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 21;
/// Where the limit of locked memory can't be raised.
const IPC_LOCK: u64 = 1 << 14;

const DAEMON: u32 = 1;
const NOBODY: u32 = 65534;

#[test]
fn every_thread_of_the_agent_has_given_up_what_it_does_not_need() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "--group daemon")?;
        let tasks = PathBuf::from(format!("/proc/{}/task", overlay.agents[0].pid()));
        let mut threads = 0;
        for task in fs::read_dir(tasks)? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let field = |name: &str| -> Result<&str> {
                let mut lines = status.lines();
                let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
                value.with_context(|| format!("no {name}: {status}"))
            };
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                let has = u64::from_str_radix(field(set)?, 16)? & !IPC_LOCK;
                ensure!(has == NEEDED, "{set}: {has:x}");
            }
            ensure!(u64::from_str_radix(field("CapInh")?, 16)? == 0);
            ensure!(field("NoNewPrivs")? == "1", "it may get new privileges");
            ensure!(field("Seccomp")? == "2", "it may call what it likes");
            threads += 1;
        }
        ensure!(threads > 2, "{threads} threads");
        Ok(overlay)
    });
}

#[test]
fn members_of_the_group_may_use_the_commands_and_others_not() {
    test(BIN, LabSpec::default(), |lab| {
        let line = "attach --iface eth0 --group nosuch.group";
        let refused = Background::start(lab.host(1).overlay_cmd(line))?.finish(SOON)?;
        refused.fails_with(&["nosuch.group", "groupadd"])?;

        let overlay = Overlay::start_each(lab, &["--group daemon", ""])?;
        let [first, second] = [socket(lab.host(1))?, socket(lab.host(2))?];
        opens(&first, NOBODY, DAEMON).context("a member")?;
        for (path, group) in [(&first, NOBODY), (&second, DAEMON)] {
            match opens(path, NOBODY, group) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                other => bail!("{} to group {group}: {other:?}", path.display()),
            }
        }
        Ok(overlay)
    });
}

fn socket(host: &Host) -> Result<PathBuf> {
    let path = Path::new("/run/overlay-dp")
        .join(&host.instance)
        .join("api.sock");
    ensure!(path.exists(), "no {}", path.display());
    Ok(path)
}

/// Connects as somebody else: a thread's identity is its own.
fn opens(path: &Path, user: u32, group: u32) -> std::io::Result<()> {
    let connect = || {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        UnixStream::connect(path).map(drop)
    };
    std::thread::scope(|scope| scope.spawn(connect).join()).expect("it does not panic")
}
