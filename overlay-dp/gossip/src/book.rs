//! What this host knows of the cluster, and what its agent must hear of it. Sans-IO.
//!
//! The facts come from the managers, each host's endpoints from that host ([`PeerLog`]), and the
//! agent sees an endpoint only when both agree on it ([`Facts::check`]). Whichever comes last, the
//! events follow.
//!
//! A host is followed in the networks that this one is interested in and the other has a grant
//! in; the other networks' endpoints are not here at all.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::Facts;
use overlay_core::model::{Endpoint, Host, HostId, Vni};
use overlay_core::multicast::Group;

use crate::Event;
use crate::log::{Account, Diff, Gap, OwnLogs, PeerLog};
use crate::wire::{Change, Position};

mod facts;

struct Peer {
    host: Host,
    /// Those that it is followed in.
    logs: BTreeMap<Vni, PeerLog>,
    account: Account,
    up: bool,
    /// Since when it is not up.
    down_since: Instant,
    /// Rises when `logs` has others.
    revision: u64,
    /// What it has was withdrawn because it was away.
    forgotten: bool,
}

/// What this host knows of the cluster.
pub struct Book {
    me: HostId,
    retention: Duration,
    facts: Arc<Facts>,
    /// This host's endpoints.
    pub own: OwnLogs,
    peers: BTreeMap<HostId, Peer>,
    /// The networks whose endpoints the agent hears of.
    attached: BTreeSet<Vni>,
    /// Those that somebody looks at, and how many do.
    looked: BTreeMap<Vni, usize>,
    expelled: bool,
    facts_refused: u64,
    /// Of whom the agent was told that they have members of groups.
    with_groups: BTreeSet<(HostId, Vni)>,
    events: VecDeque<Event>,
}

impl Book {
    /// `incarnation` is at least 1, and higher than at any earlier start; endpoints of a host that
    /// is down stay for `retention`. The facts may be shared with other books.
    pub fn new(
        me: HostId,
        facts: Arc<Facts>,
        incarnation: u64,
        retention: Duration,
        now: Instant,
    ) -> Book {
        let mut book = Book {
            me,
            retention,
            facts: Arc::default(),
            own: OwnLogs::new(incarnation),
            peers: BTreeMap::new(),
            attached: BTreeSet::new(),
            looked: BTreeMap::new(),
            expelled: false,
            facts_refused: 0,
            with_groups: BTreeSet::new(),
            events: VecDeque::new(),
        };
        book.replace_facts(facts, now);
        book
    }

    /// This host.
    pub fn me(&self) -> HostId {
        self.me
    }

    /// What the agent must hear next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the managers agreed on, as far as this host knows.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Whether `host` is another member.
    pub fn is_peer(&self, host: HostId) -> bool {
        self.peers.contains_key(&host)
    }

    /// The other members.
    pub fn peers(&self) -> impl Iterator<Item = &Host> {
        self.peers.values().map(|peer| &peer.host)
    }

    /// Whether a member is there, as the agent was told.
    pub fn is_up(&self, host: HostId) -> bool {
        self.peers.get(&host).is_some_and(|peer| peer.up)
    }

    /// Whether a member has something that this host must know: endpoints in a network of
    /// interest, or the facts. The others need not be followed.
    pub fn follows(&self, host: HostId) -> bool {
        let peer = self.peers.get(&host);
        peer.is_some_and(|peer| peer.host.manager || !peer.logs.is_empty())
    }

    /// What others said against the rules.
    pub fn refused(&self) -> u64 {
        let records = self.peers.values().map(|peer| peer.account.refused);
        records.sum::<u64>() + self.facts_refused
    }

    /// The endpoints of a network that this host is interested in, its own among them.
    pub fn endpoints(&self, vni: Vni) -> Vec<(HostId, Endpoint)> {
        let own = self.own.endpoints(vni).map(|e| (self.me, e.clone()));
        let others = self.peers.iter().flat_map(|(id, peer)| {
            let log = peer.logs.get(&vni).into_iter();
            log.flat_map(PeerLog::visible)
                .map(|endpoint| (*id, Endpoint::clone(endpoint)))
        });
        own.chain(others).collect()
    }

    /// Which multicast groups have members on which other hosts, in a network that this host is
    /// interested in.
    pub fn groups(&self, vni: Vni) -> Vec<(HostId, BTreeSet<Group>)> {
        let logs = self.peers.iter();
        let logs = logs.filter_map(|(id, peer)| Some((*id, peer.logs.get(&vni)?.groups())));
        let some = logs.filter(|(_, groups)| !groups.is_empty());
        some.map(|(id, groups)| (id, groups.clone())).collect()
    }

    /// The host that has the endpoint of this name in a network of interest, without a look at all
    /// the others.
    pub fn whose_name(&self, vni: Vni, name: &str) -> Option<HostId> {
        if self.own.named(vni, name).is_some() {
            return Some(self.me);
        }
        let has = |peer: &Peer| {
            peer.logs
                .get(&vni)
                .and_then(|log| log.named(name))
                .is_some()
        };
        let mut peers = self.peers.iter();
        peers.find(|(_, peer)| has(peer)).map(|(id, _)| *id)
    }

    /// The hosts that take part in a network of interest, but have not said yet what they have
    /// there.
    pub fn unheard(&self, vni: Vni) -> Vec<HostId> {
        let silent = self.peers.iter().filter(|(_, peer)| {
            let log = peer.logs.get(&vni);
            log.is_some_and(|log| log.have() == Position::default())
        });
        silent.map(|(id, _)| *id).collect()
    }

    /// The networks whose endpoints the agent is to hear of, from now on. Those of networks that
    /// are no longer among them go down.
    pub fn set_interest(&mut self, attached: BTreeSet<Vni>) {
        let before = std::mem::replace(&mut self.attached, attached);
        for vni in before.difference(&self.attached.clone()) {
            self.tell_all(*vni, |host, endpoint| Event::EndpointDown {
                host,
                endpoint,
            });
            self.tell_all_groups(*vni, |_| BTreeSet::new());
            self.drop_unwanted(*vni);
        }
        for vni in self.attached.clone().difference(&before) {
            self.add_logs(*vni);
            self.tell_all(*vni, |host, endpoint| Event::EndpointUp { host, endpoint });
            self.tell_all_groups(*vni, BTreeSet::clone);
        }
    }

    /// Follows a network without telling the agent, until [`Book::look_away`].
    pub fn look(&mut self, vni: Vni) {
        *self.looked.entry(vni).or_default() += 1;
        self.add_logs(vni);
    }

    /// Ends a [`Book::look`].
    pub fn look_away(&mut self, vni: Vni) {
        if let Some(count) = self.looked.get_mut(&vni) {
            *count -= 1;
            if *count == 0 {
                self.looked.remove(&vni);
                self.drop_unwanted(vni);
            }
        }
    }

    fn wants(&self, vni: Vni) -> bool {
        self.attached.contains(&vni) || self.looked.contains_key(&vni)
    }

    /// Begins to follow all that take part in a network.
    fn add_logs(&mut self, vni: Vni) {
        for host in self.facts.participants(vni) {
            if let Some(peer) = self.peers.get_mut(&host) {
                peer.add_log(vni);
            }
        }
    }

    /// Stops to follow anybody in a network, unless it is still of interest.
    fn drop_unwanted(&mut self, vni: Vni) {
        if !self.wants(vni) {
            self.peers.values_mut().for_each(|peer| {
                peer.drop_log(vni);
            });
        }
    }

    /// `host` is alive. Comes before anything of its logs is taken.
    pub fn up(&mut self, host: HostId) {
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        if !peer.up {
            peer.up = true;
            peer.ask_anew();
            self.events.push_back(Event::MemberUp(peer.host.clone()));
        }
    }

    /// `host` no longer answers. Its endpoints stay: its data plane may well go on without it.
    pub fn down(&mut self, host: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        if peer.up {
            (peer.up, peer.down_since) = (false, now);
            self.events.push_back(Event::MemberDown(host));
        }
    }

    /// Withdraws a host's endpoints at once, because its data path is dead, too. They come back
    /// when it is up again, is followed anew, or with its next digest.
    pub fn forget(&mut self, host: HostId) {
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        peer.forgotten = true;
        let mut gone = Vec::new();
        for (vni, log) in &mut peer.logs {
            gone.push((*vni, log.forget(&mut peer.account)));
        }
        for (vni, diffs) in gone {
            self.tell(host, vni, diffs);
        }
    }

    /// Withdraws what belongs to hosts that have been down for too long.
    pub fn expire(&mut self, now: Instant) {
        let late = self.peers.iter().filter(|(_, peer)| {
            let silence = now.saturating_duration_since(peer.down_since);
            !peer.up && peer.account.records > 0 && silence >= self.retention
        });
        let late: Vec<HostId> = late.map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.forget(id));
    }

    /// Which of a host's logs are wanted here, and how far they are known.
    pub(crate) fn wanted(&self, host: HostId) -> impl Iterator<Item = (Vni, &PeerLog)> {
        let peer = self.peers.get(&host).into_iter();
        peer.flat_map(|peer| peer.logs.iter().map(|(vni, log)| (*vni, log)))
    }

    /// Whether `host` is a manager, so that its word on the facts counts.
    pub(crate) fn takes_facts_of(&mut self, host: HostId) -> bool {
        let manager = self.facts.host(host).is_some_and(|host| host.manager);
        self.facts_refused += u64::from(!manager);
        manager
    }

    /// Rises when others of a host's logs are wanted.
    pub(crate) fn revision(&self, host: HostId) -> u64 {
        self.peers.get(&host).map_or(0, |peer| peer.revision)
    }

    /// Takes changes of `host`'s log from its own stream.
    pub(crate) fn changes(
        &mut self,
        host: HostId,
        vni: Vni,
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
    ) -> Result<(), Gap> {
        let facts = self.facts.clone();
        if let Some(peer) = self.peers.get_mut(&host)
            && let Some(log) = peer.logs.get_mut(&vni)
        {
            let allowed = |endpoint: &Endpoint| facts.check(host, endpoint).is_ok();
            let diffs = log.changes(incarnation, first, changes, &mut peer.account, allowed)?;
            self.tell(host, vni, diffs);
        }
        Ok(())
    }

    /// Takes a snapshot of `host`'s log from its own stream.
    pub(crate) fn snapshot(
        &mut self,
        host: HostId,
        vni: Vni,
        at: Position,
        settled: bool,
        (endpoints, groups): (Vec<Arc<Endpoint>>, Option<Arc<[Group]>>),
    ) {
        let facts = self.facts.clone();
        if let Some(peer) = self.peers.get_mut(&host)
            && let Some(log) = peer.logs.get_mut(&vni)
        {
            let allowed = |endpoint: &Endpoint| facts.check(host, endpoint).is_ok();
            let records = (endpoints, groups);
            let diffs = log.snapshot(at, settled, records, &mut peer.account, allowed);
            self.tell(host, vni, diffs);
        }
    }

    fn tell(&mut self, host: HostId, vni: Vni, diffs: Vec<Diff>) {
        if !self.attached.contains(&vni) {
            return;
        }
        let copy = |endpoint: Arc<Endpoint>| Endpoint::clone(&endpoint);
        for Diff { old, new } in diffs {
            let down = old.map(copy);
            let down = down.map(|endpoint| Event::EndpointDown { host, endpoint });
            let up = new.map(copy);
            let up = up.map(|endpoint| Event::EndpointUp { host, endpoint });
            self.events.extend(down.into_iter().chain(up));
        }
        let log = (self.peers.get_mut(&host)).and_then(|peer| peer.logs.get_mut(&vni));
        let groups = match log {
            Some(log) => log.take_news_of_groups().cloned(),
            // It is followed there no more.
            None => Some(BTreeSet::new()),
        };
        if let Some(groups) = groups {
            self.tell_groups(host, vni, groups);
        }
    }

    fn tell_groups(&mut self, host: HostId, vni: Vni, groups: BTreeSet<Group>) {
        let news = match groups.is_empty() {
            true => self.with_groups.remove(&(host, vni)),
            false => {
                self.with_groups.insert((host, vni));
                true
            }
        };
        if news {
            self.events.push_back(Event::Groups { host, vni, groups });
        }
    }

    fn tell_all_groups(&mut self, vni: Vni, groups: impl Fn(&BTreeSet<Group>) -> BTreeSet<Group>) {
        let mut all = Vec::new();
        for (id, peer) in &mut self.peers {
            if let Some(log) = peer.logs.get_mut(&vni) {
                let _ = log.take_news_of_groups();
                all.push((*id, groups(log.groups())));
            }
        }
        for (id, groups) in all {
            self.tell_groups(id, vni, groups);
        }
    }

    fn tell_all(&mut self, vni: Vni, event: impl Fn(HostId, Endpoint) -> Event) {
        for (id, peer) in &self.peers {
            let visible = peer.logs.get(&vni).into_iter().flat_map(PeerLog::visible);
            self.events
                .extend(visible.map(|endpoint| event(*id, Endpoint::clone(endpoint))));
        }
    }
}

impl Peer {
    fn add_log(&mut self, vni: Vni) {
        if let Entry::Vacant(place) = self.logs.entry(vni) {
            self.revision += 1;
            place.insert(PeerLog::new(vni, self.revision));
        }
    }

    /// Even if its stream has outlived its absence.
    fn ask_anew(&mut self) {
        if std::mem::take(&mut self.forgotten) {
            for log in self.logs.values_mut() {
                self.revision += 1;
                log.renumber(self.revision);
            }
        }
    }

    /// What was visible of it is gone.
    fn drop_log(&mut self, vni: Vni) -> Vec<Diff> {
        let Some(mut log) = self.logs.remove(&vni) else {
            return Vec::new();
        };
        self.revision += 1;
        log.forget(&mut self.account)
    }
}

#[cfg(test)]
mod tests;
