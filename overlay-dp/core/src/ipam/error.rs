//! Why an address, network or VNI was refused.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use super::{MAX_HOST_LEASES, MAX_NETWORKS};
use crate::model::{HostId, MacAddr, ModelError, Vni};

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A malformed name.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// The name is taken.
    #[error("network '{0}' exists already: choose another name, or use it as it is")]
    NetworkExists(String),
    /// No network of that name.
    #[error("there is no network '{0}': `overlay-dp network ls` lists them")]
    NoNetwork(String),
    /// No network with that VNI.
    #[error("there is no network with VNI {0}: `overlay-dp network ls` lists them")]
    NoVni(Vni),
    /// Not an IPv4 subnet.
    #[error("subnet {0} is IPv6, which networks can't have yet: give an IPv4 subnet")]
    Ipv6(IpNetwork),
    /// Bits below the prefix are set.
    #[error("{subnet} is an address, not a subnet: write {network}/{prefix}")]
    HostBits {
        /// As given.
        subnet: Ipv4Network,
        /// Its subnet's address.
        network: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
    /// Too large or too small.
    #[error("subnet {0} has no usable size: its prefix must be from /8 to /30")]
    Size(Ipv4Network),
    /// In a range with a meaning of its own.
    #[error("subnet {0} is in a reserved range: choose one of 10.0.0.0/8, for example")]
    Reserved(Ipv4Network),
    /// Overlaps another network's.
    #[error("subnet {subnet} overlaps {other} of network '{network}': choose another --subnet")]
    Overlap {
        /// As asked for.
        subnet: Ipv4Network,
        /// What it overlaps.
        other: Ipv4Network,
        /// Whose that is.
        network: String,
    },
    /// Overlaps a host's route or the underlay.
    #[error("subnet {subnet} overlaps {other}, which hosts reach already: choose another --subnet")]
    Route {
        /// As asked for.
        subnet: Ipv4Network,
        /// What it overlaps.
        other: Ipv4Network,
    },
    /// Not an address for a gateway.
    #[error("gateway {ip} is no host address of {subnet}: choose another --gateway")]
    Gateway {
        /// As asked for.
        ip: IpAddr,
        /// The network's subnet.
        subnet: Ipv4Network,
    },
    /// The VNI is taken.
    #[error("VNI {vni} belongs to network '{network}': choose another --vni")]
    VniTaken {
        /// As asked for.
        vni: Vni,
        /// Whose it is.
        network: String,
    },
    /// All VNIs are in use.
    #[error("no VNI is left: remove a network")]
    NoVniLeft,
    /// All /24s are in use.
    #[error("no /24 of 10.0.0.0/8 is free here: give a --subnet")]
    NoSubnet,
    /// See [`MAX_NETWORKS`].
    #[error("there are {MAX_NETWORKS} networks already: remove one")]
    TooManyNetworks,
    /// See [`MAX_HOST_LEASES`].
    #[error("this host has {MAX_HOST_LEASES} addresses already: remove a container")]
    TooManyLeases,
    /// Somebody has it.
    #[error(
        "{what} {value} in network '{network}' belongs to endpoint {endpoint} ({ip}) on host {host}: choose another"
    )]
    Taken {
        /// "address", "endpoint name" or "MAC address".
        what: &'static str,
        /// As asked for.
        value: String,
        /// The network.
        network: String,
        /// Who has it.
        endpoint: String,
        /// Its address.
        ip: IpAddr,
        /// Its host.
        host: HostId,
    },
    /// Every agent answers for it.
    #[error("address {0} is the network's gateway: choose another --ip")]
    GatewayLeased(IpAddr),
    /// Outside of the subnet, or one that nobody may have.
    #[error("address {ip} is no free host address of {subnet}: choose another --ip")]
    Address {
        /// As asked for.
        ip: IpAddr,
        /// The network's subnet.
        subnet: Ipv4Network,
    },
    /// Not a host's MAC, or the gateway's.
    #[error("MAC address {0} is a group's or the gateway's: choose another --mac-address")]
    Mac(MacAddr),
    /// Nothing is left.
    #[error("network '{network}' has no free address left in {subnet}: remove a container")]
    Exhausted {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: Ipv4Network,
    },
    /// Endpoints still use it.
    #[error("network '{network}' is in use by {endpoints}: remove these containers first")]
    InUse {
        /// The network.
        network: String,
        /// Some of them.
        endpoints: String,
    },
    /// The host does not have that lease.
    #[error("this host has no lease of {ip} for endpoint {endpoint}")]
    NoLease {
        /// The address.
        ip: IpAddr,
        /// The endpoint's name.
        endpoint: String,
    },
}
