//! Where the slow path leaves what containers ask, and finds what they are answered.
//!
//! Both ways are bounded queues: what does not fit is dropped and counted, and asked again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use crossbeam::queue::ArrayQueue;
use overlay_core::slowpath::Asker;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

/// Questions or answers that wait.
const DEPTH: usize = 1024;

/// A DNS message, and whom it is from or for.
pub type Letter = (Asker, Vec<u8>);

/// The two queues.
pub struct Desk {
    questions: ArrayQueue<Letter>,
    asked: Notify,
    answers: ArrayQueue<Letter>,
    bell: OwnedFd,
    /// Questions that a container asked too fast.
    pub refused: AtomicU64,
    /// Questions and answers that found no room.
    pub overflowed: AtomicU64,
}

impl Desk {
    /// An empty one.
    ///
    /// # Errors
    /// When the kernel gives no eventfd.
    pub fn new() -> Result<Desk> {
        Ok(Desk {
            questions: ArrayQueue::new(DEPTH),
            asked: Notify::new(),
            answers: ArrayQueue::new(DEPTH),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            refused: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        })
    }

    /// Leaves a question.
    pub fn ask(&self, from: Asker, question: &[u8]) {
        match self.questions.push((from, question.to_vec())) {
            Ok(()) => self.asked.notify_one(),
            Err(_) => count(&self.overflowed),
        }
    }

    /// The next question.
    pub async fn question(&self) -> Letter {
        loop {
            if let Some(letter) = self.questions.pop() {
                return letter;
            }
            self.asked.notified().await;
        }
    }

    /// Leaves an answer.
    pub fn answer(&self, to: Asker, answer: Vec<u8>) {
        if self.answers.push((to, answer)).is_err() {
            return count(&self.overflowed);
        }
        self.ring();
    }

    /// Has the slow path look here.
    pub fn ring(&self) {
        // It can only fail when it has been written to 2^64 - 2 times.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Tells an edge-triggered poller of every [`Desk::ring`]; nobody needs to read it.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next answer.
    pub fn next_answer(&self) -> Option<Letter> {
        self.answers.pop()
    }
}

/// One more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
