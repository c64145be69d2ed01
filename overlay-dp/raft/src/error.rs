//! What can go wrong, and what to do then.

use std::path::PathBuf;

use overlay_core::facts::Refusal;
use overlay_core::model::HostId;

/// Why the store can't be used. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or the file can't be made, read or written.
    #[error("can't use {path}: {source}; check the disk and the directory's permissions")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{0} is in use: another agent runs on this host; stop it first")]
    InUse(PathBuf),
    /// There are agreed facts already where new ones should go.
    #[error(
        "{0} exists: this host has agreed facts already; start without a new cluster or backup, or move the file away"
    )]
    Exists(PathBuf),
    /// What is in it isn't what was written.
    #[error(
        "{path} is damaged ({problem}): move it away and start again; another manager then sends the facts anew, the only manager needs `cluster restore`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// It is another host's file.
    #[error(
        "{path} belongs to host {owner}, this is host {me}: each manager needs a file of its own; move this one away"
    )]
    OtherHost {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: HostId,
        /// Who opens it.
        me: HostId,
    },
    /// A later version of this program wrote it.
    #[error(
        "{path} has format {format}, which this version doesn't know: use the version that wrote it, or a later one"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u16,
    },
    /// A backup that can't be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Impossible [`Timings`](crate::Timings).
    #[error("timings can't work: {0}; the election time must be longer than the heartbeat's")]
    Timings(String),
    /// Raft refused to start.
    #[error("agreed facts can't be used: {0}; see the log, and restart the agent")]
    Stopped(String),
}

/// Why a command has not been done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The facts don't allow it. Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another manager leads. Nothing has changed.
    #[error("this manager does not lead: ask {}", .0.map_or("another one".to_owned(), |id| format!("host {id}")))]
    NotLeader(Option<HostId>),
    /// Most managers can't be reached. Nothing has changed.
    #[error(
        "no majority of the managers can be reached: nothing has changed; try again when they are back"
    )]
    NoQuorum,
    /// It was written here, but a majority did not confirm it in time: it may still be done, now or
    /// later. Proposing it again is safe where the command is: all of them but a new network or
    /// host, which are refused the second time.
    #[error(
        "no majority of the managers has confirmed it in time: it may still happen; look before you try again"
    )]
    Unknown,
    /// Too much for one command. Nothing has changed.
    #[error("the command has {0} bytes, more than can be agreed on at once: split it")]
    TooLarge(usize),
    /// Raft has stopped here, mostly since the disk failed.
    #[error(
        "this manager's agreed facts have stopped ({0}): repair the disk, then restart the agent"
    )]
    Stopped(String),
}

/// Why a backup can't be restored. Nothing has been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It isn't one.
    #[error("this is no backup of a cluster: give a file that `overlay-dp cluster backup` wrote")]
    NotABackup,
    /// From a later version of this program.
    #[error(
        "the backup has format {0}, which this version doesn't know: use the version that wrote it, or a later one"
    )]
    Format(u16),
    /// Its checksum doesn't fit.
    #[error("the backup is damaged: take another one")]
    Damaged,
    /// There is nothing to save.
    #[error("this manager has no agreed facts yet: take the backup on another one")]
    Empty,
}

/// The other manager did not answer. Returned by a [`Transport`](crate::Transport).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);
