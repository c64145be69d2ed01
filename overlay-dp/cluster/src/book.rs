//! What this host knows of the cluster, and what its agent must hear of it. Sans-IO.
//!
//! The roster and the networks come from the manager ([`Facts`]), each host's endpoints from that
//! host ([`PeerLog`]), and the agent sees an endpoint only when both agree on it: its owner is in
//! the roster, its network exists and its addresses belong there. Whichever comes last, the
//! events follow.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use overlay_core::model::{Endpoint, Host, HostId, Network, Vni};

use crate::Event;
use crate::log::{Diff, Gap, OwnLog, PeerLog, fits};
use crate::wire::{Change, Facts, Position};

struct Peer {
    host: Host,
    log: PeerLog,
    up: bool,
    /// Since when it is not up.
    down_since: Instant,
}

pub struct Book {
    me: HostId,
    retention: Duration,
    facts: Facts,
    networks: BTreeMap<Vni, Network>,
    pub own: OwnLog,
    peers: BTreeMap<HostId, Peer>,
    events: VecDeque<Event>,
}

impl Book {
    pub fn new(
        me: HostId,
        facts: Facts,
        incarnation: u64,
        retention: Duration,
        now: Instant,
    ) -> Book {
        let nothing = Facts {
            version: 0,
            manager: facts.manager,
            hosts: Vec::new(),
            networks: Vec::new(),
        };
        let mut book = Book {
            me,
            retention,
            facts: nothing,
            networks: BTreeMap::new(),
            own: OwnLog::new(incarnation),
            peers: BTreeMap::new(),
            events: VecDeque::new(),
        };
        book.set_facts(facts, now);
        book
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn network(&self, vni: Vni) -> Option<&Network> {
        self.networks.get(&vni)
    }

    /// Whether `host` is another member.
    pub fn is_peer(&self, host: HostId) -> bool {
        self.peers.contains_key(&host)
    }

    /// The other members.
    pub fn peers(&self) -> impl Iterator<Item = &Host> {
        self.peers.values().map(|peer| &peer.host)
    }

    /// Whether a member has said that it leaves, and has not come back.
    pub fn has_left(&self, host: HostId) -> bool {
        self.peers.get(&host).is_some_and(|peer| peer.log.left())
    }

    pub fn is_up(&self, host: HostId) -> bool {
        self.peers.get(&host).is_some_and(|peer| peer.up)
    }

    /// How far a member's log is known.
    pub fn have(&self, host: HostId) -> Position {
        self.peers
            .get(&host)
            .map(|peer| peer.log.have())
            .unwrap_or_default()
    }

    /// Records of other hosts that broke the rules.
    pub fn refused(&self) -> u64 {
        self.peers.values().map(|peer| peer.log.refused).sum()
    }

    /// The endpoints of a network, this host's own among them.
    pub fn endpoints(&self, vni: Vni) -> Vec<(HostId, Endpoint)> {
        let own = self.own.endpoints().map(|endpoint| (self.me, endpoint));
        let others = self.peers.iter().flat_map(|(id, peer)| {
            let visible = peer.log.endpoints().filter(|e| visible(&self.networks, e));
            visible.map(|endpoint| (*id, endpoint))
        });
        let wanted = own
            .chain(others)
            .filter(|(_, endpoint)| endpoint.vni == vni);
        wanted
            .map(|(id, endpoint)| (id, endpoint.clone()))
            .collect()
    }

    /// Takes newer facts; false when they are not newer.
    pub fn set_facts(&mut self, facts: Facts, now: Instant) -> bool {
        if facts.version <= self.facts.version || facts.manager != self.facts.manager {
            return false;
        }
        let mut next: BTreeMap<Vni, Network> = facts
            .networks
            .iter()
            .map(|network| (network.vni, network.clone()))
            .collect();
        let hosts: BTreeMap<HostId, &Host> =
            facts.hosts.iter().map(|host| (host.id, host)).collect();

        let gone: Vec<HostId> = self
            .peers
            .keys()
            .filter(|id| !hosts.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.remove_peer(id);
        }
        let same = |network: &Network| next.get(&network.vni) == Some(network);
        let gone: Vec<Vni> = self
            .networks
            .values()
            .filter(|n| !same(n))
            .map(|n| n.vni)
            .collect();
        for vni in gone {
            self.tell_endpoints(vni, |host, endpoint| Event::EndpointDown { host, endpoint });
            self.events
                .extend(self.networks.remove(&vni).map(Event::NetworkRemoved));
        }
        next.retain(|vni, _| !self.networks.contains_key(vni));
        for (vni, network) in next {
            self.networks.insert(vni, network.clone());
            self.events.push_back(Event::NetworkAdded(network));
            self.tell_endpoints(vni, |host, endpoint| Event::EndpointUp { host, endpoint });
        }
        for (id, host) in hosts {
            if id != self.me {
                self.put_peer(host, now);
            }
        }
        self.facts = facts;
        true
    }

    fn put_peer(&mut self, host: &Host, now: Instant) {
        let peer = self.peers.entry(host.id).or_insert_with(|| Peer {
            host: host.clone(),
            log: PeerLog::default(),
            up: false,
            down_since: now,
        });
        if peer.host != *host {
            peer.host = host.clone();
            if peer.up {
                self.events.push_back(Event::MemberUp(host.clone()));
            }
        }
    }

    fn remove_peer(&mut self, id: HostId) {
        let Some(mut peer) = self.peers.remove(&id) else {
            return;
        };
        let left = peer.log.left();
        let diffs = peer.log.forget();
        self.tell(id, diffs);
        if !left {
            self.events.push_back(Event::MemberLeft(id));
        }
    }

    /// Takes changes of `host`'s log from its own connection.
    pub fn changes(
        &mut self,
        host: HostId,
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
        now: Instant,
    ) -> Result<(), Gap> {
        self.follow(host, now, |log| log.changes(incarnation, first, changes))
    }

    /// Takes a snapshot of `host`'s log from its own connection.
    pub fn snapshot(
        &mut self,
        host: HostId,
        at: Position,
        settled: bool,
        endpoints: Vec<Endpoint>,
        now: Instant,
    ) {
        let _ = self.follow(host, now, |log| Ok(log.snapshot(at, settled, endpoints)));
    }

    fn follow(
        &mut self,
        host: HostId,
        now: Instant,
        take: impl FnOnce(&mut PeerLog) -> Result<Vec<Diff>, Gap>,
    ) -> Result<(), Gap> {
        let Some(peer) = self.peers.get_mut(&host) else {
            return Ok(());
        };
        let left = peer.log.left();
        let diffs = take(&mut peer.log)?;
        let leaves = peer.log.left() && !left;
        if leaves {
            (peer.up, peer.down_since) = (false, now);
        }
        self.tell(host, diffs);
        if leaves {
            self.events.push_back(Event::MemberLeft(host));
        }
        Ok(())
    }

    /// `host` is alive. Comes before anything of its log is taken.
    pub fn up(&mut self, host: HostId) {
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        if !peer.up && !peer.log.left() {
            peer.up = true;
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

    /// Withdraws what belongs to hosts that have been down for too long.
    pub fn expire(&mut self, now: Instant) {
        let late = |peer: &Peer| {
            !peer.up && now.saturating_duration_since(peer.down_since) >= self.retention
        };
        let late: Vec<HostId> = self
            .peers
            .iter()
            .filter(|(_, peer)| late(peer))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let forgotten = self.peers.get_mut(&id).map(|peer| peer.log.forget());
            self.tell(id, forgotten.unwrap_or_default());
        }
    }

    fn tell(&mut self, host: HostId, diffs: Vec<Diff>) {
        for Diff { old, new } in diffs {
            let old = old.filter(|endpoint| visible(&self.networks, endpoint));
            let new = new.filter(|endpoint| visible(&self.networks, endpoint));
            let down = old.map(|endpoint| Event::EndpointDown { host, endpoint });
            self.events.extend(down);
            self.events
                .extend(new.map(|endpoint| Event::EndpointUp { host, endpoint }));
        }
    }

    fn tell_endpoints(&mut self, vni: Vni, event: impl Fn(HostId, Endpoint) -> Event) {
        for (id, peer) in &self.peers {
            let those = peer.log.endpoints().filter(|endpoint| endpoint.vni == vni);
            let those = those.filter(|endpoint| visible(&self.networks, endpoint));
            self.events
                .extend(those.map(|endpoint| event(*id, endpoint.clone())));
        }
    }
}

fn visible(networks: &BTreeMap<Vni, Network>, endpoint: &Endpoint) -> bool {
    networks
        .get(&endpoint.vni)
        .is_some_and(|network| fits(endpoint, network).is_ok())
}

#[cfg(test)]
mod tests;
