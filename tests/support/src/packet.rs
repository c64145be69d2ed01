//! Raw frames on an interface (packet(7)): for what no kernel would send, and to see every byte of
//! what arrives. Its unsafe code is the system calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ns::Ns;

/// The largest frame of these labs, super-packets included.
const LARGEST: usize = 1 << 16;

/// A socket that sends frames out of an interface, as they are, and gets all that come in on it.
///
/// The kernel takes 802.1Q tags off what it receives: such a frame is seen without its tag.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the interface `name` of a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or this process is not root's.
    pub fn open(ns: &Ns, name: &str) -> Result<PacketSocket> {
        ns.within(|| bind(name))
            .with_context(|| format!("{name} in {}", ns.label()))
    }

    /// Sends a frame, Ethernet header first.
    ///
    /// # Errors
    /// When the kernel refuses it, for example as too long for the interface.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: pointer and length are of `frame`, which outlives the call.
            let sent =
                unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            let error = match usize::try_from(sent) {
                Ok(len) if len == frame.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(_) => io::Error::last_os_error(),
            };
            // The interface's queue is full: a flood is as fast as it drains.
            if error.raw_os_error() != Some(libc::ENOBUFS) {
                return Err(error);
            }
            std::thread::yield_now();
        }
    }

    /// The next frame, or none when none comes before `deadline`.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn receive(&self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            // SAFETY: one pollfd, which outlives the call.
            if unsafe { libc::poll(&raw mut poll, 1, ms) } == 0 {
                return Ok(None);
            }
            let mut frame = vec![0; LARGEST];
            // SAFETY: pointer and length are of `frame`, which outlives the call.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if let Ok(len) = usize::try_from(len) {
                frame.truncate(len);
                return Ok(Some(frame));
            }
            let error = io::Error::last_os_error();
            let again = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
            if !again.contains(&error.kind()) {
                return Err(error);
            }
        }
    }

    /// Forgets what has arrived so far.
    ///
    /// # Errors
    /// As [`PacketSocket::receive`].
    pub fn drain(&self) -> io::Result<()> {
        while self.receive(Instant::now())?.is_some() {}
        Ok(())
    }

    /// All frames of which `wanted` says so, until it has `count` or the time is over.
    ///
    /// # Errors
    /// As [`PacketSocket::receive`].
    pub fn collect(
        &self,
        count: usize,
        within: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + within;
        let mut found = Vec::new();
        while found.len() < count {
            match self.receive(deadline)? {
                Some(frame) if wanted(&frame) => found.push(frame),
                Some(_) => {}
                None => break,
            }
        }
        Ok(found)
    }
}

fn bind(name: &str) -> Result<PacketSocket> {
    let c_name = CString::new(name)?;
    // SAFETY: a C string that outlives the call.
    let ifindex = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
    ensure!(ifindex != 0, "no such interface");
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(fd).context("a packet socket")?;
    // SAFETY: a descriptor just opened, which nothing else owns.
    let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
    // What this side sends is not what arrives.
    socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20)?;
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(ifindex)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&addr) as u32;
    // SAFETY: pointer and length are of `addr`, which outlives the call.
    check(unsafe { libc::bind(fd, (&raw const addr).cast(), len) }).context("bind")?;
    Ok(socket)
}

impl PacketSocket {
    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
        let len = size_of_val(&value) as u32;
        // SAFETY: an int, which both options take, and which outlives the call.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                len,
            )
        })
        .with_context(|| format!("socket option {option}"))
    }
}

fn check(result: libc::c_int) -> Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}
