//! The running kernel.

use std::io;

use crate::{Error, Result};

/// The oldest kernel that is supported, as major and minor.
pub const MINIMUM: (u32, u32) = (6, 1);
/// The first kernel with tcx links.
const TCX: (u32, u32) = (6, 6);

/// The running kernel's major and minor version.
///
/// # Errors
/// When it reports a version that has none.
pub fn kernel_release() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    parse(&release).ok_or_else(|| {
        Error::kernel(
            format!("understand the kernel version '{release}'"),
            io::Error::from(io::ErrorKind::InvalidData),
        )
    })
}

/// Checks that the kernel is [`MINIMUM`] or newer.
///
/// # Errors
/// [`Error::KernelTooOld`].
pub fn require_kernel() -> Result<()> {
    require(kernel_release()?)
}

/// Whether the kernel has tcx links.
///
/// # Errors
/// As [`kernel_release`].
pub fn tcx_supported() -> Result<bool> {
    Ok(kernel_release()? >= TCX)
}

fn require(have: (u32, u32)) -> Result<()> {
    if have < MINIMUM {
        return Err(Error::KernelTooOld {
            have,
            need: MINIMUM,
        });
    }
    Ok(())
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_parsed_and_compared() {
        assert_eq!(parse("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse("6.1-rc3"), Some((6, 1)));
        assert_eq!(parse("linux"), None);
        assert!(require((6, 1)).is_ok());
        assert_eq!(
            require((5, 15)).unwrap_err().to_string(),
            "kernel 5.15 is too old: use Linux 6.1 or newer"
        );
    }
}
