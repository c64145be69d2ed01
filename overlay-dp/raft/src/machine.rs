//! The state machine, for openraft: [`StateMachine`] in memory, its snapshots in the file.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use overlay_core::facts::{StateMachine, Version};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::file::{RaftFile, encode};
use crate::log::wrap;
use crate::types::{
    Entry, LogId, Outcome, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types,
};

/// What has been applied. The single writer is openraft's worker, through [`Machine`].
#[derive(Default)]
pub(crate) struct Applied {
    pub last: Option<LogId>,
    pub membership: StoredMembership,
    /// None in a manager that has not got its first snapshot yet.
    pub machine: Option<StateMachine>,
}

/// The handle that openraft works with, and builds snapshots with.
#[derive(Clone)]
pub(crate) struct Machine {
    file: Arc<RaftFile>,
    applied: Arc<RwLock<Applied>>,
    version: Arc<watch::Sender<Version>>,
}

impl Machine {
    /// As of the file's snapshot; openraft applies the rest of the log.
    pub fn load(file: Arc<RaftFile>) -> Result<Machine, String> {
        let mut applied = Applied::default();
        if let Some(bytes) = file.snapshot().map_err(|error| error.to_string())? {
            let (meta, machine) = decode(&bytes).ok_or("its snapshot can't be read")?;
            applied = Applied {
                last: meta.last_log_id,
                membership: meta.last_membership,
                machine: Some(machine),
            };
        }
        let version = applied
            .machine
            .as_ref()
            .map(|machine| machine.facts().version());
        Ok(Machine {
            file,
            applied: Arc::new(RwLock::new(applied)),
            version: Arc::new(watch::Sender::new(version.unwrap_or_default())),
        })
    }

    pub fn applied(&self) -> Arc<RwLock<Applied>> {
        self.applied.clone()
    }

    pub fn versions(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    async fn store(&self, bytes: Vec<u8>) -> Result<(), StorageError> {
        let file = self.file.clone();
        let stored = tokio::task::spawn_blocking(move || file.set_snapshot(&bytes)).await;
        let stored = stored
            .map_err(std::io::Error::other)
            .and_then(|done| done.map_err(wrap));
        Ok(stored.map_err(|error| StorageIOError::write_snapshot(None, &error))?)
    }

    fn announce(&self) {
        let applied = self.applied.read();
        let Some(version) = applied
            .machine
            .as_ref()
            .map(|machine| machine.facts().version())
        else {
            return;
        };
        drop(applied);
        self.version.send_if_modified(|current| {
            let changed = *current != version;
            *current = version;
            changed
        });
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.applied.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        {
            let mut applied = self.applied.write();
            for entry in entries {
                let id = entry.log_id;
                let outcome = applied.apply(entry).ok_or_else(|| {
                    let problem = AnyError::error("a command before the first facts");
                    StorageIOError::apply(id, problem)
                })?;
                outcomes.push(outcome);
            }
        }
        self.announce();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError> {
        let machine = decode_machine(&snapshot).ok_or_else(|| {
            let problem = AnyError::error("a snapshot that can't be read");
            StorageIOError::read_snapshot(Some(meta.signature()), problem)
        })?;
        self.store(join(meta, &snapshot)).await?;
        *self.applied.write() = Applied {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            machine: Some(machine),
        };
        self.announce();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let bytes = self.file.snapshot();
        let bytes = bytes.map_err(|error| StorageIOError::read_snapshot(None, &wrap(error)))?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let (meta, data) = postcard::take_from_bytes::<SnapshotMeta>(&bytes)
            .map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(Some(Snapshot {
            meta,
            snapshot: Box::new(data.to_vec()),
        }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, data) = {
            let applied = self.applied.read();
            let Some(machine) = &applied.machine else {
                let problem = AnyError::error("there are no facts yet");
                return Err(StorageIOError::read_state_machine(problem).into());
            };
            (
                meta(applied.last, applied.membership.clone()),
                encode(machine),
            )
        };
        self.store(join(&meta, &data)).await?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(data),
        })
    }
}

impl Applied {
    /// None for a command without facts to apply it to: a log begins behind a snapshot.
    fn apply(&mut self, entry: Entry) -> Option<Outcome> {
        let id = entry.log_id;
        let outcome = match entry.payload {
            EntryPayload::Blank => Outcome::Internal,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                Outcome::Internal
            }
            EntryPayload::Normal(proposal) => {
                let machine = self.machine.as_mut()?;
                let result = machine.apply(id.index, &proposal.command);
                Outcome::Command(machine.facts().version(), result)
            }
        };
        self.last = Some(id);
        Some(outcome)
    }
}

/// A snapshot's description. Its id tells apart what was built at different points of the log.
pub(crate) fn meta(last: Option<LogId>, membership: StoredMembership) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: last,
        last_membership: membership,
        snapshot_id: last.map_or_else(String::new, |id| id.to_string()),
    }
}

/// As the file has it.
pub(crate) fn join(meta: &SnapshotMeta, data: &[u8]) -> Vec<u8> {
    let mut bytes = encode(meta);
    bytes.extend_from_slice(data);
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Option<(SnapshotMeta, StateMachine)> {
    let (meta, data) = postcard::take_from_bytes(bytes).ok()?;
    Some((meta, decode_machine(data)?))
}

/// The state in a snapshot or backup.
pub(crate) fn decode_machine(data: &[u8]) -> Option<StateMachine> {
    let (machine, rest) = postcard::take_from_bytes(data).ok()?;
    rest.is_empty().then_some(machine)
}
