//! Removing labs by their id, whoever made them.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::ns::is_own;
use crate::process::tidy;

/// Logs and locks of labs.
pub(crate) const LABS: &str = "/run/overlay-lab";

/// Where agents keep what is theirs until the next reboot, in a directory per instance.
pub(crate) const VOLATILE: [&str; 2] = ["/sys/fs/bpf/overlay-dp", "/run/overlay-dp"];

/// Where they keep the rest.
const DURABLE: &str = "/var/lib/overlay-dp";

/// Control groups, or (version 1) their kinds, each with groups in it.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Takes a new lab's lock. The kernel gives it back when its maker dies, however that happens.
pub(crate) fn lock_lab(id: &str) -> Result<File> {
    fs::create_dir_all(LABS).with_context(|| format!("can't make {LABS}"))?;
    // Locked under another name, so that nobody sees it unlocked.
    let unseen = Path::new(LABS).join(format!(".{id}"));
    let file = File::create(&unseen)?;
    file.lock()?;
    fs::rename(unseen, Path::new(LABS).join(format!("{id}.lock")))?;
    Ok(file)
}

/// Removes the labs whose maker has died without doing it, and returns their ids.
pub fn remove_stale() -> Vec<String> {
    let mut stale = abandoned_labs();
    stale.retain(|id| !is_kept(id));
    stale.iter().for_each(|id| remove_lab(id));
    stale
}

/// The labs that were left standing on purpose.
pub fn kept_labs() -> Vec<String> {
    let mut kept = abandoned_labs();
    kept.retain(|id| is_kept(id));
    kept
}

/// Removes the labs that were left standing on purpose, and returns their ids.
pub fn remove_kept() -> Vec<String> {
    let kept = kept_labs();
    kept.iter().for_each(|id| remove_lab(id));
    kept
}

fn is_kept(id: &str) -> bool {
    Path::new(LABS).join(id).join("kept").exists()
}

fn abandoned_labs() -> Vec<String> {
    names_in(LABS)
        .filter(|name| {
            let lock = File::open(Path::new(LABS).join(name));
            lock.is_ok_and(|lock| !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
        })
        .filter_map(|name| name.strip_suffix(".lock").map(str::to_owned))
        .collect()
}

/// Ends every process inside the lab's namespaces, then removes these, the pins, state and
/// sockets of its instances, and control groups that others' containers had. Never fails: what is gone already is fine.
pub(crate) fn remove_lab(id: &str) {
    let prefix = format!("{id}-");
    let spaces: Vec<String> = names_in("/run/netns")
        .filter(|name| name.starts_with(&prefix))
        .collect();
    for space in &spaces {
        end_processes(space);
    }
    for space in &spaces {
        tidy("ip", &["netns", "del", space]);
    }
    for dir in VOLATILE.into_iter().chain([DURABLE]) {
        for instance in names_in(dir).filter(|name| name.starts_with(&prefix)) {
            let _ = fs::remove_dir_all(Path::new(dir).join(instance));
        }
    }
    let kinds = names_in(CGROUPS).map(|kind| Path::new(CGROUPS).join(kind));
    for root in kinds.chain([CGROUPS.into()]) {
        for group in names_in(&root).filter(|name| name.starts_with(&prefix)) {
            remove_cgroup(&root.join(group));
        }
    }
    let _ = fs::remove_dir_all(Path::new(LABS).join(id));
    let _ = fs::remove_file(Path::new(LABS).join(format!("{id}.lock")));
}

/// Ends every process inside a namespace of a lab.
pub(crate) fn end_processes(space: &str) {
    if is_own(&Path::new("/run/netns").join(space)) {
        return;
    }
    for pid in tidy("ip", &["netns", "pids", space]).split_whitespace() {
        // Only what the lab started can be inside its namespaces.
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Removes a control group with those in it, if all are empty.
fn remove_cgroup(group: &Path) {
    for name in names_in(group) {
        let inner = group.join(name);
        if inner.is_dir() {
            remove_cgroup(&inner);
        }
    }
    let _ = fs::remove_dir(group);
}

/// The names in a directory, none when it is not there.
pub(crate) fn names_in(dir: impl AsRef<Path>) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
