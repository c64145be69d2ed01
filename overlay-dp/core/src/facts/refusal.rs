//! Why a command was refused.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{
    MAX_HOST_OFFSETS, MAX_HOSTS, MAX_NETWORK_OFFSETS, MAX_NETWORKS, MAX_PIECES, MAX_POLICIES,
    MAX_PUBLISHED, MAX_RULES, MAX_SERVICES,
};
use crate::health::CheckError;
use crate::model::{HostId, MacAddr, ModelError, Network, Protocol, Vni};
use crate::policy::PolicyError;

/// Why a command was refused. Nothing but what hosts want has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A malformed name.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// Not a member.
    #[error("host {0} is no member of the cluster: `overlay-dp host ls` lists them")]
    NoHost(HostId),
    /// The id is taken.
    #[error("host {0} is a member already: remove it first, or start the new one afresh")]
    HostExists(HostId),
    /// See [`MAX_HOSTS`].
    #[error("there are {MAX_HOSTS} hosts already: remove one")]
    TooManyHosts,
    /// Another member has the VTEP.
    #[error(
        "VTEP {vtep} belongs to host {name} ({host}): choose another --advertise-addr, or remove that host"
    )]
    VtepTaken {
        /// As asked for.
        vtep: IpAddr,
        /// Whose it is.
        host: HostId,
        /// Its name.
        name: String,
    },
    /// The VTEP is in a network.
    #[error("VTEP {vtep} is in {subnet} of network '{network}': choose another --advertise-addr")]
    VtepInNetwork {
        /// As asked for.
        vtep: IpAddr,
        /// What it is in.
        subnet: IpNetwork,
        /// Whose that is.
        network: String,
    },
    /// Not an address for a VTEP.
    #[error("{0} can't be a VTEP: choose another --advertise-addr")]
    Vtep(IpAddr),
    /// All hosts have the same.
    #[error("data port {port} is not the cluster's: start with --data-port {cluster}")]
    DataPort {
        /// As asked for.
        port: u16,
        /// What all hosts have.
        cluster: u16,
    },
    /// All hosts have the same.
    #[error("ESP port {port} is not the cluster's: start with --esp-port {cluster}")]
    EspPort {
        /// As asked for.
        port: u16,
        /// What all hosts have.
        cluster: u16,
    },
    /// The cluster would have no manager.
    #[error("host {0} is the last manager: promote another first")]
    LastManager(HostId),
    /// The name is taken.
    #[error("network '{0}' exists already: choose another name, or use it as it is")]
    NetworkExists(String),
    /// No network of that name.
    #[error("there is no network '{0}': `overlay-dp network ls` lists them")]
    NoNetwork(String),
    /// No network with that VNI.
    #[error("there is no network with VNI {0}: `overlay-dp network ls` lists them")]
    NoVni(Vni),
    /// More than one subnet or gateway of a family.
    #[error("two {what}s of one family: give at most one --{what} for IPv4 and one for IPv6")]
    Family {
        /// "subnet" or "gateway".
        what: String,
    },
    /// Bits below the prefix are set.
    #[error("{subnet} is an address, not a subnet: write {network}/{prefix}")]
    HostBits {
        /// As given.
        subnet: IpNetwork,
        /// Its subnet's address.
        network: IpAddr,
        /// Its prefix length.
        prefix: u8,
    },
    /// Too large or too small.
    #[error(
        "subnet {0} has no usable size: its prefix must be from /8 to /30, for IPv6 from /64 to /126"
    )]
    Size(IpNetwork),
    /// In a range with a meaning of its own.
    #[error("subnet {0} is in a reserved range: choose one of 10.0.0.0/8 or fd00::/8, for example")]
    Reserved(IpNetwork),
    /// Overlaps another network's.
    #[error("subnet {subnet} overlaps {other} of network '{network}': choose another --subnet")]
    Overlap {
        /// As asked for.
        subnet: IpNetwork,
        /// What it overlaps.
        other: IpNetwork,
        /// Whose that is.
        network: String,
    },
    /// Overlaps a host's route or the underlay.
    #[error("subnet {subnet} overlaps {other}, which hosts reach already: choose another --subnet")]
    Route {
        /// As asked for.
        subnet: IpNetwork,
        /// What it overlaps.
        other: IpNetwork,
    },
    /// Not an address for a gateway.
    #[error("gateway {0} is no host address of the network's subnets: choose another --gateway")]
    Gateway(IpAddr),
    /// Not a part of a subnet with an address to give.
    #[error("range {0} has no host address of the network's subnets: choose another --ip-range")]
    IpRange(IpNetwork),
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
    /// All /64s are in use.
    #[error("no /64 of the cluster's prefix {0} is free here: give an IPv6 --subnet")]
    NoSubnet6(IpNetwork),
    /// See [`MAX_NETWORKS`].
    #[error("there are {MAX_NETWORKS} networks already: remove one")]
    TooManyNetworks,
    /// Hosts hold addresses in it.
    #[error("network '{network}' is in use on {hosts}: remove the containers there first")]
    InUse {
        /// The network.
        network: String,
        /// Some of them.
        hosts: String,
    },
    /// Services are made for it.
    #[error("network '{network}' has services ({services}): remove them first")]
    HasServices {
        /// The network.
        network: String,
        /// Some of them.
        services: String,
    },
    /// The name is taken.
    #[error("service '{0}' exists already: choose another name, or remove it first")]
    ServiceExists(String),
    /// No service of that name.
    #[error("there is no service '{0}': `overlay-dp service ls` lists them")]
    NoService(String),
    /// See [`MAX_SERVICES`] and [`MAX_PUBLISHED`].
    #[error(
        "that is too much: there may be {MAX_SERVICES} services, with {MAX_PUBLISHED} published ports each"
    )]
    TooManyServices,
    /// The name is taken.
    #[error("policy '{0}' exists already: choose another name, or remove it first")]
    PolicyExists(String),
    /// No policy of that name.
    #[error("there is no policy '{0}': `overlay-dp policy ls` lists them")]
    NoPolicy(String),
    /// See [`MAX_POLICIES`] and [`MAX_RULES`].
    #[error(
        "that is too much: there may be {MAX_POLICIES} policies, of them {MAX_RULES} about the same container"
    )]
    TooManyPolicies,
    /// A rule that can't be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A service's own address is nobody's.
    #[error(
        "{ip} is the address of service '{service}', whose tasks are reached: say --to service:{service}"
    )]
    PolicyToVip {
        /// As asked for.
        ip: IpAddr,
        /// Whose it is.
        service: String,
    },
    /// Nothing leads into the network.
    #[error("network '{0}' is internal: nothing can be published out of it")]
    Internal(String),
    /// Another service has the port.
    #[error(
        "port {port}/{} is published already, for service '{service}': choose another one", .protocol.name()
    )]
    Published {
        /// As asked for.
        port: u16,
        /// As asked for.
        protocol: Protocol,
        /// Whose it is.
        service: String,
    },
    /// There is no such port.
    #[error("port 0 can't be published: give one from 1 to 65535")]
    PortZero,
    /// See [`MAX_NETWORK_OFFSETS`] and [`MAX_HOST_OFFSETS`].
    #[error(
        "this host has {held} addresses, of {MAX_NETWORK_OFFSETS} in one network and {MAX_HOST_OFFSETS} in all that it may have: remove a container"
    )]
    TooManyAddresses {
        /// What it has, in the network or in all.
        held: u64,
    },
    /// See [`MAX_CLAIMS`](super::MAX_CLAIMS).
    #[error(
        "this host has claimed {0} MAC addresses, as many as it may: remove a container with a --mac"
    )]
    TooManyMacs(usize),
    /// A list longer than any host has use for.
    #[error("more than {MAX_PIECES} ranges or MAC addresses in one request: split it")]
    TooLong,
    /// Another host has it.
    #[error(
        "{what} {value} in network '{network}' belongs to host {name} ({host}): choose another, or try again when it is free there"
    )]
    Taken {
        /// "address" or "MAC address".
        what: String,
        /// As asked for.
        value: String,
        /// The network.
        network: String,
        /// Who has it.
        host: HostId,
        /// Its name.
        name: String,
    },
    /// Every agent answers for it.
    #[error("address {0} is the network's gateway: choose another --ip")]
    GatewayWanted(IpAddr),
    /// Outside of the subnets, or one that nobody may have.
    #[error(
        "address {ip} is no host address of network '{network}' ({subnets}): choose another --ip"
    )]
    Address {
        /// As asked for.
        ip: IpAddr,
        /// The network.
        network: String,
        /// Where its addresses are.
        subnets: String,
    },
    /// Not a host's MAC, the gateway's, or the one of an address.
    #[error(
        "MAC address {0} is a group's, the gateway's, or goes with an address of the network: choose another --mac"
    )]
    Mac(MacAddr),
    /// A service's own.
    #[error("address {ip} is that of service '{service}': choose another --ip")]
    OfService {
        /// As asked for.
        ip: IpAddr,
        /// Whose it is.
        service: String,
    },
    /// A check that can't be carried out.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// An address for a service without one.
    #[error("a service with --endpoint-mode dnsrr has no address of its own: leave out --ip {0}")]
    NoVip(IpAddr),
    /// Nothing is left.
    #[error(
        "network '{network}' has no free address left: all {size} are held, {holders}; remove a container, or try again when hosts have given back what they do not use"
    )]
    Exhausted {
        /// The network.
        network: String,
        /// How many addresses can be given in it.
        size: u64,
        /// How many of them which hosts hold.
        holders: String,
    },
}

impl Refusal {
    /// `ip` can't be had in `network`.
    pub(crate) fn address(ip: IpAddr, network: &Network) -> Refusal {
        let subnets = network.subnets().map(|subnet| subnet.subnet.to_string());
        Refusal::Address {
            ip,
            network: network.name.clone(),
            subnets: subnets.collect::<Vec<_>>().join(", "),
        }
    }
}
