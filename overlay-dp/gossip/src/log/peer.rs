//! Another host's log of one network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use overlay_core::model::{Endpoint, Vni};
use overlay_core::multicast::{Group, MAX_GROUPS};

use super::{ByName, MAX_BYTES, MAX_ENDPOINTS, MAX_WAITING, cost, cost_of_groups, well_formed};
use crate::wire::{Change, Position};

/// What all the logs of one host cost and do wrong.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub records: usize,
    pub bytes: usize,
    /// Of these, those that the facts do not allow (yet).
    pub waiting: usize,
    /// What was not taken in, because it broke the rules.
    pub refused: u64,
}

/// A difference in what is visible of a log: before and after.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Diff {
    pub old: Option<Arc<Endpoint>>,
    pub new: Option<Arc<Endpoint>>,
}

impl Diff {
    fn between(old: Option<Arc<Endpoint>>, new: Option<Arc<Endpoint>>) -> Option<Diff> {
        (old != new).then_some(Diff { old, new })
    }
}

/// Something between is missing: ask the owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gap;

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The facts allow it.
    visible: bool,
    /// It is of an earlier incarnation, and the current one has neither published nor withdrawn it.
    before: bool,
}

#[derive(Debug)]
pub(crate) struct PeerLog {
    vni: Vni,
    /// Which of the logs that its host had here: one that is followed again is another one.
    number: u64,
    have: Position,
    records: BTreeMap<ByName, Mark>,
    waiting: usize,
    /// Something was left out for want of room: only a snapshot brings it.
    lacks: bool,
    /// Those that have members there, by its word.
    groups: BTreeSet<Group>,
    /// They are others than they were when [`PeerLog::take_news_of_groups`] was called last.
    news_of_groups: bool,
}

impl PeerLog {
    pub fn new(vni: Vni, number: u64) -> PeerLog {
        PeerLog {
            vni,
            number,
            have: Position::default(),
            records: BTreeMap::new(),
            waiting: 0,
            lacks: false,
            groups: BTreeSet::new(),
            news_of_groups: false,
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn renumber(&mut self, number: u64) {
        self.number = number;
    }

    /// How far it is known.
    pub fn have(&self) -> Position {
        self.have
    }

    pub fn visible(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let visible = self.records.iter().filter(|(_, mark)| mark.visible);
        visible.map(|(record, _)| &record.0)
    }

    /// The groups that have members there.
    pub fn groups(&self) -> &BTreeSet<Group> {
        &self.groups
    }

    /// The same, when they have become others.
    pub fn take_news_of_groups(&mut self) -> Option<&BTreeSet<Group>> {
        std::mem::take(&mut self.news_of_groups).then_some(&self.groups)
    }

    /// The visible one of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Endpoint>> {
        let (record, mark) = self.records.get_key_value(name)?;
        mark.visible.then_some(&record.0)
    }

    /// Takes in changes. Those that are known already are passed over, as the same may come on
    /// two connections.
    pub fn changes(
        &mut self,
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
        account: &mut Account,
        allowed: impl Fn(&Endpoint) -> bool,
    ) -> Result<Vec<Diff>, Gap> {
        if incarnation < self.have.incarnation {
            return Ok(Vec::new());
        }
        let next = self.have.seq.checked_add(1).ok_or(Gap)?;
        if incarnation > self.have.incarnation || first > next {
            return Err(Gap);
        }
        let known = usize::try_from(next - first).unwrap_or(usize::MAX);
        let mut diffs = Vec::new();
        for change in changes.into_iter().skip(known) {
            self.have.seq = self.have.seq.saturating_add(1);
            match change {
                Change::Up(endpoint) => diffs.extend(self.up(endpoint, account, &allowed)),
                Change::Down(name) => diffs.extend(self.down(&name, account)),
                Change::Settled => diffs.extend(self.settle(account)),
                Change::Groups(groups) => self.set_groups(&groups, account),
            }
        }
        Ok(diffs)
    }

    /// Replaces what was known, unless that is as new.
    pub fn snapshot(
        &mut self,
        at: Position,
        settled: bool,
        (endpoints, groups): (Vec<Arc<Endpoint>>, Option<Arc<[Group]>>),
        account: &mut Account,
        allowed: impl Fn(&Endpoint) -> bool,
    ) -> Vec<Diff> {
        if at <= self.have {
            return Vec::new();
        }
        if let Some(groups) = groups {
            self.set_groups(&groups, account);
        }
        let restarted = at.incarnation > self.have.incarnation;
        self.have = at;
        self.lacks = false;
        let mut diffs = Vec::new();
        if restarted {
            self.records
                .values_mut()
                .for_each(|mark| mark.before = true);
        } else {
            // Those that are not in the snapshot were withdrawn in this incarnation.
            let listed: BTreeSet<&str> = endpoints.iter().map(|e| e.name.as_str()).collect();
            let known = self.records.iter();
            let gone = known
                .filter(|(record, mark)| !mark.before && !listed.contains(record.0.name.as_str()));
            let gone: Vec<String> = gone.map(|(record, _)| record.0.name.clone()).collect();
            for name in gone {
                diffs.extend(self.down(&name, account));
            }
        }
        for endpoint in endpoints {
            diffs.extend(self.up(endpoint, account, &allowed));
        }
        if settled {
            diffs.extend(self.settle(account));
        }
        diffs
    }

    /// Everything goes. A snapshot brings it back.
    pub fn forget(&mut self, account: &mut Account) -> Vec<Diff> {
        self.have = Position::default();
        self.lacks = false;
        self.set_groups(&[], account);
        let names: Vec<String> = self.records.keys().map(|r| r.0.name.clone()).collect();
        let gone = names.iter().filter_map(|name| self.down(name, account));
        gone.collect()
    }

    /// The facts about some endpoints have changed; `touched` tells which they are. Those that are
    /// allowed now come when `show`, those that are no longer go otherwise.
    pub fn recheck(
        &mut self,
        show: bool,
        touched: impl Fn(&Endpoint) -> bool,
        account: &mut Account,
        allowed: impl Fn(&Endpoint) -> bool,
    ) -> Vec<Diff> {
        if self.lacks {
            // What was left out may be allowed now: asks for all of it again.
            self.have.seq = 0;
            self.lacks = false;
        }
        if show && self.waiting == 0 {
            return Vec::new();
        }
        let mut diffs = Vec::new();
        for (record, mark) in &mut self.records {
            if mark.visible == show || !touched(&record.0) {
                continue;
            }
            if allowed(&record.0) == show {
                mark.visible = show;
                let endpoint = Some(record.0.clone());
                if show {
                    self.waiting -= 1;
                    account.waiting -= 1;
                    diffs.extend(Diff::between(None, endpoint));
                } else {
                    self.waiting += 1;
                    account.waiting += 1;
                    diffs.extend(Diff::between(endpoint, None));
                }
            }
        }
        diffs
    }

    /// Too many of them are as good as none.
    fn set_groups(&mut self, groups: &[Group], account: &mut Account) {
        let before = cost_of_groups(self.groups.len());
        let bytes = account.bytes + cost_of_groups(groups.len());
        let refused = groups.len() > MAX_GROUPS || bytes > MAX_BYTES + before;
        account.refused += u64::from(refused);
        let groups: BTreeSet<Group> = match refused {
            true => BTreeSet::new(),
            false => groups.iter().copied().collect(),
        };
        if self.groups != groups {
            self.news_of_groups = true;
            account.bytes += cost_of_groups(groups.len());
            account.bytes -= before;
            self.groups = groups;
        }
    }

    fn settle(&mut self, account: &mut Account) -> Vec<Diff> {
        let before = self.records.iter().filter(|(_, mark)| mark.before);
        let names: Vec<String> = before.map(|(record, _)| record.0.name.clone()).collect();
        let gone = names.iter().filter_map(|name| self.down(name, account));
        gone.collect()
    }

    fn up(
        &mut self,
        endpoint: Arc<Endpoint>,
        account: &mut Account,
        allowed: impl Fn(&Endpoint) -> bool,
    ) -> Option<Diff> {
        let old = self.remove(&endpoint.name, account);
        let visible = endpoint.vni == self.vni && allowed(&endpoint);
        if endpoint.vni != self.vni || !well_formed(&endpoint) {
            account.refused += 1;
            return Diff::between(old, None);
        }
        let bytes = account.bytes + cost(&endpoint);
        let full = account.records >= MAX_ENDPOINTS || bytes > MAX_BYTES;
        if full || (!visible && account.waiting >= MAX_WAITING) {
            account.refused += 1;
            self.lacks = true;
            return Diff::between(old, None);
        }
        account.records += 1;
        account.bytes = bytes;
        account.waiting += usize::from(!visible);
        self.waiting += usize::from(!visible);
        let mark = Mark {
            visible,
            before: false,
        };
        self.records.insert(ByName(endpoint.clone()), mark);
        Diff::between(old, visible.then_some(endpoint))
    }

    fn down(&mut self, name: &str, account: &mut Account) -> Option<Diff> {
        Diff::between(self.remove(name, account), None)
    }

    /// Returns what was visible of it.
    fn remove(&mut self, name: &str, account: &mut Account) -> Option<Arc<Endpoint>> {
        let (record, mark) = self.records.remove_entry(name)?;
        account.records -= 1;
        account.bytes -= cost(&record.0);
        account.waiting -= usize::from(!mark.visible);
        self.waiting -= usize::from(!mark.visible);
        mark.visible.then_some(record.0)
    }
}
