//! What is said on one gossip stream, without the stream: frames go in and come out. The host that
//! opened it follows ([`Follower`]), the other one leads ([`Leader`]); hosts that follow each other
//! have two streams. Both ends are authenticated by the connection: nobody else's word on a host's
//! endpoints is ever taken.
//!
//! The follower says who it is and which networks it wants to know, and may change that at any
//! time. The leader answers with what is missing, then with every change as it happens, and every
//! few seconds with a digest; managers send the facts as well. After every frame that was
//! received, after every change of the [`Book`](crate::Book) and at the deadline, `poll` is to be called until
//! it returns nothing; then all it returned is to be sent in order.

mod follower;
mod leader;

pub use follower::Follower;
pub use leader::Leader;

/// What was received is wrong: the stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a frame, or too large.
    #[error("a malformed frame")]
    Malformed,
    /// A frame that does not belong there.
    #[error("a frame against the protocol: {0}")]
    Protocol(&'static str),
}

#[cfg(test)]
mod tests;
