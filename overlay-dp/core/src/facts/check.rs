//! Whether a host may have the endpoint that it tells of.

use std::net::IpAddr;

use crate::model::{HostId, MacAddr, ModelError, Vni};

/// What is wrong with a host's record of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A malformed name, alias or service.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// Not a member.
    #[error("host {0} is no member")]
    NoHost(HostId),
    /// No such network.
    #[error("there is no network with VNI {0}")]
    NoVni(Vni),
    /// Not one address of each family at most, and at least one, with at most one link-local.
    #[error("its addresses are not one per family, and at most one link-local")]
    Addresses,
    /// Not an address that an endpoint of this network can have.
    #[error("{0} is no address for an endpoint of the network")]
    Address(IpAddr),
    /// The addresses of the families do not belong together.
    #[error("its addresses have different offsets in their subnets")]
    Offsets,
    /// Another host's, or nobody's.
    #[error("{ip} is not granted to host {host}")]
    NotGranted {
        /// The address.
        ip: IpAddr,
        /// Who claims it.
        host: HostId,
    },
    /// The link-local address is not the MAC's.
    #[error("link-local {0} does not go with its MAC address")]
    LinkLocal(IpAddr),
    /// The MAC is neither the address's nor claimed.
    #[error("MAC address {0} neither goes with its address nor is claimed")]
    Mac(MacAddr),
    /// More aliases than anybody has use for.
    #[error("more than {MAX_ALIASES} aliases")]
    Aliases,
}

/// More aliases than this are refused: they are kept on every host of the network.
pub const MAX_ALIASES: usize = 32;

impl RecordFault {
    /// Whether no other facts can make the record right: it need not be kept to wait for them.
    pub fn is_lasting(&self) -> bool {
        match self {
            RecordFault::Name(_)
            | RecordFault::Addresses
            | RecordFault::LinkLocal(_)
            | RecordFault::Aliases => true,
            RecordFault::NoHost(_)
            | RecordFault::NoVni(_)
            | RecordFault::Address(_)
            | RecordFault::Offsets
            | RecordFault::NotGranted { .. }
            | RecordFault::Mac(_) => false,
        }
    }
}
