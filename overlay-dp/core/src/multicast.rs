//! Groups that have members: what IGMP and MLD are about, and hosts tell each other.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use overlay_common::wire::{Ip16, ip16};
use serde::{Deserialize, Serialize};

/// More groups than this are refused, in one network on one host.
pub const MAX_GROUPS: usize = 1024;

/// A multicast group that only its members need: none of those that all get, whether or not they
/// ask for it ([`is_for_all`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "IpAddr", into = "IpAddr")]
pub struct Group(Ip16);

impl Group {
    /// `None` for what is no group, or one for all.
    pub fn new(ip: IpAddr) -> Option<Group> {
        let ip = ip.to_canonical();
        (ip.is_multicast() && !is_for_all(ip)).then_some(Group(ip16(ip)))
    }

    /// Its address.
    pub fn ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_octets(self.0)).to_canonical()
    }
}

/// Whether a multicast packet goes to everybody: 224.0.0.0/24 (RFC 4541 section 2.1.2), all nodes
/// and solicited nodes, which neighbour discovery can't do without (RFC 4541 section 3), and what
/// should not have left the node at all.
pub fn is_for_all(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(ip) => matches!(ip.octets(), [224, 0, 0, _]),
        IpAddr::V6(ip) => match ip.segments() {
            // Scopes reserved, and of the interface (RFC 4291 section 2.7).
            [first, ..] if first & 0x000f < 2 => true,
            [0xff02, 0, 0, 0, 0, 0, 0, 1] => true,
            [0xff02, 0, 0, 0, 0, 1, a, _] => a & 0xff00 == 0xff00,
            _ => false,
        },
    }
}

impl From<Group> for IpAddr {
    fn from(group: Group) -> IpAddr {
        group.ip()
    }
}

/// Not a group that has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no multicast group that one joins")]
pub struct NoGroup(IpAddr);

impl TryFrom<IpAddr> for Group {
    type Error = NoGroup;

    fn try_from(ip: IpAddr) -> Result<Group, NoGroup> {
        Group::new(ip).ok_or(NoGroup(ip))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_have_members() {
        for good in [
            "224.0.1.1",
            "239.255.255.255",
            "ff02::2",
            "ff02::fb",
            "ff05::1:3",
            "ff3e::8",
        ] {
            let ip: IpAddr = good.parse().unwrap();
            assert_eq!(Group::new(ip).map(Group::ip), Some(ip));
        }
        for bad in [
            "224.0.0.251",
            "10.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "ff02::1:ff00:7",
            "ff01::7",
            "fe80::1",
            "::",
            "::ffff:224.0.0.1",
        ] {
            assert_eq!(Group::new(bad.parse().unwrap()), None, "{bad}");
        }
    }
}
