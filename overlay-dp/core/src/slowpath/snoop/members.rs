//! Which port has joined which group, and until when that is believed.

use core::time::Duration;

use crate::multicast::{Group, MAX_GROUPS};

/// Robustness variable (RFC 3376 section 8.1): so many queries are sent before silence is an answer.
pub const ROBUSTNESS: u32 = 2;
/// Between general queries to one port (RFC 3376 section 8.2).
pub const QUERY_INTERVAL: Duration = Duration::from_secs(125);
/// How long a port takes to answer one, at most: its own pace, for there is only one host behind it.
pub const RESPONSE: Duration = Duration::from_secs(1);
/// How long a membership is believed without a word (RFC 3376 section 8.4).
pub const LIFE: Duration = Duration::from_secs(125 * ROBUSTNESS as u64 + 10);
/// How long who may have left has to object, to each of the queries (RFC 3376 section 8.8).
const LAST_MEMBER: Duration = Duration::from_secs(1);

/// More groups than this are refused, of one port.
pub const OF_ONE_PORT: usize = 128;
/// And of all ports together.
const IN_ALL: usize = 8192;

/// A port that has joined a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The network.
    pub vni: u32,
    /// What it has joined.
    pub group: Group,
    /// The port.
    pub ifindex: u32,
    /// Nobody believes it from then on.
    pub until: Duration,
    /// It may have left: so many queries more, the next at this time.
    doubt: Option<(u32, Duration)>,
    /// When it may be asked next: who joins and leaves all the time is asked no more often.
    rests_until: Duration,
}

type Key = (u32, Group, u32);

impl Member {
    fn key(&self) -> Key {
        (self.vni, self.group, self.ifindex)
    }
}

/// There is no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// All of them, by network and group. It never grows beyond what it has from the start.
#[derive(Debug)]
pub struct Members {
    sorted: Vec<Member>,
    revision: u64,
}

impl Members {
    pub fn new() -> Members {
        Members {
            sorted: Vec::with_capacity(IN_ALL),
            revision: 0,
        }
    }

    /// Another number whenever somebody joins or leaves.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn all(&self) -> &[Member] {
        &self.sorted
    }

    pub fn of_group(&self, vni: u32, group: Group) -> &[Member] {
        let key = |member: &Member| (member.vni, member.group);
        let first = self.sorted.partition_point(|m| key(m) < (vni, group));
        let rest = &self.sorted[first..];
        &rest[..rest.partition_point(|m| key(m) == (vni, group))]
    }

    /// A port says that it is a member.
    pub fn join(
        &mut self,
        vni: u32,
        group: Group,
        ifindex: u32,
        now: Duration,
    ) -> Result<(), Full> {
        let until = now.saturating_add(LIFE);
        match self.find((vni, group, ifindex)) {
            Ok(index) => {
                let member = &mut self.sorted[index];
                (member.until, member.doubt) = (until, None);
            }
            Err(index) => {
                let of_port = self.sorted.iter().filter(|m| m.ifindex == ifindex).count();
                let first_of_group = self.of_group(vni, group).is_empty();
                if of_port >= OF_ONE_PORT
                    || self.sorted.len() >= IN_ALL
                    || (first_of_group && self.groups(vni) >= MAX_GROUPS)
                {
                    return Err(Full);
                }
                let member = Member {
                    vni,
                    group,
                    ifindex,
                    until,
                    doubt: None,
                    rests_until: Duration::ZERO,
                };
                self.sorted.insert(index, member);
                self.revision += 1;
            }
        }
        Ok(())
    }

    /// A port says that it may be a member no more: it is asked, and believed to be one until it
    /// has not answered. False when it is none, or is being asked.
    pub fn leave(&mut self, vni: u32, group: Group, ifindex: u32, now: Duration) -> bool {
        let Ok(index) = self.find((vni, group, ifindex)) else {
            return false;
        };
        let member = &mut self.sorted[index];
        if member.doubt.is_some() {
            return false;
        }
        let at = member.rests_until.max(now);
        member.doubt = Some((ROBUSTNESS, at));
        let last = at.saturating_add(LAST_MEMBER * ROBUSTNESS);
        member.until = member.until.min(last);
        true
    }

    /// The next one that is to be asked now whether it is still a member.
    pub fn next_to_ask(&mut self, now: Duration) -> Option<Member> {
        let due = |m: &&mut Member| m.doubt.is_some_and(|(left, at)| left > 0 && at <= now);
        let member = self.sorted.iter_mut().find(due)?;
        let (left, at) = member.doubt?;
        member.rests_until = now.saturating_add(LAST_MEMBER);
        member.doubt = Some((left - 1, at.saturating_add(LAST_MEMBER)));
        Some(*member)
    }

    /// Forgets those whose time is over, and those that `gone` says are no ports any more.
    pub fn expire(&mut self, now: Duration, gone: impl Fn(u32, u32) -> bool) {
        let before = self.sorted.len();
        self.sorted
            .retain(|member| member.until > now && !gone(member.ifindex, member.vni));
        self.revision += u64::from(self.sorted.len() != before);
    }

    /// When there is something to ask or to forget.
    pub fn due(&self) -> Option<Duration> {
        let due = |member: &Member| match member.doubt {
            Some((1.., at)) => at.min(member.until),
            _ => member.until,
        };
        self.sorted.iter().map(due).min()
    }

    fn find(&self, key: Key) -> Result<usize, usize> {
        self.sorted.binary_search_by_key(&key, Member::key)
    }

    /// How many groups of a network have members.
    fn groups(&self, vni: u32) -> usize {
        let first = self.sorted.partition_point(|member| member.vni < vni);
        let of_network = self.sorted[first..].iter();
        let of_network = of_network.take_while(|member| member.vni == vni);
        let mut last = None;
        of_network
            .filter(|member| last.replace(member.group) != Some(member.group))
            .count()
    }
}

impl Default for Members {
    fn default() -> Self {
        Members::new()
    }
}

#[cfg(test)]
mod tests;
