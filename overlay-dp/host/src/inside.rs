//! What a container's interface has: addresses and default routes.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use crate::host::drive;
use crate::routes::ip;
use crate::{Error, Host, Netns, Result};

/// An interface inside a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Administratively up.
    pub up: bool,
    /// Its addresses, each with the length of its prefix.
    pub addrs: Vec<(IpAddr, u8)>,
    /// The routers of the default routes that go through it.
    pub gateways: Vec<IpAddr>,
}

impl Host {
    /// What an interface inside a container has.
    ///
    /// # Errors
    /// When the container or its interface is gone.
    pub async fn container_addresses(&self, netns: &Netns, ifname: &str) -> Result<Inside> {
        let (inside, connection) = Host::inside(netns)?;
        drive(connection, async {
            let gone = || Error::NamespaceGone(netns.reference().to_string());
            let link = inside.link(ifname).await?.ok_or_else(gone)?;
            Ok(Inside {
                up: link.up,
                addrs: inside.addresses_of(link.index).await?,
                gateways: inside.gateways_of(link.index).await?,
            })
        })
        .await
    }

    /// Deletes a veth by its end inside a container, and so the port with it. False when there was
    /// none.
    ///
    /// # Errors
    /// When the container is gone, or the kernel refuses.
    pub async fn delete_container_link(&self, netns: &Netns, ifname: &str) -> Result<bool> {
        let (inside, connection) = Host::inside(netns)?;
        drive(connection, inside.delete_link(ifname)).await
    }

    pub(crate) async fn addresses_of(&self, index: u32) -> Result<Vec<(IpAddr, u8)>> {
        let request = self.handle.address().get();
        let found: Vec<AddressMessage> = request
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list the addresses", e))?;
        let address = |message: &AddressMessage| {
            let address = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            };
            let ip = message.attributes.iter().find_map(address)?;
            Some((ip, message.header.prefix_len))
        };
        Ok(found.iter().filter_map(address).collect())
    }

    async fn gateways_of(&self, index: u32) -> Result<Vec<IpAddr>> {
        let mut gateways = Vec::new();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(message)
                .execute()
                .try_collect()
                .await
                .map_err(|e| Error::netlink("list the routes", e))?;
            gateways.extend(routes.iter().filter_map(|route| gateway(route, index)));
        }
        Ok(gateways)
    }
}

/// The router of a default route through this interface.
fn gateway(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    let through = |attribute: &RouteAttribute| *attribute == RouteAttribute::Oif(index);
    if route.header.destination_prefix_length != 0 || !route.attributes.iter().any(through) {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
}
