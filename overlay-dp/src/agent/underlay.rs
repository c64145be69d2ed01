//! The ways to the other hosts: what the kernel and the probes tell of them, and which hosts are
//! dead.

use std::net::IpAddr;

use overlay_cluster::MemberState;
use overlay_common::wire::ip16;
use overlay_core::model::{Host, HostId};
use overlay_host::HostEvent;

use super::Agent;
use super::next_hops::Outcome;
use super::probe::Report;
use crate::api::DataPath;

impl Agent {
    pub(super) async fn add_vtep(&mut self, vtep: IpAddr) {
        if self.take_vtep(vtep) {
            self.find_way(vtep).await;
        }
    }

    /// Tells the tables of a host's VTEP. False when they don't take it.
    pub(super) fn take_vtep(&mut self, vtep: IpAddr) -> bool {
        let taken = self.tables.write().vtep_add(vtep);
        if let Err(error) = &taken {
            tracing::warn!(%vtep, %error, "a VTEP is not taken");
        }
        taken.is_ok()
    }

    /// Looks for the way to a VTEP, now if it is new.
    pub(super) async fn find_way(&mut self, vtep: IpAddr) {
        match self.next_hops.next_hop(vtep) {
            // The tables may have forgotten it meanwhile.
            Some(next_hop) => self.tables.write().next_hop(vtep, Some(next_hop)),
            None => self.resolve(vec![vtep]).await,
        }
    }

    pub(super) fn remove_vtep(&mut self, vtep: IpAddr) {
        self.tables.write().vtep_remove(vtep);
        self.forget_if_unknown(vtep);
    }

    /// A VTEP that no host and no static entry has needs no way.
    pub(super) fn forget_if_unknown(&mut self, vtep: IpAddr) {
        if self.tables.read().vtep_entry(&ip16(vtep)).is_none() {
            self.next_hops.forget(vtep);
            self.prober.forget(vtep);
        }
    }

    /// Looks for the ways to VTEPs now, and begins to probe those that are new.
    pub(super) async fn resolve(&mut self, vteps: Vec<IpAddr>) {
        let src = self.uplink.addr;
        let outcomes = self.next_hops.resolve(&self.host, vteps, src).await;
        for outcome in outcomes {
            let Outcome {
                vtep,
                next_hop,
                moved,
                cleared,
            } = outcome;
            self.tables.write().next_hop(vtep, next_hop);
            if let Some(mtu) = moved {
                self.prober.watch(vtep, mtu);
            }
            if cleared {
                self.doubt(&|other| other == vtep);
            }
        }
    }

    /// Changes on the host have been gathered for a while.
    pub(super) async fn on_changes(&mut self) {
        let marked = self.next_hops.take_marked();
        self.check_uplink().await;
        self.resolve(marked).await;
    }

    pub(super) async fn on_host(&mut self, event: HostEvent) {
        self.next_hops.on_host(&event);
        self.uplink_event(&event);
        match event {
            HostEvent::LinkGone { ifindex, name } => {
                if self.links.contains(&ifindex) {
                    self.fatal = Some(format!(
                        "{name}, an end of a link of the agent's own, is gone"
                    ));
                }
                self.port_gone(ifindex).await;
            }
            HostEvent::Overrun => self.find_dead_ports().await,
            _ => {}
        }
    }

    /// What the probes say: how large packets may be, who is dead, and whether checksums arrive.
    pub(super) async fn on_probes(&mut self) {
        for (vtep, report) in self.prober.news() {
            let next_hop = self.next_hops.path_mtu(vtep, report.mtu);
            self.tables.write().next_hop(vtep, next_hop);
            let host = self.members.values().find(|host| host.vtep == vtep);
            if report.dead
                && let Some(id) = host.map(|host| host.id)
            {
                self.host_is_dead(id);
            }
            self.look_for_neighbour(vtep, &report).await;
        }
        self.fit_checksums().await;
    }

    /// A VTEP on our link that has answered and does not now may be on another machine by now,
    /// with another MAC. The kernel would find that out, but not soon.
    async fn look_for_neighbour(&self, vtep: IpAddr, report: &Report) {
        let silent = report.path == DataPath::Silent || report.dead;
        let Some(hop) = self.next_hops.hop(vtep).filter(|hop| hop.gateway == vtep) else {
            return;
        };
        if silent && let Err(error) = self.host.look_again(hop.gateway, hop.ifindex).await {
            tracing::debug!(%vtep, %error, "can't look for the VTEP anew");
        }
    }

    /// A host's agent does not answer. Its data path may: the prober finds out.
    pub(super) fn host_is_down(&self, id: HostId) {
        if let Some(vtep) = self.vtep_of(id) {
            self.prober.suspect(vtep);
        }
    }

    /// A host's agent answers.
    pub(super) fn host_is_up(&self, host: &Host) {
        self.prober.trust(host.vtep);
    }

    /// Neither a host's agent nor its data path answers: its endpoints are withdrawn, and come
    /// back when it does.
    fn host_is_dead(&self, id: HostId) {
        let Some(vtep) = self.vtep_of(id) else {
            return;
        };
        // While our own side is broken nobody answers, and that says nothing about them.
        if self.uplink_problem.is_some() || self.next_hops.is_blocked(vtep) {
            return;
        }
        tracing::warn!(host = %self.name_of(id), "host dead: its data path does not answer, its endpoints are withdrawn");
        self.cluster.forget_host(id);
    }

    /// Our own side works again: whose agent does not answer is looked at anew.
    pub(super) fn doubt(&self, which: &dyn Fn(IpAddr) -> bool) {
        for member in self.cluster.members() {
            let vtep = member.host.vtep;
            if !member.me && member.state == MemberState::Down && which(vtep) {
                self.prober.trust(vtep);
                self.prober.suspect(vtep);
            }
        }
    }
}
