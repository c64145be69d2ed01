//! The punt link: a veth pair on the host over which the data path and the agent pass frames.

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::error::errno;
use crate::link::{birth_mark, check_ifname};
use crate::{Error, Host, LinkInfo, Result, sysctl};

/// The two ends of a veth pair on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuntPair {
    /// The index of the first end.
    pub near_ifindex: u32,
    /// The index of the second end.
    pub far_ifindex: u32,
    /// How many queues they were made with, in each direction.
    pub queues: u32,
}

impl Host {
    /// Makes sure of a veth pair `near` and `far` on the host, both up with this MTU (in bytes)
    /// and without IPv6, and with `owner` as the alias; a new one with so many queues. A pair of the same owner is kept, programs
    /// and all; veths of the same owner that are no pair are replaced.
    ///
    /// # Errors
    /// When a name is bad, or there is an interface of that name that does not carry the owner's
    /// mark, or is not a veth; that one stays.
    pub async fn create_punt_pair(
        &self,
        near: &str,
        far: &str,
        mtu: u32,
        queues: u32,
        owner: &str,
    ) -> Result<PuntPair> {
        check_ifname(near)?;
        check_ifname(far)?;
        let pair = match self.punt_pair(near, far, owner).await? {
            Some(pair) => {
                self.set_mtu(near, mtu).await?;
                self.set_mtu(far, mtu).await?;
                pair
            }
            None => {
                self.add_punt_pair(near, far, mtu, queues, owner).await?;
                let made = self.punt_pair(near, far, owner).await?;
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

    /// The pair, if both are there and are each other's peer; else whichever is there is deleted,
    /// once it is sure that none is someone else's.
    async fn punt_pair(&self, near: &str, far: &str, owner: &str) -> Result<Option<PuntPair>> {
        let links = [self.link(near).await?, self.link(far).await?];
        let ours = |link: &LinkInfo| link.kind == "veth" && link.is_owned_by(owner);
        if let Some(other) = links.iter().flatten().find(|link| !ours(link)) {
            return Err(Error::NotOurs {
                name: other.name.clone(),
                alias: other.alias.clone(),
            });
        }
        if let [Some(a), Some(b)] = &links
            && are_peers(a, b)
            && are_peers(b, a)
            && [a, b].iter().all(|link| link.is_marked_by(owner))
        {
            return Ok(Some(PuntPair {
                near_ifindex: a.index,
                far_ifindex: b.index,
                queues: b.rx_queues.max(1),
            }));
        }
        for link in links.iter().flatten() {
            self.delete_index(link).await?;
        }
        Ok(None)
    }

    async fn add_punt_pair(
        &self,
        near: &str,
        far: &str,
        mtu: u32,
        queues: u32,
        owner: &str,
    ) -> Result<()> {
        let attributes = || {
            [
                LinkAttribute::Group(birth_mark(owner)),
                LinkAttribute::NumTxQueues(queues),
                LinkAttribute::NumRxQueues(queues),
            ]
        };
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(far).mtu(mtu);
        let mut message = LinkVeth::new(near, far).mtu(mtu);
        for attribute in attributes() {
            peer = peer.append_extra_attribute(attribute.clone());
            message = message.append_extra_attribute(attribute);
        }
        let message = message
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => {}
            Err(e) if errno(&e) == Some(libc::EEXIST) => {
                return Err(Error::TakenOnHost(near.to_owned()));
            }
            Err(e) => {
                let doing = format!("create the veth pair {near} and {far}");
                return Err(Error::netlink(doing, e));
            }
        }
        for name in [near, far] {
            if let Err(error) = self.mark(name, owner).await {
                // Without the mark the next call would take it for someone else's.
                if let Err(e) = self.delete_link(near).await {
                    tracing::warn!("undoing the veth pair {near} and {far}: {e}");
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

fn are_peers(a: &LinkInfo, b: &LinkInfo) -> bool {
    a.kind == "veth" && a.link_netnsid.is_none() && a.peer_index == Some(b.index)
}
