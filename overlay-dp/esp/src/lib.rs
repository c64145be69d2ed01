//! ESP in UDP around VXLAN ([`overlay_common::esp`]): what an encrypted network's frames are sealed
//! with and opened by, and how two hosts agree on the keys.
//!
//! - [`frame`] makes an ESP packet of a VXLAN frame, and a VXLAN frame of an ESP packet.
//! - [`sa`] has the security associations (RFC 4301 section 4.1), each for one direction between two
//!   hosts: a key, and which sequence numbers it has sent or seen ([`window`]).
//! - [`keys`] decides when a host gives another one a new key. Who receives chooses it, and tells
//!   nobody but the host that is to send with it. Nothing here sends: that is the caller's, over a
//!   connection on which both have proved who they are.
//!
//! No clock and no sockets in here; chance comes from [`secret::Secret::draw`] alone.
#![forbid(unsafe_code)]

pub mod frame;
pub mod keys;
pub mod sa;
pub mod secret;
pub mod window;
