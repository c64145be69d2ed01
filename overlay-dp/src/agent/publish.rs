//! Published ports: who has which, and that nobody else on the host takes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Result, bail};
use overlay_core::model::Protocol;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::Agent;
use crate::api::Publish;

/// Sockets that hold published ports. Nothing comes in on them: it is translated before.
#[derive(Default)]
pub struct Held(BTreeMap<Publish, Vec<OwnedFd>>);

impl Held {
    /// Takes a port, in the families of these addresses.
    ///
    /// # Errors
    /// When a program of the host has it, or the host has no such address.
    pub fn take(&mut self, publish: &Publish, ips: &[IpAddr]) -> Result<()> {
        if self.0.contains_key(publish) {
            return Ok(());
        }
        let mut sockets = Vec::new();
        for ipv6 in [false, true] {
            let wanted = publish.host_ip.map_or_else(
                || ips.iter().any(|ip| ip.is_ipv6() == ipv6),
                |ip| ip.is_ipv6() == ipv6,
            );
            if !wanted {
                continue;
            }
            let any: IpAddr = match ipv6 {
                true => Ipv6Addr::UNSPECIFIED.into(),
                false => Ipv4Addr::UNSPECIFIED.into(),
            };
            let address = SocketAddr::new(publish.host_ip.unwrap_or(any), publish.host_port);
            match hold(address, publish.protocol) {
                Ok(socket) => sockets.push(socket),
                // No IPv6 on this host: nobody comes that way.
                Err(Errno::AFNOSUPPORT) if publish.host_ip.is_none() => {}
                Err(Errno::ADDRINUSE) => bail!(
                    "port {}/{} is in use on this host: stop what listens there, or publish another one",
                    publish.host_port,
                    publish.protocol.name()
                ),
                Err(Errno::ADDRNOTAVAIL) if publish.host_ip.is_none() => {}
                Err(Errno::ADDRNOTAVAIL) => bail!("{} is no address of this host", address.ip()),
                Err(Errno::ACCESS) => bail!(
                    "the agent may not take port {}: it lacks CAP_NET_BIND_SERVICE",
                    publish.host_port
                ),
                Err(Errno::MFILE) => {
                    bail!("the agent has too many ports and files open: raise its LimitNOFILE")
                }
                Err(error) => bail!("can't take port {address}: {error}"),
            }
        }
        self.0.insert(publish.clone(), sockets);
        Ok(())
    }

    /// Keeps these only.
    pub fn keep(&mut self, wanted: impl Fn(&Publish) -> bool) {
        self.0.retain(|publish, _| wanted(publish));
    }
}

/// Bound, and no more: not even who reuses addresses can bind there then.
fn hold(address: SocketAddr, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

impl Agent {
    /// Whether a container may publish these.
    pub(super) fn check_publish(&self, wanted: &[Publish]) -> Result<()> {
        for (index, publish) in wanted.iter().enumerate() {
            let again = wanted[..index].iter().find(|p| p.conflicts_with(publish));
            if let Some(again) = again {
                bail!("{publish} and {again} are the same port of the host: publish it once");
            }
            let ports = self.state.ports();
            let mut has = ports.filter(|p| p.publish.iter().any(|p| p.conflicts_with(publish)));
            if let Some(port) = has.next() {
                bail!(
                    "port {}/{} is published already, for container '{}': choose another one",
                    publish.host_port,
                    publish.protocol.name(),
                    port.endpoint.name
                );
            }
            if let Some((service, _)) = self
                .services()
                .into_iter()
                .flat_map(|s| {
                    s.publish
                        .iter()
                        .map(|p| (s.name.clone(), Publish::from(*p)))
                        .collect::<Vec<_>>()
                })
                .find(|(_, theirs)| theirs.conflicts_with(publish))
            {
                bail!(
                    "port {}/{} is published already, on every host, for service '{service}': choose another one",
                    publish.host_port,
                    publish.protocol.name(),
                );
            }
        }
        Ok(())
    }

    /// Gives up the ports that nobody publishes any more.
    pub(super) fn release_published(&mut self) {
        let of_services: Vec<Publish> = self
            .services()
            .iter()
            .flat_map(|s| s.publish.iter().map(|p| Publish::from(*p)))
            .collect();
        let state = &self.state;
        self.held.keep(|publish| {
            of_services.contains(publish)
                || state.ports().any(|port| port.publish.contains(publish))
        });
    }
}
