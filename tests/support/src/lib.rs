//! Hosts, a router and containers made of network namespaces on one machine, for the end-to-end
//! tests, the benches and `cargo xtask demo`. No product logic: it runs the `overlay-dp` binary.
//!
//! ```text
//!   host1                      router                     host2
//!   eth0 172.31.1.5/24 ─veth─ .1 to-host1  to-host2 .1 ─veth─ eth0 192.168.1.5/24
//!                                   to-host3 .1
//!                                       └────────veth─ eth0 172.31.2.5/24   host3 (if asked for)
//!
//!   c1, c2, … : empty namespaces, for `overlay-dp container add --netns`
//! ```
//!
//! The hosts share the machine's files, PIDs and bpffs; `OVERLAY_DP_INSTANCE` keeps their agents
//! apart. A lab's namespaces, pins, state and processes all carry or live in its id,
//! `odp-<pid>-<n>`, so that it can be removed by its id alone, also after its maker has died.

mod agent;
mod cluster;
mod docker;
mod fixture;
mod iperf;
mod lab;
mod leftovers;
mod ns;
mod outside;
mod packet;
mod partition;
mod pins;
mod power;
mod probe;
mod process;
mod remove;
mod verify;
mod wire;

pub use agent::AgentProc;
pub use cluster::{Cluster, join_args, token};
pub use docker::{Dockerd, IMAGE};
pub use fixture::{Container, Overlay, all_reach_each_other, test, wait_checksums};
pub use iperf::{Load, Traffic, iperf3, least};
pub use lab::{Host, Lab, LabSpec};
pub use ns::Ns;
pub use outside::{Outside, Teller, Told, ask_udp};
pub use packet::PacketSocket;
pub use pins::hex;
pub use probe::{Hop, PingRun, PingStats, checksum_errors, nstat, ping, start_ping, traceroute};
pub use process::{
    Background, Done, check_signals, emulated, program, stop_on_signals, wait_until,
};
pub use remove::{kept_labs, remove_kept, remove_stale};
pub use wire::Wire;
