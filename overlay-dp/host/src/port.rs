//! A container's attachment: a veth pair with one end on the host, the port, and one inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use ipnetwork::IpNetwork;
use overlay_core::model::MacAddr;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::errno;
use crate::host::drive;
use crate::link::{birth_mark, check_ifname};
use crate::{Error, Host, LinkInfo, Netns, Result, sysctl};

/// A port to make.
#[derive(Clone, Debug)]
pub struct PortSpec<'a> {
    /// The host end's name.
    pub host_ifname: &'a str,
    /// The mark that the host end carries as its alias, for [`Host::links_owned_by`]; at most 255
    /// bytes, and not empty.
    pub owner: &'a str,
    /// The container end's name.
    pub container_ifname: &'a str,
    /// The container.
    pub netns: &'a Netns,
    /// The inner end may be in the host's own namespace: it is the host that is attached, or
    /// somebody else moves it into a container.
    pub in_host: bool,
    /// The container end's Ethernet address.
    pub mac: MacAddr,
    /// The host end's MTU, in bytes.
    pub host_mtu: u32,
    /// The container end's MTU, in bytes.
    pub container_mtu: u32,
    /// The container's addresses, each with the length of its prefix.
    pub addrs: &'a [(IpAddr, u8)],
    /// The container's default routers, one of each family at most; a default route that it has
    /// already is kept instead.
    pub gateways: &'a [IpAddr],
}

/// A port that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host end's index, in the host's namespace.
    pub host_ifindex: u32,
    /// The container end's index, in the container's namespace.
    pub container_ifindex: u32,
    /// The container end's link-local address; `None` when the container has IPv6 disabled,
    /// or an MTU too small for IPv6.
    pub link_local: Option<Ipv6Addr>,
    /// Whether all gateways asked for, and at least one, are the container's default routes.
    pub default_route: bool,
}

impl Host {
    /// Makes a port: both ends up, the container's end with its addresses and route.
    ///
    /// Not cancel safe: a future dropped half-way may leave the host end, to be removed with
    /// [`Host::delete_owned`].
    ///
    /// # Errors
    /// A bad or taken name, a bad address or gateway, a container that is gone. Nothing of the
    /// port is left then.
    pub async fn create_port(&self, spec: &PortSpec<'_>) -> Result<Port> {
        check_ifname(spec.host_ifname)?;
        check_ifname(spec.container_ifname)?;
        check_gateways(spec)?;
        if !spec.in_host && spec.netns.is_same(&Netns::current()?) {
            return Err(Error::HostNamespace(spec.netns.reference().to_string()));
        }
        let (inside, connection) = Host::inside(spec.netns)?;
        drive(connection, async {
            self.create_pair(&inside, spec).await?;
            let done = self.configure(&inside, spec).await;
            if done.is_err()
                && let Err(e) = self.delete_link(spec.host_ifname).await
            {
                tracing::warn!("undoing port {}: {e}", spec.host_ifname);
            }
            done
        })
        .await
    }

    /// Gives the container's end back what [`Host::create_port`] gave it and it has lost: its MAC,
    /// MTU, addresses, routes, and being up. What others have added stays.
    ///
    /// # Errors
    /// When the container or its interface is gone, or the kernel refuses.
    pub async fn restore_port(&self, spec: &PortSpec<'_>) -> Result<()> {
        let (inside, connection) = Host::inside(spec.netns)?;
        drive(connection, async {
            let gone = || Error::NamespaceGone(spec.netns.reference().to_string());
            let peer = inside.link(spec.container_ifname).await?.ok_or_else(gone)?;
            if peer.mac != Some(spec.mac) {
                let name = spec.container_ifname;
                let message = LinkUnspec::new_with_name(name).address(spec.mac.0.to_vec());
                let doing = format!("set the MAC of {name} to {}", spec.mac);
                inside.change(message, doing).await?;
            }
            if peer.mtu != spec.container_mtu {
                inside
                    .set_mtu(spec.container_ifname, spec.container_mtu)
                    .await?;
            }
            let has = inside.addresses_of(peer.index).await?;
            for (ip, prefix) in spec.addrs {
                if !has.iter().any(|(has, _)| has == ip) {
                    inside.add_address(peer.index, *ip, *prefix).await?;
                }
            }
            self.start(&inside, spec, peer.index).await.map(drop)
        })
        .await
    }

    /// The peer is born inside the container, so that it is never seen on the host and needs no
    /// renaming.
    async fn create_pair(&self, inside: &Host, spec: &PortSpec<'_>) -> Result<()> {
        let netns = spec.netns.reopen()?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(spec.container_ifname)
            .mtu(spec.container_mtu)
            .address(spec.mac.0.to_vec())
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let message = LinkVeth::new(spec.host_ifname, spec.container_ifname)
            .mtu(spec.host_mtu)
            .append_extra_attribute(LinkAttribute::Group(birth_mark(spec.owner)))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let Err(error) = self.handle.link().add(message).execute().await else {
            return Ok(());
        };
        if errno(&error) == Some(libc::EEXIST) {
            if inside.link(spec.container_ifname).await?.is_some() {
                return Err(Error::TakenInContainer(spec.container_ifname.to_owned()));
            }
            return Err(Error::TakenOnHost(spec.host_ifname.to_owned()));
        }
        let doing = format!(
            "create the veth pair {} and {}",
            spec.host_ifname, spec.container_ifname
        );
        Err(Error::netlink(doing, error))
    }

    async fn configure(&self, inside: &Host, spec: &PortSpec<'_>) -> Result<Port> {
        self.mark(spec.host_ifname, spec.owner).await?;
        let gone = || Error::NamespaceGone(spec.netns.reference().to_string());
        let host: LinkInfo = self.link(spec.host_ifname).await?.ok_or_else(gone)?;
        let peer = inside.link(spec.container_ifname).await?.ok_or_else(gone)?;

        sysctl::disable_ipv6(spec.host_ifname)?;
        let v6 = spec.addrs.iter().find(|(ip, _)| ip.is_ipv6());
        let has_ipv6 = spec
            .netns
            .run(|| sysctl::prompt_ipv6(spec.container_ifname, v6.is_some()))??;
        if let Some(&(address, _)) = v6
            && !has_ipv6
        {
            return Err(Error::NoIpv6 {
                name: spec.container_ifname.to_owned(),
                address,
                mtu: spec.container_mtu,
            });
        }

        // The kernel forms the same address by itself, but only when its link-watch work gets
        // round to it, which can take a second.
        let link_local = has_ipv6.then(|| spec.mac.link_local());
        let link_local_addr = link_local.map(|ip| (IpAddr::V6(ip), 64));
        for (ip, prefix) in spec.addrs.iter().copied().chain(link_local_addr) {
            inside.add_address(peer.index, ip, prefix).await?;
        }
        let default_route = self.start(inside, spec, peer.index).await?;
        if !spec.in_host {
            // Last of what can fail, since it is not ours to undo.
            inside.set_up("lo").await?;
        }
        Ok(Port {
            host_ifindex: host.index,
            container_ifindex: peer.index,
            link_local,
            default_route,
        })
    }

    /// Both ends up, and then what needs that. True when all gateways asked for, and at least one,
    /// are the container's default routes.
    async fn start(&self, inside: &Host, spec: &PortSpec<'_>, index: u32) -> Result<bool> {
        self.set_up(spec.host_ifname).await?;
        inside.set_up(spec.container_ifname).await?;
        let mut default_route = !spec.gateways.is_empty();
        for gateway in spec.gateways {
            default_route &= inside.add_default_route(index, *gateway).await?;
        }
        Ok(default_route)
    }

    async fn add_address(&self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, ip, prefix);
        if ip.is_ipv6() {
            // The agent gave this address to nobody else, so it need not be probed for.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .map_err(|e| Error::netlink(format!("add address {ip}/{prefix}"), e))
    }

    /// False when there is a default route already.
    async fn add_default_route(&self, index: u32, gateway: IpAddr) -> Result<bool> {
        let message = match gateway {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(ip)
                .output_interface(index)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .gateway(ip)
                .output_interface(index)
                .build(),
        };
        match self.handle.route().add(message).execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(Error::netlink(
                format!("add the default route via {gateway}"),
                e,
            )),
        }
    }
}

fn check_gateways(spec: &PortSpec<'_>) -> Result<()> {
    let on_link = |gateway: &IpAddr| {
        spec.addrs.iter().any(|&(ip, prefix)| {
            IpNetwork::new(ip, prefix).is_ok_and(|network| network.contains(*gateway))
        })
    };
    match spec.gateways.iter().find(|gateway| !on_link(gateway)) {
        None => Ok(()),
        Some(gateway) => Err(Error::GatewayOffLink(*gateway)),
    }
}
