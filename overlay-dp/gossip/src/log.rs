//! The logs of the facts that one host owns, its endpoints, one for each network: as their owner
//! keeps them ([`OwnLogs`]), and as the others follow them ([`PeerLog`]). Sans-IO.
//!
//! A log is known by its [`Position`]. What is newer comes as changes, or as a snapshot when too
//! much happened in between; a snapshot replaces what was known, and only real differences come
//! out. After a restart the owner's logs begin empty: what it held before stays with the others
//! until the owner publishes it again or says that it has settled. The multicast groups that have
//! members there are one record beside the endpoints, told as a whole.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

use overlay_core::model::{Endpoint, check_name};

mod own;
mod peer;

pub(crate) use own::News;
pub use own::OwnLogs;
pub(crate) use peer::{Account, Diff, Gap, PeerLog};

/// More endpoints than this are not accepted from one host.
pub const MAX_ENDPOINTS: usize = 65_536;
/// Nor more than this, as [`cost`] counts: names and aliases are their owner's to choose.
pub(crate) const MAX_BYTES: usize = 32 << 20;
/// So many endpoints of one host may wait for facts that allow them.
pub const MAX_WAITING: usize = 4096;
/// One of each family, and a link-local one.
const MAX_IPS: usize = 3;
const MAX_ALIASES: usize = 64;

/// Whether an endpoint is one at all, whatever the facts say: this bounds what it costs to keep
/// one that waits for them.
fn well_formed(endpoint: &Endpoint) -> bool {
    let mut names = endpoint.aliases.iter().chain(&endpoint.service);
    check_name(&endpoint.name).is_ok()
        && endpoint.mac.is_unicast()
        && (1..=MAX_IPS).contains(&endpoint.ips.len())
        && endpoint.aliases.len() <= MAX_ALIASES
        && names.all(|name| check_name(name).is_ok())
}

/// No less than what an endpoint takes in a frame, and about what it takes in memory.
pub(crate) fn cost(endpoint: &Endpoint) -> usize {
    let names = endpoint.aliases.iter().chain(&endpoint.service);
    let names = names.map(|name| name.len() + 32);
    128 + endpoint.name.len() + endpoint.ips.len() * 18 + names.sum::<usize>()
}

/// The same of groups.
pub(crate) fn cost_of_groups(groups: usize) -> usize {
    groups * 32
}

/// An endpoint where its name is the key.
#[derive(Debug)]
struct ByName(Arc<Endpoint>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &ByName) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &ByName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByName {}

#[cfg(test)]
mod tests;
