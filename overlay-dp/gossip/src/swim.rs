//! Who is alive: SWIM by foca, without sockets and clocks. Packets go in and come out by host;
//! how they travel is the gossip port's business.
//!
//! foca's identity is the host with a number that rises at each start and rejoin; its address is
//! the host alone, so that foca keeps one entry for each host. Hosts that are not in the roster
//! are cut out of every packet before foca sees it: gossip can't make members.
//!
//! On top of foca, to be quick without being rash: who suspects a host tells it so itself, again
//! and again, and is answered by it directly, so that a refutation never depends on how fast
//! gossip spreads. A host that was asleep itself takes nobody else's silence
//! for a sign. Hosts that are down are called again all the time, a few at once, so that a
//! partition heals by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use foca::{
    AccumulatingRuntime, Foca, Header, Member, Message, NoCustomBroadcast, OwnedNotification,
    PostcardCodec, State,
};
use overlay_core::model::HostId;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

mod config;
mod sift;

use config::{ACCUSE_EVERY, LATE, REVIVE_COUNT, REVIVE_EVERY, config};
use sift::sift;

/// A host in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id {
    host: u64,
    life: u64,
}

impl Id {
    /// `life` must be higher than at any earlier start of the host.
    pub fn new(host: HostId, life: u64) -> Id {
        Id { host: host.0, life }
    }

    /// Which host it is.
    pub fn host(self) -> HostId {
        HostId(self.host)
    }

    /// Which of its lives: what a later start must exceed.
    pub fn life(self) -> u64 {
        self.life
    }
}

impl foca::Identity for Id {
    type Addr = u64;

    fn renew(&self) -> Option<Id> {
        Some(Id {
            life: self.life.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> u64 {
        self.host
    }

    fn win_addr_conflict(&self, adversary: &Id) -> bool {
        self.life > adversary.life
    }
}

/// What is to be done after a call.
#[derive(Debug)]
pub enum Output {
    /// To be sent to a host as a datagram, which may get lost.
    Send(HostId, Bytes),
    /// A host is alive.
    Up(HostId),
    /// A host does not answer.
    Down(HostId),
}

/// How another host is.
pub use foca::State as Liveness;

/// A packet that foca does not get to see.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected;

enum Timer {
    Foca(foca::Timer<Id>),
    /// This host suspects another one: tell it, while that holds.
    Accuse(Member<Id>),
    /// Call hosts that are down.
    Revive,
}

/// This host's view of who is alive.
pub struct Swim {
    foca: Foca<Id, PostcardCodec, StdRng, NoCustomBroadcast>,
    me: Id,
    /// What `config` was last made for.
    size: usize,
    runtime: AccumulatingRuntime<Id>,
    outputs: VecDeque<Output>,
    /// The number keeps timers of the same instant in order.
    timers: BTreeMap<(Instant, u64), Timer>,
    timer_number: u64,
    /// Whom this host suspects, by itself.
    accused: BTreeSet<Id>,
    accusations: u64,
    /// Removed from the roster: not to be called.
    removed: BTreeSet<u64>,
    reviving: bool,
    /// Which of those that are down was called last.
    revived: u64,
    /// The newest packet of this host: its header has the current incarnation.
    sent: Bytes,
}

impl Swim {
    /// Knows nobody yet.
    pub fn new(me: Id, rng: StdRng) -> Swim {
        Swim {
            foca: Foca::new(me, config(0), rng, PostcardCodec),
            me,
            size: 0,
            runtime: AccumulatingRuntime::new(),
            outputs: VecDeque::new(),
            timers: BTreeMap::new(),
            timer_number: 0,
            accused: BTreeSet::new(),
            accusations: 0,
            removed: BTreeSet::new(),
            reviving: false,
            revived: 0,
            sent: Bytes::new(),
        }
    }

    /// Who this host is at the moment.
    pub fn me(&self) -> Id {
        self.me
    }

    /// `peer` greeted this host on an authenticated connection, so it lives.
    pub fn connected(&mut self, peer: Id, now: Instant) {
        if peer.host == self.me.host {
            return;
        }
        self.removed.remove(&peer.host);
        let known = self.find(peer.host());
        if known.is_some_and(|member| *member.id() == peer && member.state() == State::Alive) {
            return;
        }
        let alive = std::iter::once(Member::alive(peer));
        // Not to be spread: `peer` speaks for itself to everybody that it meets. A thousand hosts
        // that start at once have better things to tell.
        let applied = self.foca.apply_many(alive, false, &mut self.runtime);
        // If it is thought to be down here, its answer makes it take up a new life.
        let announced = self.foca.announce(peer, &mut self.runtime);
        self.done(applied.and(announced), now);
    }

    /// `host` is no longer in the roster.
    pub fn remove(&mut self, host: HostId, now: Instant) {
        let Some(id) = self.find(host).map(|member| *member.id()) else {
            return;
        };
        self.removed.insert(host.0);
        let down = std::iter::once(Member::down(id));
        let applied = self.foca.apply_many(down, false, &mut self.runtime);
        self.done(applied, now);
    }

    /// Takes a packet of `from`, as its connection has it. `known` tells members of the cluster,
    /// this host among them.
    ///
    /// # Errors
    /// When the packet is malformed or in somebody else's name.
    pub fn receive(
        &mut self,
        from: HostId,
        packet: &[u8],
        known: impl Fn(HostId) -> bool,
        now: Instant,
    ) -> Result<(), Rejected> {
        let sifted = sift(from, packet, known, self.me).ok_or(Rejected)?;
        let handled = self.foca.handle_data(&sifted.packet, &mut self.runtime);
        let verdict = match &handled {
            Ok(()) => Ok(()),
            Err(_) => Err(Rejected),
        };
        self.done(handled, now);
        if sifted.accuses_me && verdict.is_ok() {
            // Whatever this host says carries its new incarnation.
            self.gossip_to(sifted.src, None);
        }
        verdict
    }

    /// When [`Swim::tick`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if let Some(late) = self
            .deadline()
            .map(|due| now.saturating_duration_since(due))
            .filter(|late| *late > LATE)
        {
            // This host was stopped or starved. Answers may lie in its sockets: everything waits
            // for as long again as it was away.
            let timers = std::mem::take(&mut self.timers).into_iter();
            self.timers = timers
                .map(|((at, number), timer)| ((at + late, number), timer))
                .collect();
        }
        while let Some(entry) = self
            .timers
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            match entry.remove() {
                Timer::Foca(timer) => {
                    let handled = self.foca.handle_timer(timer, &mut self.runtime);
                    self.done(handled, now);
                }
                Timer::Accuse(suspect) => self.accuse(suspect, now),
                Timer::Revive => self.revive(now),
            }
        }
    }

    /// What is to be done; to be called until there is nothing left.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is known of each other host that was ever heard of.
    pub fn states(&self) -> impl Iterator<Item = (HostId, Liveness)> {
        self.foca
            .iter_membership_state()
            .map(|member| (member.id().host(), member.state()))
    }

    /// What is known of one host.
    pub fn state(&self, host: HostId) -> Option<Liveness> {
        self.find(host).map(Member::state)
    }

    /// How often this host suspected another one by itself.
    pub fn accusations(&self) -> u64 {
        self.accusations
    }

    fn find(&self, host: HostId) -> Option<&Member<Id>> {
        self.foca
            .iter_membership_state()
            .find(|member| member.id().host == host.0)
    }

    fn schedule(&mut self, at: Instant, timer: Timer) {
        self.timer_number += 1;
        self.timers.insert((at, self.timer_number), timer);
    }

    fn done(&mut self, result: Result<(), foca::Error>, now: Instant) {
        if let Err(error) = result {
            tracing::debug!(%error, "membership");
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(id) => self.outputs.push_back(Output::Up(id.host())),
                OwnedNotification::MemberDown(id) => {
                    self.outputs.push_back(Output::Down(id.host()));
                    if !self.reviving {
                        self.reviving = true;
                        self.schedule(now + REVIVE_EVERY, Timer::Revive);
                    }
                }
                OwnedNotification::Rejoin(id) => {
                    self.me = id;
                    // foca tells the new life only to those that it thinks alive.
                    self.announce_to_down();
                }
                _ => {}
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if let foca::Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } = &timer
                && self.accused.insert(*member_id)
            {
                self.accusations += 1;
                let suspect = Member::new(*member_id, *incarnation, State::Suspect);
                self.schedule(now, Timer::Accuse(suspect));
            }
            self.schedule(now + after, Timer::Foca(timer));
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            self.sent = packet.clone();
            self.outputs.push_back(Output::Send(to.host(), packet));
        }
        let size = self.foca.iter_membership_state().len();
        if size != self.size {
            self.size = size;
            // Only what foca allows to change at run time depends on the size.
            if let Err(error) = self.foca.set_config(config(size)) {
                tracing::debug!(%error, "membership");
            }
        }
    }

    /// Tells a host that it is suspected, for as long as it is.
    fn accuse(&mut self, suspect: Member<Id>, now: Instant) {
        let id = *suspect.id();
        if self.find(id.host()) == Some(&suspect) {
            self.gossip_to(id, Some(&suspect));
            self.schedule(now + ACCUSE_EVERY, Timer::Accuse(suspect));
        } else {
            self.accused.remove(&id);
        }
    }

    /// Sends what foca would not: gossip to a host of our choice.
    fn gossip_to(&mut self, to: Id, update: Option<&Member<Id>>) {
        let last = postcard::from_bytes::<Header<Id>>(&self.sent).ok();
        let last = last.filter(|header| header.src == self.me);
        let header = Header {
            src: self.me,
            src_incarnation: last.map_or(0, |header| header.src_incarnation),
            dst: to,
            message: Message::Gossip,
        };
        let encoded = postcard::to_allocvec(&header).and_then(|header| {
            let update = update.map(postcard::to_allocvec).transpose()?;
            Ok((header, update))
        });
        if let Ok((header, update)) = encoded {
            let mut packet = BytesMut::from(&header[..]);
            packet.put_u16(update.is_some().into());
            packet.put_slice(&update.unwrap_or_default());
            self.outputs
                .push_back(Output::Send(to.host(), packet.freeze()));
        }
    }

    fn revive(&mut self, now: Instant) {
        self.reviving = self.announce_to_down();
        if self.reviving {
            self.schedule(now + REVIVE_EVERY, Timer::Revive);
        }
        self.done(Ok(()), now);
    }

    /// Calls some of those that are down, each in its turn; false when there are none. A host that
    /// hears that it was thought to be down takes up a new life.
    fn announce_to_down(&mut self) -> bool {
        let down = self.foca.iter_membership_state();
        let down = down.filter(|member| member.state() == State::Down);
        let mut down: Vec<Id> = down
            .map(|member| *member.id())
            .filter(|id| !self.removed.contains(&id.host))
            .collect();
        down.sort();
        let next = down.partition_point(|id| id.host <= self.revived);
        let wrapped = next == down.len();
        down.rotate_left(if wrapped { 0 } else { next });
        for id in down.iter().take(REVIVE_COUNT) {
            self.revived = id.host;
            if let Err(error) = self.foca.announce(*id, &mut self.runtime) {
                tracing::debug!(%error, "membership");
            }
        }
        !down.is_empty()
    }
}

#[cfg(test)]
mod tests;
