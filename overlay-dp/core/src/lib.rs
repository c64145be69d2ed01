//! The sans-IO heart of overlay-dp: what a network, an endpoint and a VTEP are, the forwarding
//! tables, and the slow path that decides what the eBPF programs could not.
//!
//! Nothing in here knows a socket, a clock or a random number generator: they are arguments.
#![forbid(unsafe_code)]

pub mod facts;
pub mod health;
pub mod holdings;
pub mod maglev;
pub mod model;
pub mod multicast;
pub mod policy;
pub mod slowpath;
pub mod tables;
