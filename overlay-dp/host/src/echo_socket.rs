//! The UDP socket that probes are sent from.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, socklen_t};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

/// `UDP_NO_CHECK6_TX` of linux/udp.h.
const UDP_NO_CHECK6_TX: c_int = 101;
/// `UDP_NO_CHECK6_RX` of linux/udp.h.
const UDP_NO_CHECK6_RX: c_int = 102;

/// A socket on `addr`, on a port that the kernel chooses, that sends every packet whole (DF),
/// whatever ICMP errors say, and without a UDP checksum, as tunnels do. It does not block.
///
/// # Errors
/// As the kernel says.
pub fn echo_socket(addr: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(addr, 0))?;
    socket.set_nonblocking(true)?;
    match addr {
        IpAddr::V4(_) => {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        }
        IpAddr::V6(_) => {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            set(socket.as_fd(), libc::SOL_UDP, UDP_NO_CHECK6_RX, true)?;
        }
    }
    set_udp_checksums(&socket, addr, false)?;
    Ok(socket)
}

/// Has such a socket, which is on `addr`, send with UDP checksums or without. The kernel leaves
/// their computing to the device, where that offers it.
///
/// # Errors
/// As the kernel says.
pub fn set_udp_checksums(socket: &impl AsFd, addr: IpAddr, on: bool) -> io::Result<()> {
    let (level, option) = match addr {
        IpAddr::V4(_) => (libc::SOL_SOCKET, libc::SO_NO_CHECK),
        IpAddr::V6(_) => (libc::SOL_UDP, UDP_NO_CHECK6_TX),
    };
    set(socket.as_fd(), level, option, !on)
}

fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, on: bool) -> io::Result<()> {
    let value = c_int::from(on);
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel reads as many
    // bytes as the length says from the pointer, which are those of the live local `value`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
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
            for on in [true, false] {
                set_udp_checksums(&socket, addr, on).unwrap();
                socket.send_to(b"y", to).unwrap();
                assert_eq!(socket.recv_from(&mut buffer).unwrap(), (1, to));
            }
        }
    }
}
