//! What is agreed with one other host.

use std::sync::Arc;
use std::time::Duration;

use overlay_common::wire::Ip16;
use overlay_core::model::HostId;

use super::{Row, Talk, Timing, Use};
use crate::sa::{Inbound, Outbound, Sas};
use crate::secret::Secret;

/// From so many packets on another key is due: a sequence number has 32 bits, and while the hosts
/// can't talk there are three times as many left.
const ENOUGH_PACKETS: u32 = 1 << 30;
/// So many given secrets are kept of which nobody knows whether they arrived.
const UNHEARD: usize = 3;
/// After a failure, and twice as long after the next.
const RETRY: Duration = Duration::from_millis(100);
/// No longer than this.
const RETRY_MOST: Duration = Duration::from_secs(5);
/// An answer takes so long to arrive, at most.
const SOON: Duration = Duration::from_millis(500);

/// What this host has given.
struct Given {
    sa: Arc<Inbound>,
    since: Duration,
    /// The other host has said that it sends with it.
    heard: bool,
    /// Not taken any more from then on.
    until: Option<Duration>,
}

/// Another host.
pub(super) struct Peer {
    vtep: Ip16,
    /// The newest last.
    inbound: Vec<Given>,
    outbound: Option<(Arc<Outbound>, Duration)>,
    /// Whether it is being asked, and then whether to renew.
    asked: Option<bool>,
    due: Duration,
    failures: u32,
    /// The next talk brings no secret: one is on its way already.
    look_first: bool,
    renew: bool,
}

/// What is received with a secret given to that host.
pub(super) fn inbound(secret: &Secret, peer: &Peer) -> Option<Inbound> {
    Inbound::new(secret, peer.vtep)
}

impl Peer {
    pub fn new(vtep: Ip16) -> Peer {
        Peer {
            vtep,
            inbound: Vec::new(),
            outbound: None,
            asked: None,
            due: Duration::ZERO,
            failures: 0,
            look_first: false,
            renew: false,
        }
    }

    /// It is at this VTEP: asked at once. True when that changes what is in use.
    pub fn is_at(&mut self, vtep: Ip16) -> bool {
        self.due = Duration::ZERO;
        self.failures = 0;
        if self.vtep == vtep {
            return false;
        }
        self.vtep = vtep;
        // They are for another address.
        self.forget_inbound();
        true
    }

    pub fn forget_inbound(&mut self) {
        self.inbound.clear();
        self.due = Duration::ZERO;
        self.failures = 0;
        self.look_first = false;
    }

    pub fn rotate(&mut self) {
        self.renew = true;
        self.due = Duration::ZERO;
    }

    pub fn is_due(&self, now: Duration) -> bool {
        self.asked.is_none() && self.due <= now
    }

    /// Removes what is not taken any more; true when there was something.
    pub fn expire(&mut self, now: Duration) -> bool {
        let before = self.inbound.len();
        self.inbound
            .retain(|given| given.until.is_none_or(|until| now < until));
        self.inbound.len() != before
    }

    pub fn wake_at(&self, active: bool) -> Option<Duration> {
        let expiry = self.inbound.iter().filter_map(|given| given.until).min();
        let due = (active && self.asked.is_none()).then_some(self.due);
        [expiry, due].into_iter().flatten().min()
    }

    /// What to ask it now.
    pub fn talk(
        &mut self,
        now: Duration,
        timing: &Timing,
        give: &mut dyn FnMut(&mut Peer) -> Option<Secret>,
    ) -> Talk {
        let renew = std::mem::take(&mut self.renew);
        self.asked = Some(renew);
        let wants_new = match self.inbound.last() {
            None => true,
            Some(newest) => {
                !newest.heard
                    || now >= newest.since + timing.lifetime
                    || newest.sa.highest() >= ENOUGH_PACKETS
            }
        };
        let look_first = std::mem::take(&mut self.look_first) && !renew;
        let look = look_first || self.unheard() >= UNHEARD;
        let new = (renew || wants_new) && !look;
        Talk {
            give: if new { give(self) } else { None },
            holds: self.holds(),
            renew,
        }
    }

    pub fn answered(&mut self, holds: Option<u32>, now: Duration, timing: &Timing) {
        self.asked = None;
        let newest = self.heard(holds, now, timing);
        // What it has not heard of by now did not arrive, unless an answer is still on its way.
        for given in self.inbound.iter_mut().filter(|given| !given.heard) {
            given.until.get_or_insert(now + timing.grace);
        }
        if newest {
            self.failures = 0;
            self.due = now + timing.check;
        } else {
            self.retry(now);
        }
    }

    pub fn failed(&mut self, now: Duration) {
        // What was asked for is asked for again.
        self.renew |= self.asked.take() == Some(true);
        self.retry(now);
    }

    fn retry(&mut self, now: Duration) {
        let wait = RETRY.saturating_mul(1 << self.failures.min(6));
        self.failures += 1;
        self.due = now + wait.min(RETRY_MOST);
    }

    /// It sends with what has this SPI. True when that is the newest.
    pub fn heard(&mut self, holds: Option<u32>, now: Duration, timing: &Timing) -> bool {
        // What it sends with is never taken from it.
        let mut given = self.inbound.iter_mut();
        if let Some(its) = given.find(|given| holds == Some(given.sa.spi())) {
            its.heard = true;
            its.until = None;
        }
        let Some((newest, older)) = self.inbound.split_last_mut() else {
            return false;
        };
        if holds != Some(newest.sa.spi()) {
            return false;
        }
        for given in older {
            given.until.get_or_insert(now + timing.grace);
        }
        true
    }

    /// Whether what has this SPI is taken from it.
    pub fn has_given(&self, spi: Option<u32>) -> bool {
        let mut given = self.inbound.iter();
        given.any(|given| Some(given.sa.spi()) == spi)
    }

    /// It is told in an answer: soon it will be seen whether that arrived.
    pub fn look_soon(&mut self, now: Duration) {
        self.look_first = true;
        self.due = self.due.min(now + SOON);
    }

    /// How many given secrets there are of which nobody knows whether they arrived. With too many,
    /// the other host is only asked what it has: it may use any of them.
    fn unheard(&self) -> usize {
        let unknown = |given: &&Given| !given.heard && given.until.is_none();
        self.inbound.iter().filter(unknown).count()
    }

    /// Whether another secret may be given in an answer.
    pub fn may_be_given(&self) -> bool {
        self.unheard() < UNHEARD
    }

    pub fn add_inbound(&mut self, sa: Arc<Inbound>, now: Duration) {
        self.inbound.push(Given {
            sa,
            since: now,
            heard: false,
            until: None,
        });
    }

    /// It wants to be sent to with this from now on. True when that is another one than before: one
    /// that comes twice goes on counting where it was.
    pub fn take(&mut self, secret: Option<&Secret>, now: Duration) -> bool {
        let Some(secret) = secret.filter(|secret| Some(secret.spi()) != self.holds()) else {
            return false;
        };
        match Outbound::new(secret) {
            Some(sa) => self.outbound = Some((Arc::new(sa), now)),
            None => return false,
        }
        true
    }

    /// By which SPIs it knows what was given to it.
    pub fn spis(&self) -> impl Iterator<Item = u32> {
        self.inbound.iter().map(|given| given.sa.spi())
    }

    pub fn holds(&self) -> Option<u32> {
        self.outbound.as_ref().map(|(sa, _)| sa.spi())
    }

    pub fn collect(&self, sas: &mut Sas) {
        for given in &self.inbound {
            sas.inbound.insert(given.sa.spi(), Arc::clone(&given.sa));
        }
        if let Some((sa, _)) = &self.outbound {
            sas.outbound.insert(self.vtep, Arc::clone(sa));
        }
    }

    pub fn row(&self, host: HostId, now: Duration) -> Row {
        let last = self.inbound.len().wrapping_sub(1);
        let given = self.inbound.iter().enumerate();
        Row {
            host,
            inbound: given
                .map(|(index, given)| Use {
                    spi: given.sa.spi(),
                    age: now.saturating_sub(given.since),
                    packets: given.sa.packets(),
                    current: index == last && given.heard,
                })
                .collect(),
            outbound: self.outbound.as_ref().map(|(sa, since)| Use {
                spi: sa.spi(),
                age: now.saturating_sub(*since),
                packets: sa.packets(),
                current: true,
            }),
        }
    }
}
