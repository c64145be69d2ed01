//! The UDP socket that probes are sent from.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use libc::{c_int, socklen_t};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

/// `UDP_NO_CHECK6_TX` of linux/udp.h.
const UDP_NO_CHECK6_TX: c_int = 101;
/// `UDP_NO_CHECK6_RX` of linux/udp.h.
const UDP_NO_CHECK6_RX: c_int = 102;

/// A socket on `addr`, on a port that the kernel chooses, that sends every packet whole (DF), whatever ICMP errors say, and without a
/// UDP checksum, as tunnels do. It does not block.
///
/// # Errors
/// As the kernel says.
pub fn echo_socket(addr: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(addr, 0))?;
    socket.set_nonblocking(true)?;
    match addr {
        IpAddr::V4(_) => {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            turn_on(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK)?;
        }
        IpAddr::V6(_) => {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            turn_on(&socket, libc::SOL_UDP, UDP_NO_CHECK6_TX)?;
            turn_on(&socket, libc::SOL_UDP, UDP_NO_CHECK6_RX)?;
        }
    }
    Ok(socket)
}

fn turn_on(socket: &UdpSocket, level: c_int, option: c_int) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel reads as many
    // bytes as the length says from the pointer, which are those of the live local `on`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sends_to_itself_over_both_families() {
        for addr in ["127.0.0.1", "::1"] {
            let addr: IpAddr = addr.parse().unwrap();
            let socket = echo_socket(addr).unwrap();
            let to = socket.local_addr().unwrap();
            socket.send_to(b"x", to).unwrap();
            // Over the loopback interface it is there when the call returns.
            let mut buffer = [0; 8];
            assert_eq!(socket.recv_from(&mut buffer).unwrap(), (1, to));
        }
    }
}
