//! What the agent must be allowed to do.

use rustix::thread::{CapabilitySet, capabilities};

use crate::{Error, Result};

/// What each is for: links, routes, XDP and tc; the AF_XDP socket; setns and mounting bpffs.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
];

/// Checks the calling thread's effective capabilities. CAP_BPF need not be asked for:
/// CAP_SYS_ADMIN, needed to enter containers' namespaces, includes it.
///
/// # Errors
/// [`Error::Privileges`] with those that are missing.
pub fn check_privileges() -> Result<()> {
    let sets = capabilities(None).map_err(|e| Error::kernel("read the capabilities", e))?;
    let missing = missing(sets.effective);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Privileges(missing))
    }
}

fn missing(effective: CapabilitySet) -> Vec<String> {
    NEEDED
        .iter()
        .filter(|(capability, _)| !effective.contains(*capability))
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_ones_are_named() {
        assert!(missing(CapabilitySet::all()).is_empty());
        let error = Error::Privileges(missing(CapabilitySet::NET_ADMIN));
        assert_eq!(
            error.to_string(),
            "missing CAP_NET_RAW, CAP_SYS_ADMIN: run as root, or give the program these capabilities"
        );
    }
}
