//! What has gone through interfaces, by the kernel's own count.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, Stats64};

use crate::link::LinkInfo;
use crate::{Error, Host, Result};

/// An interface's counters. A super-packet counts as one packet. Whether Ethernet headers are among
/// the bytes is the driver's choice: a veth counts those of what comes in, and of what goes out
/// unless its other end runs XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames that came and found no room.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames that were to be sent and were not taken.
    pub tx_dropped: u64,
}

impl Host {
    /// The counters of the far ends of the veths in `wanted`, by the near end's index.
    ///
    /// The far ends, because what `bpf_redirect_peer` gives them never passes the near ones. They
    /// are asked for by the id that this namespace has for theirs, so nobody has to go there, and
    /// whatever they are called now. An interface that has gone meanwhile is not in the answer.
    ///
    /// # Errors
    /// When the kernel can't be asked for the near ends.
    pub async fn peer_traffic(
        &self,
        wanted: impl Fn(&LinkInfo) -> bool,
    ) -> Result<HashMap<u32, Traffic>> {
        let mut counters = HashMap::new();
        let mut links = self.links().await?;
        links.retain(|link| link.kind == "veth" && wanted(link));
        for near in links {
            if let Some(peer) = near.peer_index
                && let Some(traffic) = self.traffic_of(peer, near.link_netnsid).await?
            {
                counters.insert(near.index, traffic);
            }
        }
        Ok(counters)
    }

    /// The counters of one interface, here or in the namespace with this id.
    async fn traffic_of(&self, index: u32, netnsid: Option<i32>) -> Result<Option<Traffic>> {
        let mut request = self.handle.link().get().match_index(index);
        if let Some(id) = netnsid {
            let attributes = &mut request.message_mut().attributes;
            attributes.push(LinkAttribute::IfNetnsId(id));
        }
        let answer: std::result::Result<Vec<LinkMessage>, _> =
            request.execute().try_collect().await;
        match answer {
            Ok(messages) => Ok(messages.first().and_then(counters)),
            // It is gone, or its namespace is.
            Err(error)
                if matches!(
                    crate::error::errno(&error),
                    Some(libc::ENODEV | libc::EINVAL | libc::ENXIO)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::netlink("read an interface's counters", error)),
        }
    }
}

fn counters(message: &LinkMessage) -> Option<Traffic> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(Traffic::from(stats)),
            _ => None,
        })
}

impl From<&Stats64> for Traffic {
    fn from(stats: &Stats64) -> Traffic {
        Traffic {
            rx_bytes: stats.rx_bytes,
            rx_packets: stats.rx_packets,
            rx_dropped: stats.rx_dropped,
            tx_bytes: stats.tx_bytes,
            tx_packets: stats.tx_packets,
            tx_dropped: stats.tx_dropped,
        }
    }
}
