//! One network's addresses: who has which.

use serde::{Deserialize, Serialize};

use super::Range;
use crate::model::Network;

/// A network and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pool {
    pub network: Network,
    /// What addresses are chosen from.
    pub chosen: Range,
}
