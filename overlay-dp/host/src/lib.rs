//! Linux host plumbing of overlay-dp: network namespaces, veth links, offloads, routes, neighbours
//! and the kernel's news about them.
//!
//! Everything acts in the network namespace of the thread that calls it; a container's namespace
//! is named by a [`Netns`], which never holds a file descriptor between calls.
#![deny(unsafe_code)]

pub mod bpffs;
pub mod caps;
// With ethtool.rs the only file with unsafe code: socket options.
mod echo_socket;
mod error;
// Unsafe code: the SIOCETHTOOL ioctl.
mod ethtool;
mod host;
pub mod inside;
pub mod kernel;
pub mod link;
pub mod monitor;
pub mod netns;
pub mod nexthop;
pub mod offload;
pub mod outer_gro;
pub mod paths;
pub mod port;
pub mod punt;
pub mod routes;
mod sysctl;
pub mod traffic;
pub mod uplink;

pub use echo_socket::{echo_socket, set_udp_checksums};
pub use error::{Error, Result};
pub use host::Host;
pub use inside::Inside;
pub use link::{LinkInfo, XdpAttachment, XdpMode};
pub use monitor::{HostEvent, Monitor};
pub use netns::{Netns, NetnsRef};
pub use nexthop::NextHop;
pub use paths::{Neighbour, Path};
pub use port::{Port, PortSpec};
pub use punt::PuntPair;
pub use traffic::Traffic;
pub use uplink::Uplink;
