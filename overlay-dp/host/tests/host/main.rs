//! The crate's promises, checked for real in network namespaces of our own; each file draws its
//! topology. They need root, and say so when they have to be skipped.

mod links;
mod outer_gro;
mod paths;
mod ports;
mod support;
mod underlay;
