//! The `SIOCETHTOOL` ioctl: the one place with unsafe code in this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `ETHTOOL_GDRVINFO` of linux/ethtool.h.
const GDRVINFO: u32 = 0x3;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

const _: () = assert!(size_of::<Value>() == 8);
const _: () = assert!(size_of::<DriverInfo>() == 196);

mod sealed {
    /// A structure that the kernel fills in whole for the commands this module puts into it.
    ///
    /// # Safety
    /// `repr(C)`, exactly as large as the kernel's structure for those commands, and valid for
    /// every bit pattern.
    pub(super) unsafe trait Request {}
}
use sealed::Request;

// SAFETY: `repr(C)` with two u32, the layout of `struct ethtool_value` (asserted to be 8 bytes);
// every bit pattern is a valid u32.
unsafe impl Request for Value {}
// SAFETY: `repr(C)` with the fields of `struct ethtool_drvinfo` in order, byte arrays and u32
// only, so without padding (asserted to be 196 bytes) and valid for every bit pattern.
unsafe impl Request for DriverInfo {}

/// Runs one of the commands that carry a single u32 both ways, and returns the u32 afterwards.
///
/// Only those may be given: `ETHTOOL_[GS]` with `TXCSUM`, `TSO`, `GRO` or `FLAGS`; the
/// enum keeps a caller from passing a command with a larger structure.
pub(crate) fn value(ifname: &str, command: ValueCommand, data: u32) -> io::Result<u32> {
    let mut value = Value {
        cmd: command as u32,
        data,
    };
    call(ifname, &mut value)?;
    Ok(value.data)
}

/// Commands of linux/ethtool.h that use `struct ethtool_value`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum ValueCommand {
    GetTxChecksum = 0x16,
    SetTxChecksum = 0x17,
    GetTso = 0x1e,
    SetTso = 0x1f,
    GetFlags = 0x25,
    SetFlags = 0x26,
    GetGro = 0x2b,
    SetGro = 0x2c,
}

/// The name of the driver.
pub(crate) fn driver(ifname: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        cmd: GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        fw_version: [0; 32],
        bus_info: [0; 32],
        erom_version: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    call(ifname, &mut info)?;
    let name = info.driver.split(|&b| b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn call<R: Request>(ifname: &str, request: &mut R) -> io::Result<()> {
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if ifname.len() >= name.len() || ifname.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut ifreq = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: std::ptr::from_mut(request).cast(),
        },
    };
    // SAFETY: SIOCETHTOOL takes a pointer to an ifreq, which `ifreq` is, alive on this stack frame
    // for the whole call; its name is NUL-terminated, being shorter than the zeroed array. The
    // kernel reads the command from `ifru_data` and reads and writes the structure that belongs to
    // it, which is no larger than `R` by the contract of `Request`; `request` is exclusively
    // borrowed for the call, and every value that the kernel may write is a valid `R`.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut ifreq) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
