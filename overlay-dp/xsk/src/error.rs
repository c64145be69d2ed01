//! What can go wrong, and what to do about it.

use std::io;

use crate::config::XskConfig;

/// An error of an AF_XDP socket.
///
/// After a failed bind no socket is left. After a failed flush the frames stay queued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XskError {
    /// A size in [`XskConfig`] is not possible.
    #[error("AF_XDP configuration: {0}")]
    Config(&'static str),
    /// A capability is missing (EPERM).
    #[error(
        "AF_XDP socket not permitted: run as root, or grant CAP_NET_RAW (and CAP_BPF with \
         CAP_NET_ADMIN for its XDP program)"
    )]
    NotPermitted,
    /// The kernel was built without AF_XDP (EAFNOSUPPORT).
    #[error("this kernel has no AF_XDP: run Linux 5.4 or newer with CONFIG_XDP_SOCKETS=y")]
    NoKernelSupport,
    /// The UMEM does not fit in RLIMIT_MEMLOCK, and the limit could not be raised (ENOBUFS).
    #[error(
        "AF_XDP must lock {needed} bytes of memory but RLIMIT_MEMLOCK is {limit}: set \
         LimitMEMLOCK=infinity in the unit (or `ulimit -l unlimited`), or grant CAP_IPC_LOCK"
    )]
    Memlock {
        /// Bytes of the UMEM. What other AF_XDP sockets of this user lock counts as well.
        needed: u64,
        /// The limit in bytes; `u64::MAX` when there is none.
        limit: u64,
    },
    /// The interface does not exist, or no longer (ENODEV, ENXIO).
    #[error("no interface with index {ifindex} in this network namespace: is it gone? bind anew")]
    NoDevice {
        /// The interface.
        ifindex: u32,
    },
    /// The queue does not exist (EINVAL).
    #[error(
        "AF_XDP cannot bind to queue {queue} of interface {ifindex}: look with `ethtool -l` if \
         it has that queue, and run Linux 5.4 or newer"
    )]
    NoQueue {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// Another socket is bound to the queue (EBUSY).
    #[error(
        "queue {queue} of interface {ifindex} is taken by another process's AF_XDP socket: stop \
         that process (`ss --xdp -p` names it)"
    )]
    Busy {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// The driver cannot do what the bind mode asks for (EOPNOTSUPP).
    #[error("interface {ifindex} cannot do AF_XDP in {mode:?} mode: use Copy")]
    NotSupported {
        /// The interface.
        ifindex: u32,
        /// The mode asked for.
        mode: crate::BindMode,
    },
    /// The interface is down (ENETDOWN).
    #[error("interface {ifindex} is down: set it up, then flush again")]
    LinkDown {
        /// The interface.
        ifindex: u32,
    },
    /// A frame to send is shorter than an Ethernet header or longer than its buffer.
    #[error("a frame of {len} bytes cannot be sent: it must have from 14 to {capacity} bytes")]
    FrameLength {
        /// The length asked for.
        len: usize,
        /// The most that the buffer holds.
        capacity: usize,
    },
    /// Any other failure of the operating system.
    #[error("AF_XDP: {call} failed: {source}")]
    Os {
        /// What was being done.
        call: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl XskError {
    /// For `map_err`, when the call has no error which deserves a message of its own.
    pub(crate) fn os(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Os { call, source }
    }

    pub(crate) fn from_socket(err: io::Error) -> Self {
        match err.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(libc::EAFNOSUPPORT) => Self::NoKernelSupport,
            _ => Self::os("socket")(err),
        }
    }

    pub(crate) fn from_bind(err: io::Error, config: &XskConfig) -> Self {
        let &XskConfig {
            ifindex,
            queue,
            bind: mode,
            ..
        } = config;
        match err.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(libc::ENODEV | libc::ENXIO) => Self::NoDevice { ifindex },
            Some(libc::EINVAL) => Self::NoQueue { ifindex, queue },
            Some(libc::EBUSY) => Self::Busy { ifindex, queue },
            Some(libc::EOPNOTSUPP) => Self::NotSupported { ifindex, mode },
            Some(libc::ENETDOWN) => Self::LinkDown { ifindex },
            _ => Self::os("bind")(err),
        }
    }

    pub(crate) fn from_send(err: io::Error, ifindex: u32) -> Self {
        match err.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Self::NoDevice { ifindex },
            Some(libc::ENETDOWN) => Self::LinkDown { ifindex },
            _ => Self::os("sendto")(err),
        }
    }
}
