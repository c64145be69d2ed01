//! The log, for openraft. Every write is durable before openraft hears of its end.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader, StorageIOError};

use crate::file::{FileError, RaftFile, encode};
use crate::types::{Entry, LogId, StorageError, Types, Vote};
use crate::wire::MAX_BATCH;

/// Also the reader of the log: each holds the same file.
#[derive(Clone)]
pub(crate) struct Log(pub Arc<RaftFile>);

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.read(range, usize::MAX).map_err(unreadable)?)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.read(start..end, MAX_BATCH).map_err(unreadable)?)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let state = || {
            let purged = self.0.purged()?;
            let last = self.0.last()?.map(|body| decode(&body)).transpose()?;
            Ok((purged, last.map(|entry| entry.log_id)))
        };
        let (purged, last) = state().map_err(unreadable)?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        let saved = self.blocking(move |file| file.set_vote(&vote)).await;
        Ok(saved.map_err(|error| StorageIOError::write_vote(&error))?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.0.vote();
        Ok(vote.map_err(|error| StorageIOError::read_vote(&wrap(error)))?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let saved = committed.map_or(Ok(()), |last| self.0.set_committed(&last));
        Ok(saved.map_err(|error| StorageIOError::write(&wrap(error)))?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed = self.0.committed();
        Ok(committed.map_err(|error| StorageIOError::read(&wrap(error)))?)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        for entry in entries {
            rows.push((entry.log_id.index, encode(&entry)));
            if let EntryPayload::Normal(proposal) = &entry.payload {
                // Before it is written: a crash in between leaves the outcome open.
                proposal.logged.set();
            }
        }
        match self.blocking(move |file| file.append(&rows)).await {
            Ok(()) => done.log_io_completed(Ok(())),
            Err(error) => {
                let returned = StorageIOError::write_logs(&error);
                done.log_io_completed(Err(error));
                return Err(returned.into());
            }
        }
        Ok(())
    }

    async fn truncate(&mut self, first: LogId) -> Result<(), StorageError> {
        let done = self.blocking(move |file| file.truncate(first.index)).await;
        Ok(done.map_err(|error| StorageIOError::write_logs(&error))?)
    }

    async fn purge(&mut self, last: LogId) -> Result<(), StorageError> {
        let done = self.blocking(move |file| file.purge(&last)).await;
        Ok(done.map_err(|error| StorageIOError::write_logs(&error))?)
    }
}

impl Log {
    fn read<R: RangeBounds<u64>>(&self, range: R, limit: usize) -> Result<Vec<Entry>, FileError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let bodies = self.0.entries(start..end.max(start), limit)?;
        bodies.iter().map(|body| decode(body)).collect()
    }

    /// An fsync takes as long as the disk likes: not on the runtime's threads.
    async fn blocking(
        &self,
        write: impl FnOnce(&RaftFile) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), io::Error> {
        let file = self.0.clone();
        let done = tokio::task::spawn_blocking(move || write(&file)).await;
        done.map_err(io::Error::other)?.map_err(wrap)
    }
}

fn unreadable(error: FileError) -> StorageIOError<u64> {
    StorageIOError::read_logs(&wrap(error))
}

pub(crate) fn wrap(error: FileError) -> io::Error {
    io::Error::other(error)
}

fn decode(body: &[u8]) -> Result<Entry, FileError> {
    postcard::from_bytes(body).map_err(|_| FileError::Damaged("a log entry".to_owned()))
}
