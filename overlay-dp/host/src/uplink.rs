//! The underlay interface.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use overlay_core::model::MacAddr;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};

use crate::{Error, Host, LinkInfo, Result, offload};

/// Bytes that the tunnel adds over IPv4: outer Ethernet's inner counterpart 14, VXLAN 8, UDP 8,
/// IPv4 20.
pub const OVERHEAD: u32 = 50;
/// The least MTU to offer a container: what every IPv4 host must take (RFC 791 section 3.2).
pub const MIN_CONTAINER_MTU: u32 = 576;
/// The least MTU of an uplink, in bytes: QUIC between the hosts sends UDP payloads of 1200 bytes at
/// least and never in fragments (RFC 9000 section 14), so takes IPv6's least MTU for granted.
pub const MIN_UPLINK_MTU: u32 = 1280;
/// What names of our own interfaces begin with: they are never an uplink.
const OURS: [&str; 2] = ["ovp-", "ovl-"];

/// The underlay interface, checked to be fit for tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The address that the other hosts' tunnels end at.
    pub addr: IpAddr,
    /// Its driver, as in `"veth"`; empty when that gives no name.
    pub driver: String,
    /// Whether it has a carrier. It is administratively up, or it would not be an uplink.
    pub up: bool,
}

impl Uplink {
    /// Looks at `ifname` and takes its first global IPv4 address, or `advertise`.
    ///
    /// # Errors
    /// When there is no such interface, it is down, not Ethernet, has no IPv4 address, does not
    /// have the advertised one, or its MTU is too small.
    pub async fn discover(host: &Host, ifname: &str, advertise: Option<IpAddr>) -> Result<Uplink> {
        let Some(link) = host.link(ifname).await? else {
            return Err(Error::NoInterface {
                name: ifname.to_owned(),
                known: candidates(host.links().await?),
            });
        };
        if !link.up {
            return Err(Error::Down(link.name));
        }
        let Some(mac) = link.mac else {
            return Err(Error::NotEthernet(link.name));
        };
        let addresses = host.global_addresses(link.index).await?;
        let addr = choose(&link.name, &addresses, advertise)?;
        if link.mtu < MIN_UPLINK_MTU {
            return Err(Error::MtuTooSmall {
                name: link.name,
                mtu: link.mtu,
            });
        }
        Ok(Uplink {
            driver: offload::driver(&link.name)?,
            name: link.name,
            ifindex: link.index,
            mac,
            mtu: link.mtu,
            addr,
            up: link.carrier,
        })
    }

    /// The MTU of containers behind this uplink, in bytes.
    pub fn container_mtu(&self) -> u32 {
        self.mtu - OVERHEAD
    }
}

fn choose(name: &str, addresses: &[IpAddr], advertise: Option<IpAddr>) -> Result<IpAddr> {
    let Some(wanted) = advertise else {
        return match addresses.iter().find(|ip| ip.is_ipv4()) {
            Some(first) => Ok(*first),
            None if addresses.is_empty() => Err(Error::NoAddress(name.to_owned())),
            None => Err(Error::Ipv6Underlay(name.to_owned())),
        };
    };
    if !addresses.contains(&wanted) {
        return Err(Error::NotAddressOf {
            address: wanted,
            name: name.to_owned(),
            has: addresses.iter().map(IpAddr::to_string).collect(),
        });
    }
    if wanted.is_ipv6() {
        return Err(Error::Ipv6Underlay(name.to_owned()));
    }
    Ok(wanted)
}

fn candidates(links: Vec<LinkInfo>) -> Vec<String> {
    links
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name != "lo" && !OURS.iter().any(|ours| name.starts_with(ours)))
        .collect()
}

impl Host {
    /// An interface's addresses of global scope, in the kernel's order: primary ones first.
    async fn global_addresses(&self, index: u32) -> Result<Vec<IpAddr>> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list the addresses", e))?;
        Ok(messages
            .iter()
            .filter(|message| message.header.scope == AddressScope::Universe)
            .filter_map(address)
            .collect())
    }
}

/// The address itself: with a peer, `Address` is the peer's and `Local` is ours.
pub(crate) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => found = Some(*ip),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ipv4_address_is_chosen() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        assert_eq!(choose("e", &[v6, v4, other], None).unwrap(), v4);
        assert_eq!(choose("e", &[v4, other], Some(other)).unwrap(), other);
        assert!(matches!(
            choose("e", &[v6], None),
            Err(Error::Ipv6Underlay(_))
        ));
        assert!(matches!(choose("e", &[], None), Err(Error::NoAddress(_))));
        assert!(matches!(
            choose("e", &[v6], Some(v6)),
            Err(Error::Ipv6Underlay(_))
        ));
        let wrong = choose("e", &[v4], Some(other)).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "192.0.2.2 is not an address of interface e: e has 192.0.2.1"
        );
    }
}
