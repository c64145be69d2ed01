//! How the book takes in other facts: only what they touch is looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use overlay_core::facts::{Change, Facts, FactsNews, Gap, Range, Version};
use overlay_core::model::{Endpoint, Host, HostId, MacAddr, Network, Vni};

use super::{Book, Peer};
use crate::Event;
use crate::log::Account;

/// Which endpoints of a log must be checked again.
enum Part {
    All,
    Offsets(Range),
    Mac(MacAddr),
}

struct Touched {
    part: Part,
    /// The facts may allow more of them; else they may allow less.
    allows: bool,
}

/// What other facts may have changed.
#[derive(Default)]
struct Differences {
    hosts: BTreeSet<HostId>,
    /// As they were before.
    networks: BTreeMap<Vni, Option<Network>>,
    logs: BTreeMap<(HostId, Vni), Vec<Touched>>,
}

impl Book {
    /// Takes news of the facts, on managers from their own state machine. False when they are none.
    ///
    /// # Errors
    /// When something in between is missing: it takes a snapshot, or what is since
    /// [`Book::facts`]' version.
    pub fn take_facts(&mut self, news: FactsNews, now: Instant) -> Result<bool, Gap> {
        match news {
            FactsNews::Nothing => Ok(false),
            FactsNews::Snapshot(facts) => Ok(self.replace_facts(Arc::from(facts), now)),
            FactsNews::Changes {
                after,
                version,
                changes,
            } => self.change_facts(after, version, &changes, now),
        }
    }

    /// As a snapshot in [`Book::take_facts`], of facts that may be shared with other books.
    pub fn replace_facts(&mut self, facts: Arc<Facts>, now: Instant) -> bool {
        if facts.version() <= self.facts.version() {
            return false;
        }
        let before = std::mem::replace(&mut self.facts, facts);
        let known = before.hosts().chain(self.facts.hosts());
        let mut differences = Differences {
            hosts: known.map(|host| host.id).collect(),
            ..Differences::default()
        };
        for network in before.networks().chain(self.facts.networks()) {
            let vni = network.vni;
            differences
                .networks
                .insert(vni, before.network(vni).cloned());
            if self.wants(vni) {
                let hosts = before.participants(vni).into_iter();
                for host in hosts.chain(self.facts.participants(vni)) {
                    differences.touch(host, vni, Part::All, false);
                    differences.touch(host, vni, Part::All, true);
                }
            }
        }
        self.act_on(differences, now);
        true
    }

    fn change_facts(
        &mut self,
        after: Version,
        version: Version,
        changes: &[Change],
        now: Instant,
    ) -> Result<bool, Gap> {
        if version <= self.facts.version() {
            return Ok(false);
        }
        let differences = self.differences(changes);
        // Nobody else has these facts, except in a simulation: nothing is copied.
        Arc::make_mut(&mut self.facts).apply(after, version, changes)?;
        self.act_on(differences, now);
        Ok(true)
    }

    /// What `changes` will change.
    fn differences(&self, changes: &[Change]) -> Differences {
        let mut all = Differences::default();
        let network = |vni: Vni| self.facts.network(vni).cloned();
        for change in changes {
            match change {
                Change::HostSet(host) => {
                    all.hosts.insert(host.id);
                }
                Change::HostGone(host) => {
                    all.hosts.insert(*host);
                    for vni in self.facts.networks_of(*host) {
                        all.touch(*host, vni, Part::All, false);
                    }
                }
                Change::NetworkSet { network: set, .. } => {
                    all.networks.entry(set.vni).or_insert(network(set.vni));
                }
                Change::NetworkGone(vni) => {
                    all.networks.entry(*vni).or_insert(network(*vni));
                }
                Change::Granted {
                    vni, range, host, ..
                } => all.touch(*host, *vni, Part::Offsets(*range), true),
                Change::MacClaimed { vni, mac, host, .. } => {
                    all.touch(*host, *vni, Part::Mac(*mac), true);
                }
                Change::Returned { vni, range } => {
                    // Whose it was, perhaps by a change just above.
                    let mut hosts = all.hosts_in(*vni);
                    let ends = [range.first, range.last];
                    hosts.extend(ends.iter().filter_map(|end| self.facts.owner(*vni, *end)));
                    for host in hosts {
                        all.touch(host, *vni, Part::Offsets(*range), false);
                    }
                }
                Change::MacReleased { vni, mac } => {
                    let mut hosts = all.hosts_in(*vni);
                    hosts.extend(self.facts.participants(*vni));
                    for host in hosts {
                        all.touch(host, *vni, Part::Mac(*mac), false);
                    }
                }
                Change::NetworkEverywhere(_)
                | Change::WantedSet { .. }
                | Change::WantedGone { .. }
                | Change::ServiceSet(_)
                | Change::ServiceGone(_)
                | Change::PolicySet(_)
                | Change::PolicyGone(_)
                | Change::PolicyDefault { .. } => {}
            }
        }
        all
    }

    /// The facts are the new ones: tells what follows from that.
    fn act_on(&mut self, differences: Differences, now: Instant) {
        let facts = self.facts.clone();
        let member = facts.host(self.me).is_some();
        if !member && !self.expelled {
            self.events.push_back(Event::Expelled);
        }
        self.expelled = !member;
        for id in &differences.hosts {
            if facts.host(*id).is_none() {
                self.remove_peer(*id);
            }
        }
        let changed = differences.networks.iter();
        let changed = changed.filter(|(vni, before)| facts.network(**vni) != before.as_ref());
        for (vni, before) in changed {
            if let Some(before) = before {
                self.recheck_all(*vni, false, |_, _| false);
                self.events.push_back(Event::NetworkRemoved(before.clone()));
            }
            if let Some(network) = facts.network(*vni) {
                self.events.push_back(Event::NetworkAdded(network.clone()));
                if before.is_some() && self.attached.contains(vni) {
                    self.tell_all_groups(*vni, BTreeSet::clone);
                }
                let allowed = |host, endpoint: &Endpoint| facts.check(host, endpoint).is_ok();
                self.recheck_all(*vni, true, allowed);
            }
        }
        for host in differences.hosts.iter().filter_map(|id| facts.host(*id)) {
            if host.id != self.me {
                self.put_peer(host, now);
            }
        }
        // An address may have changed hands: it goes before it comes.
        for show in [false, true] {
            for ((host, vni), touched) in &differences.logs {
                if self.wants(*vni) {
                    self.recheck(*host, *vni, show, touched);
                }
            }
        }
        self.events.push_back(Event::FactsChanged);
    }

    fn put_peer(&mut self, host: &Host, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&host.id) {
            if peer.host != *host {
                peer.host = host.clone();
                if peer.up {
                    self.events.push_back(Event::MemberUp(host.clone()));
                }
            }
            return;
        }
        let mut peer = Peer {
            host: host.clone(),
            logs: BTreeMap::new(),
            account: Account::default(),
            up: false,
            down_since: now,
            revision: 0,
            forgotten: false,
        };
        for vni in self.attached.iter().chain(self.looked.keys()) {
            if self.facts.grants(host.id, *vni).next().is_some() {
                peer.add_log(*vni);
            }
        }
        self.peers.insert(host.id, peer);
    }

    fn remove_peer(&mut self, id: HostId) {
        let Some(mut peer) = self.peers.remove(&id) else {
            return;
        };
        let logs: Vec<Vni> = peer.logs.keys().copied().collect();
        for vni in logs {
            let gone = peer.drop_log(vni);
            self.tell(id, vni, gone);
        }
        self.events.push_back(Event::MemberLeft(id));
    }

    fn recheck_all(&mut self, vni: Vni, show: bool, allowed: impl Fn(HostId, &Endpoint) -> bool) {
        let mut all = Vec::new();
        for (id, peer) in &mut self.peers {
            if let Some(log) = peer.logs.get_mut(&vni) {
                let allowed = |endpoint: &Endpoint| allowed(*id, endpoint);
                let diffs = log.recheck(show, |_| true, &mut peer.account, allowed);
                all.push((*id, diffs));
            }
        }
        for (id, diffs) in all {
            self.tell(id, vni, diffs);
        }
    }

    fn recheck(&mut self, host: HostId, vni: Vni, show: bool, touched: &[Touched]) {
        let facts = self.facts.clone();
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        if facts.grants(host, vni).next().is_none() {
            let gone = peer.drop_log(vni);
            return self.tell(host, vni, gone);
        }
        peer.add_log(vni);
        let (Some(log), Some(network)) = (peer.logs.get_mut(&vni), facts.network(vni)) else {
            return;
        };
        let mut all = Vec::new();
        for Touched { part, .. } in touched.iter().filter(|touched| touched.allows == show) {
            let is_touched = |endpoint: &Endpoint| part.has(endpoint, network);
            let allowed = |endpoint: &Endpoint| facts.check(host, endpoint).is_ok();
            all.extend(log.recheck(show, is_touched, &mut peer.account, allowed));
        }
        self.tell(host, vni, all);
    }
}

impl Differences {
    fn touch(&mut self, host: HostId, vni: Vni, part: Part, allows: bool) {
        let touched = self.logs.entry((host, vni)).or_default();
        touched.push(Touched { part, allows });
    }

    /// Those that got something in a network.
    fn hosts_in(&self, vni: Vni) -> BTreeSet<HostId> {
        let touched = self.logs.keys().filter(|(_, touched)| *touched == vni);
        touched.map(|(host, _)| *host).collect()
    }
}

impl Part {
    fn has(&self, endpoint: &Endpoint, network: &Network) -> bool {
        let inside = |range: &Range, ip: &IpAddr| {
            let offset = network.offset_of(*ip);
            offset.is_some_and(|offset| range.contains(offset))
        };
        match self {
            Part::All => true,
            Part::Offsets(range) => endpoint.ips.iter().any(|ip| inside(range, ip)),
            Part::Mac(mac) => endpoint.mac == *mac,
        }
    }
}
