//! What a command changed, for the copies that every host keeps.

use serde::{Deserialize, Serialize};

use super::Wanted;
use super::{Facts, Range, Version};
use crate::model::{Host, HostId, MacAddr, Network, Vni};

/// One difference between two versions of the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new host, or other facts about one.
    HostSet(Host),
    /// A host left; all that it held and wanted is free.
    HostGone(HostId),
    /// A new network.
    NetworkSet {
        /// The network.
        network: Network,
        /// What addresses are chosen from.
        pool: Range,
    },
    /// A network is gone, with all in it.
    NetworkGone(Vni),
    /// A host got offsets, or a spare of its became an ordinary one.
    Granted {
        /// The network.
        vni: Vni,
        /// The offsets.
        range: Range,
        /// Who has them.
        host: HostId,
        /// For times when no manager can be asked.
        spare: bool,
        /// The version that granted them.
        since: Version,
    },
    /// Offsets are free.
    Returned {
        /// The network.
        vni: Vni,
        /// The offsets.
        range: Range,
    },
    /// A host claimed a MAC address.
    MacClaimed {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
        /// Whose it is.
        host: HostId,
        /// The version that granted it.
        since: Version,
    },
    /// A MAC address is free.
    MacReleased {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
    },
    /// A host could not get something.
    WantedSet {
        /// The network.
        vni: Vni,
        /// Who and what.
        wanted: Wanted,
    },
    /// A host no longer waits.
    WantedGone {
        /// The network.
        vni: Vni,
        /// Who.
        host: HostId,
    },
}

/// What a copy lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FactsNews {
    /// It is current.
    Nothing,
    /// These, in this order.
    Changes {
        /// What the copy must have.
        after: Version,
        /// What it has then.
        version: Version,
        /// What happened in between.
        changes: Vec<Change>,
    },
    /// Everything: it is too old, or of another epoch.
    Snapshot(Facts),
}

/// Changes were left out: the copy needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after {after:?} do not follow version {have:?}: fetch the facts anew")]
pub struct Gap {
    /// What the copy has.
    pub have: Version,
    /// What the changes begin after.
    pub after: Version,
}
