//! The slow path's thread: frames from the punt link through `overlay-core` and back.
//!
//! It reads the tables and never writes them. What it finds missing in the BPF maps it asks the
//! agent to write, through a bounded queue: an update that does not fit is asked for again by
//! the next frame that misses. What containers ask about names it leaves at the [`Desk`], and it
//! sends the answers that it finds there.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use crossbeam::queue::ArrayQueue;
use overlay_common::counters::DropReason;
use overlay_core::slowpath::{Asker, Output, SlowPath};
use overlay_core::tables::{MapUpdate, Tables};
use overlay_xsk::{Tx, Xsk};
use parking_lot::RwLock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::Notify;

use super::desk::{Desk, count};

/// Frames taken at a time, between two looks at the tables' lock.
const BATCH: usize = 64;
/// How often frames that wait for news are looked at.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// Map updates that wait for the agent.
const UPDATES: usize = 4096;

/// What the thread and the agent share.
struct Shared {
    /// With the version of the tables that they are true for.
    updates: ArrayQueue<(u64, MapUpdate)>,
    notify: Notify,
    desk: Arc<Desk>,
    drops: [AtomicU64; DropReason::COUNT],
}

/// The running thread. Dropping it stops it.
pub struct SlowThread {
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl SlowThread {
    /// Starts it on a socket.
    ///
    /// # Errors
    /// When the kernel gives no thread or eventfd.
    pub fn start(xsk: Xsk, tables: Arc<RwLock<Tables>>, desk: Arc<Desk>) -> Result<SlowThread> {
        let shared = Arc::new(Shared {
            updates: ArrayQueue::new(UPDATES),
            notify: Notify::new(),
            desk,
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (shared2, stop2) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("slow-path".to_owned())
            .spawn(move || work(xsk, &tables, &shared2, &stop2))
            .context("can't start the slow path's thread")?;
        Ok(SlowThread {
            shared,
            stop,
            thread: Some(thread),
        })
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

    /// How many frames the slow path dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.shared.drops[reason as usize].load(Ordering::Relaxed)
    }
}

impl Drop for SlowThread {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "can't stop the slow path");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the slow path's thread had panicked");
        }
    }
}

fn work(mut xsk: Xsk, tables: &RwLock<Tables>, shared: &Shared, stop: &OwnedFd) {
    let begin = Instant::now();
    let mut slow = SlowPath::new();
    loop {
        let ready = {
            let mut fds = [
                PollFd::new(&xsk, PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(shared.desk.answered(), PollFlags::IN),
            ];
            match poll(&mut fds, slow.is_waiting().then_some(&LOOK_AGAIN)) {
                Ok(_) => {
                    if fds[2].revents().contains(PollFlags::IN) {
                        shared.desk.look();
                    }
                    !fds[1].revents().contains(PollFlags::IN)
                }
                Err(rustix::io::Errno::INTR) => true,
                Err(error) => {
                    tracing::error!(%error, "the slow path can't wait for frames and ends");
                    return;
                }
            }
        };
        if !ready {
            return;
        }
        loop {
            let (rx, tx) = xsk.split();
            let received = {
                let tables = tables.read();
                let mut output = Sender {
                    tx,
                    shared,
                    version: tables.version(),
                };
                while let Some((asker, answer)) = shared.desk.next_answer() {
                    asker.answer(&tables, &answer, &mut output);
                }
                slow.look_again(&tables, begin.elapsed(), &mut output);
                rx.receive(BATCH, |frame| {
                    slow.handle(&tables, frame, begin.elapsed(), &mut output)
                })
            };
            if let Err(error) = tx.flush() {
                tracing::warn!(%error, "the slow path can't send");
            }
            if received < BATCH {
                break;
            }
        }
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
        self.shared.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}
