//! The control port, which only managers have open: what is asked of them, on both sides. Any
//! request may come to any manager; one that does not lead says who does.

mod admit;
mod client;
mod join;
mod server;

pub use admit::certify_self;
pub use client::{ask, exchange, leader, voters};
pub use join::join;
pub use server::{accepted, answer};

/// The port that a manager's address without one means.
pub const DEFAULT_PORT: u16 = 2377;
