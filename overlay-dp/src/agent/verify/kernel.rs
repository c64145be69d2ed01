//! Interfaces and programs against what this host has.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;
use overlay_host::{LinkInfo, Netns as HostNetns};

use super::Report;
use crate::agent::data_port::DataPort;
use crate::agent::datapath::{CRYPT_FAR, CRYPT_NEAR, PORT_PREFIX, PUNT_FAR, PUNT_NEAR};
use crate::agent::ports::netns_ref;
use crate::agent::routers::is_routable;
use crate::agent::{Agent, Port};

/// The ends of the agent's own links.
pub(super) const OWN_LINKS: [&str; 4] = [PUNT_NEAR, PUNT_FAR, CRYPT_NEAR, CRYPT_FAR];

impl Agent {
    /// Interfaces and programs against what this host has.
    pub(super) async fn look_at_kernel(&self, report: &mut Report) -> Result<()> {
        for hook in self.hooks_now().await? {
            if hook.attached == "MISSING" {
                report.add(
                    "kernel",
                    &hook.interface,
                    "its program or interface is gone",
                );
            }
        }
        for (port, problem) in self.wrong_ports().await? {
            report.add("kernel", &port.endpoint.name, problem);
        }
        for name in self.orphans().await? {
            report.add("kernel", name, "an interface of ours that no container has");
        }
        for name in OWN_LINKS {
            let up = self.host.link(name).await?.is_some_and(|link| link.up);
            if !up {
                report.add(
                    "kernel",
                    name,
                    "an end of a link of the agent's own is not up",
                );
            }
        }
        if matches!(self.data_port, DataPort::Device) {
            let name = overlay_host::outer_gro::name(self.options.data_port);
            if !self.host.link(&name).await?.is_some_and(|link| link.up) {
                report.add("kernel", name, "what holds the data port is not up");
            }
        }
        for (network, problem) in self.router_problems() {
            report.add("kernel", network, problem);
        }
        for problem in self.firewall.differences() {
            report.add("kernel", "ways out", problem);
        }
        if !self.slow.is_running() {
            report.add("kernel", "slow path", "its thread has ended");
        }
        Ok(())
    }

    /// The ports that are not as they were made, and what is wrong with each.
    pub(super) async fn wrong_ports(&self) -> Result<Vec<(&Port, String)>> {
        let links = self.host.links().await?.into_iter();
        let links: HashMap<u32, LinkInfo> = links.map(|link| (link.index, link)).collect();
        let mut wrong = Vec::new();
        for port in self.state.ports() {
            let local = &port.local;
            let link = links.get(&local.port_ifindex);
            let looked = match link.filter(|link| link.name == local.port) {
                Some(link) if link.up => self.look_inside(port).await,
                Some(_) => Err(format!("its port {} is down", local.port)),
                None => Err(format!("its port {} is gone", local.port)),
            };
            wrong.extend(looked.err().map(|problem| (port, problem)));
        }
        Ok(wrong)
    }

    /// The container's end of its veth: that it is there, up, and as it was made. (What it has of
    /// its link alone the kernel makes and takes by itself.)
    pub(in crate::agent) async fn look_inside(&self, port: &Port) -> Result<(), String> {
        let local = &port.local;
        let inside = HostNetns::open(&netns_ref(&port.netns)).map_err(|e| e.to_string())?;
        let link = self.host.container_link(&inside, &local.ifname).await;
        let its = format!("{} in {}", local.ifname, local.netns);
        let Some(link) = link.map_err(|e| e.to_string())? else {
            return Err(format!("{its} is gone"));
        };
        if link.peer_index != Some(local.port_ifindex) {
            return Err(format!("{its} is another interface"));
        }
        if link.mac != Some(port.endpoint.mac) {
            return Err(format!("{its} has another MAC than {}", port.endpoint.mac));
        }
        if !link.up {
            return Err(format!("{its} is down"));
        }
        if link.mtu != local.mtu {
            return Err(format!(
                "{its} has an MTU of {}, not {}",
                link.mtu, local.mtu
            ));
        }
        let found = self.host.container_addresses(&inside, &local.ifname).await;
        let found = found.map_err(|e| e.to_string())?;
        let has = |ip: &IpAddr| found.addrs.iter().any(|(has, _)| has == ip);
        let mut ips = port.endpoint.ips.iter().filter(|ip| is_routable(ip));
        match ips.find(|ip| !has(ip)) {
            Some(ip) => Err(format!("{its} has lost {ip}")),
            None => Ok(()),
        }
    }

    /// Interfaces that look like ports and are none.
    pub(super) async fn orphans(&self) -> Result<Vec<String>> {
        let owned = self
            .host
            .links_owned_by(&self.options.instance.owner())
            .await?;
        let names = owned.into_iter().map(|link| link.name);
        Ok(names
            .filter(|name| name.starts_with(PORT_PREFIX) && self.state.port(name).is_none())
            .collect())
    }
}
