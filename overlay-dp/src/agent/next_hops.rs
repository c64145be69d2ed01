//! How each VTEP is reached: what the kernel's routes and neighbours say, and what probes say of
//! the path's MTU, for the tables.
//!
//! A change on the host asks for nothing by itself. It marks the VTEPs that it may be about, and
//! these are looked at together a little later, each once, however many changes there were; a part
//! at a time, so that the agent has time for others in between.

mod look;

use std::collections::{BTreeMap, HashSet};
use std::future;
use std::net::IpAddr;
use std::ops::RangeBounds;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use overlay_common::wire::{Family, ip16};
use overlay_core::tables::NextHop;
use overlay_host::{Host, HostEvent};

use look::Look;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// After a look at VTEPs, so many times as long as it took is spent otherwise.
const REST: u32 = 3;
/// So many VTEPs are looked at without a pause for others.
const PART: usize = 64;
/// The first pause until a VTEP without a usable neighbour is looked at again, doubled each time …
const RETRY: Duration = Duration::from_millis(200);
/// … up to this.
const RETRY_MOST: Duration = Duration::from_secs(1);

/// The ways to all VTEPs.
#[derive(Default)]
pub struct NextHops {
    ways: BTreeMap<IpAddr, Way>,
    /// To be looked at.
    marked: HashSet<IpAddr>,
    due: Option<Instant>,
    /// Those of the present look that are still to come.
    coming: Vec<IpAddr>,
    /// How long the present look has taken so far.
    spent: Duration,
    /// Before which nothing is looked at.
    rest: Option<Instant>,
}

/// The way to one VTEP.
#[derive(Default)]
struct Way {
    /// All gateways (or the VTEP itself) that it may go through.
    via: Vec<(IpAddr, u32)>,
    /// The one that it does go through.
    chosen: Option<Hop>,
    /// What probes say, in bytes of IP packets.
    path_mtu: Option<u32>,
    /// That it can't be reached has been said.
    lost: bool,
    /// The pause before the next look, while there is no usable neighbour.
    retry: Option<Duration>,
}

/// A neighbour that frames are sent to, and the link to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The gateway, or the VTEP itself.
    pub gateway: IpAddr,
    /// The interface to it.
    pub ifindex: u32,
    /// That interface's MAC.
    pub src_mac: [u8; 6],
    /// The gateway's MAC.
    pub dst_mac: Option<[u8; 6]>,
    /// MTU of interface and route, in bytes.
    pub mtu: u32,
}

/// What has become of the way to a VTEP.
pub struct Outcome {
    /// The VTEP.
    pub vtep: IpAddr,
    /// For the tables.
    pub next_hop: Option<NextHop>,
    /// The way is another one now, over links of this MTU in bytes.
    pub moved: Option<u32>,
    /// [`NextHops::is_blocked`] was true, and is not any more.
    pub cleared: bool,
}

impl NextHops {
    /// Looks at VTEPs, those reached from `src`, now. Where a neighbour is not known, the kernel
    /// is made to look for it.
    pub async fn resolve(&mut self, host: &Host, vteps: Vec<IpAddr>, src: IpAddr) -> Vec<Outcome> {
        let begin = Instant::now();
        let mut look = Look::new(host);
        let mut outcomes = Vec::with_capacity(vteps.len());
        let mut again: Option<Duration> = None;
        for vtep in vteps {
            let way = self.ways.entry(vtep).or_default();
            self.marked.remove(&vtep);
            let before = way.chosen;
            let was_blocked = way.is_blocked(vtep);
            match look.way(vtep, src, before).await {
                Ok((via, hop)) => {
                    way.via = via;
                    way.chosen = Some(hop);
                    way.lost = false;
                }
                Err(error) => {
                    // Said once, not each time that it is tried again.
                    if !std::mem::replace(&mut way.lost, true) {
                        tracing::warn!(%vtep, %error, "no way to the VTEP");
                    }
                    way.via.clear();
                    way.chosen = None;
                }
            }
            // Without any way there is nothing to ask: the next change is waited for.
            way.retry = match way.chosen {
                Some(hop) if !look.is_settled(hop) => {
                    Some(way.retry.map_or(RETRY, |pause| (pause * 2).min(RETRY_MOST)))
                }
                _ => None,
            };
            if let Some(pause) = way.retry {
                self.marked.insert(vtep);
                again = Some(again.map_or(pause, |other| other.min(pause)));
            }
            let key = |hop: Hop| (hop.gateway, hop.ifindex, hop.mtu);
            let moved = way.chosen.filter(|hop| before.map(key) != Some(key(*hop)));
            outcomes.push(Outcome {
                vtep,
                next_hop: way.next_hop(vtep),
                moved: moved.map(|hop| hop.mtu),
                cleared: was_blocked && !way.is_blocked(vtep),
            });
        }
        let now = Instant::now();
        self.spent += now - begin;
        if self.coming.is_empty() {
            self.rest = Some(now + std::mem::take(&mut self.spent) * REST);
        }
        if let Some(pause) = again {
            self.due_in(pause);
        }
        outcomes
    }

    /// What probes say of a path's MTU. Returns what the tables are to have.
    pub fn path_mtu(&mut self, vtep: IpAddr, mtu: Option<u32>) -> Option<NextHop> {
        let way = self.ways.get_mut(&vtep)?;
        way.path_mtu = mtu;
        way.next_hop(vtep)
    }

    /// What the tables are to have of a VTEP, if that is known.
    pub fn next_hop(&self, vtep: IpAddr) -> Option<NextHop> {
        self.ways.get(&vtep)?.next_hop(vtep)
    }

    /// The neighbour that a VTEP is reached through.
    pub fn hop(&self, vtep: IpAddr) -> Option<Hop> {
        self.ways.get(&vtep)?.chosen
    }

    /// Whether nothing can get to a VTEP because of what is wrong here, not there: there is no
    /// route, or the gateway does not answer.
    pub fn is_blocked(&self, vtep: IpAddr) -> bool {
        self.ways.get(&vtep).is_none_or(|way| way.is_blocked(vtep))
    }

    /// Forgets a VTEP.
    pub fn forget(&mut self, vtep: IpAddr) {
        self.ways.remove(&vtep);
        self.marked.remove(&vtep);
        self.coming.retain(|coming| *coming != vtep);
    }

    /// Marks the VTEPs that a change may be about.
    pub fn on_host(&mut self, event: &HostEvent) {
        match event {
            HostEvent::Neighbour { ip, ifindex, mac } => {
                let through = (*ip, *ifindex);
                let mac = mac.map(|mac| mac.0);
                let about = |way: &Way| {
                    let same = way.chosen.is_some_and(|hop| {
                        (hop.gateway, hop.ifindex) == through && hop.dst_mac == mac
                    });
                    way.via.contains(&through) && !(same && mac.is_some())
                };
                self.mark(about);
            }
            HostEvent::LinkChanged { ifindex, .. } | HostEvent::LinkGone { ifindex, .. } => {
                self.mark(|way| way.via.is_empty() || way.via.iter().any(|via| via.1 == *ifindex));
            }
            // Whichever route a VTEP has or gets, its address is within it.
            HostEvent::Route(to) => self.mark_in(to.network()..=last(*to), |_| true),
            HostEvent::Address { .. } | HostEvent::Overrun => self.mark_all(),
        }
    }

    /// Has all VTEPs looked at soon.
    pub fn mark_all(&mut self) {
        self.mark(|_| true);
    }

    fn mark(&mut self, about: impl Fn(&Way) -> bool) {
        self.mark_in(.., about);
    }

    fn mark_in(&mut self, vteps: impl RangeBounds<IpAddr>, about: impl Fn(&Way) -> bool) {
        let ways = self.ways.range_mut(vteps);
        let mut any = false;
        for (vtep, way) in ways.filter(|(_, way)| about(way)) {
            self.marked.insert(*vtep);
            // Something has changed: what comes next is a first try.
            way.retry = None;
            any = true;
        }
        if any {
            self.due_in(GATHER);
        }
    }

    /// Has [`NextHops::wait`] return soon, whatever is marked.
    pub fn look_soon(&mut self) {
        self.due_in(GATHER);
    }

    /// The same, after a while.
    pub fn look_in(&mut self, pause: Duration) {
        self.due_in(pause);
    }

    fn due_in(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        let at = self.rest.map_or(at, |rest| at.max(rest));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Returns when marked VTEPs are to be looked at.
    pub async fn wait(&self) {
        match self.due {
            _ if !self.coming.is_empty() => {}
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => future::pending().await,
        }
    }

    /// The next marked VTEPs, for [`NextHops::resolve`].
    pub fn take_marked(&mut self) -> Vec<IpAddr> {
        if self.coming.is_empty() {
            self.due = None;
            self.coming = self.marked.drain().collect();
        }
        let others = self.coming.len().saturating_sub(PART);
        self.coming.split_off(others)
    }

    /// Has the kernel confirm every gateway, so that none ages out while only BPF uses it.
    pub async fn keep_fresh(&self, host: &Host) {
        let mut gateways: Vec<_> = self.ways.values().flat_map(|way| &way.via).collect();
        gateways.sort_unstable();
        gateways.dedup();
        for (ip, ifindex) in gateways {
            if let Err(error) = host.keep_fresh(*ip, *ifindex).await {
                tracing::debug!(%ip, %error, "can't have the neighbour confirmed");
            }
        }
    }
}

/// The last address of a network.
fn last(network: IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(network) => network.broadcast().into(),
        IpNetwork::V6(network) => network.broadcast().into(),
    }
}

impl Way {
    fn is_blocked(&self, vtep: IpAddr) -> bool {
        match self.chosen {
            Some(hop) => self.retry.is_some() && hop.gateway != vtep,
            None => true,
        }
    }

    fn next_hop(&self, vtep: IpAddr) -> Option<NextHop> {
        let hop = self.chosen?;
        let mtu = self.path_mtu.map_or(hop.mtu, |mtu| mtu.min(hop.mtu));
        Some(NextHop {
            ifindex: hop.ifindex,
            src_mac: hop.src_mac,
            dst_mac: hop.dst_mac?,
            mtu: mtu.saturating_sub(Family::of(&ip16(vtep)).overhead()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn of(vteps: &[&str]) -> NextHops {
        let mut hops = NextHops::default();
        for vtep in vteps {
            hops.ways.insert(ip(vtep), Way::default());
        }
        hops
    }

    #[test]
    fn a_route_is_about_the_vteps_within_it() {
        let all = ["10.1.0.1", "10.1.255.255", "10.2.0.1", "fd00::1", "fd01::1"];
        for (route, marked) in [
            ("10.1.0.0/16", &all[..2]),
            ("10.2.0.1/32", &all[2..3]),
            ("0.0.0.0/0", &all[..3]),
            ("fd00::/16", &all[3..4]),
            ("::/0", &all[3..]),
            ("192.0.2.0/24", &[]),
        ] {
            let mut hops = of(&all);
            hops.on_host(&HostEvent::Route(route.parse().unwrap()));
            let marked: HashSet<IpAddr> = marked.iter().map(|vtep| ip(vtep)).collect();
            assert_eq!(hops.marked, marked, "{route}");
            assert_eq!(hops.due.is_some(), !marked.is_empty(), "{route}");
        }
    }

    #[tokio::test]
    async fn many_are_looked_at_part_by_part_each_once() {
        let names: Vec<String> = (0..200).map(|n| format!("10.0.0.{n}")).collect();
        let mut hops = of(&names.iter().map(String::as_str).collect::<Vec<_>>());
        hops.mark_all();
        let mut seen = HashSet::new();
        let mut parts = 0;
        while parts == 0 || !hops.coming.is_empty() {
            hops.wait().await;
            for vtep in hops.take_marked() {
                assert!(seen.insert(vtep));
                // It is to be tried again: not before all others had their turn.
                hops.marked.insert(vtep);
            }
            parts += 1;
            if parts == 1 {
                let other = hops.coming[0];
                hops.forget(other);
                seen.insert(other);
            }
        }
        assert_eq!((seen.len(), parts), (200, 200usize.div_ceil(PART)));
    }
}
