//! The underlay interface.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use overlay_common::wire::Family;
use overlay_core::model::MacAddr;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::{Error, Host, LinkInfo, Result, offload};

/// The least MTU to offer a container: what every IPv4 host must take (RFC 791 section 3.2).
pub const MIN_CONTAINER_MTU: u32 = 576;
/// The least MTU of an uplink, in bytes: QUIC between the hosts sends UDP payloads of 1200 bytes at
/// least and never in fragments (RFC 9000 section 14), so takes IPv6's least MTU for granted.
pub const MIN_UPLINK_MTU: u32 = 1280;
/// The flags of IPv6 addresses that nobody should be told of.
const UNUSABLE: AddressHeaderFlags = AddressHeaderFlags::Tentative
    .union(AddressHeaderFlags::Dadfailed)
    .union(AddressHeaderFlags::Deprecated);
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
    /// Looks at `ifname` and takes `advertise`, or its first global IPv4 address, or its first
    /// global or unique local IPv6 address when it has no IPv4 address.
    ///
    /// # Errors
    /// When there is no such interface, it is down, not Ethernet, has no such address, does not
    /// have the advertised one or can't use it, or its MTU is too small.
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
        let family = match self.addr.to_canonical() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        self.mtu - family.overhead()
    }
}

fn choose(name: &str, addresses: &[Address], advertise: Option<IpAddr>) -> Result<IpAddr> {
    let Some(wanted) = advertise else {
        let usable = || addresses.iter().filter(|a| a.usable).map(|a| a.ip);
        let first = usable().find(IpAddr::is_ipv4).or_else(|| usable().next());
        return first.ok_or_else(|| Error::NoAddress(name.to_owned()));
    };
    match addresses.iter().find(|a| a.ip == wanted) {
        Some(found) if found.usable => Ok(wanted),
        Some(_) => Err(Error::UnusableAddress {
            address: wanted,
            name: name.to_owned(),
        }),
        None if is_link_local(wanted) => Err(Error::LinkLocal(wanted)),
        None => Err(Error::NotAddressOf {
            address: wanted,
            name: name.to_owned(),
            has: addresses.iter().map(|a| a.ip.to_string()).collect(),
        }),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// An address of global scope, which unique local ones have, too.
struct Address {
    ip: IpAddr,
    /// Neither tentative nor a duplicate nor deprecated (RFC 4862).
    usable: bool,
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
    async fn global_addresses(&self, index: u32) -> Result<Vec<Address>> {
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
            .filter_map(|message| {
                Some(Address {
                    ip: address(message)?,
                    usable: !message.header.flags.intersects(UNUSABLE),
                })
            })
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
    fn the_first_usable_address_is_chosen_ipv4_before_ipv6() {
        let of = |texts: &[&str]| -> Vec<Address> {
            let parse = |text: &&str| Address {
                ip: text.trim_end_matches('!').parse().unwrap(),
                usable: !text.ends_with('!'),
            };
            texts.iter().map(parse).collect()
        };
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let chosen = |texts: &[&str], advertise| {
            let chosen = choose("e", &of(texts), advertise);
            chosen.map_err(|error| error.to_string())
        };
        let all = ["2001:db8::1", "192.0.2.1", "192.0.2.2"];
        assert_eq!(chosen(&all, None).ok(), ip("192.0.2.1"));
        for each in all {
            assert_eq!(chosen(&all, ip(each)).ok(), ip(each));
        }
        let six = ["2001:db8::9!", "fd00::1", "2001:db8::1"];
        assert_eq!(chosen(&six, None).ok(), ip("fd00::1"));
        let none = "interface e has no address to be reached at: \
                    add one with 'ip address add ADDRESS/LEN dev e'";
        assert_eq!(chosen(&[], None), Err(none.to_owned()));
        assert_eq!(chosen(&six[..1], None), Err(none.to_owned()));
        for (advertise, problem) in [
            (
                "192.0.2.2",
                "192.0.2.2 is not an address of interface e: e has 2001:db8::9, fd00::1",
            ),
            (
                "2001:db8::9",
                "2001:db8::9 on interface e can't be used: it is tentative, deprecated or a \
                 duplicate (see 'ip -6 address show dev e')",
            ),
            (
                "fe80::1",
                "fe80::1 is valid on its own link only: advertise a global or unique local address",
            ),
        ] {
            assert_eq!(chosen(&six[..2], ip(advertise)), Err(problem.to_owned()));
        }
    }
}
