//! What lies between the hosts.

use std::collections::VecDeque;
use std::ops::Add;
use std::time::Duration;

use bytes::Bytes;
use overlay_core::facts::FactsNews;
use overlay_gossip::{Follower, Leader};
use rand::RngExt;

use super::{DIAL, Event, IDLE, Nanos, State, World, nanos};

/// How packets travel.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Up to so much more, for each packet anew: they overtake each other.
    pub jitter: Duration,
    /// Share of packets that get lost.
    pub loss: f64,
}

impl Link {
    /// A quarter of a millisecond one way, and no loss.
    pub fn lan() -> Link {
        Link {
            delay: Duration::from_micros(250),
            jitter: Duration::from_micros(150),
            loss: 0.0,
        }
    }

    pub fn lossy(loss: f64) -> Link {
        Link {
            delay: Duration::from_millis(1),
            jitter: Duration::from_millis(3),
            loss,
        }
    }
}

/// What a host has sent, with the headers of QUIC, UDP and IP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub datagrams: u64,
    pub datagram_bytes: u64,
    pub frames: u64,
    pub stream_bytes: u64,
}

impl Traffic {
    pub fn bytes(self) -> u64 {
        self.datagram_bytes + self.stream_bytes
    }
}

impl Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic {
            datagrams: self.datagrams + other.datagrams,
            datagram_bytes: self.datagram_bytes + other.datagram_bytes,
            frames: self.frames + other.frames,
            stream_bytes: self.stream_bytes + other.stream_bytes,
        }
    }
}

/// IPv4, UDP, QUIC's short header, its frame header and its tag.
const OVERHEAD: u64 = 20 + 8 + 13 + 3 + 16;
/// What a packet of a stream carries.
const SEGMENT: u64 = 1150;

/// A connection. Side 0 is the lower host.
pub(super) struct Pair {
    number: u64,
    ends: [End; 2],
    /// `2 * side` carries what the follower at `side` asks, the next what it is told.
    channels: [Channel; 4],
    /// Since when nothing gets through.
    silent: Option<Nanos>,
}

#[derive(Default)]
struct End {
    follower: Option<Follower>,
    leader: Option<Leader>,
    digest_at: Option<Nanos>,
}

#[derive(Default)]
struct Channel {
    frames: VecDeque<Vec<u8>>,
    /// When the newest arrives.
    last: Nanos,
}

fn key(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    /// One way for one packet; `None` when it gets lost.
    fn trip(&mut self) -> Option<Nanos> {
        let Link {
            delay,
            jitter,
            loss,
        } = self.spec.link;
        let lost = loss > 0.0 && self.rng.random_bool(loss);
        let jitter = self.rng.random_range(0..=nanos(jitter));
        (!lost).then_some(nanos(delay) + jitter)
    }

    pub(super) fn send_datagram(&mut self, from: usize, to: usize, packet: Bytes) {
        let sent = &mut self.nodes[from].sent;
        sent.datagrams += 1;
        sent.datagram_bytes += packet.len() as u64 + OVERHEAD;
        let linked = !self.spec.mesh || self.nodes[from].linked.contains(&to);
        if linked && let Some(trip) = self.trip() {
            self.at(self.now + trip, Event::Datagram { from, to, packet });
        }
    }

    /// Connects two hosts, each of which follows the other if it wants to.
    fn link(&mut self, a: usize, b: usize) {
        let (low, high) = key(a, b);
        self.number += 1;
        let pair = Pair {
            number: self.number,
            ends: [End::default(), End::default()],
            channels: Default::default(),
            silent: None,
        };
        self.pairs.insert((low, high), pair);
        self.nodes[low].linked.insert(high);
        self.nodes[high].linked.insert(low);
        self.poll_pair((low, high), 0);
        self.poll_pair((low, high), 1);
    }

    /// Both ends are done with the connection.
    pub(super) fn close(&mut self, a: usize, b: usize) {
        if self.pairs.remove(&key(a, b)).is_some() {
            self.nodes[a].linked.remove(&b);
            self.nodes[b].linked.remove(&a);
            self.nodes[a].lonely = true;
            self.nodes[b].lonely = true;
        }
    }

    /// Nothing gets through on a connection from now on.
    pub(super) fn silence(&mut self, a: usize, b: usize) {
        let now = self.now;
        let pair = key(a, b);
        if let Some(open) = self.pairs.get_mut(&pair) {
            open.silent = Some(now);
            let number = open.number;
            self.at(now + nanos(IDLE), Event::Idle { pair, number });
        }
    }

    fn is_silent(&self, (low, high): (usize, usize)) -> bool {
        self.is_cut(low, high) || !self.runs(low) || !self.runs(high)
    }

    pub(super) fn idle(&mut self, pair: (usize, usize), number: u64) {
        let now = self.now;
        let silent = self.is_silent(pair);
        let open = self.pairs.get(&pair);
        let since = open.filter(|open| open.number == number);
        if silent && since.is_some_and(|open| open.silent.is_some_and(|at| now - at >= nanos(IDLE)))
        {
            self.close(pair.0, pair.1);
        }
    }

    pub(super) fn dial(&mut self, n: usize, life: u64) {
        if self.nodes[n].life != life || self.nodes[n].state != State::Runs {
            return;
        }
        let now = self.nodes[n].local(self.now);
        self.nodes[n].book.expire(now);
        if std::mem::take(&mut self.nodes[n].lonely) {
            self.call_all(n);
        }
        let next = self.now + self.rng.random_range(nanos(DIAL)..2 * nanos(DIAL));
        self.at(next, Event::Dial { host: n, life });
    }

    fn call_all(&mut self, n: usize) {
        let wanted = self.nodes[n].book.peers().map(|host| host.id);
        let wanted: Vec<usize> = wanted
            .filter(|id| self.spec.mesh || self.nodes[n].book.follows(*id))
            .filter_map(|id| self.index.get(&id).copied())
            .filter(|peer| !self.nodes[n].linked.contains(peer))
            .collect();
        for peer in wanted {
            let (at, pause) = self.nodes[n].calls.get(&peer).copied().unwrap_or_default();
            if at > self.now {
                self.nodes[n].lonely = true;
                continue;
            }
            let knows = self.nodes[peer].book.is_peer(self.nodes[n].id);
            if self.runs(peer) && knows && !self.is_cut(n, peer) {
                self.nodes[n].calls.remove(&peer);
                self.link(n, peer);
            } else {
                let pause = (pause * 2).clamp(200_000_000, 5_000_000_000);
                self.nodes[n].calls.insert(peer, (self.now + pause, pause));
                self.nodes[n].lonely = true;
            }
        }
    }

    /// Lets all of a host's sessions say what they have to.
    pub(super) fn poll_all(&mut self, n: usize) {
        for peer in self.nodes[n].linked.clone() {
            self.poll_with(n, peer);
        }
    }

    pub(super) fn poll_with(&mut self, n: usize, peer: usize) {
        let pair = key(n, peer);
        self.poll_pair(pair, usize::from(pair.1 == n));
    }

    /// The sessions at one end.
    fn poll_pair(&mut self, key: (usize, usize), side: usize) {
        let n = if side == 0 { key.0 } else { key.1 };
        let peer = if side == 0 { key.1 } else { key.0 };
        let (peer_id, mesh) = (self.nodes[peer].id, self.spec.mesh);
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        let node = &mut self.nodes[n];
        let (me, now) = (node.swim.me(), node.local(self.now));
        let end = &mut pair.ends[side];
        let mut out = Vec::new();
        if end.follower.is_none() && (mesh || node.book.follows(peer_id)) {
            end.follower = Some(Follower::new(peer_id));
        }
        if let Some(follower) = &mut end.follower {
            while let Some(frame) = follower.poll(me, &node.book) {
                out.push((2 * side, frame));
            }
        }
        let mut digest = None;
        if let Some(leader) = &mut end.leader {
            let managers = &self.managers;
            // A manager tells no more than what it has heard itself.
            let heard = node.book.facts().version() == managers.facts().version();
            let since = |have| match heard {
                true => managers.since(have),
                false => FactsNews::Nothing,
            };
            while let Some(frame) = leader.poll(me, &node.book, since, now) {
                out.push((2 * (1 - side) + 1, frame));
            }
            let due = leader.deadline().map(|due| node.true_time(due));
            if due != end.digest_at {
                end.digest_at = due;
                digest = due;
            }
        }
        let number = pair.number;
        if let Some(at) = digest {
            let pair = key;
            self.at(at, Event::Digest { pair, number, side });
        }
        for (channel, frame) in out {
            self.send_frame(key, n, channel, frame);
        }
    }

    fn send_frame(&mut self, key: (usize, usize), from: usize, channel: usize, frame: Vec<u8>) {
        let length = frame.len() as u64 + 4;
        let packets = length.div_ceil(SEGMENT);
        let mut slowest = 0;
        for _ in 0..packets {
            let mut wait = 0;
            slowest = loop {
                match self.trip() {
                    Some(trip) => break slowest.max(wait + trip),
                    // Until the sender notices.
                    None => wait += 2 * nanos(self.spec.link.delay) + 25_000_000,
                }
            };
        }
        let sent = &mut self.nodes[from].sent;
        sent.frames += 1;
        // Each packet is acknowledged by one.
        sent.stream_bytes += length + packets * 2 * OVERHEAD;
        let Some(pair) = self.pairs.get_mut(&key) else {
            return;
        };
        let channel_state = &mut pair.channels[channel];
        let at = channel_state.last.max(self.now + slowest);
        channel_state.last = at;
        channel_state.frames.push_back(frame);
        let number = pair.number;
        let arrive = Event::Arrive {
            pair: key,
            number,
            channel,
        };
        self.at(at, arrive);
    }

    pub(super) fn arrive(&mut self, key: (usize, usize), number: u64, channel: usize) {
        let silent = self.is_silent(key);
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(&key).filter(|p| p.number == number) else {
            return;
        };
        if silent {
            // Sent again and again, until it gets through or the connection ends.
            let since = *pair.silent.get_or_insert(now);
            let again = (now - since).clamp(50_000_000, 1_000_000_000);
            let arrive = Event::Arrive {
                pair: key,
                number,
                channel,
            };
            if now - since >= nanos(IDLE) {
                self.close(key.0, key.1);
            } else {
                self.at(now + again, arrive);
            }
            return;
        }
        pair.silent = None;
        let Some(frame) = pair.channels[channel].frames.pop_front() else {
            return;
        };
        // Asks of side 0 go to side 1, what is told goes back.
        let (follows, told) = (channel / 2, channel % 2 == 1);
        let side = if told { follows } else { 1 - follows };
        let (n, peer) = if side == 0 { key } else { (key.1, key.0) };
        let (id, node) = (self.nodes[peer].id, &mut self.nodes[n]);
        let local = node.local(now);
        let end = &mut pair.ends[side];
        let received = if told {
            let Some(follower) = &mut end.follower else {
                return;
            };
            follower.receive(&frame, &mut node.book, local)
        } else {
            let leader = end.leader.get_or_insert_with(|| Leader::new(id));
            leader.receive(&frame)
        };
        let met = received.unwrap_or_else(|fault| panic!("{n} from {peer}: {fault}"));
        if let Some(met) = met {
            node.swim.connected(met, local);
            self.pump_swim(n);
        }
        if told {
            self.told(n);
        }
        self.poll_pair(key, side);
    }

    pub(super) fn digest(&mut self, key: (usize, usize), number: u64, side: usize) {
        let now = self.now;
        let pair = self.pairs.get_mut(&key).filter(|p| p.number == number);
        if pair.is_some_and(|pair| pair.ends[side].digest_at == Some(now)) {
            self.poll_pair(key, side);
        }
    }
}
