//! The slow path's thread: frames from the punt link through `overlay-core` and back.
//!
//! It reads the tables and never writes them. What it finds missing in the BPF maps it asks the
//! agent to write, through a bounded queue: an update that does not fit is asked for again by
//! the next frame that misses. What containers ask about names it leaves at the [`Desk`], and it
//! sends the answers that it finds there. Which ports have joined which multicast groups it shows
//! to the agent, which tells the other hosts.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam::queue::ArrayQueue;
use overlay_common::counters::DropReason;
use overlay_core::slowpath::{Asker, FloodLimit, LEARNING, Member, Output, SlowPath};
use overlay_core::tables::{MapUpdate, Tables};
use overlay_xsk::{Tx, Xsk};
use parking_lot::{Mutex, RwLock};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::desk::{Desk, count};

/// Frames taken at a time, between two looks at the tables' lock.
const BATCH: usize = 64;
/// How often frames that wait for news are looked at, when there are none.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// Members are shown at most so often: each time the other hosts are told.
const SHOW_AFTER: Duration = Duration::from_millis(200);
/// Map updates that wait for the agent.
const UPDATES: usize = 4096;

/// What the thread and the agent share.
struct Shared {
    /// With the version of the tables that they are true for.
    updates: ArrayQueue<(u64, MapUpdate)>,
    notify: Notify,
    desk: Arc<Desk>,
    /// The members of groups, as they were shown last; none until they are known.
    members: Mutex<Option<Arc<[Member]>>>,
    members_shown: Notify,
    /// Only the thread writes them.
    drops: [AtomicU64; DropReason::COUNT],
    stop: AtomicBool,
}

/// The running thread. Dropping it stops it.
pub struct SlowThread {
    shared: Arc<Shared>,
    /// The thread's, once more: for whoever must put it where programs find it.
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl SlowThread {
    /// Starts it on a socket.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor.
    pub fn start(
        xsk: Xsk,
        tables: Arc<RwLock<Tables>>,
        desk: Arc<Desk>,
        flood: FloodLimit,
    ) -> Result<SlowThread> {
        let epoll = epoll(&xsk, &desk)?;
        let socket = xsk.as_fd().try_clone_to_owned()?;
        let shared = Arc::new(Shared {
            updates: ArrayQueue::new(UPDATES),
            notify: Notify::new(),
            desk,
            members: Mutex::default(),
            members_shown: Notify::new(),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            stop: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        let run = move || {
            Worker {
                xsk,
                epoll,
                tables: &tables,
                shared: &its,
                slow: SlowPath::new(flood),
                begin: Instant::now(),
                looked: (0, Duration::ZERO),
                shown: (None, Duration::ZERO),
            }
            .run();
        };
        let thread = std::thread::Builder::new()
            .name("slow-path".to_owned())
            .spawn(run)
            .context("can't start the slow path's thread")?;
        Ok(SlowThread {
            shared,
            socket,
            thread: Some(thread),
        })
    }

    /// Where it gets frames.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// False when it has ended without being told to.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Returns when there may be updates.
    pub async fn wait_for_updates(&self) {
        self.shared.notify.notified().await;
    }

    /// The next update that a miss asked for, and the version of the tables that it is true for.
    pub fn next_update(&self) -> Option<(u64, MapUpdate)> {
        self.shared.updates.pop()
    }

    /// Returns when members of groups are others.
    pub async fn wait_for_members(&self) {
        self.shared.members_shown.notified().await;
    }

    /// Which ports have joined which groups; none while that is being found out.
    pub fn members(&self) -> Option<Arc<[Member]>> {
        self.shared.members.lock().clone()
    }

    /// How many frames the slow path dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.shared.drops[reason as usize].load(Ordering::Relaxed)
    }
}

impl Drop for SlowThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.desk.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the slow path's thread had panicked");
        }
    }
}

/// The thread's own.
struct Worker<'a> {
    xsk: Xsk,
    epoll: OwnedFd,
    tables: &'a RwLock<Tables>,
    shared: &'a Shared,
    slow: SlowPath,
    begin: Instant,
    /// The version of the tables, and the time, at the last look at the frames that wait.
    looked: (u64, Duration),
    /// The revision of the members that were shown last, and when that was.
    shown: (Option<u64>, Duration),
}

impl Worker<'_> {
    /// Runs until it is told to stop.
    fn run(mut self) {
        loop {
            // Whatever comes in, and however fast: between two batches everything has its turn.
            if self.shared.stop.load(Ordering::Acquire) {
                return;
            }
            let unsent = self.batch();
            if !self.xsk.rx().is_empty() {
                continue;
            }
            if let Err(error) = wait(&self.epoll, self.pause(unsent > 0).as_ref()) {
                tracing::error!(%error, "the slow path can't wait for frames and ends");
                return;
            }
        }
    }

    /// How long it may sleep when nothing comes.
    fn pause(&self, unsent: bool) -> Option<Timespec> {
        let now = self.begin.elapsed();
        let again = (self.slow.is_waiting() || unsent).then_some(LOOK_AGAIN_AFTER);
        let due = self.slow.due().map(|due| due.saturating_sub(now));
        let show = self.to_show().map(|due| due.saturating_sub(now));
        let pause = [again, due, show].into_iter().flatten().min()?;
        Some(Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        })
    }

    /// When members are to be shown, if they are others than those that were.
    fn to_show(&self) -> Option<Duration> {
        let (revision, at) = self.shown;
        match revision {
            None => Some(LEARNING),
            Some(shown) if shown != self.slow.members_revision() => Some(at + SHOW_AFTER),
            Some(_) => None,
        }
    }

    fn show_members(&mut self, now: Duration) {
        if self.to_show().is_some_and(|due| due <= now) {
            *self.shared.members.lock() = Some(self.slow.members().into());
            self.shown = (Some(self.slow.members_revision()), now);
            self.shared.members_shown.notify_one();
        }
    }

    /// Answers that are ready, frames whose waiting is over, and a batch of those that have come.
    /// Returns how many frames the kernel has not taken yet.
    fn batch(&mut self) -> usize {
        let now = self.begin.elapsed();
        let (rx, tx) = self.xsk.split();
        {
            let tables = self.tables.read();
            let version = tables.version();
            let mut output = Sender {
                tx,
                shared: self.shared,
                version,
            };
            while let Some((asker, answer)) = self.shared.desk.next_answer() {
                asker.answer(&tables, &answer, &mut output);
            }
            let (before, at) = self.looked;
            if self.slow.is_waiting() && (version != before || now >= at + LOOK_AGAIN_AFTER) {
                self.slow.look_again(&tables, now, &mut output);
                self.looked = (version, now);
            }
            rx.receive(BATCH, |frame| {
                self.slow.handle(&tables, frame, now, &mut output);
            });
            if self.slow.is_due(&tables, now) {
                self.slow.tick(&tables, now, &mut output);
            }
        }
        self.show_members(now);
        let (_, tx) = self.xsk.split();
        tx.flush().unwrap_or_else(|error| {
            tracing::warn!(%error, "the slow path can't send");
            0
        })
    }
}

/// Everything that the thread waits for: frames and the desk's bell. Each is told of once when it
/// comes (edge-triggered), which the thread's looks before it sleeps make enough.
fn epoll(xsk: &Xsk, desk: &Desk) -> Result<OwnedFd> {
    let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = EventFlags::IN | EventFlags::ET;
    epoll::add(&fd, xsk, EventData::new_u64(0), edge)?;
    epoll::add(&fd, desk.bell(), EventData::new_u64(1), edge)?;
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

/// Where the slow path's decisions go.
struct Sender<'a> {
    tx: &'a mut Tx,
    shared: &'a Shared,
    version: u64,
}

impl Output for Sender<'_> {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        let Some(mut frame) = self.tx.reserve() else {
            return self.drop(DropReason::PuntQueueFull);
        };
        match frame.buffer().get_mut(..len) {
            Some(buffer) => write(buffer),
            None => return self.drop(DropReason::PuntTooBig),
        }
        if frame.commit(len).is_err() {
            self.drop(DropReason::PuntTooBig);
        }
    }

    fn update(&mut self, update: MapUpdate) {
        if self.shared.updates.push((self.version, update)).is_ok() {
            self.shared.notify.notify_one();
        }
    }

    fn query(&mut self, from: Asker, payload: &[u8]) {
        self.shared.desk.ask(from, payload);
    }

    fn query_refused(&mut self) {
        count(&self.shared.desk.refused);
    }

    fn drop(&mut self, reason: DropReason) {
        let drops = &self.shared.drops[reason as usize];
        drops.store(drops.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}
