//! Docker's containers on networks of the cluster: the overlay tutorial of Docker's documentation
//! with `-d overlay-dp` and two real daemons, and the plugin's protocol without any.
//!
//! ```text
//!   test.1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ test.2
//!            agent + dockerd                                    agent + dockerd
//!                                        │
//!                              203.0.113.9 outside
//! ```

#[path = "docker/bed.rs"]
mod bed;
#[path = "docker/protocol.rs"]
mod protocol;
#[path = "docker/tutorial.rs"]
mod tutorial;
#[path = "docker/ways.rs"]
mod ways;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
