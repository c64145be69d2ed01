//! The state that the managers agree on, and its commands.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Change, Command, Facts, FactsNews, Refusal, Reply, Version};
use crate::model::Host;

/// What only managers know.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// The cluster CA's certificate, DER.
    pub ca_cert: Vec<u8>,
    /// Its private key, PKCS#8 DER.
    pub ca_key: Vec<u8>,
    /// The secret in the join token of hosts.
    pub worker_token: Vec<u8>,
    /// The secret in the join token of managers.
    pub manager_token: Vec<u8>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// What the managers agree on. `serde` state: its snapshots and backups are postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMachine {
    facts: Facts,
    secrets: Secrets,
    /// The VNI tried next; it never goes back, so that a new network doesn't inherit stray frames.
    next_vni: u32,
    /// The cluster's own IPv6 prefix, a /48.
    ula_prefix: [u8; 6],
    /// The latest changes, the oldest first, for copies that are not far behind.
    recent: VecDeque<Step>,
}

/// What one command changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    after: Version,
    version: Version,
    changes: Vec<Change>,
}

impl StateMachine {
    /// A cluster of one manager. `ula` is its random IPv6 prefix, fdxx:xxxx:xxxx::/48; `epoch` is
    /// at least 1.
    pub fn new(first: Host, secrets: Secrets, ula: [u8; 6], epoch: u64) -> StateMachine {
        let _ = (first, secrets, ula, epoch);
        todo!()
    }

    /// The same cluster after a restore: `host` is the only manager, in place of a host with the
    /// same id or VTEP, and the epoch is the next.
    #[must_use]
    pub fn restored(self, host: Host) -> StateMachine {
        let _ = host;
        todo!()
    }

    /// The public part.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What only managers know.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The cluster's own IPv6 prefix, a /48.
    pub fn ula_prefix(&self) -> [u8; 6] {
        self.ula_prefix
    }

    /// Applies the command at `index` of the log; indices rise, but need not be consecutive.
    ///
    /// Afterwards `facts().version()` is what a copy must have reached to show the outcome. It is
    /// an older one when the command changed nothing public.
    ///
    /// # Errors
    /// When the command can't be met. All but what hosts want is as it was then.
    pub fn apply(&mut self, index: u64, command: &Command) -> Result<Reply, Refusal> {
        let _ = (index, command);
        todo!()
    }

    /// What a copy of version `have` lacks. Nothing when it is ahead of this manager.
    pub fn since(&self, have: Version) -> FactsNews {
        let _ = have;
        todo!()
    }
}
