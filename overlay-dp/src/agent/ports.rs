//! Containers on this host: their veths, and the static entries that stand beside them.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Result, anyhow, bail};
use overlay_common::layout::FdbKey;
use overlay_core::model::{Endpoint, MacAddr, Network, Vni};
use overlay_core::tables::StaticEntry;
use overlay_host::{Netns as HostNetns, NetnsRef, PortSpec};

use super::datapath::{PORT_PREFIX, leaves_checksums, set_offloads, set_port_offloads};
use super::{Agent, Port, PortAdd, resolv_conf};
use crate::api::{FdbRow, LocalContainer, Netns};
use crate::bpf::{HookKind, Site};

/// By what the port's own MTU is larger: see [`host_mtu`].
const PORT_MTU_SLACK: u32 = 1500;
/// The largest MTU that a veth takes.
const MAX_MTU: u32 = 65535;

impl Agent {
    /// Makes a container's port and has it carry traffic.
    pub(super) async fn port_add(&mut self, add: PortAdd) -> Result<Port> {
        let PortAdd {
            mut endpoint,
            network,
            netns,
            ifname,
            resolv_conf,
            intercept_dns,
            attachment,
            docker,
            publish,
            limit,
            mut steps,
        } = add;
        let is_router = endpoint.router;
        // It may not serve yet.
        endpoint.unready = self.is_checked(&endpoint);
        steps.done("queue");
        let resolv_conf = match resolv_conf {
            true => Some(self.resolv_conf_for(&netns)?),
            false => None,
        };
        let inside = HostNetns::open(&netns_ref(&netns))?;
        if !is_router && inside.is_same(&HostNetns::current()?) {
            bail!(
                "{} is the host's own network namespace: a container needs one of its own",
                inside.reference()
            );
        }
        if !publish.is_empty() {
            if network.internal {
                bail!(
                    "'{}' is internal: nothing can be published out of it",
                    network.name
                );
            }
            self.check_publish(&publish)?;
        }
        let name = self.port_name(endpoint.vni, endpoint.mac).await?;
        steps.done("netns");
        let mtu = self.tables.read().mtu_of(&network);
        let addrs = with_prefixes(&network, &endpoint);
        let gateways = gateways_for(&network, &endpoint);
        let made = self
            .host
            .create_port(&PortSpec {
                host_ifname: &name,
                container_ifname: &ifname,
                netns: &inside,
                in_host: is_router,
                mac: endpoint.mac,
                owner: &self.options.instance.owner(),
                host_mtu: host_mtu(mtu),
                container_mtu: mtu,
                addrs: &addrs,
                gateways: &gateways,
            })
            .await?;
        steps.done("veth");
        endpoint.ips.extend(made.link_local.map(IpAddr::V6));
        let port = Port {
            netns,
            endpoint,
            local: LocalContainer {
                ifname: ifname.clone(),
                netns: inside.reference().to_string(),
                port: name.clone(),
                port_ifindex: made.host_ifindex,
                mtu,
                attachment,
                publish: Vec::new(),
                limit,
            },
            resolv_conf,
            intercept_dns,
            docker,
            publish,
        };
        let finish = async {
            inside.run(|| set_offloads(&ifname, self.checksums.offload()))??;
            for publish in &port.publish {
                self.held.take(publish, &port.endpoint.ips)?;
            }
            self.set_own_end(&port)?;
            steps.done("offloads");
            self.attach_port(&port)?;
            steps.done("hook");
            self.state.port_add(port.clone())?;
            self.write_resolv_conf(&port)?;
            steps.done("state");
            anyhow::Ok(())
        };
        if let Err(error) = finish.await {
            self.forget_port(&port).await?;
            return Err(error);
        }
        self.follow_networks();
        if let Err(error) = self.cluster.publish(port.endpoint.clone()) {
            self.forget_port(&port).await?;
            return Err(error.into());
        }
        steps.done("gossip");
        self.routers.due = true;
        tracing::info!(container = %port.endpoint.name, port = %name, ips = ?port.endpoint.ips, took = %steps, "container attached");
        Ok(port)
    }

    /// Follows what other hosts tell of the networks that have a port or a static entry here, and
    /// of no others.
    pub(super) fn follow_networks(&self) {
        self.cluster.set_interest(self.state.networks());
    }

    /// Hooks the port up and tells the tables.
    pub(super) fn attach_port(&mut self, port: &Port) -> Result<()> {
        let LocalContainer {
            port: name,
            port_ifindex: ifindex,
            ..
        } = &port.local;
        // The tables first: a frame that meets the hook must find its port.
        self.tables
            .write()
            .port_up_with(*ifindex, &port.endpoint, port.options())?;
        self.flush_checked()?;
        let hook = self.bpf.attach(
            Site::Port,
            self.plan.port,
            name,
            *ifindex,
            self.plan.port_why,
        )?;
        self.hooks.push(hook);
        let me = self.cluster.me().id;
        self.names
            .change(|names| names.endpoint_up(me, &port.endpoint));
        Ok(())
    }

    /// Removes this host's ports of that name, if any, and tells the cluster.
    pub(super) async fn ports_remove(&mut self, name: &str, vni: Option<Vni>) -> Result<Vec<Port>> {
        let wanted = |p: &&Port| {
            p.endpoint.name == name && !p.endpoint.router && vni.is_none_or(|v| v == p.endpoint.vni)
        };
        let ports: Vec<Port> = self.state.ports().filter(wanted).cloned().collect();
        if let Some(port) = ports.iter().find(|port| port.docker.is_some()) {
            bail!(
                "'{}' is a container of Docker's: use 'docker network disconnect', or remove it there",
                port.endpoint.name
            );
        }
        for port in &ports {
            self.port_remove(port).await?;
        }
        Ok(ports)
    }

    pub(super) async fn port_remove(&mut self, port: &Port) -> Result<()> {
        self.undo_port(port).await;
        let saved = self.state.ports_remove(&[&port.local.port]);
        self.withdraw(&port.endpoint);
        self.release_published();
        self.routers.due = true;
        tracing::info!(container = %port.endpoint.name, "container detached");
        saved
    }

    /// Sets the offloads of a port's own end. What goes to the host itself stays joined as it is:
    /// there it is forwarded, which takes super-packets best.
    fn set_own_end(&self, port: &Port) -> Result<()> {
        if port.endpoint.router && self.plan.port != HookKind::Xdp {
            return Ok(());
        }
        Ok(set_port_offloads(&port.local.port)?)
    }

    /// Leaves nothing of a port that nobody has been told of.
    async fn forget_port(&mut self, port: &Port) -> Result<()> {
        self.undo_port(port).await;
        let forgotten = self.state.ports_remove(&[&port.local.port]);
        self.release_published();
        self.follow_networks();
        forgotten
    }

    async fn undo_port(&mut self, port: &Port) {
        self.unplug(port);
        self.flush();
        let LocalContainer {
            port: name,
            port_ifindex,
            ..
        } = &port.local;
        if let Err(error) = self.host.delete_link(name).await {
            tracing::error!(port = %name, %error, "can't delete a port");
        }
        self.forget_hook(name, *port_ifindex);
    }

    /// Takes a port out of names and tables.
    fn unplug(&mut self, port: &Port) {
        let me = self.cluster.me().id;
        self.names
            .change(|names| names.endpoint_down(me, &port.endpoint));
        self.tables.write().port_down(port.local.port_ifindex);
        resolv_conf::remove_of(port);
    }

    /// Removes all ports, and tells the cluster.
    pub(super) async fn ports_remove_all(&mut self) -> Vec<Port> {
        let ports: Vec<Port> = self.state.ports().cloned().collect();
        ports.iter().for_each(|port| self.unplug(port));
        self.flush();
        let there = self.interfaces().await.unwrap_or_else(|error| {
            tracing::error!("can't look for the ports: {error:#}");
            HashMap::new()
        });
        let there = ports.iter().filter(|port| is_alive(port, &there));
        let indexes: Vec<u32> = there.map(|port| port.local.port_ifindex).collect();
        let owner = self.options.instance.owner();
        if let Err(error) = self.host.delete_links(&indexes, &owner).await {
            tracing::error!(%error, "can't delete the ports");
        }
        for port in &ports {
            self.forget_hook(&port.local.port, port.local.port_ifindex);
        }
        let names: Vec<&str> = ports.iter().map(|port| port.local.port.as_str()).collect();
        if let Err(error) = self.state.ports_remove(&names) {
            tracing::error!("{error:#}");
        }
        for port in &ports {
            self.withdraw(&port.endpoint);
            tracing::info!(container = %port.endpoint.name, "container detached");
        }
        ports
    }

    fn forget_hook(&mut self, name: &str, ifindex: u32) {
        if let Err(error) = self.bpf.detach(Site::Port, name, ifindex) {
            tracing::error!("{error:#}");
        }
        self.hooks.retain(|h| h.ifindex != ifindex);
    }

    /// Tells the cluster that an endpoint is gone, and gives its address back.
    fn withdraw(&self, endpoint: &Endpoint) {
        self.cluster.withdraw(endpoint.vni, &endpoint.name);
        self.addresses.give_back(endpoint.vni, &endpoint.name);
        self.follow_networks();
    }

    /// The kernel says that an interface is gone: with its container, if it was a port.
    pub(super) async fn port_gone(&mut self, ifindex: u32) {
        let Some(port) = self.state.port_at(ifindex).cloned() else {
            return;
        };
        tracing::info!(container = %port.endpoint.name, netns = %port.local.netns, "the container is gone");
        if let Err(error) = self.port_remove(&port).await {
            tracing::error!("{error:#}");
        }
    }

    /// Looks for ports whose interface went unnoticed.
    pub(super) async fn find_dead_ports(&mut self) {
        let interfaces = match self.interfaces().await {
            Ok(interfaces) => interfaces,
            Err(error) => return tracing::warn!("can't look at the ports: {error:#}"),
        };
        let dead = |port: &&Port| !is_alive(port, &interfaces);
        let dead: Vec<Port> = self.state.ports().filter(dead).cloned().collect();
        for port in dead {
            self.port_gone(port.local.port_ifindex).await;
        }
    }

    /// All interfaces of the host, asked for at once: name by ifindex.
    pub(super) async fn interfaces(&self) -> Result<HashMap<u32, String>> {
        let links = self.host.links().await?.into_iter();
        Ok(links.map(|link| (link.index, link.name)).collect())
    }

    /// Goes on with the ports of the last agent. What it left half made is removed.
    pub(super) async fn take_over_ports(&mut self) -> Result<()> {
        let interfaces = self.interfaces().await?;
        let ports: Vec<Port> = self.state.ports().cloned().collect();
        for port in ports {
            if !is_alive(&port, &interfaces) {
                if let Err(error) = self.port_remove(&port).await {
                    tracing::error!("{error:#}");
                }
                continue;
            }
            for publish in &port.publish {
                if let Err(error) = self.held.take(publish, &port.endpoint.ips) {
                    tracing::warn!(container = %port.endpoint.name, "{error:#}");
                }
            }
            // Docker's addresses are Docker's to give back: see `docker::Store::keep`.
            if port.docker.is_none() {
                self.addresses.keep(&port.endpoint);
            }
            // The others go on, whatever is wrong with this one. XDP must not see frames before
            // their checksums are computed; and whoever the last agent turned that off for may
            // still be there.
            if let Err(error) = self.take_over_offloads(&port).await {
                tracing::warn!(container = %port.endpoint.name, "its offloads may not fit: {error:#}");
            }
            if let Err(error) = self.attach_port(&port) {
                tracing::error!(container = %port.endpoint.name, "can't go on with a container: {error:#}");
            }
            if let Err(error) = self.cluster.publish(port.endpoint.clone()) {
                tracing::error!(container = %port.endpoint.name, %error, "the other hosts don't learn of it yet");
                self.untold.push(port.endpoint);
            }
        }
        self.follow_networks();
        self.settle_if_told();
        let owner = self.options.instance.owner();
        for link in self.host.links_owned_by(&owner).await? {
            if link.name.starts_with(PORT_PREFIX) && self.state.port(&link.name).is_none() {
                tracing::info!(port = %link.name, "removing a port that no container has");
                self.host.delete_owned(&link.name, &owner).await?;
            }
        }
        Ok(())
    }

    /// Tells of what could not be told of before the managers' news came.
    pub(super) fn tell_again(&mut self) {
        if self.untold.is_empty() {
            return;
        }
        let key = |endpoint: &Endpoint| (endpoint.vni, endpoint.name.clone());
        let ports = self.state.ports().map(|port| &port.endpoint);
        let here: HashMap<_, &Endpoint> = ports.map(|here| (key(here), here)).collect();
        self.untold.retain(|endpoint| {
            here.get(&key(endpoint)) == Some(&endpoint)
                && self.cluster.publish(endpoint.clone()).is_err()
        });
        self.settle_if_told();
    }

    /// What this host had before a restart and does not tell again is gone: true once all is told.
    fn settle_if_told(&self) {
        if self.untold.is_empty() {
            self.cluster.settled();
        }
    }

    /// A port's container, with its interface in it.
    pub(super) async fn container_of(&self, port: &Port) -> Result<HostNetns> {
        let inside = HostNetns::open(&netns_ref(&port.netns))?;
        let link = self
            .host
            .container_link(&inside, &port.local.ifname)
            .await?;
        if link.and_then(|l| l.peer_index) != Some(port.local.port_ifindex) {
            bail!(
                "{} in {} is not its interface",
                port.local.ifname,
                port.local.netns
            );
        }
        Ok(inside)
    }

    /// The same after a restart, with checksums still computed inside if the last agent had it so.
    async fn take_over_offloads(&mut self, port: &Port) -> Result<()> {
        let inside = self.container_of(port).await?;
        if !inside.run(|| leaves_checksums(&port.local.ifname))?? {
            self.checksums.found_off();
        }
        self.renew_offloads(port, self.checksums.offload()).await
    }

    /// Sets a port's offloads anew: other hooks, here or at the other hosts, want others.
    pub(super) async fn renew_offloads(&self, port: &Port, tx_checksum: bool) -> Result<()> {
        let inside = self.container_of(port).await?;
        inside.run(|| set_offloads(&port.local.ifname, tx_checksum))??;
        self.set_own_end(port)
    }

    /// A name that no port has: derived from network and MAC, which are unique.
    pub(super) async fn port_name(&self, vni: Vni, mac: MacAddr) -> Result<String> {
        // FNV-1a, folded to the 8 digits that fit an interface's name.
        let seed = [&vni.get().to_be_bytes()[..], &mac.0].concat();
        let mut hash: u32 = 0x811c_9dc5;
        for byte in seed {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        for _ in 0..16 {
            let name = format!("{PORT_PREFIX}{hash:08x}");
            if self.state.port(&name).is_none() {
                // One that is there without a container was left by a crash.
                self.host
                    .delete_owned(&name, &self.options.instance.owner())
                    .await?;
                return Ok(name);
            }
            hash = hash.wrapping_add(1);
        }
        Err(anyhow!("no free name for a port"))
    }

    pub(super) async fn static_add(&mut self, entry: StaticEntry) -> Result<FdbRow> {
        if entry.vtep == self.uplink.addr {
            bail!(
                "{} is this host's own VTEP: a static entry is for a VTEP that is no host of the cluster",
                entry.vtep
            );
        }
        if let Some(host) = self.members.values().find(|h| h.vtep == entry.vtep) {
            bail!(
                "{} is the VTEP of host '{}', which tells its own entries",
                entry.vtep,
                host.name
            );
        }
        let taken = |p: &&Port| (p.endpoint.vni, p.endpoint.mac) == (entry.vni, entry.mac);
        if let Some(port) = self.state.ports().find(taken) {
            bail!(
                "{} is the address of this host's container '{}'",
                entry.mac,
                port.endpoint.name
            );
        }
        self.tables.write().static_add(entry.clone())?;
        self.find_way(entry.vtep).await;
        self.state.static_add(entry.clone())?;
        Ok(self.static_row(&entry))
    }

    pub(super) fn static_remove(&mut self, vni: Vni, mac: MacAddr) -> Result<FdbRow> {
        let Some(entry) = self.state.static_entry(vni, mac).cloned() else {
            bail!("no static entry for {mac} on that network: see 'overlay-dp fdb show'");
        };
        let row = self.static_row(&entry);
        self.tables.write().static_remove(vni, mac);
        self.forget_if_unknown(entry.vtep);
        self.state.statics_remove(&[(vni, mac)])?;
        Ok(row)
    }

    /// The static entries of a network that is gone go with it.
    pub(super) fn drop_statics_of(&mut self, vni: Vni) -> Result<()> {
        let of_it = self.state.statics().filter(|s| s.vni == vni);
        let gone: Vec<(Vni, MacAddr, IpAddr)> = of_it.map(|s| (s.vni, s.mac, s.vtep)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        for (vni, mac, vtep) in &gone {
            self.tables.write().static_remove(*vni, *mac);
            self.forget_if_unknown(*vtep);
        }
        let keys: Vec<_> = gone.iter().map(|(vni, mac, _)| (*vni, *mac)).collect();
        self.state.statics_remove(&keys)
    }

    fn static_row(&self, entry: &StaticEntry) -> FdbRow {
        let tables = self.tables.read();
        let network = tables.network(entry.vni).map(|n| n.name.clone());
        FdbRow {
            network: network.unwrap_or_else(|| entry.vni.to_string()),
            vni: entry.vni,
            mac: entry.mac,
            ips: entry.ips.clone(),
            vtep: Some(entry.vtep),
            port: None,
            origin: "static".to_owned(),
            installed: tables
                .fdb_entry(&FdbKey::new(entry.vni.get(), entry.mac.0))
                .is_some(),
        }
    }
}

/// The port's own MTU: large enough that a packet which is too big for the network still arrives,
/// to be answered; small enough for plain XDP on the other end.
pub(super) fn host_mtu(container_mtu: u32) -> u32 {
    (container_mtu + PORT_MTU_SLACK).min(MAX_MTU)
}

/// A container's addresses in its network, each with the length of its prefix.
pub(super) fn with_prefixes(network: &Network, endpoint: &Endpoint) -> Vec<(IpAddr, u8)> {
    let with_prefix = |ip: &IpAddr| Some((*ip, network.subnet_of(*ip)?.subnet.prefix()));
    endpoint.ips.iter().filter_map(with_prefix).collect()
}

/// Its default routers: the host has its own way out, and an internal network none.
pub(super) fn gateways_for(network: &Network, endpoint: &Endpoint) -> Vec<IpAddr> {
    match endpoint.router || network.internal {
        true => Vec::new(),
        false => network.gateways().collect(),
    }
}

/// Whether a port's interface is there.
pub(super) fn is_alive(port: &Port, interfaces: &HashMap<u32, String>) -> bool {
    interfaces.get(&port.local.port_ifindex) == Some(&port.local.port)
}

pub(super) fn netns_ref(netns: &Netns) -> NetnsRef {
    match netns {
        Netns::Name(name) => NetnsRef::Name(name.clone()),
        Netns::Pid(pid) => NetnsRef::Pid(*pid),
        Netns::Path(path) => NetnsRef::Path(path.clone()),
    }
}
