//! System calls and mappings. Every function here is safe to call with any argument.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use libc::{c_int, c_void, off_t, socklen_t};

/// Same on every architecture, but libc has it for glibc only.
const AF_XDP: c_int = 44;

pub(crate) const PGOFF_RX: off_t = libc::XDP_PGOFF_RX_RING;
pub(crate) const PGOFF_TX: off_t = libc::XDP_PGOFF_TX_RING;
pub(crate) const PGOFF_FILL: off_t = libc::XDP_UMEM_PGOFF_FILL_RING as off_t;
pub(crate) const PGOFF_COMPLETION: off_t = libc::XDP_UMEM_PGOFF_COMPLETION_RING as off_t;
const _: () = assert!(size_of::<off_t>() == 8, "the offsets above need 64 bits");

/// Memory mapped readable and writable, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and the value owns it alone.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference one gets only its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory, which a forked child does not share: with pinned pages, copy-on-write after a
    /// fork could leave the kernel with other pages than this process.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let mapping = Self::new(len, flags, -1, 0)?;
        // SAFETY: the range is exactly the mapping just made, and the advice changes only what a
        // child of fork gets.
        check(unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_DONTFORK) })?;
        Ok(mapping)
    }

    /// A ring of a socket.
    pub(crate) fn ring(fd: BorrowedFd<'_>, len: usize, offset: off_t) -> io::Result<Self> {
        Self::new(
            len,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            offset,
        )
    }

    fn new(len: usize, flags: c_int, fd: c_int, offset: off_t) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks unused addresses, so no memory in use changes.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { base, len })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Two mappings of one, each unmapped on its own.
    pub(crate) fn split_at(mut self, mid: usize) -> (Self, Self) {
        let in_range = mid < self.len && mid.is_multiple_of(page_size());
        assert!(in_range, "a mapping is split between two of its pages");
        // SAFETY: mid is less than len, so the pointer stays within the mapping.
        let base = unsafe { self.base.add(mid) };
        let upper = Self {
            base,
            len: self.len - mid,
        };
        self.len = mid;
        (self, upper)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is whole pages of a mapping which this value owns alone; borrows of its
        // contents come from the value's owner and have ended. It can fail only for a bad range.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

pub(crate) fn page_size() -> usize {
    // SAFETY: no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no preconditions.
    let fd = check(unsafe { libc::socket(AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a descriptor just opened, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives memory to the kernel, which from now on writes to the frames named in the fill ring. It
/// pins the pages, so it is not misled when the mapping goes away first.
pub(crate) fn register_umem(
    fd: BorrowedFd<'_>,
    memory: &Mapping,
    frame_size: u32,
) -> io::Result<()> {
    let umem = libc::xdp_umem_reg {
        addr: memory.base.as_ptr().expose_provenance() as u64,
        len: memory.len as u64,
        chunk_size: frame_size,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    setsockopt(fd, libc::XDP_UMEM_REG, &umem)
}

pub(crate) fn set_ring_size(fd: BorrowedFd<'_>, option: c_int, size: u32) -> io::Result<()> {
    setsockopt(fd, option, &size)
}

/// Lets one call of the kernel take up to so many frames, at least 32 and at most the TX ring's;
/// before Linux 6.17 it is always 32.
pub(crate) fn set_tx_budget(fd: BorrowedFd<'_>, frames: u32) -> io::Result<()> {
    /// Not in libc yet.
    const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
    setsockopt(fd, XDP_MAX_TX_SKB_BUDGET, &frames)
}

pub(crate) fn mmap_offsets(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let zero = libc::xdp_mmap_offsets {
        rx: none(),
        tx: none(),
        fr: none(),
        cr: none(),
    };
    let (offsets, len) = getsockopt(fd, libc::XDP_MMAP_OFFSETS, zero)?;
    if len < size_of::<libc::xdp_mmap_offsets>() {
        return Err(io::Error::other(
            "the kernel's rings have no flags: run Linux 5.4 or newer",
        ));
    }
    Ok(offsets)
}

/// Counters that the kernel does not have yet stay 0.
pub(crate) fn statistics(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_statistics> {
    let zero = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    getsockopt(fd, libc::XDP_STATISTICS, zero).map(|(statistics, _)| statistics)
}

pub(crate) fn bind(fd: BorrowedFd<'_>, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let addr = libc::sockaddr_xdp {
        sxdp_family: AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of_val(&addr) as socklen_t;
    // SAFETY: the pointer and length describe `addr`, which outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) }).map(drop)
}

/// Makes the kernel look at the TX ring.
pub(crate) fn kick_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: a null buffer of length 0 and no address: nothing is read.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), ptr::null(), 0, flags, ptr::null(), 0) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes the kernel look at the fill ring. A poll does so on every kernel, recvfrom since 5.11 only.
pub(crate) fn kick_rx(fd: BorrowedFd<'_>) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call; a timeout of 0 does not wait. Its result does not
    // matter: the next receive looks at the flag again.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
}

/// Raises RLIMIT_MEMLOCK as far as this process may. Returns whether nothing is limited now.
pub fn raise_memlock() -> bool {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    if set_memlock(&unlimited).is_err()
        && let Ok(limit) = memlock()
    {
        // A limit that cannot be raised shows in the call which needed it.
        let _ = set_memlock(&libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        });
    }
    memlock_limit() == libc::RLIM_INFINITY
}

/// The limit for locked memory, in bytes.
pub(crate) fn memlock_limit() -> u64 {
    memlock().map_or(0, |limit| limit.rlim_cur)
}

fn memlock() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit, to one that outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit)
}

fn set_memlock(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the kernel reads one rlimit from a valid reference.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) }).map(drop)
}

fn setsockopt<T>(fd: BorrowedFd<'_>, option: c_int, value: &T) -> io::Result<()> {
    let (value, len) = (
        ptr::from_ref(value).cast::<c_void>(),
        size_of::<T>() as socklen_t,
    );
    // SAFETY: the pointer and length describe `value`, a borrow which outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value, len) }).map(drop)
}

/// Reads an option over `value`; returns it and how many of its bytes the kernel wrote.
fn getsockopt<T: Integers>(fd: BorrowedFd<'_>, opt: c_int, mut value: T) -> io::Result<(T, usize)> {
    let mut len = size_of::<T>() as socklen_t;
    let to = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, which outlives the call,
    // and any bytes are a valid `T`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, opt, to, &raw mut len) })?;
    Ok((value, len as usize))
}

/// # Safety
/// Every bit pattern must be a valid value.
unsafe trait Integers {}
// SAFETY: a repr(C) struct of integers.
unsafe impl Integers for libc::xdp_mmap_offsets {}
// SAFETY: a repr(C) struct of integers.
unsafe impl Integers for libc::xdp_statistics {}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
