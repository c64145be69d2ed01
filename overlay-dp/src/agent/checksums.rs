//! Whether containers leave the computing of checksums to what is on the way, as they do by
//! default: it is cheaper, and TCP's super-packets need it. A hook or a driver that loses the note
//! has packets arrive with wrong ones: ping works, TCP and UDP die. The prober finds that out, and
//! while a VTEP is so, the containers' interfaces compute.

use std::net::IpAddr;
use std::time::Duration;

use super::Agent;
use super::datapath::Plan;
use crate::api::ChecksumOffload;
use crate::bpf::HookKind;

/// How long a start keeps what the last agent turned off: by then the prober has asked.
const KEPT: Duration = Duration::from_secs(10);

/// What is set now.
#[derive(Debug)]
pub(super) struct Checksums {
    /// XDP on ports needs it off, whoever is on the other end.
    never: bool,
    /// What containers' interfaces have.
    offload: bool,
    /// The VTEPs because of which it is off; none: it is still as the last agent left it.
    broken: Vec<IpAddr>,
}

impl Checksums {
    pub(super) fn new(plan: &Plan) -> Checksums {
        let never = plan.port == HookKind::Xdp;
        Checksums {
            never,
            offload: !never,
            broken: Vec::new(),
        }
    }

    /// What a container's interface is to have.
    pub(super) fn offload(&self) -> bool {
        self.offload
    }

    /// A port of the last agent's has it off.
    pub(super) fn found_off(&mut self) {
        self.offload = false;
    }

    /// Takes in which VTEPs are broken now. Returns whether the offload is another one then.
    fn update(&mut self, broken: Vec<IpAddr>, uptime: Duration) -> bool {
        let kept = !self.offload && self.broken.is_empty() && uptime < KEPT;
        if self.never || (broken.is_empty() && kept) {
            return false;
        }
        let before = self.offload;
        self.offload = broken.is_empty();
        self.broken = broken;
        self.offload != before
    }
}

impl Agent {
    /// Has the containers' interfaces follow what the prober has found.
    pub(super) async fn fit_checksums(&mut self) {
        let known = self.checksums.broken.clone();
        let broken = self.prober.broken();
        let was_kept = !self.checksums.offload && known.is_empty();
        let changed = self.checksums.update(broken, self.started.elapsed());
        let new: Vec<IpAddr> = self.checksums.broken.clone();
        match new.iter().find(|vtep| !known.contains(vtep)) {
            Some(vtep) if known.is_empty() => tracing::warn!(
                %vtep, host = %self.host_at(*vtep),
                "packets arrive there without the checksums that are left to be computed on the way: containers here \
                 compute their own from now on, so bulk TCP is slower. Use the same --datapath on both hosts, or \
                 have the NICs' drivers looked at",
            ),
            Some(vtep) => {
                tracing::info!(%vtep, "checksums left to be computed do not arrive there, either")
            }
            None if changed => tracing::info!(
                "checksums arrive at all VTEPs: they are left to be computed on the way"
            ),
            None => {}
        }
        // What an earlier agent left off may not be off everywhere.
        if changed || (was_kept && !self.checksums.broken.is_empty()) {
            self.renew_all_offloads().await;
        }
    }

    async fn renew_all_offloads(&self) {
        for port in self.state.ports() {
            if let Err(error) = self.renew_offloads(port, self.checksums.offload()).await {
                tracing::warn!(container = %port.endpoint.name, "its checksum offload may not fit: {error:#}");
            }
        }
    }

    pub(super) fn checksum_offload(&self) -> ChecksumOffload {
        let Checksums {
            never,
            offload,
            broken,
        } = &self.checksums;
        let why = match broken.first() {
            _ if *never => "XDP on ports needs them computed".to_owned(),
            Some(vtep) => {
                let others = match broken.len() {
                    1 => String::new(),
                    n => format!(" and {} others", n - 1),
                };
                let host = self.host_at(*vtep);
                format!(
                    "without it packets would arrive at {vtep} ({host}){others} with wrong ones: use the same --datapath there"
                )
            }
            None if *offload => "no VTEP is known to get wrong ones".to_owned(),
            None => "as the last agent left it, until the VTEPs have been asked".to_owned(),
        };
        ChecksumOffload { on: *offload, why }
    }

    fn host_at(&self, vtep: IpAddr) -> String {
        let host = self.members.values().find(|host| host.vtep == vtep);
        host.map_or("-".to_owned(), |host| host.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const LATER: Duration = Duration::from_secs(60);

    fn new(never: bool) -> Checksums {
        Checksums {
            never,
            offload: !never,
            broken: Vec::new(),
        }
    }

    #[test]
    fn one_broken_vtep_turns_it_off_and_the_last_one_on_again() {
        let mut checksums = new(false);
        assert!(!checksums.update(vec![], LATER));
        assert!(checksums.update(vec![A], LATER));
        assert!(!checksums.offload());
        assert!(!checksums.update(vec![A, B], LATER));
        assert!(!checksums.update(vec![B], LATER));
        assert!(!checksums.offload());
        assert!(checksums.update(vec![], LATER));
        assert!(checksums.offload());
    }

    #[test]
    fn what_was_off_at_the_start_stays_so_until_the_vteps_were_asked() {
        let mut checksums = new(false);
        checksums.found_off();
        assert!(!checksums.update(vec![], KEPT / 2));
        assert!(!checksums.offload());
        let mut asked = new(false);
        asked.found_off();
        assert!(!asked.update(vec![A], KEPT / 4));
        assert!(asked.update(vec![], KEPT / 2), "they were asked");
        assert!(checksums.update(vec![], KEPT));
        assert!(checksums.offload());
    }

    #[test]
    fn xdp_on_ports_never_has_it() {
        let mut checksums = new(true);
        assert!(!checksums.update(vec![], LATER));
        assert!(!checksums.offload());
    }
}
