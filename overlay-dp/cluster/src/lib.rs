//! The control plane of overlay-dp on the wire and on disk: which hosts belong together, what
//! they agree on, and what they tell each other.
//!
//! The first host makes the cluster and is its first manager; others join with a [`Token`], as
//! workers or as managers. Everything between hosts is QUIC with TLS 1.3 and certificates of the
//! cluster's CA on both sides; only a join is let in without one, by the token's secret, which the
//! joiner sends only after it has verified that CA.
//!
//! ```text
//!   managers                                        all hosts
//!   2377/udp control  ◄── join, networks, grants ──
//!                     ◄── Raft ──►                  (managers only)
//!   7946/udp gossip   ◄── endpoints, facts, SWIM ──►  7946/udp gossip
//! ```
//!
//! Managers agree on the facts with overlay-raft and tell all hosts of them; each host tells of its
//! own endpoints with overlay-gossip. Without a majority of the managers, nothing that runs is
//! lost: endpoints and membership go on, and only new agreements wait.
#![forbid(unsafe_code)]

mod api;
mod cluster;
mod control;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gossip;
mod hex;
mod managers;
mod node;
mod peers;
mod pki;
mod start;
mod state;
mod token;
mod transport;
mod wire;

pub use api::{
    Config, ControlStatus, Counters, Event, Member, MemberState, Start, StoredSummary, stored,
};
pub use cluster::Cluster;
pub use error::Error;
pub use peers::PeerAsk;
pub use start::describe_backup;
pub use token::{Token, TokenError};

#[cfg(test)]
mod hostile_tests;
