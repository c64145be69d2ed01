//! What an agent does with what it hears, and what its containers do.

use std::collections::BTreeMap;

use overlay_core::facts::{Command, Want};
use overlay_core::model::{Endpoint, Vni};
use overlay_gossip::Event as Told;

use super::{State, World};

impl World {
    /// Gives the book's events to the agent.
    pub(super) fn told(&mut self, n: usize) {
        let mut facts_changed = false;
        while let Some(event) = self.nodes[n].book.poll_event() {
            facts_changed |= event == Told::FactsChanged;
            self.measure(n, &event);
            let removed = match &event {
                Told::MemberLeft(host) => self.index.get(host).copied(),
                _ => None,
            };
            if let Some(dark) = self.nodes[n].hear(event)
                && self
                    .index
                    .get(&dark)
                    .is_some_and(|of| self.nodes[*of].state == State::Dark)
            {
                self.nodes[n].book.forget(dark);
            }
            if let Some(removed) = removed {
                let now = self.nodes[n].local(self.now);
                let id = self.nodes[removed].id;
                self.nodes[n].swim.remove(id, now);
                self.close(n, removed);
            }
        }
        if facts_changed {
            self.nodes[n].lonely = true;
            self.poll_all(n);
        }
    }

    fn measure(&mut self, n: usize, event: &Told) {
        match event {
            Told::EndpointUp { endpoint, .. } => {
                // Who came into the network later has waited for something else.
                let since = self.nodes[n].joined.get(&endpoint.vni).copied();
                if let Some(at) = self.measured.published.get(&endpoint.name).copied()
                    && since.is_none_or(|since| since < at)
                {
                    self.measured.convergence.push(self.now - at);
                }
            }
            Told::MemberDown(host) => {
                let Some(of) = self.index.get(host).copied() else {
                    return;
                };
                if self.nodes[of].state == State::Runs && !self.is_cut(n, of) {
                    self.measured.false_downs += 1;
                } else if let Some(at) = self.measured.died.get(&of) {
                    self.measured.detection.push(self.now - at);
                }
            }
            _ => {}
        }
    }

    /// A container of host `n` begins; `None` when no address can be had.
    pub fn attach(&mut self, n: usize, vni: Vni, name: &str) -> Option<Endpoint> {
        if self.nodes[n].free_offset(vni).is_none() {
            self.grant(n, vni, 4)?;
        }
        self.nodes[n].free_offset(vni)?;
        let node = &mut self.nodes[n];
        if !node.is_in(vni) {
            node.joined.insert(vni, self.now);
        }
        let (name, endpoint) = node.container(vni, name);
        node.has.insert((vni, name), endpoint.clone());
        node.book.set_interest(node.networks());
        node.lonely = true;
        self.publish(n, endpoint.clone());
        Some(endpoint)
    }

    /// Gives each host `each` containers in each of its networks, before anybody hears of it. Two
    /// hosts in each network have room for one more.
    pub fn populate(&mut self, networks_of: &[Vec<Vni>], each: u32) {
        let mut hosts_in: BTreeMap<Vni, u32> = BTreeMap::new();
        for (n, networks) in networks_of.iter().enumerate() {
            let host = self.nodes[n].id;
            for vni in networks.iter().copied() {
                self.raft_index += 1;
                let hosts = hosts_in.entry(vni).or_default();
                *hosts += 1;
                let want = Want::Addresses(each + u32::from(*hosts <= 2));
                let grant = Command::Grant { host, vni, want };
                self.managers.apply(self.raft_index, &grant).unwrap();
            }
        }
        self.share_facts();
        for (n, networks) in networks_of.iter().enumerate() {
            for vni in networks.iter().copied() {
                for c in 0..each {
                    let (name, endpoint) = self.nodes[n].container(vni, &format!("c{n}.{c}"));
                    self.nodes[n].book.own.publish(endpoint.clone());
                    self.nodes[n].has.insert((vni, name), endpoint);
                }
                self.tell_groups(n, vni);
            }
            let node = &mut self.nodes[n];
            node.book.set_interest(networks.iter().copied().collect());
            node.book.own.settle();
        }
    }

    /// Publishes what a host has.
    pub fn publish(&mut self, n: usize, endpoint: Endpoint) {
        let vni = endpoint.vni;
        self.nodes[n].book.own.publish(endpoint);
        self.tell_groups(n, vni);
        self.told(n);
        self.poll_all(n);
    }

    /// What the agent has found out about the groups of its containers.
    pub(super) fn tell_groups(&mut self, n: usize, vni: Vni) {
        let node = &mut self.nodes[n];
        let groups = node.joined_groups(vni);
        node.book.own.set_groups(vni, &groups);
    }

    /// A container of host `n` ends.
    pub fn detach(&mut self, n: usize, vni: Vni, name: &str) {
        let node = &mut self.nodes[n];
        if let Some(endpoint) = node.has.remove(&(vni, name.to_owned())) {
            let offset = node.book.facts().network(vni);
            let offset = offset.and_then(|network| network.offset_of(endpoint.ips[0]));
            if let (Some(used), Some(offset)) = (node.used.get_mut(&vni), offset) {
                used.remove(&offset);
            }
        }
        node.book.own.withdraw(vni, name);
        let groups = node.joined_groups(vni);
        node.book.own.set_groups(vni, &groups);
        node.book.set_interest(node.networks());
        node.lonely = true;
        self.told(n);
        self.poll_all(n);
    }
}
