//! The tunnels' UDP port, held so that no kernel vxlan device or other program takes frames that are
//! not ours, and so that a second one of us is noticed.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result, anyhow};
use overlay_host::Host;
use rustix::io::Errno;

use super::Options;

/// Who holds it.
pub enum DataPort {
    /// An idle device, which outlives the agent: see [`Host::create_outer_gro`].
    Device,
    /// A socket on our address, where the kernel has no such device.
    Socket { _held: UdpSocket },
}

impl DataPort {
    /// Takes it.
    ///
    /// # Errors
    /// When something else has it.
    pub async fn hold(host: &Host, options: &Options, address: IpAddr) -> Result<DataPort> {
        let port = options.data_port;
        let owner = options.instance.owner();
        match host.create_outer_gro(port, &owner).await {
            Ok(()) => Ok(DataPort::Device),
            Err(error) if errno(&error) == Some(Errno::ADDRINUSE) => Err(taken(port)),
            Err(error) if errno(&error) == Some(Errno::OPNOTSUPP) => {
                tracing::warn!(
                    "this kernel has no vxlan device, so it can't join the TCP segments that tunnels \
                     bring (GRO): bulk transfers take more CPU"
                );
                let held =
                    UdpSocket::bind((address, port)).map_err(|error| match error.kind() {
                        std::io::ErrorKind::AddrInUse => taken(port),
                        _ => anyhow!("can't use port {port}/udp on {address}: {error}"),
                    })?;
                Ok(DataPort::Socket { _held: held })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn errno(error: &overlay_host::Error) -> Option<Errno> {
    error.errno().map(Errno::from_raw_os_error)
}

fn taken(port: u16) -> anyhow::Error {
    anyhow!(
        "port {port}/udp is taken: stop what uses it (see 'ss -ulpn' and 'ip -d link show type vxlan'), or use \
         another one on all hosts with --data-port"
    )
}

/// Where probes of the data path are sent from.
pub fn echo_socket(address: IpAddr) -> Result<UdpSocket> {
    overlay_host::echo_socket(address)
        .with_context(|| format!("can't open a UDP socket on {address}"))
}
