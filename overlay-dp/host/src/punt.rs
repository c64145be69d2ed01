//! The punt link: a veth pair on the host over which the data path and the agent pass frames.

use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::error::errno;
use crate::link::check_ifname;
use crate::{Error, Host, LinkInfo, Result, sysctl};

/// The two ends of a veth pair on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuntPair {
    /// The index of the first end.
    pub near_ifindex: u32,
    /// The index of the second end.
    pub far_ifindex: u32,
}

impl Host {
    /// Makes sure of a veth pair `near` and `far` on the host, both up with this MTU (in bytes)
    /// and without IPv6. A pair that is there is kept, programs and all.
    ///
    /// # Errors
    /// When a name is bad, or belongs to an interface that is not a veth; that one stays.
    pub async fn create_punt_pair(&self, near: &str, far: &str, mtu: u32) -> Result<PuntPair> {
        check_ifname(near)?;
        check_ifname(far)?;
        let pair = match self.punt_pair(near, far).await? {
            Some(pair) => {
                self.set_mtu(near, mtu).await?;
                self.set_mtu(far, mtu).await?;
                pair
            }
            None => {
                self.add_punt_pair(near, far, mtu).await?;
                let made = self.punt_pair(near, far).await?;
                made.ok_or_else(|| Error::NoInterface {
                    name: near.to_owned(),
                    known: Vec::new(),
                })?
            }
        };
        for name in [near, far] {
            sysctl::disable_ipv6(name)?;
            self.set_up(name).await?;
        }
        Ok(pair)
    }

    /// The pair, if both are there and are each other's peer; else whichever is there is deleted.
    async fn punt_pair(&self, near: &str, far: &str) -> Result<Option<PuntPair>> {
        let links = [self.link(near).await?, self.link(far).await?];
        if let [Some(a), Some(b)] = &links
            && are_peers(a, b)
            && are_peers(b, a)
        {
            return Ok(Some(PuntPair {
                near_ifindex: a.index,
                far_ifindex: b.index,
            }));
        }
        if let Some(other) = links.iter().flatten().find(|link| link.kind != "veth") {
            return Err(Error::TakenOnHost(other.name.clone()));
        }
        for link in links.iter().flatten() {
            self.delete_link(&link.name).await?;
        }
        Ok(None)
    }

    async fn add_punt_pair(&self, near: &str, far: &str, mtu: u32) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(far)
            .mtu(mtu)
            .build();
        let message = LinkVeth::new(near, far)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => Ok(()),
            Err(e) if errno(&e) == Some(libc::EEXIST) => Err(Error::TakenOnHost(near.to_owned())),
            Err(e) => Err(Error::netlink(
                format!("create the veth pair {near} and {far}"),
                e,
            )),
        }
    }
}

fn are_peers(a: &LinkInfo, b: &LinkInfo) -> bool {
    a.kind == "veth" && a.link_netnsid.is_none() && a.peer_index == Some(b.index)
}
