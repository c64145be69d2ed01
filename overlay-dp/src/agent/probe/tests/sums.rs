//! Checksum probes.

use super::*;
use crate::api::Checksums;

const UNSOUND: Path = Path {
    sums: Some(Says::Unsound),
    ..GOOD
};
const OLDER: Path = Path { sums: None, ..GOOD };

impl World {
    /// When checksum probes were sent.
    fn sums_sent(&self) -> Vec<Duration> {
        let sums = self.sent.iter().filter(|(_, probe)| probe.checksum);
        sums.map(|(at, _)| *at).collect()
    }
}

#[test]
fn they_go_at_first_contact_and_then_every_half_minute() {
    let mut world = World::with(GOOD, 1500);
    assert_eq!(world.report().checksums, Checksums::Unknown);
    let time = world.until(ms(1_000), |report| report.checksums == Checksums::Ok);
    assert!(time <= ms(20), "{time:?}");
    world.run(ms(300_000));
    let sent = world.sums_sent();
    assert!((10..=12).contains(&sent.len()), "{sent:?}");
    let gaps = sent.windows(2).map(|pair| pair[1] - pair[0]);
    for gap in gaps {
        assert!((ms(27_000)..=ms(33_100)).contains(&gap), "{gap:?}");
    }
    assert_eq!(world.report().lost, 0);
    assert!(world.core.broken().is_empty());
    // They are as short as can be: nothing but what is summed.
    let sums = world.sent.iter().filter(|(_, probe)| probe.checksum);
    assert!(sums.clone().all(|(_, probe)| probe.size == 20 + 8 + 24));
}

#[test]
fn three_unsound_ones_in_a_row_are_a_broken_path() {
    let mut world = World::with(UNSOUND, 1500);
    world.core.news();
    let time = world.until(ms(2_000), |report| report.checksums == Checksums::Broken);
    assert!((ms(400)..=ms(430)).contains(&time), "{time:?}");
    assert_eq!(world.sums_sent().len(), 3);
    assert_eq!(world.core.broken(), [A]);
    assert!(world.core.news().contains(&A));
    // The first sound one tells that it is fine again.
    world.run(ms(60_000));
    assert_eq!(world.report().checksums, Checksums::Broken);
    world.path = GOOD;
    world.core.news();
    let time = world.until(ms(10_000), |report| report.checksums == Checksums::Ok);
    assert!(time < ms(6_000), "{time:?}");
    assert_eq!(world.core.news(), [A]);
    assert!(world.core.broken().is_empty());
}

#[test]
fn one_or_two_unsound_ones_are_an_accident() {
    let mut world = World::with(GOOD, 1500);
    world.run(ms(10_000));
    for bad in [1, 2] {
        let before = world.sums_sent().len();
        world.path = UNSOUND;
        while world.sums_sent().len() < before + bad {
            world.run(ms(10));
        }
        // The answer to the last one is under way.
        world.run(ms(2));
        world.path = GOOD;
        world.run(ms(5_000));
        assert_eq!(world.sums_sent().len(), before + bad + 1, "{bad}");
        assert_eq!(world.report().checksums, Checksums::Ok, "{bad}");
    }
}

#[test]
fn another_way_is_asked_at_once() {
    let mut world = World::with(GOOD, 1500);
    world.run(ms(5_000));
    let before = world.sums_sent().len();
    world.core.watch(A, 1500, world.now);
    world.run(ms(10));
    assert_eq!(world.sums_sent().len(), before + 1);
    // And so is one that was silent.
    world.path.up = false;
    world.until(ms(10_000), |report| report.path == DataPath::Silent);
    let before = world.sums_sent().len();
    world.run(ms(100_000));
    assert_eq!(world.sums_sent().len(), before);
    assert_eq!(world.report().checksums, Checksums::Ok, "as it was");
    world.path = UNSOUND;
    world.until(ms(3_000), |report| report.checksums == Checksums::Broken);
}

#[test]
fn a_silent_vtep_is_not_broken() {
    let mut world = World::with(UNSOUND, 1500);
    world.until(ms(2_000), |report| report.checksums == Checksums::Broken);
    world.path.up = false;
    world.until(ms(10_000), |report| report.path == DataPath::Silent);
    assert!(world.core.broken().is_empty());
    world.path.up = true;
    world.until(ms(3_000), |report| report.path == DataPath::Answers);
    assert_eq!(world.core.broken(), [A]);
    world.core.forget(A);
    assert!(world.core.broken().is_empty());
}

#[test]
fn an_older_host_is_asked_a_few_times_and_taken_for_fine() {
    let mut world = World::with(OLDER, 1500);
    world.run(ms(100_000));
    let report = world.report();
    assert_eq!(report.checksums, Checksums::Unknown);
    // It is no loss either.
    assert_eq!((report.path, report.lost), (DataPath::Answers, 0));
    let sent = world.sums_sent().len();
    assert!((9..=12).contains(&sent), "{sent}");
    // It is renewed.
    world.path = GOOD;
    world.until(ms(35_000), |report| report.checksums == Checksums::Ok);
}

#[test]
fn loss_changes_nothing() {
    let mut world = World::with(UNSOUND, 1500);
    world.path.loss_percent = 30;
    world.until(ms(20_000), |report| report.checksums == Checksums::Broken);
    world.path.sums = Some(Says::Sound);
    world.until(ms(40_000), |report| report.checksums == Checksums::Ok);
    for _ in 0..600 {
        world.run(ms(1_000));
        assert_eq!(world.report().checksums, Checksums::Ok);
    }
}

#[test]
fn an_answer_of_the_other_kind_is_none() {
    let mut world = World::with(GOOD, 1500);
    world.run(ms(10_000));
    world.path.up = false;
    world.run(ms(100));
    world.core.watch(A, 1500, world.now);
    world.run(ms(10));
    let sums = world.sent.iter().rev().find(|(_, probe)| probe.checksum);
    let (_, probe) = *sums.unwrap();
    let before = world.core.counters();
    let nonce = probe.nonce;
    let says = Says::Here;
    world
        .core
        .answer(A, Answer { nonce, says }, probe.size, world.now);
    assert_eq!(world.core.counters().unknown, before.unknown + 1);
    let says = Says::Unsound;
    world
        .core
        .answer(A, Answer { nonce, says }, probe.size, world.now);
    assert_eq!(world.core.counters().answers, before.answers + 1);
    assert_eq!(world.report().checksums, Checksums::Ok, "one is not enough");
}

#[test]
fn hundreds_of_vteps_are_all_asked_beside_the_regular_probes() {
    let mut world = World::new(UNSOUND);
    let vteps: Vec<IpAddr> = (0..400_u32)
        .map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)))
        .collect();
    for vtep in &vteps {
        world.core.watch(*vtep, 1500, world.now);
    }
    world.run(ms(60_000));
    assert_eq!(world.core.broken().len(), 400);
    world.sent.clear();
    world.run(ms(60_000));
    // Those that tell who is alive keep the larger part.
    let (sums, all) = (world.sums_sent().len(), world.sent.len());
    assert!(sums * 3 < all, "{sums} of {all}");
}

#[test]
fn nobody_asks_where_nobody_leaves_checksums() {
    let mut world = World {
        core: Core::new(false),
        ..World::new(UNSOUND)
    };
    world.core.watch(A, 1500, world.now);
    world.run(ms(60_000));
    assert!(world.sums_sent().is_empty());
    assert_eq!(world.report().checksums, Checksums::Unknown);
}
