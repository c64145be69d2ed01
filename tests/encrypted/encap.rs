//! A socket option that no crate has. Its unsafe code is the system call.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// From now on the kernel takes ESP packets that come to this socket (RFC 3948), and gives it only
/// what is none.
pub fn take_esp(socket: &UdpSocket) -> io::Result<()> {
    const UDP_ENCAP: libc::c_int = 100;
    const UDP_ENCAP_ESPINUDP: libc::c_int = 2;
    let value = UDP_ENCAP_ESPINUDP;
    // SAFETY: the descriptor is the socket's, which outlives the call; the pointer is to an int
    // that does too, and the length is that int's.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            UDP_ENCAP,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
