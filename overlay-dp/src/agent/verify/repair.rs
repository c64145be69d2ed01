//! Putting right what `verify` has found, as far as this host alone can.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use overlay_core::model::Vni;
use overlay_host::PortSpec;

use super::Report;
use super::kernel::OWN_LINKS;
use crate::agent::data_port::DataPort;
use crate::agent::ports::{gateways_for, host_mtu, with_prefixes};
use crate::agent::{Agent, Port};

impl Agent {
    /// The maps follow the tables, the tables what was agreed and told, and the kernel all of it.
    /// What fails is logged, and the rest goes on: the next look finds it again.
    pub(super) async fn repair(&mut self, report: &Report) {
        // First, as these are of the tables as they are.
        for update in &report.updates {
            done("a BPF map", self.bpf.apply(update.clone()));
        }
        self.find_dead_ports().await;
        self.tell_what_is_here();
        self.tell_groups();
        self.tables_again().await;
        self.doubt_vips();
        self.fit_vips();
        self.fit_policies();
        self.flush();
        done("what the programs know of this host", self.repair_own());
        done("the programs", self.repair_hooks().await);
        self.repair_links().await;
        self.routers.due = true;
        self.fit_routers().await;
        done("the ways out", self.firewall.repair());
        self.addresses.tidy();
        self.next_hops.mark_all();
        self.flush();
    }

    /// The other hosts are told of the containers that are here, and of no others.
    fn tell_what_is_here(&self) {
        let me = self.cluster.me().id;
        let ports = || self.state.ports().map(|port| &port.endpoint);
        let here: HashSet<(Vni, &str)> = ports().map(|e| (e.vni, e.name.as_str())).collect();
        for network in self.cluster.networks() {
            let told = self.cluster.endpoints(network.vni).into_iter();
            for (_, endpoint) in told.filter(|(host, _)| *host == me) {
                if !here.contains(&(endpoint.vni, endpoint.name.as_str())) {
                    self.cluster.withdraw(endpoint.vni, &endpoint.name);
                }
            }
        }
        for endpoint in ports() {
            let told = self.cluster.publish(endpoint.clone());
            done(&endpoint.name, told.map_err(Into::into));
        }
    }

    /// What the agent itself puts into the maps.
    fn repair_own(&mut self) -> Result<()> {
        self.bpf.set_config(self.config)?;
        self.bpf.set_socket(self.slow.socket())?;
        for (queue, socket) in (0..).zip(self.crypt.sockets()) {
            self.bpf.set_crypt_socket(queue, socket)?;
        }
        Ok(())
    }

    /// Programs that are gone are attached again, where the interface is not gone as well.
    async fn repair_hooks(&mut self) -> Result<()> {
        let interfaces = self.interfaces().await?;
        let now = self.hooks_now().await?;
        let missing = self.hooks.iter().zip(&now).filter(|(hook, now)| {
            now.attached == "MISSING" && interfaces.get(&hook.ifindex) == Some(&hook.interface)
        });
        for (hook, _) in missing {
            let what = format!("the program on {}", hook.interface);
            done(&what, self.bpf.attach_again(hook));
        }
        Ok(())
    }

    async fn repair_links(&mut self) {
        let owner = self.options.instance.owner();
        match self.orphans().await {
            Ok(orphans) => {
                for name in orphans {
                    let deleted = self.host.delete_owned(&name, &owner).await;
                    done(&name, deleted.map(drop).map_err(Into::into));
                }
            }
            Err(error) => done("interfaces of ours", Err(error)),
        }
        for name in OWN_LINKS {
            done(name, self.host.set_up(name).await.map_err(Into::into));
        }
        // A socket that holds it needs nothing, and would be in its own way.
        if matches!(self.data_port, DataPort::Device) {
            let vtep = self.cluster.me().vtep;
            match DataPort::hold(&self.host, &self.options, vtep).await {
                Ok(held) => self.data_port = held,
                Err(error) => done("what holds the data port", Err(error)),
            }
        }
        match self.wrong_ports().await {
            Ok(wrong) => {
                for (port, _) in wrong {
                    done(&port.endpoint.name, self.repair_inside(port).await);
                }
            }
            Err(error) => done("the ports", Err(error)),
        }
    }

    /// A container's interface gets back what it was made with.
    async fn repair_inside(&self, port: &Port) -> Result<()> {
        let Port {
            endpoint, local, ..
        } = port;
        let inside = self.container_of(port).await?;
        let mut networks = self.cluster.networks().into_iter();
        let network = networks.find(|network| network.vni == endpoint.vni);
        let network = network.context("there is no such network any more")?;
        let spec = PortSpec {
            host_ifname: &local.port,
            container_ifname: &local.ifname,
            netns: &inside,
            in_host: endpoint.router,
            mac: endpoint.mac,
            owner: &self.options.instance.owner(),
            host_mtu: host_mtu(local.mtu),
            container_mtu: local.mtu,
            addrs: &with_prefixes(&network, endpoint),
            gateways: &gateways_for(&network, endpoint),
        };
        Ok(self.host.restore_port(&spec).await?)
    }
}

fn done(what: &str, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!("can't repair {what}: {error:#}");
    }
}
