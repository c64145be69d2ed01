//! Per-interface IPv6 settings. `/proc/sys/net` is that of the calling thread's namespace.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

fn conf(ifname: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf").join(ifname)
}

fn write(ifname: &str, key: &str, value: &str) -> Result<()> {
    let path = conf(ifname).join(key);
    std::fs::write(&path, value)
        .map_err(|e| Error::kernel(format!("write {value} to {}", path.display()), e))
}

/// False on a kernel that was booted without IPv6, and for an interface whose MTU is below 1280:
/// the kernel takes IPv6 off it (RFC 8200 section 5). Then there is nothing to set.
fn has_ipv6(ifname: &str) -> bool {
    conf(ifname).is_dir()
}

/// The interface never has an IPv6 address and never sends router solicitations or MLD reports.
pub(crate) fn disable_ipv6(ifname: &str) -> Result<()> {
    if !has_ipv6(ifname) {
        return Ok(());
    }
    // Mode 1, so that no link-local address appears even if someone enables IPv6 again.
    write(ifname, "addr_gen_mode", "1")?;
    write(ifname, "disable_ipv6", "1")
}

/// Makes the link-local address the EUI-64 one, and skips duplicate address detection, now and
/// whenever the container takes the interface down and up again. `want_ipv6` enables IPv6 where
/// the container's default is off. True when the interface has IPv6.
pub(crate) fn prompt_ipv6(ifname: &str, want_ipv6: bool) -> Result<bool> {
    if !has_ipv6(ifname) {
        return Ok(false);
    }
    write(ifname, "addr_gen_mode", "0")?;
    write(ifname, "accept_dad", "0")?;
    if want_ipv6 {
        write(ifname, "disable_ipv6", "0")?;
        return Ok(true);
    }
    let path = conf(ifname).join("disable_ipv6");
    let disabled = std::fs::read_to_string(&path)
        .map_err(|e| Error::kernel(format!("read {}", path.display()), e))?;
    Ok(disabled.trim() == "0")
}
