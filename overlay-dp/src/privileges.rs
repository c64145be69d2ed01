//! What the agent may do: no more than it needs, from before its first thread on, for itself and
//! for the programs it runs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use nix::unistd::Group;
use rustix::io::Errno;
use rustix::process::getgroups;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
};
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};

/// The group whose members may use the commands, where the system has one of that name.
pub const GROUP: &str = "overlay-dp";

/// The unit's `CapabilityBoundingSet=`, with the reasons.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE);

/// What neither the agent nor `nft` has any use for, and what SYS_ADMIN and SYS_PTRACE would allow.
/// Denied and not allowed by list: a system call that a library begins to use must not end the
/// agent of a host in service.
const DENIED: &[i64] = &[
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    // Its clock and its names.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Files by handle, and other roots.
    libc::SYS_open_by_handle_at,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_fanotify_init,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Where the kernel's holes have been.
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// The group that `--group` says, or the usual one where there is one.
///
/// # Errors
/// When the group that was asked for does not exist.
pub fn group(wanted: Option<&str>) -> Result<Option<u32>> {
    let name = wanted.unwrap_or(GROUP);
    let found = Group::from_name(name).with_context(|| format!("can't look up group '{name}'"))?;
    if found.is_none() && wanted.is_some() {
        bail!("there is no group '{name}': make it with 'groupadd --system {name}'");
    }
    Ok(found.map(|group| group.gid.as_raw()))
}

/// Gives up what the agent does not need. It becomes a member of `group` first, so that it may give
/// that its socket without CAP_CHOWN. For a process with one thread: others would keep all.
///
/// # Errors
/// When the kernel refuses.
pub fn reduce(group: Option<u32>) -> Result<()> {
    if let Some(group) = group {
        join(group)?;
    }
    let before = capabilities(None).context("can't read this process's capabilities")?;
    // Where the limit of locked memory can't be raised, the rings of AF_XDP need what ignores it.
    let needed = match overlay_xsk::raise_memlock() {
        true => NEEDED,
        false => NEEDED.union(CapabilitySet::IPC_LOCK),
    };
    if before.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(needed).iter() {
            // A kernel does not know all of them.
            if capability_is_in_bounding_set(capability) == Ok(true) {
                remove_capability_from_bounding_set(capability)
                    .context("can't limit the capabilities")?;
            }
        }
    }
    let kept = CapabilitySets {
        effective: before.effective & needed,
        permitted: before.permitted & needed,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).context("can't give up capabilities")?;
    set_no_new_privs(true).context("can't give up getting new privileges")?;
    deny().context("can't deny system calls")
}

/// Makes this process a member of a group, as far as it may.
fn join(group: u32) -> Result<()> {
    let mut groups = getgroups().context("can't read this process's groups")?;
    let group = Gid::from_raw(group);
    if groups.contains(&group) {
        return Ok(());
    }
    groups.push(group);
    match set_thread_groups(&groups) {
        // Giving the socket to the group says it, if that fails as well.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error).context("can't become a member of the group"),
    }
}

fn deny() -> Result<()> {
    let rules: BTreeMap<i64, Vec<_>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}
