//! The facts that the cluster's managers agree on: Raft around [`overlay_core::facts`], with its
//! log on disk.
//!
//! A manager has one [`Raft`]. Whoever has a command gives it to the leader's [`Raft::propose`];
//! when that returns, a majority of the managers has it on disk, and no crash undoes it. Reading
//! needs nobody else. Who the managers are is itself one of the facts: the leader follows it.
#![forbid(unsafe_code)]

mod backup;
mod error;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod log;
mod machine;
mod members;
mod network;
mod raft;
mod seal;
mod serve;
mod timings;
mod types;
mod wire;

pub use error::{BackupError, OpenError, ProposeError, Unreachable};
pub use network::Transport;
pub use raft::{Raft, RaftStatus};
pub use timings::Timings;
pub use wire::{MAX_COMMAND, MAX_MESSAGE};

/// The facts in a backup, to look at before it is restored.
///
/// # Errors
/// When it can't be restored.
pub fn facts_of_backup(backup: &[u8]) -> Result<overlay_core::facts::Facts, BackupError> {
    backup::read(backup).map(|(machine, _)| machine.facts().clone())
}
