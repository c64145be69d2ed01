//! The uplink while the agent runs: it may go down, lose its address, get another one, or be
//! deleted and made again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use overlay_common::layout::Config;
use overlay_host::{HostEvent, Uplink};

use super::data_port::{DataPort, echo_socket};
use super::{Agent, datapath};

/// How long the uplink may be without our address before another one is taken: who flushes and
/// sets it again does not mean another one.
const GRACE: Duration = Duration::from_secs(2);

impl Agent {
    /// Has the uplink looked at soon, if the change may be about it.
    pub(super) fn uplink_event(&mut self, event: &HostEvent) {
        let ours = match event {
            HostEvent::LinkGone { ifindex, .. } => {
                // Another interface may get its index: its hooks are gone in any case.
                self.uplink_lost |= *ifindex == self.uplink.ifindex;
                *ifindex == self.uplink.ifindex
            }
            HostEvent::LinkChanged { ifindex, name, .. } => {
                *ifindex == self.uplink.ifindex || *name == self.uplink.name
            }
            // Also on an interface that is to become the uplink.
            HostEvent::Address { .. } | HostEvent::Overrun => true,
            HostEvent::Neighbour { .. } | HostEvent::Route(_) => false,
        };
        if ours {
            self.next_hops.look_soon();
        }
    }

    /// Compares the uplink with what it was.
    pub(super) async fn check_uplink(&mut self) {
        let problem = match self.find_uplink().await {
            Ok(()) => None,
            Err(error) => Some(format!("{error:#}")),
        };
        if problem == self.uplink_problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::error!("the uplink: {problem}"),
            None => tracing::info!(interface = %self.uplink.name, "the uplink works again"),
        }
        let works_again = problem.is_none();
        self.uplink_problem = problem;
        if works_again {
            self.next_hops.mark_all();
            self.doubt(&|_| true);
        }
    }

    async fn find_uplink(&mut self) -> Result<()> {
        let name = self.uplink.name.clone();
        let as_it_was = Uplink::discover(&self.host, &name, Some(self.uplink.addr)).await;
        let found = match as_it_was {
            Ok(found) => {
                self.address_gone = None;
                found
            }
            Err(error) => {
                let other = match self.options.advertise {
                    Some(_) => None,
                    None => Uplink::discover(&self.host, &name, None).await.ok(),
                };
                let Some(found) = other else {
                    return Err(error.into());
                };
                let gone = *self.address_gone.get_or_insert_with(Instant::now);
                if gone.elapsed() < GRACE {
                    self.next_hops.look_in(GRACE - gone.elapsed());
                    return Err(error.into());
                }
                self.take_address(found.addr).await?;
                self.address_gone = None;
                found
            }
        };
        if self.uplink_lost || found.ifindex != self.uplink.ifindex {
            let hook = datapath::hook_uplink(&mut self.bpf, &mut self.plan, &found)?;
            self.hooks
                .retain(|hook| hook.site != crate::bpf::Site::Uplink.name());
            self.hooks.push(hook);
            self.uplink_lost = false;
            tracing::info!(interface = %found.name, ifindex = found.ifindex, "the uplink is a new interface: hooked up");
        }
        let (mtu, up) = (found.mtu, found.up);
        self.uplink = Uplink {
            mtu: self.uplink.mtu,
            ..found
        };
        self.uplink_mtu(mtu);
        anyhow::ensure!(
            up,
            "interface {name} has no carrier: check its cable or its other end"
        );
        Ok(())
    }

    /// Containers keep the MTU that they have; what is now too big for the way is answered.
    fn uplink_mtu(&mut self, mtu: u32) {
        if mtu == self.uplink.mtu {
            return;
        }
        self.uplink.mtu = mtu;
        let most = self.uplink.container_mtu();
        self.inner_mtu = self.options.mtu.map_or(most, |wanted| wanted.min(most));
        tracing::warn!(
            mtu,
            containers = self.inner_mtu,
            "the uplink's MTU has changed"
        );
        self.tables.write().set_mtu(self.inner_mtu);
    }

    /// This host's tunnels end at another address from now on.
    async fn take_address(&mut self, addr: IpAddr) -> Result<()> {
        let socket = echo_socket(addr)?;
        self.data_port = DataPort::hold(&self.host, &self.options, addr).await?;
        let vtep = self
            .tables
            .write()
            .set_vtep(addr)
            .context("the uplink's new address can't be used")?;
        self.config = Config {
            vtep,
            ..self.config
        };
        self.bpf.set_config(self.config)?;
        self.prober.set_socket(Some(socket))?;
        tracing::warn!(old = %self.uplink.addr, new = %addr, "the uplink has another address, which is the VTEP's from now on");
        self.uplink.addr = addr;
        self.next_hops.mark_all();
        self.tell_cluster(addr);
        Ok(())
    }

    /// Lets the other hosts know where this one's tunnels end. The loop does not wait for it.
    fn tell_cluster(&self, addr: IpAddr) {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            if let Err(error) = cluster.set_vtep(addr).await {
                tracing::error!(%addr, %error, "the other hosts don't learn of the new address yet");
            }
        });
    }
}
