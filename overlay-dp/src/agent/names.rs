//! Answering what containers ask their gateway: one task takes the questions that the slow path
//! leaves at the [`Desk`]. What is ours it answers at once; for the rest the host's resolvers are
//! asked, each question in a task of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overlay_core::slowpath::Asker;
use overlay_dns::{Forwarder, Names, Outcome, Question, Verdict, answer};
use parking_lot::RwLock;
use tokio::task::JoinHandle;

use super::desk::{Desk, count};

/// So long after a restart, who is not known here may still be told of by another host: nobody
/// hears before that there is no such name.
const LEARNING: Duration = Duration::from_secs(1);
/// UDP and TCP port of resolvers.
const PORT: u16 = 53;

/// The running task. Dropping it stops it.
pub struct NameService {
    office: Arc<Office>,
    task: JoinHandle<()>,
}

/// What the tasks share.
struct Office {
    names: RwLock<Names>,
    desk: Arc<Desk>,
    forwarder: Arc<Forwarder>,
    counters: Counters,
    learned: Instant,
}

/// What was done with questions.
#[derive(Default)]
struct Counters {
    answered: AtomicU64,
    forwarded: AtomicU64,
    unanswered: AtomicU64,
    unfit: AtomicU64,
    ignored: AtomicU64,
    busy: AtomicU64,
}

impl NameService {
    /// Starts it. `resolv_conf` names the host's resolvers. After a `restart` there are containers
    /// which knew names from an earlier agent.
    pub fn start(desk: Arc<Desk>, resolv_conf: PathBuf, restart: bool) -> NameService {
        let learning = if restart { LEARNING } else { Duration::ZERO };
        let office = Arc::new(Office {
            names: RwLock::new(Names::new()),
            desk,
            forwarder: Forwarder::new(resolv_conf, PORT),
            counters: Counters::default(),
            learned: Instant::now() + learning,
        });
        let working = Arc::clone(&office);
        let task = tokio::spawn(async move {
            loop {
                let (asker, question) = working.desk.question().await;
                Office::handle(&working, asker, &question);
            }
        });
        NameService { office, task }
    }

    /// Changes the names: the next question is answered with them.
    pub fn change(&self, change: impl FnOnce(&mut Names)) {
        change(&mut self.office.names.write());
    }

    /// False when it has ended without being told to.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// What was done with questions so far, by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let Office {
            desk, counters: c, ..
        } = &*self.office;
        let all = [
            ("answered", &c.answered),
            ("forwarded", &c.forwarded),
            ("unanswered-by-resolvers", &c.unanswered),
            ("malformed", &c.unfit),
            ("no-questions", &c.ignored),
            ("dropped-too-many-waiting", &c.busy),
            ("dropped-rate", &desk.refused),
            ("dropped-queue-full", &desk.overflowed),
        ];
        let read = |(name, counter): (&str, &AtomicU64)| {
            (name.to_owned(), counter.load(Ordering::Relaxed))
        };
        all.into_iter().map(read).collect()
    }
}

impl Drop for NameService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Office {
    fn handle(self: &Arc<Self>, asker: Asker, message: &[u8]) {
        let outcome = answer(&self.names.read(), asker.vni(), message, rand::random());
        let unknown = match &outcome {
            Outcome::Answer { found, .. } => !found,
            Outcome::Forward(_) => true,
            Outcome::Unfit(_) | Outcome::Ignore => false,
        };
        if unknown && Instant::now() < self.learned {
            let Some(place) = self.forwarder.place(asker.ifindex()) else {
                return count(&self.counters.busy);
            };
            let (this, message) = (Arc::clone(self), message.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep_until(this.learned.into()).await;
                drop(place);
                this.handle(asker, &message);
            });
            return;
        }
        match outcome {
            Outcome::Answer { bytes, .. } => {
                count(&self.counters.answered);
                self.desk.answer(asker, bytes);
            }
            Outcome::Unfit(bytes) => {
                count(&self.counters.unfit);
                self.desk.answer(asker, bytes);
            }
            Outcome::Forward(question) => self.forward(asker, *question),
            Outcome::Ignore => count(&self.counters.ignored),
        }
    }

    fn forward(self: &Arc<Self>, asker: Asker, question: Question) {
        // Who has no place now asks again.
        let Some(place) = self.forwarder.place(asker.ifindex()) else {
            return count(&self.counters.busy);
        };
        count(&self.counters.forwarded);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let is_ours = |ip| this.names.read().is_gateway(ip);
            let bytes = match place.ask(&question, is_ours).await {
                Verdict::Answer(bytes) => bytes,
                Verdict::Failure(bytes) => {
                    count(&this.counters.unanswered);
                    bytes
                }
            };
            this.desk.answer(asker, bytes);
        });
    }
}
