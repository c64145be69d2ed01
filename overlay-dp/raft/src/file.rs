//! The one file that a manager keeps: log, vote, what is committed, the latest snapshot.
//!
//! redb makes each transaction all or nothing, also at `kill -9` or a power cut. Each value has a
//! checksum of its own on top, and all of them are checked when the file is opened: Raft must not
//! run on a log that a disk has changed. The file appears under its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use overlay_core::model::HostId;
use parking_lot::RwLock;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::error::OpenError;
use crate::seal::{seal, unseal};
use crate::types::{LogId, Store, Vote};

const NAME: &str = "raft.redb";
const NEW: &str = "raft.redb.new";
const FORMAT: u16 = 5;
const CACHE: usize = 8 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");

const HEAD: &str = "head";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";

/// What begins every file.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Head {
    format: u16,
    host: u64,
    store: Store,
}

/// What a file is made with, apart from nothing.
pub(crate) struct Seed {
    pub store: Store,
    pub vote: Vote,
    /// What the snapshot includes: the log goes on behind it.
    pub last: LogId,
    pub snapshot: Vec<u8>,
}

/// A failure of the file in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{0}")]
    Db(#[from] redb::Error),
    #[error("{0} has changed on the disk")]
    Damaged(String),
    #[error("it is closed")]
    Closed,
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for FileError {
            fn from(error: redb::$error) -> FileError {
                FileError::Db(error.into())
            }
        }
    )*};
}
from_redb!(
    TransactionError,
    TableError,
    StorageError,
    CommitError,
    SetDurabilityError
);

/// The open file. One process at a time has it.
pub(crate) struct RaftFile {
    db: RwLock<Option<Database>>,
    store: Store,
}

impl RaftFile {
    /// Opens the file in `dir`; makes an empty one when there is none.
    pub fn open(dir: &Path, me: HostId) -> Result<RaftFile, OpenError> {
        let path = dir.join(NAME);
        if !exists(&path)? {
            make(dir, me, None)?;
        }
        // A damaged page can make redb panic: that is damage, too.
        let opened = catch_unwind(AssertUnwindSafe(|| check(&path, me)));
        opened.unwrap_or_else(|_| {
            Err(OpenError::Damaged {
                path,
                problem: "its pages don't fit together".to_owned(),
            })
        })
    }

    /// Makes the file in `dir`, complete or not at all.
    pub fn create(dir: &Path, me: HostId, seed: &Seed) -> Result<(), OpenError> {
        let path = dir.join(NAME);
        if exists(&path)? {
            return Err(OpenError::Exists(path));
        }
        make(dir, me, Some(seed))
    }

    /// Which store this is.
    pub fn store(&self) -> Store {
        self.store
    }

    /// Lets go of the file: whatever still runs fails from now on.
    pub fn close(&self) {
        self.db.write().take();
    }

    pub fn vote(&self) -> Result<Option<Vote>, FileError> {
        self.meta(VOTE)
    }

    pub fn set_vote(&self, vote: &Vote) -> Result<(), FileError> {
        self.set_meta(VOTE, &encode(vote), Durability::Immediate)
    }

    pub fn committed(&self) -> Result<Option<LogId>, FileError> {
        self.meta(COMMITTED)
    }

    /// Not durable before the next write that is: it only spares a restarted manager to ask.
    pub fn set_committed(&self, committed: &LogId) -> Result<(), FileError> {
        self.set_meta(COMMITTED, &encode(committed), Durability::None)
    }

    pub fn purged(&self) -> Result<Option<LogId>, FileError> {
        self.meta(PURGED)
    }

    /// What [`RaftFile::set_snapshot`] was given last.
    pub fn snapshot(&self) -> Result<Option<Vec<u8>>, FileError> {
        self.read(|meta, _| get(meta, SNAPSHOT))
    }

    pub fn set_snapshot(&self, snapshot: &[u8]) -> Result<(), FileError> {
        self.set_meta(SNAPSHOT, snapshot, Durability::Immediate)
    }

    /// The last entry.
    pub fn last(&self) -> Result<Option<Vec<u8>>, FileError> {
        self.read(|_, log| {
            let Some((index, value)) = log.last()? else {
                return Ok(None);
            };
            entry(index.value(), value.value()).map(Some)
        })
    }

    /// Entries from `range.start` on, until there are no more or `limit` bytes; at least one if
    /// there is one.
    pub fn entries(&self, range: Range<u64>, limit: usize) -> Result<Vec<Vec<u8>>, FileError> {
        self.read(|_, log| {
            let mut entries = Vec::new();
            let mut size = 0;
            for row in log.range(range)? {
                let (index, value) = row?;
                let body = entry(index.value(), value.value())?;
                size += body.len();
                if size > limit && !entries.is_empty() {
                    break;
                }
                entries.push(body);
            }
            Ok(entries)
        })
    }

    /// Returns when they are durable.
    pub fn append(&self, entries: &[(u64, Vec<u8>)]) -> Result<(), FileError> {
        self.write(Durability::Immediate, |_, log| {
            for (index, body) in entries {
                log.insert(index, seal(&place(*index), body).as_slice())?;
            }
            Ok(())
        })
    }

    /// Removes the entries from `first` on.
    pub fn truncate(&self, first: u64) -> Result<(), FileError> {
        self.write(Durability::Immediate, |_, log| {
            log.retain_in(first.., |_, _| false)?;
            Ok(())
        })
    }

    /// Removes the entries up to `last`, which a snapshot includes.
    pub fn purge(&self, last: &LogId) -> Result<(), FileError> {
        self.write(Durability::Immediate, |meta, log| {
            meta.insert(PURGED, seal(PURGED, &encode(last)).as_slice())?;
            log.retain_in(..=last.index, |_, _| false)?;
            Ok(())
        })
    }

    fn meta<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, FileError> {
        self.read(|meta, _| {
            let Some(body) = get(meta, key)? else {
                return Ok(None);
            };
            let value = postcard::from_bytes(&body);
            value
                .map(Some)
                .map_err(|_| FileError::Damaged(key.to_owned()))
        })
    }

    fn set_meta(&self, key: &str, body: &[u8], durable: Durability) -> Result<(), FileError> {
        self.write(durable, |meta, _| {
            meta.insert(key, seal(key, body).as_slice())?;
            Ok(())
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Meta, &redb::ReadOnlyTable<u64, &'static [u8]>) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        let db = self.db.read();
        let txn = db.as_ref().ok_or(FileError::Closed)?.begin_read()?;
        read(&txn.open_table(META)?, &txn.open_table(LOG)?)
    }

    fn write(
        &self,
        durability: Durability,
        write: impl FnOnce(
            &mut redb::Table<&'static str, &'static [u8]>,
            &mut redb::Table<u64, &'static [u8]>,
        ) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let db = self.db.read();
        let mut txn = db.as_ref().ok_or(FileError::Closed)?.begin_write()?;
        txn.set_durability(durability)?;
        write(&mut txn.open_table(META)?, &mut txn.open_table(LOG)?)?;
        txn.commit()?;
        Ok(())
    }
}

type Meta = redb::ReadOnlyTable<&'static str, &'static [u8]>;

fn get(meta: &Meta, key: &str) -> Result<Option<Vec<u8>>, FileError> {
    let Some(value) = meta.get(key)? else {
        return Ok(None);
    };
    let body = unseal(key, value.value()).ok_or_else(|| FileError::Damaged(key.to_owned()))?;
    Ok(Some(body.to_vec()))
}

fn entry(index: u64, sealed: &[u8]) -> Result<Vec<u8>, FileError> {
    let place = place(index);
    let body = unseal(&place, sealed).ok_or(FileError::Damaged(place))?;
    Ok(body.to_vec())
}

fn place(index: u64) -> String {
    format!("log entry {index}")
}

/// Plain data of this crate can always be encoded; an empty value would fail its next reading.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn make(dir: &Path, me: HostId, seed: Option<&Seed>) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    let new = dir.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    fill(&new, me, seed).map_err(|error| failed(io::Error::other(error)))?;
    File::open(&new)
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    fs::rename(&new, dir.join(NAME)).map_err(failed)?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

fn fill(path: &Path, me: HostId, seed: Option<&Seed>) -> Result<(), FileError> {
    let head = Head {
        format: FORMAT,
        host: me.0,
        store: seed.map_or_else(|| Store(rand::random()), |seed| seed.store),
    };
    let db = Database::builder()
        .set_cache_size(CACHE)
        .create(path)
        .map_err(redb::Error::from)?;
    let file = RaftFile {
        db: RwLock::new(Some(db)),
        store: head.store,
    };
    file.write(Durability::Immediate, |meta, _| {
        meta.insert(HEAD, seal(HEAD, &encode(&head)).as_slice())?;
        if let Some(seed) = seed {
            meta.insert(VOTE, seal(VOTE, &encode(&seed.vote)).as_slice())?;
            meta.insert(PURGED, seal(PURGED, &encode(&seed.last)).as_slice())?;
            meta.insert(SNAPSHOT, seal(SNAPSHOT, &seed.snapshot).as_slice())?;
        }
        Ok(())
    })
}

/// Opens the file and reads all of it.
fn check(path: &Path, me: HostId) -> Result<RaftFile, OpenError> {
    let damaged = |problem: String| OpenError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true);
    let db = builder.open(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(redb::StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            OpenError::Io {
                path: path.to_owned(),
                source,
            }
        }
        error => damaged(error.to_string()),
    })?;
    let mut file = RaftFile {
        db: RwLock::new(Some(db)),
        store: Store::default(),
    };
    let head = file
        .meta::<Head>(HEAD)
        .map_err(|error| damaged(error.to_string()))?;
    let head = head.ok_or_else(|| damaged("it has no beginning".to_owned()))?;
    if head.format != FORMAT {
        return Err(OpenError::Format {
            path: path.to_owned(),
            format: head.format,
        });
    }
    if head.host != me.0 {
        return Err(OpenError::OtherHost {
            path: path.to_owned(),
            owner: HostId(head.host),
            me,
        });
    }
    file.store = head.store;
    file.verify().map_err(|error| damaged(error.to_string()))?;
    Ok(file)
}

impl RaftFile {
    /// Every checksum, and that no entry is missing between the first and the last.
    fn verify(&self) -> Result<(), FileError> {
        self.vote()?;
        self.committed()?;
        self.snapshot()?;
        let purged = self.purged()?;
        self.read(|_, log| {
            let mut next = purged.map(|id| id.index + 1);
            for row in log.iter()? {
                let (index, value) = row?;
                let index = index.value();
                entry(index, value.value())?;
                if next.is_some_and(|next| next != index) {
                    return Err(FileError::Damaged(place(next.unwrap_or_default())));
                }
                next = Some(index + 1);
            }
            Ok(())
        })
    }
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(|source| OpenError::Io {
        path: path.to_owned(),
        source,
    })
}
