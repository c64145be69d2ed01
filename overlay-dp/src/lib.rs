//! The agent of overlay-dp and its command line.
//!
//! The agent is one event loop ([`agent`]): it owns the forwarding tables, is the only writer of
//! the BPF maps ([`bpf`]), and answers the local [`api`]. Frames that the programs can't decide
//! go to a thread of their own, the slow path. Deciding is done by `overlay-core`, talking to
//! other hosts by `overlay-cluster`, plumbing by `overlay-host`.

pub mod agent;
pub mod api;
pub mod bpf;
pub mod capture;
pub mod cli;
pub mod docker;
#[doc(hidden)]
pub mod fuzzing;
pub mod instance;
pub mod plugins;
pub mod privileges;
