//! What openraft is instantiated with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::CommittedLeaderId;
use overlay_core::facts::{Command, Refusal, Reply, Version};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// All of openraft's types, as this crate uses them.
    pub(crate) Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Store,
        Entry = openraft::Entry<Types>,
        SnapshotData = Vec<u8>,
);

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::Membership<u64, Store>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Store>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Store>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Store>;

/// Which store a member has: a random number, made with its file. A manager that lost its file has
/// forgotten its votes, so it must not be taken for the one that it was: what is addressed to
/// another store is refused, and the leader then makes it a new member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Store(pub u64);

/// A command on its way into the log.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub command: Command,
    /// Whether it has got into this manager's log: from then on it may happen.
    #[serde(skip)]
    pub logged: Logged,
}

/// Shared by a proposal and who waits for it.
#[derive(Clone, Default)]
pub(crate) struct Logged(Arc<AtomicBool>);

impl Logged {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// openraft prints entries: commands may have secrets.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proposal(..)")
    }
}

/// What applying an entry gave.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It was no command.
    Internal,
    /// What the state machine said, and the facts' version afterwards.
    Command(Version, Result<Reply, Refusal>),
}

/// The log's first index is never used: a log begins with a snapshot, which has the first facts.
pub(crate) fn log_id(term: u64, leader: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, leader), index)
}
