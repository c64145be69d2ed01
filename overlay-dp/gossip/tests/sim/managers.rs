//! The managers' agreement: one state machine that those reach who reach a majority.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use overlay_core::facts::{Command, Facts, NetworkSpec, Range, Refusal, Reply, Want};
use overlay_core::model::{Network, Vni};

use super::{COMMIT, Event, State, World, nanos};

impl World {
    /// Lets the managers agree on something; `None` when host `n` does not reach a majority.
    pub fn agree(&mut self, n: usize, command: &Command) -> Option<Result<Reply, Refusal>> {
        if !self.has_quorum(n) {
            return None;
        }
        self.raft_index += 1;
        let outcome = self.managers.apply(self.raft_index, command);
        for manager in 0..self.nodes.len() {
            if self.is_manager(manager) && self.has_quorum(manager) {
                self.at(self.now + nanos(COMMIT), Event::Commit(manager));
            }
        }
        // The answer brings the facts along.
        let news = self.managers.since(self.nodes[n].book.facts().version());
        let now = self.nodes[n].local(self.now);
        let node = &mut self.nodes[n];
        node.book.take_facts(news, now).unwrap();
        self.told(n);
        Some(outcome)
    }

    pub(super) fn grant(&mut self, n: usize, vni: Vni, count: u32) -> Option<Vec<Range>> {
        let host = self.nodes[n].id;
        let want = Want::Addresses(count);
        match self.agree(n, &Command::Grant { host, vni, want })? {
            Ok(Reply::Granted(ranges)) => Some(ranges),
            _ => None,
        }
    }

    pub fn create(&mut self, name: &str) -> Network {
        let spec = NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        };
        let avoid = Vec::new();
        let create = Command::NetworkCreate { spec, avoid };
        let by = (0..self.nodes.len()).find(|n| self.has_quorum(*n)).unwrap();
        match self.agree(by, &create) {
            Some(Ok(Reply::Network(network))) => network,
            other => panic!("{other:?}"),
        }
    }

    /// As [`World::create`], but nobody hears of it before [`World::share_facts`].
    pub fn create_quietly(&mut self, number: usize) -> Vni {
        self.raft_index += 1;
        // Looking for a free subnet takes a while when there are thousands.
        let subnet = Ipv4Addr::from_bits(0x0a00_0000 + ((number as u32) << 8));
        let spec = NetworkSpec {
            name: format!("net{number}"),
            subnets: vec![IpNetwork::new(subnet.into(), 24).unwrap()],
            ..NetworkSpec::default()
        };
        let avoid = Vec::new();
        let create = Command::NetworkCreate { spec, avoid };
        match self.managers.apply(self.raft_index, &create) {
            Ok(Reply::Network(network)) => network.vni,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn is_manager(&self, n: usize) -> bool {
        let host = self.managers.facts().host(self.nodes[n].id);
        host.is_some_and(|host| host.manager)
    }

    pub(super) fn has_quorum(&self, n: usize) -> bool {
        let managers = (0..self.nodes.len()).filter(|of| self.is_manager(*of));
        let managers: Vec<usize> = managers.collect();
        let reached = managers
            .iter()
            .filter(|of| self.nodes[**of].state == State::Runs && !self.is_cut(n, **of));
        self.nodes[n].state == State::Runs && reached.count() * 2 > managers.len()
    }

    /// Whether any host reaches a majority of the managers.
    pub fn has_majority(&self) -> bool {
        (0..self.nodes.len()).any(|n| self.has_quorum(n))
    }

    pub(super) fn hear_managers(&mut self, n: usize) {
        if self.is_manager(n) && self.has_quorum(n) {
            let news = self.managers.since(self.nodes[n].book.facts().version());
            let now = self.nodes[n].local(self.now);
            self.nodes[n].book.take_facts(news, now).unwrap();
            self.told(n);
        }
    }

    /// Gives facts to all hosts at once, as copies of one.
    pub fn share_facts(&mut self) {
        let facts: Arc<Facts> = Arc::new(self.managers.facts().clone());
        for n in 0..self.nodes.len() {
            let now = self.nodes[n].local(self.now);
            self.nodes[n].book.replace_facts(facts.clone(), now);
            self.told(n);
        }
    }
}
