//! The host's routes, to keep overlay subnets clear of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

use crate::{Error, Host, Result};

impl Host {
    /// The destinations of the main table's unicast routes with their interfaces, without the
    /// default routes. A route over several interfaces appears once for each.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn host_routes(&self) -> Result<Vec<(IpNetwork, String)>> {
        let names: HashMap<u32, String> = self
            .links()
            .await?
            .into_iter()
            .map(|link| (link.index, link.name))
            .collect();
        let mut routes = Vec::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let found: Vec<RouteMessage> = self
                .handle
                .route()
                .get(message)
                .execute()
                .try_collect()
                .await
                .map_err(|e| Error::netlink("list the routes", e))?;
            for route in &found {
                let Some(destination) = main_unicast(route) else {
                    continue;
                };
                for name in interfaces(route).filter_map(|index| names.get(&index)) {
                    routes.push((destination, name.clone()));
                }
            }
        }
        Ok(routes)
    }

    /// A route of the host's that shares addresses with `subnet`.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn find_overlap(&self, subnet: IpNetwork) -> Result<Option<(IpNetwork, String)>> {
        let routes = self.host_routes().await?;
        Ok(routes.into_iter().find(|(r, _)| overlaps(*r, subnet)))
    }
}

/// Two prefixes share addresses only if one contains the other, so its first address.
fn overlaps(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The destination, if it is a unicast route of the main table and not a default route.
fn main_unicast(route: &RouteMessage) -> Option<IpNetwork> {
    let mut table = u32::from(route.header.table);
    let mut destination = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => destination = ip(address),
            _ => {}
        }
    }
    let wanted =
        route.header.kind == RouteType::Unicast && table == RouteHeader::RT_TABLE_MAIN.into();
    let prefix = route.header.destination_prefix_length;
    if !wanted || prefix == 0 {
        return None;
    }
    IpNetwork::new(destination?, prefix).ok()
}

fn interfaces(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
}

pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_containment_either_way() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        for (a, b, expected) in [
            ("10.0.0.0/24", "10.0.0.0/24", true),
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.1.2.0/24", "10.0.0.0/8", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("10.0.0.7/24", "10.0.0.128/25", true),
            ("fd00::/64", "10.0.0.0/8", false),
            ("fd00::/48", "fd00:0:0:1::/64", true),
        ] {
            assert_eq!(overlaps(net(a), net(b)), expected, "{a} {b}");
        }
    }
}
