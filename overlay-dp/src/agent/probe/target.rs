//! One VTEP that is probed.

use std::time::Duration;

use overlay_common::echo::Says;

use super::pmtu::{Ask, Pmtu};
use super::sums::Sums;
use super::window::Window;
use crate::api::DataPath;

/// When a probe counts as lost.
const LOST: Duration = Duration::from_secs(1);
/// The bounds of that for probes that a search waits for; in between it is four round trips.
const SEARCH_LOST: [Duration; 2] = [Duration::from_millis(100), LOST];
/// The same, while no round trip is known.
const SEARCH_LOST_AT_FIRST: Duration = Duration::from_millis(300);
/// So many lost ones in a row, and the data path is silent.
const MISSES: u8 = 3;
/// The first look at a VTEP whose host is said to be down: so many probes, …
const QUICK: u8 = 5;
/// … so long from one to the next, …
const QUICK_PAUSE: Duration = Duration::from_millis(60);
/// … and an answer to any of them must have come after so long.
const QUICK_LOST: Duration = Duration::from_millis(400);
/// Probes that are remembered: an answer to an older one is one to a probe that never was.
const REMEMBERED: usize = 16;

/// Why a probe was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For latency, loss and life; every second one as large as packets may be.
    Regular,
    /// A size that is tried.
    Size,
    /// A small one beside it.
    Control,
    /// A look at a VTEP whose host is said to be down.
    Quick,
    /// With a checksum that is left to be computed.
    Checksum,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    nonce: u64,
    size: u32,
    kind: Kind,
    at: Duration,
    lost_at: Duration,
    lost: bool,
}

/// What a probe was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// In time.
    Good,
    /// After it was counted as lost.
    Late,
    /// To no probe of ours.
    Unknown,
}

/// A VTEP.
#[derive(Debug)]
pub struct Target {
    sent: Vec<Sent>,
    /// The next regular probe.
    pub due: Duration,
    large_next: bool,
    misses: u8,
    quick: Option<Quick>,
    /// Its host is said to be down.
    pub suspect: bool,
    /// Its host is said to be down and it does not answer.
    pub dead: bool,
    /// Whether it answers.
    pub path: DataPath,
    /// What the last probes have shown.
    pub window: Window,
    /// How large packets may be.
    pub mtu: Pmtu,
    /// Whether checksums arrive.
    pub sums: Sums,
}

#[derive(Debug)]
struct Quick {
    left: u8,
    next: Duration,
    until: Duration,
}

impl Target {
    /// One that is probed from `due` on, over a link that carries `limit`; for its checksums, too,
    /// or not.
    pub fn new(limit: u32, due: Duration, sums: bool) -> Target {
        Target {
            sent: Vec::with_capacity(REMEMBERED),
            due,
            large_next: false,
            misses: 0,
            quick: None,
            suspect: false,
            dead: false,
            path: DataPath::Unknown,
            window: Window::default(),
            mtu: Pmtu::new(limit),
            sums: Sums::new(sums),
        }
    }

    /// Its host is said to be down: a quick look.
    pub fn suspect(&mut self, now: Duration) {
        if self.suspect {
            return;
        }
        self.suspect = true;
        self.misses = 0;
        self.due = now + LOST;
        self.quick = Some(Quick {
            left: QUICK,
            next: now,
            until: now + QUICK_LOST,
        });
    }

    /// Its host is up.
    pub fn trust(&mut self) {
        self.suspect = false;
        self.dead = false;
        self.quick = None;
    }

    /// Whether a probe of the quick look is to be sent.
    pub fn quick_due(&self, now: Duration) -> bool {
        let quick = self.quick.as_ref();
        quick.is_some_and(|quick| quick.left > 0 && now >= quick.next)
    }

    /// Says that one was sent.
    pub fn quick_sent(&mut self) {
        if let Some(quick) = &mut self.quick {
            quick.left -= 1;
            quick.next += QUICK_PAUSE;
        }
    }

    /// The size of the next regular probe, every other one of which is large; `None`: small.
    pub fn regular(&mut self) -> Option<u32> {
        self.large_next = !self.large_next;
        (!self.large_next).then(|| self.mtu.size())
    }

    /// The next probe of a search.
    pub fn search(&mut self) -> Option<Ask> {
        self.mtu.poll()
    }

    /// Remembers a probe.
    pub fn sent(&mut self, nonce: u64, size: u32, kind: Kind, now: Duration) {
        let patience = match (kind, self.window.average()) {
            (Kind::Regular | Kind::Quick | Kind::Checksum, _) => LOST,
            (Kind::Size | Kind::Control, None) => SEARCH_LOST_AT_FIRST,
            (Kind::Size | Kind::Control, Some(rtt)) => {
                (rtt * 4).clamp(SEARCH_LOST[0], SEARCH_LOST[1])
            }
        };
        if self.sent.len() == REMEMBERED {
            self.sent.remove(0);
        }
        self.sent.push(Sent {
            nonce,
            size,
            kind,
            at: now,
            lost_at: now + patience,
            lost: false,
        });
    }

    /// Whether a checksum probe is to be sent now, and before a regular one.
    pub fn sums_due(&self, now: Duration) -> bool {
        let due = self.sums.due();
        due.is_some_and(|due| now >= due && due <= self.due)
    }

    /// Something that looks like an answer of this size has come.
    pub fn answered(&mut self, nonce: u64, size: u32, says: Says, now: Duration) -> Answer {
        let same = |sent: &Sent| {
            let of_kind = (sent.kind == Kind::Checksum) == (says != Says::Here);
            sent.nonce == nonce && sent.size == size && of_kind
        };
        let Some(index) = self.sent.iter().position(same) else {
            return Answer::Unknown;
        };
        let sent = self.sent.remove(index);
        self.quick = None;
        self.misses = 0;
        self.dead = false;
        if self.path != DataPath::Answers {
            self.sums.contact(now);
        }
        self.path = DataPath::Answers;
        self.mtu.path_answers(now);
        match sent.kind {
            Kind::Size => self.mtu.passed(size, now),
            Kind::Control => self.mtu.control_passed(),
            // A small probe proves nothing, and a late one's time is up.
            Kind::Regular if size >= super::pmtu::FLOOR => self.mtu.passed(size, now),
            Kind::Regular | Kind::Quick => {}
            Kind::Checksum => self.sums.answered(says == Says::Sound, now),
        }
        if sent.lost {
            return Answer::Late;
        }
        if sent.kind == Kind::Regular {
            self.window.answered(now.saturating_sub(sent.at));
        }
        Answer::Good
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        while let Some(index) = self
            .sent
            .iter()
            .position(|sent| !sent.lost && now >= sent.lost_at)
        {
            self.sent[index].lost = true;
            self.lost(self.sent[index], now);
        }
        if self.quick.as_ref().is_some_and(|quick| now >= quick.until) {
            self.quick = None;
            self.silent();
        }
        self.mtu.tick(now);
    }

    fn lost(&mut self, sent: Sent, now: Duration) {
        match sent.kind {
            Kind::Size => self.mtu.lost(sent.size, now),
            Kind::Control | Kind::Quick => {}
            // An older host does not know such probes.
            Kind::Checksum => self.sums.lost(now),
            Kind::Regular => {
                self.window.lost();
                self.mtu.large_lost(sent.size);
                self.misses = self.misses.saturating_add(1);
                if self.misses >= MISSES {
                    self.silent();
                }
            }
        }
    }

    fn silent(&mut self) {
        if self.path == DataPath::Answers {
            self.path = DataPath::Silent;
            self.mtu.path_silent();
            self.sums.silent();
        }
        self.dead |= self.suspect;
    }

    /// When [`Target::tick`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let open = self.sent.iter().filter(|sent| !sent.lost);
        let lost_at = open.map(|sent| sent.lost_at).min();
        let quick = self.quick.as_ref().map(|quick| match quick.left {
            0 => quick.until,
            _ => quick.next.min(quick.until),
        });
        [lost_at, quick, self.mtu.deadline()]
            .into_iter()
            .flatten()
            .min()
    }
}
