//! Two hosts agree on keys, whatever is lost between them.

use std::time::Duration;

use overlay_common::wire::{Ip16, map_v4};
use overlay_core::model::HostId;
use overlay_esp::keys::{Answer, Keys, Talk, Timing};
use overlay_esp::secret::Secret;
use proptest::prelude::*;

const LIFETIME: Duration = Duration::from_secs(3600);

fn second(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Two hosts, and how their messages fare.
struct Pair {
    keys: [Keys; 2],
    drawn: u32,
    now: Duration,
}

fn id(n: usize) -> HostId {
    HostId(n as u64 + 1)
}

fn vtep(n: usize) -> Ip16 {
    map_v4([192, 0, 2, n as u8 + 1])
}

impl Pair {
    fn new(active: [bool; 2]) -> Pair {
        let mut pair = Pair {
            keys: [(); 2].map(|()| Keys::new(Timing::new(LIFETIME))),
            drawn: 1000,
            now: Duration::ZERO,
        };
        for (n, (keys, active)) in pair.keys.iter_mut().zip(active).enumerate() {
            keys.set_peer(id(1 - n), vtep(1 - n));
            keys.set_active(active);
        }
        pair
    }

    /// Host `n` asks whoever is due; false when nobody is. `fate`: whether question and answer
    /// arrive.
    fn talk(&mut self, n: usize, fate: [bool; 2]) -> bool {
        let drawn = &mut self.drawn;
        let mut draw = || {
            *drawn += 1;
            Secret::new(*drawn, [0; 32], [0; 4])
        };
        let Some((to, talk)) = self.keys[n].poll(self.now, &mut draw) else {
            return false;
        };
        assert_eq!(to, id(1 - n));
        let talk: Talk = serde_json::from_str(&serde_json::to_string(&talk).unwrap()).unwrap();
        let answer = match fate[0] {
            true => self.keys[1 - n].asked(id(n), &talk, self.now, &mut draw),
            false => None,
        };
        match answer.filter(|_| fate[1]) {
            Some(answer) => {
                let text = serde_json::to_string(&answer).unwrap();
                let answer: Answer = serde_json::from_str(&text).unwrap();
                self.keys[n].answered(to, &answer, self.now);
            }
            None => self.keys[n].failed(to, self.now),
        }
        true
    }

    fn settle(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for n in 0..2 {
                while self.talk(n, [true; 2]) {}
            }
            self.now += Duration::from_millis(100);
        }
    }

    /// The SPI that host `n` sends with, if the other one takes it.
    fn sends(&self, n: usize) -> Option<u32> {
        let sas = self.keys[n].sas();
        let spi = sas.outbound.get(&vtep(1 - n))?.spi();
        let theirs = self.keys[1 - n].sas();
        let inbound = theirs.inbound.get(&spi)?;
        assert_eq!(*inbound.peer(), vtep(n));
        Some(spi)
    }

    /// What is sent is always taken.
    fn works(&self) {
        for n in 0..2 {
            if !self.keys[n].sas().outbound.is_empty() {
                assert!(self.sends(n).is_some(), "{n} sends what nobody takes");
            }
        }
    }
}

#[test]
fn one_question_is_enough_for_both_directions() {
    let mut pair = Pair::new([true, true]);
    assert!(pair.talk(0, [true; 2]));
    assert!(pair.sends(0).is_some() && pair.sends(1).is_some());
    pair.settle(second(2));
    pair.works();
    // Then nothing new is given for as long as it lasts.
    let before = (pair.sends(0), pair.sends(1), pair.drawn);
    pair.settle(second(600));
    assert_eq!((pair.sends(0), pair.sends(1), pair.drawn), before);
    pair.settle(LIFETIME);
    assert!(pair.sends(0).is_some() && pair.sends(0) != before.0);
    assert!(pair.sends(1).is_some() && pair.sends(1) != before.1);
    for keys in &pair.keys {
        assert_eq!(keys.sas().inbound.len(), 1, "old ones go");
    }
}

#[test]
fn who_receives_nothing_gives_nothing_and_is_told_all_the_same() {
    let mut pair = Pair::new([true, false]);
    pair.settle(second(1));
    assert_eq!((pair.sends(0), pair.sends(1).is_some()), (None, true));
    assert!(pair.keys[1].wake_at().is_none());
    pair.keys[1].set_active(true);
    assert!(pair.talk(1, [true; 2]));
    assert!(pair.sends(0).is_some());
    // And takes nothing any more when its last container is gone.
    pair.keys[1].set_active(false);
    assert!(pair.keys[1].sas().inbound.is_empty());
}

#[test]
fn rotation_is_hitless() {
    let mut pair = Pair::new([true, true]);
    pair.settle(second(2));
    let before = [pair.sends(0), pair.sends(1)];
    pair.keys[0].rotate();
    assert!(pair.talk(0, [true; 2]));
    // What is on its way with the old ones is taken for a minute.
    for (n, spi) in before.into_iter().enumerate() {
        let inbound = pair.keys[1 - n].sas().inbound;
        assert!(inbound.contains_key(&spi.unwrap()));
        assert!(pair.sends(n).is_some() && pair.sends(n) != spi);
    }
    pair.settle(second(120));
    for keys in &pair.keys {
        assert_eq!(keys.sas().inbound.len(), 1);
    }
    pair.works();
}

#[test]
fn who_was_removed_is_forgotten_at_once() {
    let mut pair = Pair::new([true, true]);
    pair.settle(second(2));
    pair.keys[0].remove_peer(id(1));
    assert!(pair.keys[0].take_changed());
    let sas = pair.keys[0].sas();
    assert!(sas.inbound.is_empty() && sas.outbound.is_empty());
    let talk = Talk {
        give: Secret::new(4711, [0; 32], [0; 4]),
        holds: None,
        renew: true,
    };
    let mut draw = || Secret::new(5000, [0; 32], [0; 4]);
    let answer = pair.keys[0].asked(id(1), &talk, pair.now, &mut draw);
    assert!(answer.is_none());
}

/// An agent that starts anew knows nothing, and nothing that it was given may be used again.
#[test]
fn a_restart_makes_everything_new() {
    let mut pair = Pair::new([true, true]);
    pair.settle(second(2));
    let before = [pair.sends(0), pair.sends(1)];
    pair.keys[1] = Keys::new(Timing::new(LIFETIME));
    pair.keys[1].set_peer(id(0), vtep(0));
    pair.keys[1].set_active(true);
    assert!(pair.talk(1, [true; 2]));
    for (n, spi) in before.into_iter().enumerate() {
        assert!(pair.sends(n).is_some() && pair.sends(n) != spi, "{n}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// While questions and answers are lost, what is sent is still taken, if it was before; and when
    /// they are not any more, all is well within seconds. No secret is ever given twice.
    #[test]
    fn whatever_is_lost(
        events in prop::collection::vec((0..2_usize, any::<[bool; 2]>(), 0..20_000_u64, 0..40_u8), 1..80),
    ) {
        let mut pair = Pair::new([true, true]);
        pair.settle(second(2));
        for (n, fate, wait, what) in events {
            if what == 0 {
                pair.keys[n].rotate();
            }
            pair.talk(n, fate);
            pair.works();
            pair.now += Duration::from_millis(wait);
        }
        pair.settle(second(90));
        pair.works();
        for n in 0..2 {
            prop_assert!(pair.sends(n).is_some());
            prop_assert_eq!(pair.keys[n].sas().inbound.len(), 1);
        }
    }
}
