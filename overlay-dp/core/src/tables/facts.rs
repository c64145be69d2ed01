//! The facts that the tables are told, and what is wrong with those they can't hold.

use std::net::IpAddr;

use overlay_common::wire::Mac;

use super::record::MAX_IPS;
use crate::model::{MacAddr, Vni};

/// This host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its tunnel address.
    pub vtep: IpAddr,
    /// UDP port of VXLAN.
    pub data_port: u16,
    /// UDP port of ESP.
    pub esp_port: u16,
    /// Largest inner packet (Ethernet header excluded), in bytes: the uplink's MTU less 50 over
    /// IPv4, 70 over IPv6. On encrypted networks it is smaller: [`Tables::mtu_of`](super::Tables::mtu_of).
    pub mtu: u32,
}

/// How to reach a VTEP, from the kernel's routes and neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface to send on, not 0.
    pub ifindex: u32,
    /// Its MAC.
    pub src_mac: Mac,
    /// The next hop's MAC.
    pub dst_mac: Mac,
    /// Largest inner packet (Ethernet header excluded) that fits, in bytes.
    pub mtu: u32,
}

/// An endpoint behind a VTEP that need not be a host of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StaticEntry {
    /// The network.
    pub vni: Vni,
    /// The endpoint's MAC; with `vni` it names the entry.
    pub mac: MacAddr,
    /// The VTEP it is behind.
    pub vtep: IpAddr,
    /// Its addresses: ARP requests and neighbour solicitations for them are answered.
    pub ips: Vec<IpAddr>,
}

/// A fact that the tables can't hold; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One VTEP over IPv4 and another over IPv6 can't reach each other.
    #[error(
        "{0} can't be a VTEP: this host's is {1}, and all of a cluster are of one kind, IPv4 or IPv6"
    )]
    OtherFamily(IpAddr, IpAddr),
    /// A group, loopback, link-local (IPv6) or unspecified address.
    #[error("{0} can't be a VTEP: it is not one host's address everywhere")]
    Vtep(IpAddr),
    /// This host's own address, as another's.
    #[error("{0} is this host's own VTEP")]
    OwnVtep(IpAddr),
    /// Another host's address, as this one's.
    #[error("{0} is another host's VTEP: remove that host if it is gone ('overlay-dp host rm')")]
    OthersVtep(IpAddr),
    /// A group MAC, or all zero.
    #[error("{0} can't be an endpoint's MAC address: it is not one host's")]
    Mac(MacAddr),
    /// A group, loopback or unspecified address.
    #[error("{0} can't be an endpoint's address: it is not one host's")]
    Ip(IpAddr),
    /// More than [`MAX_IPS`].
    #[error("{0} addresses are too many for one endpoint: it may have {MAX_IPS}")]
    TooManyAddresses(usize),
    /// Ifindex 0.
    #[error("0 is no ifindex")]
    Ifindex,
}
