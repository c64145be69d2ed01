//! How patient managers are.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::error::OpenError;

/// How long managers wait for each other, and how long a log gets. The same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// A leader is heard of at least every one and a half of these.
    pub heartbeat: Duration,
    /// A manager that has not heard of the leader for `election.1` plus a random time between the
    /// two asks to be the leader. So the first of two managers does after 0.8 to 1 s by default.
    pub election: (Duration, Duration),
    /// After this time [`Raft::propose`](crate::Raft::propose) gives up.
    pub propose: Duration,
    /// A snapshot is made after so many commands.
    pub snapshot_every: u64,
    /// So many commands before the snapshot are kept: a manager that lags no more gets these.
    pub keep: u64,
}

impl Default for Timings {
    /// For a LAN.
    fn default() -> Timings {
        Timings {
            heartbeat: Duration::from_millis(150),
            election: (Duration::from_millis(300), Duration::from_millis(500)),
            propose: Duration::from_secs(3),
            snapshot_every: 2000,
            keep: 500,
        }
    }
}

impl Timings {
    /// A leader that no majority has answered for so long does not count as one.
    pub(crate) fn quorum_window(&self) -> Duration {
        self.election.1 * 2
    }

    /// So long after a leader was heard of the facts still tell who is no manager: longer than an
    /// election takes.
    pub(crate) fn fresh(&self) -> Duration {
        self.quorum_window() * 5
    }

    /// For one message; openraft waits less for an answer to most.
    pub(crate) fn call(&self) -> Duration {
        self.propose.max(self.election.1)
    }

    pub(crate) fn config(&self) -> Result<Arc<Config>, OpenError> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let config = Config {
            cluster_name: "overlay-dp".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election.0),
            election_timeout_max: millis(self.election.1),
            install_snapshot_timeout: millis(self.call()),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep,
            // Until it is known that this manager has a vote.
            enable_elect: false,
            ..Config::default()
        };
        let config = config.validate();
        Ok(Arc::new(
            config.map_err(|error| OpenError::Timings(error.to_string()))?,
        ))
    }
}
