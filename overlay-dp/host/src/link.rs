//! Interfaces: what there is, and the changes that need no more than a name.

use futures_util::TryStreamExt;
use overlay_core::model::MacAddr;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo as InfoAttribute, LinkLayerType, LinkMessage, LinkXdp,
    XdpAttached,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::error::errno;
use crate::host::drive;
use crate::{Error, Host, Netns, Result};

/// Whoever else wants to change an interface waits while so many are deleted.
const DELETED_AT_ONCE: usize = 16;

/// An interface, as it was when asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` where links have other addresses, or none.
    pub mac: Option<MacAddr>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// The other side is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// `"veth"`, `"bridge"`, … ; empty for a physical interface.
    pub kind: String,
    /// What an administrator, or an agent, wrote on it (`IFLA_IFALIAS`): our own carry their
    /// agent's mark there.
    pub alias: Option<String>,
    /// Its group (`IFLA_GROUP`); 0 unless somebody chose one.
    pub group: u32,
    /// Receive queues that it was made with.
    pub rx_queues: u32,
    /// A veth's peer, by index in its own namespace; a VLAN's lower interface.
    pub peer_index: Option<u32>,
    /// The id of the peer's namespace when that is another one.
    pub link_netnsid: Option<i32>,
    /// The XDP program that runs on it.
    pub xdp: Option<XdpAttachment>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// The kernel's id of the program; 0 when there are several.
    pub prog_id: u32,
    /// Where it runs.
    pub mode: XdpMode,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the socket buffer is made.
    Generic,
    /// On the card.
    Hardware,
    /// Several at once.
    Multiple,
}

impl LinkInfo {
    /// `None` for a message that is not about an interface as such.
    pub(crate) fn from_message(message: &LinkMessage) -> Option<LinkInfo> {
        // Bridges tell about their ports with messages of the same type.
        if message.header.interface_family == AddressFamily::Bridge {
            return None;
        }
        let flags = message.header.flags;
        let mut link = LinkInfo {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            kind: String::new(),
            alias: None,
            group: 0,
            rx_queues: 0,
            peer_index: None,
            link_netnsid: None,
            xdp: None,
        };
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
                LinkAttribute::Address(bytes) if ethernet => link.mac = mac(bytes),
                LinkAttribute::Link(index) => link.peer_index = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(*id),
                LinkAttribute::Xdp(xdp) => link.xdp = xdp_attachment(xdp),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(kind).unwrap_or_default();
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    pub(crate) fn is_owned_by(&self, owner: &str) -> bool {
        match &self.alias {
            Some(alias) => alias == owner,
            None => self.group == birth_mark(owner),
        }
    }

    /// Carries `owner`'s mark for good.
    pub(crate) fn is_marked_by(&self, owner: &str) -> bool {
        self.alias.as_deref() == Some(owner)
    }
}

/// The group that our interfaces are born with. The kernel ignores an alias in the request that
/// makes an interface, so whoever is killed between that and [`Host::mark`] leaves one that can be
/// told by its group alone. No person's group is that large.
pub(crate) fn birth_mark(owner: &str) -> u32 {
    // FNV-1a.
    let fold = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    owner.bytes().fold(0x811c_9dc5, fold) >> 1 | 0x4000_0000
}

pub(crate) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

fn kind(info: &InfoAttribute) -> Option<String> {
    match info {
        InfoAttribute::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn xdp_attachment(attributes: &[LinkXdp]) -> Option<XdpAttachment> {
    let mut mode = None;
    let mut prog_id = 0;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(attached) => {
                mode = match attached {
                    XdpAttached::Driver => Some(XdpMode::Native),
                    XdpAttached::SocketBuffer => Some(XdpMode::Generic),
                    XdpAttached::Hardware => Some(XdpMode::Hardware),
                    XdpAttached::Multiple => Some(XdpMode::Multiple),
                    _ => None,
                };
            }
            LinkXdp::ProgId(id) => prog_id = *id,
            _ => {}
        }
    }
    mode.map(|mode| XdpAttachment { prog_id, mode })
}

/// The kernel's rule for names, and `%`, which it would take for a template.
pub(crate) fn check_ifname(name: &str) -> Result<()> {
    let ok = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
    if ok {
        Ok(())
    } else {
        Err(Error::InterfaceName(name.to_owned()))
    }
}

impl Host {
    /// The interface called `name`.
    ///
    /// # Errors
    /// When the kernel can't be asked; a missing interface is `None`.
    pub async fn link(&self, name: &str) -> Result<Option<LinkInfo>> {
        let request = self.handle.link().get().match_name(name.to_owned());
        one_link(request, format!("look up interface {name}")).await
    }

    /// The interface with this index.
    ///
    /// # Errors
    /// When the kernel can't be asked; a missing interface is `None`.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<LinkInfo>> {
        let request = self.handle.link().get().match_index(index);
        one_link(request, format!("look up interface {index}")).await
    }

    /// All interfaces.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn links(&self) -> Result<Vec<LinkInfo>> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list the interfaces", e))?;
        Ok(messages.iter().filter_map(LinkInfo::from_message).collect())
    }

    /// The interfaces of the kinds that we make, veth and vxlan, with `owner`'s mark, whatever they
    /// are called.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn links_owned_by(&self, owner: &str) -> Result<Vec<LinkInfo>> {
        let mut links = self.links().await?;
        links.retain(|link| {
            matches!(link.kind.as_str(), "veth" | "vxlan") && link.is_owned_by(owner)
        });
        Ok(links)
    }

    /// Deletes an interface that carries `owner`'s mark, and with a veth its peer. False when
    /// there was none, or it carries another mark or none; that one stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_owned(&self, name: &str, owner: &str) -> Result<bool> {
        match self.link(name).await? {
            // By index: a name may have gone to someone else's interface meanwhile.
            Some(link) if link.is_owned_by(owner) => self.delete_index(&link).await,
            _ => Ok(false),
        }
    }

    /// Deletes an interface, and with a veth its peer. False when there was none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_link(&self, name: &str) -> Result<bool> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(false),
            Err(e) => Err(Error::netlink(format!("delete interface {name}"), e)),
        }
    }

    /// Deletes interfaces by their indexes, and with veths their peers; those that are gone are no
    /// error. The kernel waits for all of its CPUs a few times for each request to delete, so a
    /// whole group goes with one. `owner`'s mark, which names the group, must not be on others
    /// that are to stay.
    ///
    /// # Errors
    /// When the kernel refuses; some may be deleted then.
    pub async fn delete_links(&self, indexes: &[u32], owner: &str) -> Result<()> {
        let group = LinkAttribute::Group(birth_mark(owner));
        for part in indexes.chunks(DELETED_AT_ONCE) {
            for index in part {
                let message = LinkUnspec::new_with_index(*index)
                    .append_extra_attribute(group.clone())
                    .build();
                match self.handle.link().change(message).execute().await {
                    Err(e) if errno(&e) != Some(libc::ENODEV) => {
                        return Err(Error::netlink(format!("set the group of {index}"), e));
                    }
                    _ => {}
                }
            }
            let message = LinkMessageBuilder::<LinkUnspec>::new()
                .append_extra_attribute(group.clone())
                .build();
            match self.handle.link().del_with_message(message).execute().await {
                Err(e) if errno(&e) != Some(libc::ENODEV) => {
                    return Err(Error::netlink("delete a group of interfaces", e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) async fn delete_index(&self, link: &LinkInfo) -> Result<bool> {
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(false),
            Err(e) => Err(Error::netlink(format!("delete interface {}", link.name), e)),
        }
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// When there is no such interface or its driver refuses.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.change(
            LinkUnspec::new_with_name(name).mtu(mtu),
            format!("set the MTU of {name} to {mtu}"),
        )
        .await
    }

    /// An interface inside a container.
    ///
    /// # Errors
    /// When the container is gone; a missing interface is `None`.
    pub async fn container_link(&self, netns: &Netns, ifname: &str) -> Result<Option<LinkInfo>> {
        let (inside, connection) = Host::inside(netns)?;
        drive(connection, inside.link(ifname)).await
    }

    /// The interface inside a container whose other end the host has, as interface `index`.
    ///
    /// # Errors
    /// When the container is gone; a missing interface is `None`.
    pub async fn container_peer(&self, netns: &Netns, index: u32) -> Result<Option<LinkInfo>> {
        let (inside, connection) = Host::inside(netns)?;
        let links = drive(connection, inside.links()).await?;
        // The index of a peer in the same namespace would be one of that namespace's.
        let is_it = |link: &LinkInfo| link.link_netnsid.is_some() && link.peer_index == Some(index);
        Ok(links.into_iter().find(is_it))
    }

    /// Sets the MTU, in bytes, of an interface inside a container.
    ///
    /// # Errors
    /// When the container or its interface is gone.
    pub async fn set_container_mtu(&self, netns: &Netns, ifname: &str, mtu: u32) -> Result<()> {
        let (inside, connection) = Host::inside(netns)?;
        drive(connection, inside.set_mtu(ifname, mtu)).await
    }

    pub(crate) async fn change(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        doing: String,
    ) -> Result<()> {
        self.handle
            .link()
            .change(message.build())
            .execute()
            .await
            .map_err(|e| Error::netlink(doing, e))
    }

    /// Puts `owner`'s mark on an interface that was just made, in place of its [`birth_mark`].
    pub(crate) async fn mark(&self, name: &str, owner: &str) -> Result<()> {
        self.change(
            LinkUnspec::new_with_name(name)
                .alias(owner)
                .append_extra_attribute(LinkAttribute::Group(0)),
            format!("set the alias of {name} to '{owner}'"),
        )
        .await
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When there is no such interface.
    pub async fn set_up(&self, name: &str) -> Result<()> {
        self.change(
            LinkUnspec::new_with_name(name).up(),
            format!("bring interface {name} up"),
        )
        .await
    }
}

async fn one_link(request: rtnetlink::LinkGetRequest, doing: String) -> Result<Option<LinkInfo>> {
    match Box::pin(request.execute()).try_next().await {
        Ok(message) => Ok(message.as_ref().and_then(LinkInfo::from_message)),
        Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(Error::netlink(doing, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for good in ["eth0", "a", "ovp-1234567890a", "eth0.100"] {
            assert!(check_ifname(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:0",
            "eth%d",
            "sixteen-letters-",
            "ü",
        ] {
            assert!(check_ifname(bad).is_err(), "{bad}");
        }
    }
}
