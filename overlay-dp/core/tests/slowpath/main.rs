//! The slow path: a frame in, frames, map updates and drops out.

mod allocations;
mod flood;
mod gateway;
mod hostile;
mod multicast;
mod neighbour;
mod over_ipv6;
mod packets;
mod query;
mod rig;
mod too_big;
mod unicast;
mod uplink;
mod waiting;
