//! What the cluster's managers agree on: commands, and what comes back.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Range, Version};
use crate::health::HealthCheck;
use crate::model::{
    EndpointMode, Host, HostId, MacAddr, Multicast, Network, Service, ServicePort, Vni,
};
use crate::policy::{Policy, PolicyRule};

/// What a user asks for; the rest is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    /// None, one or two, one per family. Without any the next free /24 of 10.0.0.0/8 is taken;
    /// an IPv6 one alone, without `ipv6`, makes a network without IPv4.
    pub subnets: Vec<IpNetwork>,
    /// At most one per family; a subnet's first address when absent.
    pub gateways: Vec<IpAddr>,
    /// The part of one of the subnets that addresses are chosen from.
    pub ip_range: Option<IpNetwork>,
    /// Dual stack: with an IPv6 subnet, the next free /64 of the cluster's own prefix when none is
    /// given.
    pub ipv6: bool,
    /// Chosen from 4096 up when absent.
    pub vni: Option<Vni>,
    /// Nothing leads out of it or into it.
    pub internal: bool,
    /// Between hosts its frames are encrypted.
    pub encrypted: bool,
    /// What becomes of broadcast and multicast; by the network's size when absent.
    pub multicast: Option<Multicast>,
}

/// A service that a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// What every host is to publish of it.
    pub publish: Vec<ServicePort>,
    /// What its name is to stand for.
    pub mode: EndpointMode,
    /// Its own address, in either family; the next free one when absent.
    pub ip: Option<IpAddr>,
    /// What tells whether its tasks are ready.
    pub check: Option<HealthCheck>,
}

/// A policy that a user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// Unique in the cluster.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// What it says.
    pub rule: PolicyRule,
}

/// One step of the cluster's state. All chance and time comes in with it.
///
/// `host` in [`Command::Grant`], [`Command::Return`] and [`Command::Unwant`] is set by the manager
/// that the host asked, from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A host joins.
    HostAdd {
        /// Who; a manager at once if it says so.
        host: Host,
        /// A dead host, which had the same VTEP: removed in the same step.
        replace: Option<HostId>,
    },
    /// A host's name, addresses or ports are others now.
    HostUpdate {
        /// Which host.
        id: HostId,
        /// Its name from now on.
        name: String,
        /// Its VTEP from now on.
        vtep: IpAddr,
        /// Its data port from now on.
        data_port: u16,
        /// Its ESP port from now on.
        esp_port: u16,
        /// Its control port from now on.
        control_port: u16,
        /// Its gossip port from now on.
        gossip_port: u16,
    },
    /// A host leaves, or is expelled: all that it holds is free.
    HostRemove {
        /// Which host.
        id: HostId,
    },
    /// Promotes or demotes.
    SetRole {
        /// Which host.
        id: HostId,
        /// Whether it is a manager from now on.
        manager: bool,
    },
    /// Makes a network.
    NetworkCreate {
        /// What is asked for.
        spec: NetworkSpec,
        /// What it must not overlap, the creating host's routes for example; default routes among
        /// them are ignored.
        avoid: Vec<IpNetwork>,
    },
    /// Removes a network in which nobody holds a grant.
    NetworkRemove {
        /// Its name.
        name: String,
    },
    /// Has every host's container engine get a network.
    NetworkEverywhere {
        /// Its name.
        name: String,
    },
    /// A host asks for addresses.
    Grant {
        /// Which host.
        host: HostId,
        /// In which network.
        vni: Vni,
        /// What it asks for.
        want: Want,
    },
    /// A host gives back. What it does not hold, or got after `seen`, stays as it is: a repeated
    /// or late return can't take what has been granted anew since.
    Return {
        /// Which host.
        host: HostId,
        /// In which network.
        vni: Vni,
        /// Offsets.
        ranges: Vec<Range>,
        /// Claimed MAC addresses.
        macs: Vec<MacAddr>,
        /// The version of the facts by which the host decided it.
        seen: Version,
    },
    /// A host no longer waits for what it could not get.
    Unwant {
        /// Which host.
        host: HostId,
        /// In which network.
        vni: Vni,
    },
    /// A new join token.
    TokenRotate {
        /// The managers' one, else the workers'.
        manager: bool,
        /// Its secret.
        secret: Vec<u8>,
    },
    /// Makes a service.
    ServiceCreate {
        /// What is asked for.
        spec: ServiceSpec,
        /// A host whose own the address of the spec is, by a grant that it leaves to the service.
        from: Option<HostId>,
    },
    /// Removes a service; its tasks stay.
    ServiceRemove {
        /// Its name.
        name: String,
    },
    /// Adds a policy.
    PolicyAdd {
        /// What is asked for.
        spec: PolicySpec,
    },
    /// Removes a policy.
    PolicyRemove {
        /// Its name.
        name: String,
    },
    /// What becomes in a network of what no policy is about.
    PolicyDefault {
        /// The network's name.
        network: String,
        /// Whether it is denied.
        deny: bool,
    },
}

/// What a host asks for in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// So many of the lowest free offsets; fewer is an answer, too.
    Addresses(u32),
    /// So many from the end of the range, for times when no manager can be asked; fewer or none is
    /// an answer, too.
    Spare(u32),
    /// The offset of this address. Held already it is granted again, no longer as a spare.
    Ip(IpAddr),
    /// A MAC address that no address gives.
    Mac(MacAddr),
}

/// What somebody could not get: the others give back what they do not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Who waits.
    pub host: HostId,
    /// For what.
    pub want: Want,
}

/// What a command gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The network made.
    Network(Network),
    /// The offsets got, possibly none for a spare.
    Granted(Vec<Range>),
    /// The service made.
    Service(Service),
    /// The policy added.
    Policy(Policy),
}
