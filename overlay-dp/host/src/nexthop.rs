//! Where an outer frame goes: the route to a VTEP and its next hop's Ethernet address.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use overlay_core::model::MacAddr;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use crate::error::errno;
use crate::link::mac;
use crate::paths::Neighbour;
use crate::routes::ip;
use crate::{Error, Host, Result};

/// The way to a VTEP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that frames leave by.
    pub ifindex: u32,
    /// Whom they are sent to on that link: a router, or the VTEP itself.
    pub gateway_or_dst: IpAddr,
    /// That interface's Ethernet address.
    pub src_mac: MacAddr,
    /// The next hop's Ethernet address. `None` while the kernel looks for it; a
    /// [`HostEvent::Neighbour`](crate::HostEvent) tells when it is found.
    pub dst_mac: Option<MacAddr>,
    /// The interface's MTU, in bytes.
    pub link_mtu: u32,
    /// The route's MTU in bytes: configured on it, or discovered on the path.
    pub route_mtu: Option<u32>,
}

impl Host {
    /// Asks the kernel for the way from `src` to `dst`. Where the next hop's Ethernet address is
    /// not known, the kernel is made to look for it.
    ///
    /// # Errors
    /// [`Error::NoRoute`], [`Error::LocalDestination`], [`Error::NotOurAddress`] for `src`, or
    /// [`Error::NotEthernet`] for the interface.
    pub async fn resolve(&self, dst: IpAddr, src: IpAddr) -> Result<NextHop> {
        let route = self.route(dst, src).await?;
        match route.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Err(Error::LocalDestination(dst)),
            _ => return Err(Error::NoRoute(dst)),
        }
        let way = Way::of(&route);
        let ifindex = way.interface.ok_or(Error::NoRoute(dst))?;
        let gateway_or_dst = way.gateway.unwrap_or(dst);
        let link = self
            .link_by_index(ifindex)
            .await?
            .ok_or(Error::NoRoute(dst))?;
        let src_mac = link.mac.ok_or(Error::NotEthernet(link.name))?;
        let dst_mac = match self.neighbour_of(gateway_or_dst, ifindex).await? {
            Neighbour::Usable(mac) => Some(mac),
            Neighbour::Unknown | Neighbour::Failed => None,
        };
        if dst_mac.is_none() {
            self.keep_fresh(gateway_or_dst, ifindex).await?;
        }
        Ok(NextHop {
            ifindex,
            gateway_or_dst,
            src_mac,
            dst_mac,
            link_mtu: link.mtu,
            route_mtu: way.mtu,
        })
    }

    /// Tells the kernel that a neighbour is in use, as a packet sent to it would: an unknown one
    /// is looked for, a stale one probed, a reachable one left alone. The data path's frames do
    /// not pass the kernel's neighbour code, so without this it would forget.
    ///
    /// # Errors
    /// When there is no such interface or it can't have neighbours of that family.
    pub async fn keep_fresh(&self, ip: IpAddr, ifindex: u32) -> Result<()> {
        self.handle
            .neighbours()
            .add(ifindex, ip)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            // Without this rtnetlink asks for a new entry only.
            .replace()
            .execute()
            .await
            .map_err(|e| Error::netlink(format!("look for neighbour {ip}"), e))
    }

    async fn route(&self, dst: IpAddr, src: IpAddr) -> Result<RouteMessage> {
        let mut message = match (dst, src) {
            (IpAddr::V4(dst), IpAddr::V4(src)) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(dst, 32)
                .source_prefix(src, 32)
                .build(),
            (IpAddr::V6(dst), IpAddr::V6(src)) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(dst, 128)
                .source_prefix(src, 128)
                .build(),
            _ => return Err(Error::NoRoute(dst)),
        };
        // The builder is made for adding routes; a look-up has none of these.
        message.header.table = 0;
        message.header.protocol = Default::default();
        message.header.kind = Default::default();
        match Box::pin(self.handle.route().get(message).execute())
            .try_next()
            .await
        {
            Ok(Some(route)) => Ok(route),
            Ok(None) => Err(Error::NoRoute(dst)),
            // What it says to a foreign source address depends on the kernel's version, and
            // routes that refuse say the same.
            Err(e) => match errno(&e) {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                    if self.has_address(src).await? {
                        Err(Error::NoRoute(dst))
                    } else {
                        Err(Error::NotOurAddress(src))
                    }
                }
                _ => Err(Error::netlink(format!("look up the route to {dst}"), e)),
            },
        }
    }

    async fn has_address(&self, ip: IpAddr) -> Result<bool> {
        let request = self.handle.address().get().set_address_filter(ip);
        let found = Box::pin(request.execute()).try_next().await;
        found
            .map(|message| message.is_some())
            .map_err(|e| Error::netlink("list the addresses", e))
    }
}

struct Way {
    interface: Option<u32>,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
}

impl Way {
    fn of(route: &RouteMessage) -> Way {
        let mut way = Way {
            interface: None,
            gateway: None,
            mtu: None,
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => way.interface = Some(*index),
                RouteAttribute::Gateway(address) => way.gateway = ip(address),
                // An IPv4 route by way of an IPv6 router.
                RouteAttribute::Via(RouteVia::Inet6(ip)) => way.gateway = Some(IpAddr::V6(*ip)),
                RouteAttribute::Via(RouteVia::Inet(ip)) => way.gateway = Some(IpAddr::V4(*ip)),
                RouteAttribute::Metrics(metrics) => {
                    way.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        way
    }
}

/// The Ethernet address of an entry that the kernel would use to send.
pub(crate) fn usable_mac(message: &NeighbourMessage) -> Option<MacAddr> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    if !matches!(
        message.header.state,
        Reachable | Stale | Delay | Probe | Permanent | Noarp
    ) {
        return None;
    }
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}
