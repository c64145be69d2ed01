//! The kernel's news about links, addresses, routes and neighbours.

use std::future::{Future, ready};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, StreamExt};
use ipnetwork::IpNetwork;
use overlay_core::model::MacAddr;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::proto::sys::AsyncSocket;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};

use crate::nexthop::usable_mac;
use crate::routes::ip;
use crate::uplink::address;
use crate::{Error, LinkInfo, Result};

/// Events that wait for the receiver; more than these, and it is told of an overrun instead.
const QUEUE: usize = 1024;
/// Bytes of news that wait in the kernel, where we may ask for so many: enough for the thousands
/// of messages of a routing daemon's start.
const KERNEL_QUEUE: usize = 4 << 20;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// A change on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface was deleted, or moved to another namespace. A port's goes with its container.
    LinkGone {
        /// The index it had.
        ifindex: u32,
        /// The name it had.
        name: String,
    },
    /// An interface is new or has changed. When one goes down, its routes go with it, and the
    /// kernel does not tell about each.
    LinkChanged {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
        /// Administratively up.
        up: bool,
        /// The other side is there.
        carrier: bool,
        /// Its MTU, in bytes.
        mtu: u32,
        /// Its Ethernet address.
        mac: Option<MacAddr>,
    },
    /// A neighbour is known, has another address, or is lost.
    Neighbour {
        /// Whose.
        ip: IpAddr,
        /// On which interface.
        ifindex: u32,
        /// Its Ethernet address; `None` when it has become unknown.
        mac: Option<MacAddr>,
    },
    /// A route to these addresses was added, changed or deleted.
    Route(IpNetwork),
    /// An address was added to an interface, changed there, or deleted.
    Address {
        /// The interface.
        ifindex: u32,
        /// The address.
        ip: IpAddr,
        /// False when it was deleted.
        added: bool,
    },
    /// News was lost: read everything again.
    Overrun,
}

/// Listens to the kernel.
#[derive(Debug)]
pub struct Monitor;

impl Monitor {
    /// Subscribes to the news of the calling thread's namespace. The returned task must be
    /// spawned; it ends when the receiver is dropped, or with the socket.
    ///
    /// # Errors
    /// When the kernel gives no socket, or outside a tokio runtime.
    // Not a constructor on purpose: what it makes is the task and its receiver.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Result<(
        impl Future<Output = ()> + Send + 'static,
        Receiver<HostEvent>,
    )> {
        let cannot = |e: std::io::Error| Error::kernel("listen to the kernel's news", e);
        tokio::runtime::Handle::try_current().map_err(|e| cannot(std::io::Error::other(e)))?;
        let (mut connection, handle, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(cannot)?;
        let socket = connection.socket_mut().socket_ref();
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, KERNEL_QUEUE).is_err() {
            tracing::debug!("the kernel's default queue has to do for its news");
        }
        let (tx, rx) = mpsc::channel(QUEUE);
        let events = messages.filter_map(|(message, _)| ready(event(message)));
        let task = async move {
            // Without its handle the connection would take no request, and end.
            let _handle = handle;
            tokio::select! {
                () = connection => {}
                () = forward(events, &tx) => {}
                () = tx.closed() => {}
            }
        };
        Ok((task, rx))
    }
}

/// Passes events on. One that repeats the last in the queue is left out. When the receiver is
/// behind by a whole queue, as it may be at a routing daemon's start, events are dropped until it
/// can be told so: they must not pile up in memory.
async fn forward(mut events: impl Stream<Item = HostEvent> + Unpin, tx: &Sender<HostEvent>) {
    let mut last = None;
    while let Some(event) = events.next().await {
        let queued = tx.capacity() < tx.max_capacity();
        if queued && last.as_ref() == Some(&event) {
            continue;
        }
        last = Some(event.clone());
        match tx.try_send(event) {
            Ok(()) => continue,
            Err(TrySendError::Closed(_)) => return,
            Err(TrySendError::Full(_)) => {}
        }
        let permit = loop {
            tokio::select! {
                permit = tx.reserve() => break permit,
                dropped = events.next() => if dropped.is_none() { return },
            }
        };
        match permit {
            Ok(permit) => {
                last = Some(HostEvent::Overrun);
                permit.send(HostEvent::Overrun);
            }
            Err(_) => return,
        }
    }
}

fn event(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<HostEvent> {
    let inner = match message.payload {
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) => return Some(HostEvent::Overrun),
        _ => return None,
    };
    match inner {
        RouteNetlinkMessage::NewLink(m) => LinkInfo::from_message(&m).map(changed),
        RouteNetlinkMessage::DelLink(m) => {
            LinkInfo::from_message(&m).map(|link| HostEvent::LinkGone {
                ifindex: link.index,
                name: link.name,
            })
        }
        RouteNetlinkMessage::NewNeighbour(m) => neighbour(&m, usable_mac(&m)),
        RouteNetlinkMessage::DelNeighbour(m) => neighbour(&m, None),
        RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => route(&m),
        RouteNetlinkMessage::NewAddress(m) => address(&m).map(|ip| HostEvent::Address {
            ifindex: m.header.index,
            ip,
            added: true,
        }),
        RouteNetlinkMessage::DelAddress(m) => address(&m).map(|ip| HostEvent::Address {
            ifindex: m.header.index,
            ip,
            added: false,
        }),
        _ => None,
    }
}

fn changed(link: LinkInfo) -> HostEvent {
    HostEvent::LinkChanged {
        ifindex: link.index,
        name: link.name,
        up: link.up,
        carrier: link.carrier,
        mtu: link.mtu,
        mac: link.mac,
    }
}

/// `None` for a bridge's forwarding entries, which come in the same messages.
fn neighbour(message: &NeighbourMessage, mac: Option<MacAddr>) -> Option<HostEvent> {
    let ip = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(HostEvent::Neighbour {
        ip,
        ifindex: message.header.ifindex,
        mac,
    })
}

/// `None` for the kernel's cached copies of routes, and what is no route for IP packets.
fn route(message: &RouteMessage) -> Option<HostEvent> {
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let to = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    // A default route names no destination.
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let len = message.header.destination_prefix_length;
    let to = IpNetwork::new(to.unwrap_or(any), len).ok()?;
    Some(HostEvent::Route(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn neighbour(last: u8) -> HostEvent {
        HostEvent::Neighbour {
            ip: IpAddr::from([10, 0, 0, last]),
            ifindex: 1,
            mac: None,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_receiver_is_told_of_the_overrun() {
        let (tx, mut rx) = mpsc::channel(2);
        let events = stream::iter((1..=9).map(neighbour)).chain(stream::pending());
        let task = tokio::spawn(async move { forward(events, &tx).await });
        tokio::task::yield_now().await;
        assert_eq!(rx.recv().await, Some(neighbour(1)));
        assert_eq!(rx.recv().await, Some(neighbour(2)));
        assert_eq!(rx.recv().await, Some(HostEvent::Overrun));
        task.abort();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn repeats_are_left_out_while_they_wait() {
        let to = |text: &str| HostEvent::Route(text.parse().unwrap());
        let (route, other) = (to("192.0.2.0/24"), to("0.0.0.0/0"));
        let (tx, mut rx) = mpsc::channel(9);
        let events = [&route, &route, &other, &neighbour(1), &route, &route].map(Clone::clone);
        forward(stream::iter(events.clone()), &tx).await;
        for event in [&route, &other, &neighbour(1), &route] {
            assert_eq!(rx.recv().await.as_ref(), Some(event));
        }
        assert!(rx.is_empty());
        forward(stream::iter([route.clone()]), &tx).await;
        assert_eq!(rx.recv().await, Some(route));
    }
}
