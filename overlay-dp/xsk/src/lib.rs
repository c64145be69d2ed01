//! AF_XDP sockets: one socket, its UMEM and its four rings, for one queue of one interface.
//!
//! ```text
//!            UMEM: one mapping, cut in two halves which never exchange frames
//!         ┌──────────── RX half ────────────┬──────────── TX half ────────────┐
//!         └───▲─────────────────────────┬───┴───▲─────────────────────────┬───┘
//!   Rx: fill ring ──► kernel ──► RX ring│   Tx: │TX ring ──► kernel ──► completion ring
//! ```
//!
//! So a flood of received frames cannot take the frames needed for sending, nor the other way round.
//! The fill ring holds every RX frame and the completion ring every TX frame, hence neither overflows.
//!
//! ```no_run
//! # fn main() -> Result<(), overlay_xsk::XskError> {
//! let mut xsk = overlay_xsk::Xsk::bind(&overlay_xsk::XskConfig::new(7, 0))?;
//! // … put it in an XSKMAP (it is AsRawFd), poll it for POLLIN, then echo what has arrived:
//! let (rx, tx) = xsk.split();
//! rx.receive(64, |frame| {
//!     if let Some(mut out) = tx.reserve() {
//!         out.buffer()[..frame.len()].copy_from_slice(frame);
//!         let _ = out.commit(frame.len());
//!     }
//! });
//! tx.flush()?;
//! # Ok(())
//! # }
//! ```
//!
//! Unsafe code is in three files and nowhere else: `sys.rs` (system calls and mappings), `ring.rs`
//! (indices and slots shared with the kernel) and `umem.rs` (slices of frames).
#![deny(unsafe_code)]

mod config;
mod error;
#[allow(unsafe_code)]
mod ring;
mod rx;
#[allow(unsafe_code)]
mod sys;
mod tx;
#[allow(unsafe_code)]
mod umem;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ring::{Consumer, Producer};
use sys::Mapping;
use umem::Frames;

pub use config::{BindMode, XskConfig};
pub use error::XskError;
pub use rx::Rx;
pub use sys::raise_memlock;
pub use tx::{Tx, TxFrame};

/// A queue is freed by a kernel worker some time after its last socket was closed, so that an agent
/// which restarts finds it busy for a moment. That moment must not look like another process.
const BUSY_RETRY: Duration = Duration::from_millis(20);
const BUSY_RETRIES: u32 = 25;

/// An AF_XDP socket bound to one queue of one interface.
///
/// Dropping it frees the queue (within some milliseconds); an XSKMAP forgets the socket by itself.
#[derive(Debug)]
pub struct Xsk {
    rx: Rx,
    tx: Tx,
    socket: Arc<OwnedFd>,
}

impl Xsk {
    /// Opens a socket and binds it, with all RX frames already given to the kernel.
    ///
    /// Blocks for up to half a second while the queue is busy. Raises this process's RLIMIT_MEMLOCK
    /// if the UMEM does not fit in it. On an error nothing is left behind but that limit.
    ///
    /// # Errors
    /// Every variant of [`XskError`] except `FrameLength` and `LinkDown`.
    pub fn bind(config: &XskConfig) -> Result<Self, XskError> {
        config.validate()?;
        let socket = Arc::new(sys::socket().map_err(XskError::from_socket)?);
        let fd = socket.as_fd();

        let umem =
            Mapping::anonymous(config.umem_len()).map_err(XskError::os("mmap of the UMEM"))?;
        register_umem(fd, &umem, config.frame_size)?;
        let (rx_half, tx_half) = umem.split_at(config.umem_len() / 2);
        let rx_frames = Frames::new(rx_half, 0, config.frame_size);
        let tx_frames = Frames::new(tx_half, config.umem_len() as u64 / 2, config.frame_size);

        let half_ring = config.half_ring();
        for (option, size, call) in [
            (libc::XDP_UMEM_FILL_RING, half_ring, "XDP_UMEM_FILL_RING"),
            (
                libc::XDP_UMEM_COMPLETION_RING,
                half_ring,
                "XDP_UMEM_COMPLETION_RING",
            ),
            (libc::XDP_RX_RING, config.rx_ring, "XDP_RX_RING"),
            (libc::XDP_TX_RING, config.tx_ring, "XDP_TX_RING"),
        ] {
            sys::set_ring_size(fd, option, size).map_err(XskError::os(call))?;
        }
        // Where the kernel can't, it takes fewer with each call.
        let _ = sys::set_tx_budget(fd, config.tx_ring);
        let at = sys::mmap_offsets(fd).map_err(XskError::os("XDP_MMAP_OFFSETS"))?;
        let map = XskError::os("mmap of a ring");
        let fill = Producer::map(fd, sys::PGOFF_FILL, &at.fr, half_ring).map_err(&map)?;
        let completion =
            Consumer::map(fd, sys::PGOFF_COMPLETION, &at.cr, half_ring).map_err(&map)?;
        let rx_ring = Consumer::map(fd, sys::PGOFF_RX, &at.rx, config.rx_ring).map_err(&map)?;
        let tx_ring = Producer::map(fd, sys::PGOFF_TX, &at.tx, config.tx_ring).map_err(&map)?;

        let rx = Rx::new(Arc::clone(&socket), rx_ring, fill, rx_frames);
        let tx = Tx::new(
            Arc::clone(&socket),
            tx_ring,
            completion,
            tx_frames,
            config.ifindex,
        );
        bind_when_free(fd, config).map_err(|err| XskError::from_bind(err, config))?;
        Ok(Self { rx, tx, socket })
    }

    /// The receiving half.
    pub fn rx(&mut self) -> &mut Rx {
        &mut self.rx
    }

    /// The sending half.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// Both halves at once, to send from within [`Rx::receive`].
    pub fn split(&mut self) -> (&mut Rx, &mut Tx) {
        (&mut self.rx, &mut self.tx)
    }

    /// The kernel's counters of this socket, and what this module ignored.
    ///
    /// # Errors
    /// [`XskError::Os`] when the kernel refuses the query.
    pub fn statistics(&self) -> Result<Statistics, XskError> {
        let kernel = sys::statistics(self.as_fd()).map_err(XskError::os("XDP_STATISTICS"))?;
        Ok(Statistics {
            rx_dropped: kernel.rx_dropped,
            rx_ring_full: kernel.rx_ring_full,
            rx_fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            rx_invalid_descs: kernel.rx_invalid_descs,
            tx_invalid_descs: kernel.tx_invalid_descs,
            tx_ring_empty: kernel.tx_ring_empty_descs,
            ignored_rx_descs: self.rx.ignored(),
            ignored_completions: self.tx.ignored(),
        })
    }
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Xsk {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Counters since the socket was bound. The first six are the kernel's (`struct xdp_statistics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Received frames dropped for other reasons than a full ring, such as being too long.
    pub rx_dropped: u64,
    /// Received frames dropped because the RX ring was full: [`Rx::receive`] is called too rarely.
    pub rx_ring_full: u64,
    /// Received frames dropped because the fill ring was empty.
    pub rx_fill_ring_empty: u64,
    /// Entries of the fill ring which the kernel refused: a fault of this module.
    pub rx_invalid_descs: u64,
    /// Entries of the TX ring which the kernel refused: a fault of this module.
    pub tx_invalid_descs: u64,
    /// Times the kernel found nothing to send.
    pub tx_ring_empty: u64,
    /// RX descriptors which did not describe one whole frame of the RX half: a fault of the kernel.
    pub ignored_rx_descs: u64,
    /// Completions of frames which were not being sent: a fault of the kernel.
    pub ignored_completions: u64,
}

/// Registers the UMEM, raising the limit for locked memory only when that is what stands in the way.
fn register_umem(fd: BorrowedFd<'_>, umem: &Mapping, frame_size: u32) -> Result<(), XskError> {
    let full = |err: &io::Error| err.raw_os_error() == Some(libc::ENOBUFS);
    let mut result = sys::register_umem(fd, umem, frame_size);
    if result.as_ref().is_err_and(full) {
        sys::raise_memlock();
        result = sys::register_umem(fd, umem, frame_size);
    }
    result.map_err(|err| match full(&err) {
        true => XskError::Memlock {
            needed: umem.len() as u64,
            limit: sys::memlock_limit(),
        },
        false => XskError::os("XDP_UMEM_REG")(err),
    })
}

fn bind_when_free(fd: BorrowedFd<'_>, config: &XskConfig) -> io::Result<()> {
    let mode = match config.bind {
        BindMode::Copy => libc::XDP_COPY,
        BindMode::Auto => 0,
    };
    let bind = || {
        sys::bind(
            fd,
            config.ifindex,
            config.queue,
            mode | libc::XDP_USE_NEED_WAKEUP,
        )
    };
    for _ in 0..BUSY_RETRIES {
        match bind() {
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => thread::sleep(BUSY_RETRY),
            other => return other,
        }
    }
    bind()
}
