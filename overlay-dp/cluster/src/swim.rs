//! Who is alive: SWIM by foca, without sockets and clocks. Packets go in and come out by host;
//! how they travel is the gossip port's business.
//!
//! foca's identity is the host with a number that rises at each start and rejoin; its address is
//! the host alone, so that foca keeps one entry for each host. Hosts that are not in the roster
//! are cut out of every packet before foca sees it: gossip can't make members.

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use foca::{
    AccumulatingRuntime, Foca, Header, Member, Message, NoCustomBroadcast, OwnedNotification,
    PeriodicParams, PostcardCodec, State, Timer,
};
use overlay_core::model::HostId;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// Fits a QUIC datagram in packets of 1200 bytes, which every path carries.
const MAX_PACKET: usize = 1100;

/// A host in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    host: u64,
    life: u64,
}

impl Id {
    pub fn new(host: HostId, life: u64) -> Id {
        Id { host: host.0, life }
    }

    pub fn host(self) -> HostId {
        HostId(self.host)
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
    Send(HostId, Bytes),
    Up(HostId),
    Down(HostId),
}

/// A packet that foca does not get to see.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected;

pub struct Swim {
    foca: Foca<Id, PostcardCodec, StdRng, NoCustomBroadcast>,
    me: Id,
    runtime: AccumulatingRuntime<Id>,
    outputs: VecDeque<Output>,
    /// The number keeps timers of the same instant in order.
    timers: BTreeMap<(Instant, u64), Timer<Id>>,
    timer_number: u64,
}

impl Swim {
    pub fn new(me: Id, rng: StdRng) -> Swim {
        Swim {
            foca: Foca::new(me, config(), rng, PostcardCodec),
            me,
            runtime: AccumulatingRuntime::new(),
            outputs: VecDeque::new(),
            timers: BTreeMap::new(),
            timer_number: 0,
        }
    }

    /// Who this host is at the moment.
    pub fn me(&self) -> Id {
        self.me
    }

    /// A connection to `peer` came about, so it lives.
    pub fn connected(&mut self, peer: Id, now: Instant) {
        if peer.host == self.me.host {
            return;
        }
        let alive = std::iter::once(Member::alive(peer));
        let applied = self.foca.apply_many(alive, true, &mut self.runtime);
        // If it is thought to be down here, its answer makes it take up a new life.
        let announced = self.foca.announce(peer, &mut self.runtime);
        self.done(applied.and(announced), now);
    }

    /// `host` is no longer in the roster.
    pub fn remove(&mut self, host: HostId, now: Instant) {
        let id = self
            .foca
            .iter_membership_state()
            .map(|m| *m.id())
            .find(|id| id.host == host.0);
        let Some(id) = id else { return };
        let down = std::iter::once(Member::down(id));
        let applied = self.foca.apply_many(down, false, &mut self.runtime);
        self.done(applied, now);
    }

    /// Takes a packet of `from`, as its connection has it.
    pub fn receive(
        &mut self,
        from: HostId,
        packet: &[u8],
        known: impl Fn(HostId) -> bool,
        now: Instant,
    ) -> Result<(), Rejected> {
        let packet = sift(from, packet, known).ok_or(Rejected)?;
        let handled = self.foca.handle_data(&packet, &mut self.runtime);
        let verdict = match &handled {
            Ok(()) => Ok(()),
            Err(_) => Err(Rejected),
        };
        self.done(handled, now);
        verdict
    }

    /// When [`Swim::tick`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    pub fn tick(&mut self, now: Instant) {
        while let Some(entry) = self
            .timers
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            let timer = entry.remove();
            let handled = self.foca.handle_timer(timer, &mut self.runtime);
            self.done(handled, now);
        }
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is known of each other host that was ever heard of.
    pub fn states(&self) -> impl Iterator<Item = (HostId, State)> {
        self.foca
            .iter_membership_state()
            .map(|member| (member.id().host(), member.state()))
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
                }
                OwnedNotification::Rejoin(id) => self.rejoined(id),
                _ => {}
            }
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            self.outputs.push_back(Output::Send(to.host(), packet));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timer_number += 1;
            self.timers.insert((now + after, self.timer_number), timer);
        }
    }

    /// foca tells the new life only to those that it thinks alive. After a partition each side
    /// thinks the other dead, and both would wait for the next periodic announcement.
    fn rejoined(&mut self, me: Id) {
        self.me = me;
        let down = self
            .foca
            .iter_membership_state()
            .filter(|m| m.state() == State::Down);
        let down: Vec<Id> = down.map(|member| *member.id()).collect();
        for id in down {
            if let Err(error) = self.foca.announce(id, &mut self.runtime) {
                tracing::debug!(%error, "membership");
            }
        }
    }
}

/// The packet without updates on strangers; `None` when it is malformed, in somebody else's name
/// or about a stranger itself.
fn sift(from: HostId, packet: &[u8], known: impl Fn(HostId) -> bool) -> Option<Bytes> {
    let (header, updates) = postcard::take_from_bytes::<Header<Id>>(packet).ok()?;
    let third = match &header.message {
        Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(target),
        Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => Some(origin),
        _ => None,
    };
    if header.src.host() != from || third.is_some_and(|id| !known(id.host())) {
        return None;
    }
    let mut sifted = BytesMut::from(&packet[..packet.len() - updates.len()]);
    if let Some((count, mut rest)) = updates.split_first_chunk::<2>() {
        let mut kept = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (member, after) = postcard::take_from_bytes::<Member<Id>>(rest).ok()?;
            if known(member.id().host()) {
                kept.push(&rest[..rest.len() - after.len()]);
            }
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
        sifted.put_u16(u16::try_from(kept.len()).ok()?);
        kept.iter().for_each(|member| sifted.put_slice(member));
    } else if !updates.is_empty() {
        return None;
    }
    Some(sifted.freeze())
}

/// foca's WAN settings, but quicker: a dead host is noticed in about five seconds.
fn config() -> foca::Config {
    let every = |seconds: f64, members| {
        let frequency = Duration::from_secs_f64(seconds);
        NonZeroUsize::new(members).map(|num_members| PeriodicParams {
            frequency,
            num_members,
        })
    };
    foca::Config {
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(500),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_secs(3),
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: NonZeroUsize::new(MAX_PACKET).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: every(30.0, 1),
        periodic_announce_to_down_members: every(10.0, 2),
        periodic_gossip: every(0.5, 3),
        ..foca::Config::simple()
    }
}

#[cfg(test)]
mod tests;
