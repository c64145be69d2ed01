//! What the tests of the BPF programs are made of, and those that have a side to themselves.

pub mod checks;
mod differential;
mod echo;
pub mod frames;
mod full_maps;
mod model;
pub mod object;
mod over_ipv6;
mod policy;
mod port;
mod service;
mod uplink;
pub mod world;
