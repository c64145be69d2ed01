//! Whom to probe when, without a socket or a clock: `now` is the time since some fixed moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use overlay_common::echo;
use overlay_common::wire::{IPV4_LEN, IPV6_LEN, UDP_LEN};

use super::pmtu::Ask;
use super::target::{Answer, Kind, Target};
use super::window::Latency;
use crate::api::{Checksums, DataPath};

/// From one regular probe to the next, to one VTEP.
const PACE: Duration = Duration::from_secs(1);
/// The time that one probe takes from all: not more than 100 a second. Quick looks at hosts that
/// are said to be down don't wait for that.
const COST: Duration = Duration::from_millis(10);
/// So many may go at once after a pause.
const BURST: u32 = 10;

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The VTEP.
    pub to: IpAddr,
    /// What the answer must have.
    pub nonce: u64,
    /// Bytes of the whole IP packet.
    pub size: u32,
    /// It is a checksum probe: [`echo::checksum_request`].
    pub checksum: bool,
}

/// What is known of a VTEP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Whether frames arrive there.
    pub path: DataPath,
    /// Its host is said to be down, and it does not answer either.
    pub dead: bool,
    /// Round trips.
    pub latency: Option<Latency>,
    /// Lost ones of the last probes.
    pub lost: usize,
    /// The last probes, 100 at most.
    pub probes: usize,
    /// The largest IP packet that arrives, in bytes.
    pub mtu: Option<u32>,
    /// Whether checksums that are left to be computed arrive computed.
    pub checksums: Checksums,
}

/// What has come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers in time.
    pub answers: u64,
    /// Answers after their probe was counted as lost.
    pub late: u64,
    /// What was no answer to a probe of ours.
    pub unknown: u64,
}

/// All VTEPs that are probed.
#[derive(Debug)]
pub struct Core {
    /// Whether checksum probes are sent.
    sums: bool,
    targets: BTreeMap<IpAddr, Target>,
    /// Those of which the agent has something to learn.
    news: BTreeSet<IpAddr>,
    /// Until when the probes sent so far have used up the rate.
    spent: Duration,
    counters: Counters,
}

impl Core {
    /// With checksum probes or without.
    pub fn new(sums: bool) -> Core {
        Core {
            sums,
            targets: BTreeMap::new(),
            news: BTreeSet::new(),
            spent: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    /// Probes a VTEP behind a link that carries `limit` bytes; one that is probed already has
    /// another way now.
    pub fn watch(&mut self, vtep: IpAddr, limit: u32, now: Duration) {
        match self.targets.get_mut(&vtep) {
            Some(target) => {
                target.mtu.path_changed(limit);
                target.sums.path_changed(now);
            }
            None => drop(
                self.targets
                    .insert(vtep, Target::new(limit, now, self.sums)),
            ),
        }
        self.news.insert(vtep);
    }

    /// Probes it no more.
    pub fn forget(&mut self, vtep: IpAddr) {
        self.targets.remove(&vtep);
        self.news.remove(&vtep);
    }

    /// Its host is said to be down: is its data path, too?
    pub fn suspect(&mut self, vtep: IpAddr, now: Duration) {
        if let Some(target) = self.targets.get_mut(&vtep) {
            target.suspect(now);
        }
    }

    /// Its host is up.
    pub fn trust(&mut self, vtep: IpAddr) {
        if let Some(target) = self.targets.get_mut(&vtep) {
            target.trust();
        }
    }

    /// What is known of a VTEP.
    pub fn report(&self, vtep: IpAddr) -> Option<Report> {
        let target = self.targets.get(&vtep)?;
        let (lost, probes) = target.window.loss();
        Some(Report {
            path: target.path,
            dead: target.dead,
            latency: target.window.latency(),
            lost,
            probes,
            mtu: target.mtu.mtu(),
            checksums: target.sums.state(),
        })
    }

    /// The VTEPs that answer, and at which checksums do not arrive.
    pub fn broken(&self) -> Vec<IpAddr> {
        let broken = |target: &Target| {
            target.path == DataPath::Answers && target.sums.state() == Checksums::Broken
        };
        let targets = self.targets.iter();
        targets
            .filter_map(|(vtep, target)| broken(target).then_some(*vtep))
            .collect()
    }

    /// What has come in.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether there are [`Core::news`].
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The VTEPs of which [`Report::path`], `dead`, `mtu` or `checksums` have changed.
    pub fn news(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.news).into_iter().collect()
    }

    /// Something that looks like an answer has come: an IP packet of `size` bytes.
    pub fn answer(&mut self, from: IpAddr, answer: echo::Answer, size: u32, now: Duration) {
        let echo::Answer { nonce, says } = answer;
        let Some(target) = self.targets.get_mut(&from) else {
            self.counters.unknown += 1;
            return;
        };
        let before = told(target);
        match target.answered(nonce, size, says, now) {
            Answer::Good => self.counters.answers += 1,
            Answer::Late => self.counters.late += 1,
            Answer::Unknown => self.counters.unknown += 1,
        }
        if told(target) != before {
            self.news.insert(from);
        }
    }

    /// Something that can't be an answer has come.
    pub fn nonsense(&mut self) {
        self.counters.unknown += 1;
    }

    /// The next probe to send now. `random` gives nonces, and spreads what is regular.
    pub fn poll(&mut self, now: Duration, random: &mut impl FnMut() -> u64) -> Option<Probe> {
        for (vtep, target) in &mut self.targets {
            let before = told(target);
            target.tick(now);
            if told(target) != before {
                self.news.insert(*vtep);
            }
        }
        let (to, kind) = self.choose(now)?;
        let pace = self.pace();
        let target = self.targets.get_mut(&to)?;
        let smallest = headers(to) + echo::PAYLOAD_LEN as u32;
        let (size, kind) = match kind {
            Kind::Quick => {
                target.quick_sent();
                (smallest, kind)
            }
            Kind::Regular => {
                // A suspect is watched closely however many others there are.
                let pace = if target.suspect { PACE } else { pace };
                target.due = now + jitter(pace, random());
                (target.regular().unwrap_or(smallest), kind)
            }
            Kind::Size | Kind::Control => match target.search()? {
                Ask::Size(size) => (size, Kind::Size),
                Ask::Control => (smallest, Kind::Control),
            },
            Kind::Checksum => {
                let spread = random();
                // Among many, these must not crowd out what says who is alive.
                let slower = pace.as_millis() / PACE.as_millis();
                let slower = u32::try_from(slower).unwrap_or(u32::MAX).max(1);
                target
                    .sums
                    .sent(now, |pace| jitter(pace.saturating_mul(slower), spread));
                (smallest, kind)
            }
        };
        let nonce = random();
        target.sent(nonce, size, kind, now);
        self.spent = self.spent.max(now) + COST;
        Some(Probe {
            to,
            nonce,
            size,
            checksum: kind == Kind::Checksum,
        })
    }

    /// Whom to probe first: quick looks, then watched suspects, then searches, then who waits
    /// longest.
    fn choose(&self, now: Duration) -> Option<(IpAddr, Kind)> {
        let free = now >= self.free_at();
        let urgency = |target: &Target| match () {
            () if target.quick_due(now) => Some((0, Duration::ZERO, Kind::Quick)),
            () if !free => None,
            () if target.suspect && now >= target.due => Some((1, target.due, Kind::Regular)),
            () if target.mtu.is_due() => Some((2, Duration::ZERO, Kind::Size)),
            () if target.sums_due(now) => {
                Some((3, target.sums.due().unwrap_or(now), Kind::Checksum))
            }
            () if now >= target.due => Some((3, target.due, Kind::Regular)),
            () => None,
        };
        let urgent = self.targets.iter().filter_map(|(vtep, target)| {
            let (class, due, kind) = urgency(target)?;
            Some(((class, due), (*vtep, kind)))
        });
        urgent
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, chosen)| chosen)
    }

    /// When the rate allows one more.
    fn free_at(&self) -> Duration {
        self.spent.saturating_sub(COST * BURST)
    }

    fn pace(&self) -> Duration {
        let all = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        PACE.max(COST.saturating_mul(all))
    }

    /// When [`Core::poll`] is to be called again at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let of = |target: &Target| {
            let due = if target.mtu.is_due() {
                Duration::ZERO
            } else {
                target.sums.due().unwrap_or(target.due).min(target.due)
            };
            let send = due.max(self.free_at());
            target
                .deadline()
                .map_or(send, |deadline| deadline.min(send))
        };
        self.targets.values().map(of).min()
    }
}

/// What IP and UDP put in front of a probe's payload, in bytes.
pub fn headers(to: IpAddr) -> u32 {
    let ip = if to.to_canonical().is_ipv4() {
        IPV4_LEN
    } else {
        IPV6_LEN
    };
    (ip + UDP_LEN) as u32
}

fn told(target: &Target) -> (DataPath, bool, Option<u32>, Checksums) {
    let checksums = target.sums.state();
    (target.path, target.dead, target.mtu.mtu(), checksums)
}

/// 90 to 110 per cent of `pace`, so that hosts that start together don't probe together.
fn jitter(pace: Duration, random: u64) -> Duration {
    let percent = 90 + u32::try_from(random % 21).unwrap_or_default();
    pace * percent / 100
}
