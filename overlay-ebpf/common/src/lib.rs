//! What the eBPF programs and the agent must agree on: wire formats, BPF map layouts, counters,
//! the punt link's marker, VTEP echoes, and the forwarding verdicts themselves.
//!
//! The verdicts ([`verdict`]) are generic over how bytes and tables are read, so that the very
//! same code runs in XDP, in tcx and, natively, in tests and in the agent.
#![no_std]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod bulk;
pub mod capture;
pub mod checksum;
pub mod counters;
pub mod echo;
pub mod esp;
pub mod layout;
pub mod outer;
pub mod policy;
pub mod punt;
pub mod rate;
pub mod service;
pub mod verdict;
pub mod wire;
