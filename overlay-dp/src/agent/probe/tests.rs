//! The prober over simulated paths, in virtual time.

mod sums;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_common::echo::{Answer, Says};

use super::schedule::{Core, Probe, Report};
use crate::api::DataPath;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A generator of numbers that are random enough (xorshift64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A path as it is just now.
#[derive(Clone, Copy)]
struct Path {
    rtt: Duration,
    mtu: u32,
    loss_percent: u64,
    up: bool,
    /// What checksum probes are answered with; `None`: not at all, by an older host.
    sums: Option<Says>,
}

const GOOD: Path = Path {
    rtt: Duration::from_millis(2),
    mtu: 1500,
    loss_percent: 0,
    up: true,
    sums: Some(Says::Sound),
};

struct World {
    core: Core,
    now: Duration,
    rng: Rng,
    path: Path,
    /// Answers under way, by time of arrival.
    answers: BTreeMap<(Duration, u64), Probe>,
    sent: Vec<(Duration, Probe)>,
}

impl World {
    fn new(path: Path) -> World {
        World {
            core: Core::new(true),
            now: Duration::ZERO,
            rng: Rng(0x9e37_79b9_7f4a_7c15),
            path,
            answers: BTreeMap::new(),
            sent: Vec::new(),
        }
    }

    /// With one VTEP behind a link of `limit` bytes.
    fn with(path: Path, limit: u32) -> World {
        let mut world = World::new(path);
        world.core.watch(A, limit, world.now);
        world
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let rng = &mut self.rng;
            while let Some(probe) = self.core.poll(self.now, &mut || rng.next()) {
                self.sent.push((self.now, probe));
                let lost = rng.next() % 100 < self.path.loss_percent;
                let known = !probe.checksum || self.path.sums.is_some();
                if self.path.up && !lost && known && probe.size <= self.path.mtu {
                    let at = self.now + self.path.rtt;
                    self.answers.insert((at, probe.nonce), probe);
                }
            }
            let deadline = self.core.deadline().unwrap_or(end);
            assert!(deadline > self.now, "it would spin at {:?}", self.now);
            let arrival = self.answers.keys().next().map(|(at, _)| *at);
            let next = deadline.min(arrival.unwrap_or(end));
            if next >= end {
                self.now = end;
                return;
            }
            self.now = next;
            while let Some(entry) = self.answers.first_entry()
                && entry.key().0 <= self.now
            {
                let probe = entry.remove();
                let answer = self.answer_to(&probe);
                self.core.answer(probe.to, answer, probe.size, self.now);
            }
        }
    }

    fn answer_to(&self, probe: &Probe) -> Answer {
        let says = match self.path.sums {
            Some(says) if probe.checksum => says,
            _ => Says::Here,
        };
        let nonce = probe.nonce;
        Answer { nonce, says }
    }

    fn report(&self) -> Report {
        self.core.report(A).unwrap()
    }

    /// How long until `yes`, at most `most`.
    fn until(&mut self, most: Duration, yes: impl Fn(&Report) -> bool) -> Duration {
        let begin = self.now;
        while !yes(&self.report()) {
            assert!(
                self.now < begin + most,
                "not within {most:?}: {:?}",
                self.report()
            );
            self.run(ms(10));
        }
        self.now - begin
    }
}

#[test]
fn latency_and_loss_are_measured() {
    let mut world = World::with(GOOD, 1500);
    assert_eq!(world.report().path, DataPath::Unknown);
    world.run(ms(150_000));
    let report = world.report();
    assert_eq!(report.path, DataPath::Answers);
    assert_eq!((report.lost, report.probes), (0, 100));
    let latency = report.latency.unwrap();
    assert_eq!(
        (latency.min, latency.average, latency.p99),
        (ms(2), ms(2), ms(2))
    );

    world.path.loss_percent = 20;
    world.run(ms(150_000));
    let report = world.report();
    assert!((8..=35).contains(&report.lost), "{}", report.lost);
    assert_eq!(report.path, DataPath::Answers);
}

#[test]
fn every_mtu_is_found() {
    let paths = [1280, 1281, 1300, 1399, 1400, 1450, 1498, 1499, 1500];
    let jumbo = [1280, 1500, 4352, 8999, 9000];
    let all = paths
        .map(|mtu| (1500, mtu))
        .into_iter()
        .chain(jumbo.map(|mtu| (9000, mtu)));
    for (limit, mtu) in all {
        let mut world = World::with(Path { mtu, ..GOOD }, limit);
        world.until(ms(8_000), |report| report.mtu == Some(mtu));
        world.run(ms(300_000));
        assert_eq!(world.report().mtu, Some(mtu), "behind {limit}");
    }
}

#[test]
fn a_black_hole_is_noticed_and_left_again() {
    for mtu in [1280, 1400, 1499] {
        let mut world = World::with(GOOD, 1500);
        world.run(ms(30_000));
        assert_eq!(world.report().mtu, Some(1500));
        world.path.mtu = mtu;
        let time = world.until(ms(10_000), |report| report.mtu.is_some_and(|m| m <= mtu));
        assert!(time < ms(6_000), "{mtu}: {time:?}");
        world.until(ms(6_000), |report| report.mtu == Some(mtu));
        world.path.mtu = 1500;
        let time = world.until(ms(70_000), |report| report.mtu == Some(1500));
        assert!(time > ms(30_000), "{time:?}");
    }
}

#[test]
fn a_path_with_a_long_way_lowers_at_last_after_two_seconds() {
    let slow = Path {
        rtt: ms(240),
        ..GOOD
    };
    let mut world = World::with(slow, 1500);
    world.run(ms(30_000));
    world.path.mtu = 1290;
    let time = world.until(ms(20_000), |report| report.mtu.is_some_and(|m| m <= 1290));
    assert!(time < ms(10_000), "{time:?}");
    world.until(ms(40_000), |report| report.mtu == Some(1290));
}

#[test]
fn loss_is_no_black_hole() {
    let lossy = Path {
        loss_percent: 5,
        ..GOOD
    };
    let mut world = World::with(lossy, 1500);
    world.run(ms(30_000));
    let mut below = 0;
    for _ in 0..600 {
        world.run(ms(1_000));
        below += u32::from(world.report().mtu != Some(1500));
    }
    // Three lost in a row are rare, and then it lasts a minute.
    assert!(below < 100, "{below} of 600 s");
}

#[test]
fn a_dead_path_says_nothing_about_its_mtu() {
    let mut world = World::with(GOOD, 1500);
    world.run(ms(30_000));
    world.path.up = false;
    let time = world.until(ms(10_000), |report| report.path == DataPath::Silent);
    assert!(time < ms(4_500), "{time:?}");
    world.run(ms(300_000));
    assert_eq!(world.report().mtu, Some(1500));
    assert!(!world.report().dead, "its host is not said to be down");
    // It is back, over another way.
    world.path = Path { mtu: 1400, ..GOOD };
    world.until(ms(2_000), |report| report.path == DataPath::Answers);
    world.until(ms(5_000), |report| report.mtu == Some(1400));
}

#[test]
fn a_suspect_is_dead_after_four_hundred_milliseconds() {
    let mut world = World::with(GOOD, 1500);
    world.run(ms(30_300));
    world.path.up = false;
    world.core.news();
    world.core.suspect(A, world.now);
    let sent = world.sent.len();
    assert_eq!(world.until(ms(1_000), |report| report.dead), ms(410));
    assert!((5..=7).contains(&(world.sent.len() - sent)));
    assert_eq!(world.core.news(), [A]);
    // Said again, it changes nothing.
    world.core.suspect(A, world.now);
    // The data path alone comes back, then the host does.
    world.path.up = true;
    world.until(ms(1_500), |report| !report.dead);
    world.core.trust(A);
    world.run(ms(30_000));
    assert!(!world.report().dead);
}

#[test]
fn a_suspect_that_answers_is_watched() {
    let mut world = World::with(GOOD, 1500);
    // Among so many that each is probed every four seconds, and all of them fail at once.
    for n in 0..400_u32 {
        world
            .core
            .watch(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)), 1500, world.now);
    }
    world.run(ms(15_000));
    world.core.suspect(A, world.now);
    world.run(ms(15_000));
    assert!(!world.report().dead);
    world.path.up = false;
    let time = world.until(ms(10_000), |report| report.dead);
    assert!(time < ms(4_600), "{time:?}");
}

#[test]
fn a_suspect_that_never_answered_is_dead() {
    let mut world = World::with(Path { up: false, ..GOOD }, 1500);
    world.run(ms(10_000));
    assert_eq!(world.report().path, DataPath::Unknown);
    world.core.suspect(A, world.now);
    assert_eq!(world.until(ms(1_000), |report| report.dead), ms(410));
}

#[test]
fn the_rate_is_bounded() {
    for targets in [1_u32, 100, 1000] {
        let mut world = World::new(GOOD);
        for n in 0..targets {
            world
                .core
                .watch(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)), 1500, world.now);
        }
        // Each at least twice, for whatever large number of them.
        world.run(ms(10_000));
        world.sent.clear();
        world.run(ms(30_000));
        let sent = u32::try_from(world.sent.len()).unwrap();
        let expected = 30 * targets.min(100);
        assert!(sent <= expected * 101 / 100 + 12, "{sent} to {targets}");
        assert!(sent >= expected * 95 / 100, "{sent} to {targets}");
        // Nobody is left out.
        let counts = world
            .sent
            .iter()
            .fold(BTreeMap::new(), |mut counts, (_, probe)| {
                *counts.entry(probe.to).or_insert(0) += 1;
                counts
            });
        assert_eq!(counts.len(), targets as usize);
        let (least, most) = (
            counts.values().min().unwrap(),
            counts.values().max().unwrap(),
        );
        assert!(most - least <= 12, "{least} to {most}");
    }
}

#[test]
fn hostile_answers_are_counted_and_change_nothing() {
    let mut world = World::with(Path { up: false, ..GOOD }, 1500);
    let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    for _ in 0..1000 {
        world.run(ms(7));
        let nonce = world.rng.next();
        let says = Says::Here;
        world.core.answer(A, Answer { nonce, says }, 52, world.now);
        // The right nonce from the wrong VTEP, and with the wrong size.
        if let Some((_, probe)) = world.sent.last().copied() {
            let answer = world.answer_to(&probe);
            world.core.answer(other, answer, probe.size, world.now);
            world.core.answer(A, answer, probe.size + 1, world.now);
        }
    }
    let report = world.report();
    assert_eq!((report.path, report.mtu), (DataPath::Unknown, None));
    assert_eq!(world.core.counters().answers, 0);
    assert!(world.core.counters().unknown >= 2900);
    // A good answer counts once, and a late one says that it was late.
    world.path.up = true;
    world.run(ms(2_000));
    let (_, probe) = *world.sent.last().unwrap();
    let before = world.core.counters();
    let answer = world.answer_to(&probe);
    world.core.answer(A, answer, probe.size, world.now);
    let after = world.core.counters();
    assert!(after.unknown + after.answers == before.unknown + before.answers + 1);
    world.core.answer(A, answer, probe.size, world.now);
    assert_eq!(world.core.counters().unknown, after.unknown + 1);
    world.path.rtt = ms(1_200);
    world.run(ms(10_000));
    assert!(world.core.counters().late > 5);
}
