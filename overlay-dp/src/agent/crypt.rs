//! The crypt workers: threads that seal what goes to other hosts' containers on encrypted networks,
//! and open what comes from them. Each has a queue of the crypt link and an AF_XDP socket of its
//! own. What seals and opens is `overlay-esp`'s.
//!
//! They know no networks and decide nothing about frames: the programs hand over what is to be
//! sealed, and judge what was opened as they judge all that comes from the underlay.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use overlay_common::counters::DropReason;
use overlay_common::punt::{self, Kind};
use overlay_common::wire::ETH_LEN;
use overlay_esp::frame::{self, Ports};
use overlay_esp::sa::Sas;
use overlay_xsk::{Tx, Xsk, XskConfig};
use parking_lot::RwLock;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::bpf::Bpf;

/// Frames taken at a time.
const BATCH: usize = 64;
/// How often the kernel is offered frames again that it has not taken.
const SEND_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Frames of each worker's socket: half of them receive.
const FRAMES: u32 = 2048;
/// Descriptors in its rings.
const RING: u32 = 1024;

/// What workers and the agent share.
pub struct Shared {
    ports: Ports,
    sas: RwLock<Arc<Sas>>,
    drops: [AtomicU64; DropReason::COUNT],
    stop: AtomicBool,
    /// Counts up when they are to stop.
    bell: OwnedFd,
}

impl Shared {
    /// Nothing can be sealed or opened yet.
    ///
    /// # Errors
    /// When the kernel gives no eventfd.
    pub fn new(ports: Ports) -> Result<Arc<Shared>> {
        Ok(Arc::new(Shared {
            ports,
            sas: RwLock::default(),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            stop: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// From now on these are in use.
    pub fn set_sas(&self, sas: Sas) {
        *self.sas.write() = Arc::new(sas);
    }

    /// How many frames were dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    fn sas(&self) -> Arc<Sas> {
        Arc::clone(&self.sas.read())
    }

    fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The running workers. Dropping them stops them.
pub struct CryptThreads {
    shared: Arc<Shared>,
    /// The threads', once more: for whoever must put them where programs find them.
    sockets: Vec<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl CryptThreads {
    /// None yet: a host without encrypted networks needs none.
    pub fn none(shared: Arc<Shared>) -> CryptThreads {
        CryptThreads {
            shared,
            sockets: Vec::new(),
            threads: Vec::new(),
        }
    }

    /// Starts one for each queue of the crypt link, whose far end has this ifindex, unless they
    /// run.
    ///
    /// # Errors
    /// When a socket or a thread can't be had.
    pub fn start(&mut self, bpf: &mut Bpf, far_ifindex: u32, queues: u32) -> Result<()> {
        if !self.threads.is_empty() {
            return Ok(());
        }
        let queues = queues.min(punt::CRYPT_QUEUES);
        let mut sockets = Vec::new();
        for queue in 0..queues {
            sockets.push(Xsk::bind(&XskConfig {
                frame_count: FRAMES,
                rx_ring: RING,
                tx_ring: RING,
                ..XskConfig::new(far_ifindex, queue)
            })?);
        }
        for (queue, xsk) in (0..queues).zip(sockets) {
            bpf.set_crypt_socket(queue, &xsk)?;
            let epoll = epoll(&xsk, &self.shared)?;
            let socket = xsk.as_fd().try_clone_to_owned()?;
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name(format!("crypt-{queue}"))
                .spawn(move || run(xsk, &epoll, &shared))
                .context("can't start a thread to encrypt in")?;
            self.threads.push(thread);
            self.sockets.push(socket);
        }
        Ok(())
    }

    /// Where they get frames, in order of the queues: none while they don't run.
    pub fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }

    /// False when one has ended without being told to.
    pub fn are_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }
}

impl Drop for CryptThreads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let rung = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
        if let Err(error) = rung {
            tracing::error!(%error, "the crypt workers can't be told to stop");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a crypt worker had panicked");
            }
        }
    }
}

/// A worker, until it is told to stop.
fn run(mut xsk: Xsk, epoll: &OwnedFd, shared: &Shared) {
    loop {
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let unsent = batch(&mut xsk, shared);
        if !xsk.rx().is_empty() {
            continue;
        }
        if let Err(error) = wait(epoll, (unsent > 0).then_some(&SEND_AGAIN)) {
            tracing::error!(%error, "a crypt worker can't wait for frames and ends");
            return;
        }
    }
}

/// Seals or opens a batch of frames. Returns how many the kernel has not taken yet.
fn batch(xsk: &mut Xsk, shared: &Shared) -> usize {
    let (rx, tx) = xsk.split();
    let mut sas = shared.sas();
    rx.receive(BATCH, |frame| {
        let mut done = pass(&sas, shared.ports, frame, tx);
        if matches!(done, Err(DropReason::UnknownSpi | DropReason::NoKey)) {
            // It may have been agreed on since the batch began.
            sas = shared.sas();
            done = pass(&sas, shared.ports, frame, tx);
        }
        if let Err(reason) = done {
            shared.drop(reason);
        }
    });
    tx.flush().unwrap_or_else(|error| {
        tracing::warn!(%error, "a crypt worker can't send");
        0
    })
}

/// Seals or opens one frame, and sends what it is then.
fn pass(sas: &Sas, ports: Ports, frame: &[u8], tx: &mut Tx) -> Result<(), DropReason> {
    let marker = frame.first_chunk::<ETH_LEN>().and_then(punt::decode);
    let mut out = tx.reserve().ok_or(DropReason::PuntQueueFull)?;
    let len = match marker.map(|marker| marker.kind) {
        Some(Kind::ToSeal) => frame::seal(sas, ports, frame, out.buffer())?,
        Some(Kind::ToOpen) => frame::open(sas, ports, frame, out.buffer())?,
        _ => return Err(DropReason::NotPunted),
    };
    out.commit(len).map_err(|_| DropReason::PuntTooBig)
}

/// Frames and the bell. Each is told of once when it comes (edge-triggered): a worker looks at both
/// before it sleeps.
fn epoll(xsk: &Xsk, shared: &Shared) -> Result<OwnedFd> {
    let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = EventFlags::IN | EventFlags::ET;
    epoll::add(&fd, xsk, EventData::new_u64(0), edge)?;
    epoll::add(&fd, &shared.bell, EventData::new_u64(1), edge)?;
    Ok(fd)
}

/// Sleeps until something comes, or that long.
fn wait(epoll: &OwnedFd, timeout: Option<&Timespec>) -> rustix::io::Result<()> {
    let mut events = [MaybeUninit::<Event>::uninit(); 2];
    match epoll::wait(epoll, &mut events, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
