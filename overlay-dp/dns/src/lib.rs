//! The names of the overlay's endpoints, answered as DNS, and the way to the host's resolvers for
//! all other names.
//!
//! - [`Names`] knows which endpoint of which network is called what; [`answer`] makes a DNS message
//!   of it. Neither knows a socket, a clock or a random number generator: randomness comes as an
//!   argument.
//! - [`Forwarder`] asks the host's resolvers what is not ours.
//!
//! What a container may ask, with `uber-net` for the network that it asks through:
//!
//! | question | answer |
//! |---|---|
//! | A, AAAA of `<name>`, `<alias>`, `<service>`, `tasks.<service>` | the addresses of all that are called so, in random order |
//! | the same with `.uber-net` behind it | the same |
//! | A, AAAA of `gateway.uber-net` | the gateway's addresses, unless an endpoint is called `gateway` |
//! | PTR of an endpoint's address | `<name>.uber-net` |
//! | PTR of a gateway's address | `gateway.uber-net`, likewise |
//! | SRV of `_<service>._tcp`, `_x._tcp.<service>` (or `_udp`), with `.uber-net` or without | each task as `0 1 0 <name>.uber-net`, with its addresses |
//! | anything else in `uber-net`, or PTR of an address in any overlay network | that there is no such thing |
//! | all else | what the host's resolvers say |
//!
//! The SRV records tell who the tasks are, not where they listen: nobody tells us their ports, so
//! the port is 0. A container sees the names of the network that it asks through and of no other.
//! Names are matched without regard to case. All our answers have a TTL of 0.
#![forbid(unsafe_code)]

mod answer;
mod find;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod names;
mod question;
mod resolv;
mod upstream;
mod wire;

pub use answer::{Outcome, answer};
pub use forward::{Forwarder, Place, Verdict};
pub use names::Names;
pub use question::Question;
