//! The BPF file system, where maps and links are pinned.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::{Error, Result};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Makes sure that `path` is on a BPF file system; mounts one there if it is not, and makes the
/// directory if need be.
///
/// # Errors
/// [`Error::Bpffs`] when it can't be mounted, mostly for want of privileges.
pub fn ensure_mounted(path: &Path) -> Result<()> {
    let cannot = |cause: io::Error| Error::Bpffs {
        path: path.to_owned(),
        cause,
    };
    if is_bpffs(path).map_err(cannot)? {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(cannot)?;
    // The new directory may be inside one that is mounted already.
    if is_bpffs(path).map_err(cannot)? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", path, "bpf", flags, c"mode=0700").map_err(|e| cannot(e.into()))
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        // The type of `f_type` differs between architectures.
        Ok(found) => Ok((found.f_type as u64) & 0xffff_ffff == BPF_FS_MAGIC),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
