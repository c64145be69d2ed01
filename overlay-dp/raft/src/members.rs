//! Keeps Raft's members equal to the managers that the facts name. The leader's task.
//!
//! One step at a time: a new manager first follows without a say; when it has caught up it votes.
//! One that is none any more loses its vote first, hears of that, and is then left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep, timeout};

use crate::raft::Core;
use crate::types::{Metrics, Store};
use crate::wire::{Request, Response};

/// A follower that lacks no more entries than this has caught up.
const CAUGHT_UP: u64 = 64;

pub(crate) struct Members {
    core: Arc<Core>,
    /// Since when a former voter is on its way out.
    leaving: BTreeMap<u64, Instant>,
}

type Change = (ChangeMembers<u64, Store>, bool);

impl Members {
    pub fn new(core: Arc<Core>) -> Members {
        Members {
            core,
            leaving: BTreeMap::new(),
        }
    }

    pub async fn run(mut self) {
        let mut versions = self.core.versions.clone();
        loop {
            if self.core.leads()
                && let Some((change, retain)) = self.next().await
            {
                let limit = self.core.timings.call();
                let changed = self.core.raft.change_membership(change, retain);
                match timeout(limit, changed).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(error)) => tracing::debug!(%error, "managers not changed yet"),
                    Err(_) => tracing::warn!("a change of the managers waits for a majority"),
                }
            }
            let pause = self.core.timings.heartbeat;
            tokio::select! {
                _ = versions.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// The next step, if one is needed and possible.
    async fn next(&mut self) -> Option<Change> {
        let wanted = self.core.managers();
        let metrics = self.core.metrics();
        let config = metrics.membership_config.clone();
        let membership = config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let nodes: BTreeMap<u64, Store> = membership
            .nodes()
            .map(|(id, store)| (*id, *store))
            .collect();
        // One that has left steps down in a moment: the next leader goes on.
        if wanted.is_empty() || !nodes.contains_key(&self.core.me.0) {
            return None;
        }
        if let [_, goal] = membership.get_joint_config().as_slice() {
            return Some((ChangeMembers::ReplaceAllVoters(goal.clone()), true));
        }
        if let Some(change) = self.forgetful(&voters, &nodes) {
            return Some(change);
        }
        let ready: BTreeSet<u64> = wanted
            .iter()
            .copied()
            .filter(|id| voters.contains(id) || self.caught_up(&metrics, *id))
            .collect();
        // The leader leaves last, and at once: as a member without a vote it would go on leading.
        let me = self.core.me.0;
        let last = ready.iter().all(|id| voters.contains(id)) && ready.len() + 1 == voters.len();
        if !ready.contains(&me) && last && self.majority_answers(&ready) {
            return Some((ChangeMembers::ReplaceAllVoters(ready), false));
        }
        let mut with_me = ready;
        with_me.insert(me);
        if with_me != voters && self.majority_answers(&with_me) {
            return Some((ChangeMembers::ReplaceAllVoters(with_me), true));
        }
        if let Some(change) = self.leaver(&metrics, &wanted, &voters, &nodes) {
            return Some(change);
        }
        let new = wanted.into_iter().filter(|id| !nodes.contains_key(id));
        self.newcomer(new).await
    }

    /// A manager that has lost its file is not the member that it was: out with that one.
    fn forgetful(&self, voters: &BTreeSet<u64>, nodes: &BTreeMap<u64, Store>) -> Option<Change> {
        let replaced = self.core.peers.replaced.lock().clone();
        let (id, _) = nodes
            .iter()
            .find(|(id, store)| replaced.get(id).is_some_and(|actual| actual != *store))?;
        tracing::warn!(
            host = format!("{id:016x}"),
            "a manager has lost its file: adding it anew"
        );
        if !voters.contains(id) {
            return Some((ChangeMembers::RemoveNodes(BTreeSet::from([*id])), true));
        }
        let mut rest = voters.clone();
        rest.remove(id);
        let possible = !rest.is_empty() && self.majority_answers(&rest);
        possible.then_some((ChangeMembers::ReplaceAllVoters(rest), false))
    }

    fn caught_up(&self, metrics: &Metrics, id: u64) -> bool {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|all| all.get(&id).copied().flatten());
        matched.is_some_and(|matched| {
            matched.index + CAUGHT_UP >= metrics.last_log_index.unwrap_or_default()
        }) && self.answers(id)
    }

    /// A majority of these must be there, or the change could not be finished and would block all
    /// others.
    fn majority_answers(&self, voters: &BTreeSet<u64>) -> bool {
        let there = voters.iter().filter(|id| self.answers(**id)).count();
        there > voters.len() / 2
    }

    fn answers(&self, id: u64) -> bool {
        let window = self.core.timings.quorum_window();
        let answered = self.core.peers.answered.lock();
        id == self.core.me.0
            || answered
                .get(&id)
                .is_some_and(|when| when.elapsed() < window)
    }

    /// A member that is no manager, once it knows that it has no vote any more, or can't be told.
    fn leaver(
        &mut self,
        metrics: &Metrics,
        wanted: &BTreeSet<u64>,
        voters: &BTreeSet<u64>,
        nodes: &BTreeMap<u64, Store>,
    ) -> Option<Change> {
        let changed = metrics.membership_config.log_id().map_or(0, |id| id.index);
        let limit = self.core.timings.call();
        self.leaving
            .retain(|id, _| nodes.contains_key(id) && !wanted.contains(id));
        let leavers = nodes.keys().copied();
        let mut leavers = leavers.filter(|id| !wanted.contains(id) && !voters.contains(id));
        let id = leavers.find(|id| {
            let since = *self.leaving.entry(*id).or_insert_with(Instant::now);
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id)?.as_ref());
            matched.is_some_and(|matched| matched.index >= changed) || since.elapsed() > limit
        })?;
        self.leaving.remove(&id);
        Some((ChangeMembers::RemoveNodes(BTreeSet::from([id])), true))
    }

    /// The first new manager that answers.
    async fn newcomer(&self, new: impl Iterator<Item = u64>) -> Option<Change> {
        for id in new {
            let hello = self.core.call.call(id, Store::default(), Request::Hello);
            if let Ok(Ok(Response::Hello(store))) =
                timeout(self.core.timings.election.1, hello).await
            {
                self.core.peers.replaced.lock().remove(&id);
                return Some((ChangeMembers::AddNodes(BTreeMap::from([(id, store)])), true));
            }
        }
        None
    }
}
