//! AF_XDP against the running kernel, each test in a network namespace of its own.
//!
//! ```text
//!   netns xsk-<pid>-<n>
//!     xsk0 ══════════ veth, MTU 3400, no IPv6 ══════════ peer0
//!      │ XDP: redirect everything to an XSKMAP            │
//!      ▼ ▲                                                ▼ ▲
//!    AF_XDP, queue 0                                    AF_PACKET
//! ```
//!
//! Needs root. Skipping is loud, and a failure where CI=true.

mod errors;
mod lab;
mod limits;
mod sys;
mod traffic;
