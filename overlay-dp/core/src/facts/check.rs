//! Whether a host may have the endpoint that it tells of.

use std::net::IpAddr;

use super::Facts;
use crate::model::{Endpoint, HostId, MacAddr, ModelError, Vni, check_name};

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
pub const MAX_ALIASES: usize = 64;

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

impl Facts {
    /// Whether `host` may say that it has such an endpoint.
    ///
    /// # Errors
    /// What is wrong with it. [`RecordFault::is_lasting`] tells whether other facts could allow it.
    pub fn check(&self, host: HostId, endpoint: &Endpoint) -> Result<(), RecordFault> {
        if endpoint.aliases.len() > MAX_ALIASES {
            return Err(RecordFault::Aliases);
        }
        check_name(&endpoint.name)?;
        for name in endpoint.aliases.iter().chain(&endpoint.service) {
            check_name(name)?;
        }
        let addresses = routable(endpoint)?;
        if self.host(host).is_none() {
            return Err(RecordFault::NoHost(host));
        }
        let vni = endpoint.vni;
        let network = self.network(vni).ok_or(RecordFault::NoVni(vni))?;

        let mut offsets = addresses.iter().map(|ip| {
            let offset = network.offset_of(*ip).ok_or(RecordFault::Address(*ip))?;
            if self.owner(vni, offset) == Some(host) {
                Ok(offset)
            } else {
                Err(RecordFault::NotGranted { ip: *ip, host })
            }
        });
        let offset = offsets.next().ok_or(RecordFault::Addresses)??;
        for other in offsets {
            if other? != offset {
                return Err(RecordFault::Offsets);
            }
        }

        let mac = endpoint.mac;
        let claimed = self.claim(vni, mac).is_some_and(|claim| claim.host == host);
        if mac == network.gateway_mac() || (mac != network.mac_at(offset) && !claimed) {
            return Err(RecordFault::Mac(mac));
        }
        Ok(())
    }
}

/// An endpoint's addresses but the link-local one, which is right when there is one.
fn routable(endpoint: &Endpoint) -> Result<Vec<IpAddr>, RecordFault> {
    // At most one of each: IPv4, IPv6, link-local.
    let mut seen = [false; 3];
    let mut of_network = Vec::new();
    for ip in &endpoint.ips {
        let kind = match ip {
            IpAddr::V4(_) => 0,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => 2,
            IpAddr::V6(_) => 1,
        };
        if std::mem::replace(&mut seen[kind], true) {
            return Err(RecordFault::Addresses);
        }
        if kind < 2 {
            of_network.push(*ip);
        } else if *ip != IpAddr::V6(endpoint.mac.link_local()) {
            return Err(RecordFault::LinkLocal(*ip));
        }
    }
    if of_network.is_empty() {
        return Err(RecordFault::Addresses);
    }
    Ok(of_network)
}
