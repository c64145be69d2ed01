//! Offloads of an interface in the calling thread's namespace; for one in a container, call them
//! inside [`Netns::run`](crate::Netns::run).

use std::io;

use crate::ethtool::{self, ValueCommand};
use crate::{Error, Result};

/// An offload that can be turned on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums left to the sending interface. Off, every packet leaves with its checksum done,
    /// as an XDP redirect needs; segmentation offload goes off with it.
    TxChecksum,
    /// TCP super-packets cut by the sending interface. A veth on which it is off has GRO join what
    /// its peer receives.
    TcpSegmentation,
    /// Received packets merged before the stack sees them. On a veth it also makes the peer able
    /// to take XDP frames.
    Gro,
    /// VLAN tags of sent frames kept beside the packet, not in it.
    TxVlan,
    /// VLAN tags of received frames kept beside the packet, not in it.
    RxVlan,
}

/// `ETH_FLAG_TXVLAN` of linux/ethtool.h.
const FLAG_TX_VLAN: u32 = 1 << 7;
/// `ETH_FLAG_RXVLAN` of linux/ethtool.h.
const FLAG_RX_VLAN: u32 = 1 << 8;

impl Offload {
    /// What `ethtool -k` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Offload::TxChecksum => "tx-checksumming",
            Offload::TcpSegmentation => "tcp-segmentation-offload",
            Offload::Gro => "generic-receive-offload",
            Offload::TxVlan => "tx-vlan-offload",
            Offload::RxVlan => "rx-vlan-offload",
        }
    }

    fn read(self, ifname: &str) -> io::Result<bool> {
        let (command, mask) = match self {
            Offload::TxChecksum => (ValueCommand::GetTxChecksum, u32::MAX),
            Offload::TcpSegmentation => (ValueCommand::GetTso, u32::MAX),
            Offload::Gro => (ValueCommand::GetGro, u32::MAX),
            Offload::TxVlan => (ValueCommand::GetFlags, FLAG_TX_VLAN),
            Offload::RxVlan => (ValueCommand::GetFlags, FLAG_RX_VLAN),
        };
        Ok(ethtool::value(ifname, command, 0)? & mask != 0)
    }

    fn write(self, ifname: &str, on: bool) -> io::Result<()> {
        let (command, data) = match self {
            Offload::TxChecksum => (ValueCommand::SetTxChecksum, on.into()),
            Offload::TcpSegmentation => (ValueCommand::SetTso, on.into()),
            Offload::Gro => (ValueCommand::SetGro, on.into()),
            Offload::TxVlan => (ValueCommand::SetFlags, flags(ifname, FLAG_TX_VLAN, on)?),
            Offload::RxVlan => (ValueCommand::SetFlags, flags(ifname, FLAG_RX_VLAN, on)?),
        };
        ethtool::value(ifname, command, data)?;
        Ok(())
    }
}

/// All flags as they are, but for `flag`: the kernel sets them together.
fn flags(ifname: &str, flag: u32, on: bool) -> io::Result<u32> {
    let now = ethtool::value(ifname, ValueCommand::GetFlags, 0)?;
    Ok(if on { now | flag } else { now & !flag })
}

/// Whether an offload is on.
///
/// # Errors
/// When there is no such interface.
pub fn get(ifname: &str, offload: Offload) -> Result<bool> {
    offload
        .read(ifname)
        .map_err(|e| Error::kernel(format!("read {} of {ifname}", offload.name()), e))
}

/// Turns an offload on or off, and makes sure that it is: drivers may ignore the wish.
///
/// # Errors
/// [`Error::Offload`] when the driver does not follow; otherwise when there is no such interface.
pub fn set(ifname: &str, offload: Offload, on: bool) -> Result<()> {
    if get(ifname, offload)? == on {
        return Ok(());
    }
    let refused = || Error::Offload {
        name: ifname.to_owned(),
        what: offload.name(),
        on,
    };
    match offload.write(ifname, on) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Err(refused()),
        Err(e) => {
            return Err(Error::kernel(
                format!("set {} of {ifname}", offload.name()),
                e,
            ));
        }
        Ok(()) => {}
    }
    if get(ifname, offload)? == on {
        Ok(())
    } else {
        Err(refused())
    }
}

/// The name of an interface's driver, as in `"veth"` or `"ixgbe"`; empty when it gives none.
///
/// # Errors
/// When there is no such interface.
pub fn driver(ifname: &str) -> Result<String> {
    match ethtool::driver(ifname) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        other => other.map_err(|e| Error::kernel(format!("read the driver of {ifname}"), e)),
    }
}
