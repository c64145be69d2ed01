//! What hosts tell each other, without sockets and clocks: who is alive ([`Swim`]), what each of
//! them has ([`Book`]), and the streams on which they say so ([`Leader`], [`Follower`]).
//!
//! Every function that needs the time gets it as an argument; randomness comes from the generator
//! given to [`Swim::new`]. So the same code runs over QUIC in overlay-cluster and in a simulator
//! with a thousand hosts.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use overlay_core::model::{Endpoint, Host, HostId, Network, Vni};
use overlay_core::multicast::Group;

mod book;
mod log;
mod session;
pub mod swim;
#[cfg(test)]
mod testing;
mod wire;

pub use book::Book;
pub use log::{MAX_ENDPOINTS, MAX_WAITING, OwnLogs};
pub use session::{Fault, Follower, Leader};
pub use swim::Swim;
pub use wire::{MAX_FRAME, Position};

/// What the agent must act on. At the start there is an [`Event::NetworkAdded`] for every network
/// that is known already; a host's [`Event::MemberUp`] comes before its first endpoint, and an
/// endpoint's events lie between those of its network. Endpoints are told of networks that this
/// host is interested in, only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host is there, or its addresses have changed.
    MemberUp(Host),
    /// A host does not answer. Its endpoints stay for a while: its data path may well go on.
    MemberDown(HostId),
    /// A host was removed from the cluster; its endpoints went before.
    MemberLeft(HostId),
    /// A network was created.
    NetworkAdded(Network),
    /// A network was removed.
    NetworkRemoved(Network),
    /// Another host has an endpoint.
    EndpointUp {
        /// The owner.
        host: HostId,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Another host no longer has an endpoint. One that changed goes down as it was, then comes up
    /// as it is.
    EndpointDown {
        /// The owner.
        host: HostId,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Another host has members of other multicast groups than before.
    Groups {
        /// Whose members.
        host: HostId,
        /// In this network.
        vni: Vni,
        /// All groups that have some there.
        groups: BTreeSet<Group>,
    },
    /// The facts are others now: what this host holds and what others want may be, too.
    FactsChanged,
    /// This host was removed from the cluster.
    Expelled,
}
