//! All the ways to a VTEP: a route may have several next hops (ECMP).
//!
//! The kernel chooses among them by a hash of each flow. What it chose for the flow it was asked
//! about says nothing about another one, so the routes themselves are read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use overlay_core::model::MacAddr;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::errno;
use crate::nexthop::usable_mac;
use crate::routes::ip;
use crate::{Error, Host, Result};

/// One way to a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The interface that frames leave by.
    pub ifindex: u32,
    /// Whom they are sent to on that link: a router, or the VTEP itself.
    pub gateway_or_dst: IpAddr,
    /// Its share, from 1.
    pub weight: u16,
    /// The MTU that is configured on the route, in bytes. What the kernel has learnt from ICMP
    /// errors is not among it: anybody may send those.
    pub mtu: Option<u32>,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its Ethernet address, which the kernel would send to.
    Usable(MacAddr),
    /// Nothing yet.
    Unknown,
    /// It did not answer.
    Failed,
}

impl Host {
    /// The ways from `src` to `dst`; those that the kernel takes for dead only when there is no
    /// other.
    ///
    /// # Errors
    /// As [`Host::resolve`].
    pub async fn paths(&self, dst: IpAddr, src: IpAddr) -> Result<Vec<Path>> {
        if let Some(route) = self.matching_route(dst, src).await {
            let paths = live(&route, dst);
            if route.header.kind == RouteType::Unicast && !paths.is_empty() {
                return Ok(paths);
            }
        }
        // It says what is wrong, and knows next hop objects that routes only refer to.
        let hop = self.resolve(dst, src).await?;
        Ok(vec![Path {
            ifindex: hop.ifindex,
            gateway_or_dst: hop.gateway_or_dst,
            weight: 1,
            mtu: hop.route_mtu,
        }])
    }

    /// The route in the table, not what the kernel makes of it for one flow.
    async fn matching_route(&self, dst: IpAddr, src: IpAddr) -> Option<RouteMessage> {
        let mut message = match (dst, src) {
            (IpAddr::V4(dst), IpAddr::V4(src)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(dst, 32)
                .source_prefix(src, 32)
                .build(),
            (IpAddr::V6(dst), IpAddr::V6(src)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(dst, 128)
                .source_prefix(src, 128)
                .build(),
            _ => return None,
        };
        // The builder is made for adding routes; a look-up has none of these.
        message.header.table = 0;
        message.header.protocol = Default::default();
        message.header.kind = Default::default();
        message.header.flags = RouteFlags::FibMatch;
        let request = self.handle.route().get(message);
        Box::pin(request.execute()).try_next().await.ok().flatten()
    }

    /// What the kernel knows of a neighbour.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn neighbour_of(&self, ip: IpAddr, ifindex: u32) -> Result<Neighbour> {
        let message = neighbour_message(ip, ifindex);
        // rtnetlink's own request would dump the whole table.
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST;
        let doing = || format!("look up neighbour {ip}");
        let mut replies = self
            .handle
            .clone()
            .request(request)
            .map_err(|e| Error::netlink(doing(), e))?;
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => {
                    return Ok(state_of(&found));
                }
                NetlinkPayload::Error(e) if e.raw_code() == -libc::ENOENT => break,
                NetlinkPayload::Error(e) => return Err(Error::kernel(doing(), e.to_io())),
                _ => {}
            }
        }
        Ok(Neighbour::Unknown)
    }

    /// Makes the kernel forget a neighbour's Ethernet address and look for it anew: the one that
    /// it knows may be a dead machine's.
    ///
    /// # Errors
    /// When there is no such interface.
    pub async fn look_again(&self, ip: IpAddr, ifindex: u32) -> Result<()> {
        let message = neighbour_message(ip, ifindex);
        match self.handle.neighbours().del(message).execute().await {
            Err(e) if errno(&e) != Some(libc::ENOENT) => {
                return Err(Error::netlink(format!("forget neighbour {ip}"), e));
            }
            _ => {}
        }
        self.keep_fresh(ip, ifindex).await
    }
}

fn neighbour_message(ip: IpAddr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    let destination = NeighbourAttribute::Destination(address);
    message.attributes.push(destination);
    message
}

fn state_of(message: &NeighbourMessage) -> Neighbour {
    match usable_mac(message) {
        Some(mac) => Neighbour::Usable(mac),
        None if message.header.state == NeighbourState::Failed => Neighbour::Failed,
        None => Neighbour::Unknown,
    }
}

/// The ways of a route, without the dead ones if others are left.
fn live(route: &RouteMessage, dst: IpAddr) -> Vec<Path> {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            // An IPv4 route by way of an IPv6 router.
            RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
            _ => None,
        })
    };
    let mtu = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                _ => None,
            }),
            _ => None,
        });
    let path = |ifindex, attributes: &[RouteAttribute], weight| Path {
        ifindex,
        gateway_or_dst: gateway(attributes).unwrap_or(dst),
        weight,
        mtu,
    };
    let mut alive = Vec::new();
    let mut dead = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => alive.push(path(*index, &route.attributes, 1)),
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    let gone = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                    let list = match hop.flags.intersects(gone) {
                        true => &mut dead,
                        false => &mut alive,
                    };
                    let weight = u16::from(hop.hops) + 1;
                    list.push(path(hop.interface_index, &hop.attributes, weight));
                }
            }
            _ => {}
        }
    }
    if alive.is_empty() { dead } else { alive }
}
