//! What goes wrong, and what must hold when it is over.

use std::collections::BTreeMap;

use overlay_core::model::Endpoint;
use rand::RngExt;

use super::{State, Traffic, View, World};

impl World {
    /// The agent is killed. With `dark` the whole host is.
    pub fn kill(&mut self, n: usize, dark: bool) {
        self.nodes[n].state = if dark { State::Dark } else { State::Stopped };
        self.nodes[n].timer = None;
        self.measured.died.insert(n, self.now);
        for peer in self.nodes[n].linked.clone() {
            self.silence(n, peer);
        }
    }

    /// The agent starts again. A host that was dark has lost its containers; else those that ended
    /// meanwhile are not published again.
    pub fn restart(&mut self, n: usize) {
        for peer in self.nodes[n].linked.clone() {
            self.close(n, peer);
        }
        self.measured.died.remove(&n);
        if self.nodes[n].state == State::Dark {
            self.nodes[n].has.clear();
            self.nodes[n].used.clear();
        }
        let (spec, seed) = (self.spec, self.rng.random());
        self.nodes[n].restart(&spec, self.now, seed);
        self.begin(n);
        if self.is_manager(n) {
            self.hear_managers(n);
        }
        let has: Vec<Endpoint> = self.nodes[n].has.values().cloned().collect();
        for endpoint in has {
            self.publish(n, endpoint);
        }
    }

    /// Hosts whose groups differ are cut off from each other from now on.
    pub fn partition(&mut self, group: impl Fn(usize) -> u8) {
        let before = self.groups.clone();
        self.groups = (0..self.nodes.len()).map(group).collect();
        for a in 0..self.nodes.len() {
            for b in self.nodes[a].linked.clone() {
                if a < b && self.is_cut(a, b) && before[a] == before[b] {
                    self.silence(a, b);
                }
            }
        }
    }

    /// All hosts reach each other.
    pub fn heal(&mut self) {
        self.groups.fill(0);
        for n in 0..self.nodes.len() {
            self.hear_managers(n);
        }
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.groups[a] != self.groups[b]
    }

    pub fn runs(&self, n: usize) -> bool {
        self.nodes[n].state == State::Runs
    }

    /// Whether every agent that runs sees exactly what the members have in its networks, thinks
    /// exactly those that run to be there, and has the managers' facts.
    pub fn converged(&self) -> Result<(), String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let member = self.managers.facts().host(node.id).is_some();
            if node.state != State::Runs || !member {
                continue;
            }
            let facts = node.book.facts();
            if facts.version() != self.managers.facts().version() {
                return Err(format!("{n} has old facts: {:?}", facts.version()));
            }
            let mut expected = BTreeMap::new();
            let mut groups = BTreeMap::new();
            for (m, other) in self.nodes.iter().enumerate() {
                let member = self.managers.facts().host(other.id).is_some();
                if m == n || !member {
                    continue;
                }
                if node.up.contains(&other.id) != (other.state == State::Runs) {
                    let state = node.swim.state(other.id);
                    return Err(format!("{m} is {:?}, at {n} {state:?}", other.state));
                }
                if other.state != State::Dark {
                    let wanted = other.has.iter().filter(|((vni, _), _)| node.is_in(*vni));
                    expected.extend(
                        wanted.map(|((vni, name), e)| ((*vni, other.id, name.clone()), e.clone())),
                    );
                    for vni in other.networks().into_iter().filter(|vni| node.is_in(*vni)) {
                        groups.insert((vni, other.id), other.joined_groups(vni));
                    }
                }
            }
            if node.view != expected {
                let differs = |a: &View, b: &View| {
                    let only = a.iter().filter(|(key, e)| b.get(*key) != Some(*e));
                    only.map(|(key, _)| key.clone()).take(3).collect::<Vec<_>>()
                };
                let ghosts = differs(&node.view, &expected);
                let missing = differs(&expected, &node.view);
                return Err(format!("at {n}: ghosts {ghosts:?}, missing {missing:?}"));
            }
            if self.spec.views && node.groups != groups {
                return Err(format!("at {n}: groups {:?}, not {groups:?}", node.groups));
            }
        }
        Ok(())
    }

    /// Whether two members hold one address, as far as any host was told.
    pub fn check_addresses(&self) {
        let mut owners = BTreeMap::new();
        for node in &self.nodes {
            for ((vni, name), endpoint) in &node.has {
                let before = owners.insert((*vni, endpoint.ips[0]), (node.id, name));
                assert_eq!(before, None, "seed {}: {:?}", self.spec.seed, endpoint.ips);
            }
        }
    }

    /// What all hosts have sent.
    pub fn traffic(&self) -> Traffic {
        let all = self.nodes.iter().map(|node| node.sent);
        all.fold(Traffic::default(), |sum, one| sum + one)
    }
}
