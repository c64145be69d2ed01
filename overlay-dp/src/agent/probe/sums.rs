//! Whether checksums that are left to be computed arrive computed: what the checksum probes to one
//! VTEP have shown, and when to send the next.

use std::time::Duration;

use crate::api::Checksums;

/// From one to the next, about.
const PACE: Duration = Duration::from_secs(30);
/// The same, while they are broken: until they are not, containers do with less.
const BROKEN_PACE: Duration = Duration::from_secs(5);
/// So many unsound ones in a row, and the path is broken: one may have been damaged on the way …
const UNSOUND: u8 = 3;
/// … and so long after one the next is sent.
const AGAIN: Duration = Duration::from_millis(200);
/// So many are tried before a VTEP that answers nothing to them is left alone for a while …
const TRIES: u8 = 3;
/// … so long after the last one was lost.
const LOST_AGAIN: Duration = Duration::from_secs(1);

/// What is known.
#[derive(Debug)]
pub struct Sums {
    /// Whether anybody wants to know.
    wanted: bool,
    /// When the next one is sent; `None` while the VTEP does not answer at all.
    due: Option<Duration>,
    unsound: u8,
    lost: u8,
    state: Checksums,
}

impl Sums {
    /// Of a VTEP that has not answered yet.
    pub fn new(wanted: bool) -> Sums {
        Sums {
            wanted,
            due: None,
            unsound: 0,
            lost: 0,
            state: Checksums::Unknown,
        }
    }

    /// What the probes have shown. It stays while they are not answered.
    pub fn state(&self) -> Checksums {
        self.state
    }

    /// When the next one is to be sent.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The VTEP answers, for the first time or again.
    pub fn contact(&mut self, now: Duration) {
        if self.wanted {
            self.due = Some(now);
            self.unsound = 0;
            self.lost = 0;
        }
    }

    /// It does not answer any more.
    pub fn silent(&mut self) {
        self.due = None;
    }

    /// There is another way to it.
    pub fn path_changed(&mut self, now: Duration) {
        if self.due.is_some() {
            self.contact(now);
        }
    }

    /// One is sent. `spread` makes of a pace the time until the next.
    pub fn sent(&mut self, now: Duration, spread: impl Fn(Duration) -> Duration) {
        let pace = match self.state {
            Checksums::Broken => BROKEN_PACE,
            Checksums::Ok | Checksums::Unknown => PACE,
        };
        self.due = Some(now + spread(pace));
    }

    /// One was answered.
    pub fn answered(&mut self, sound: bool, now: Duration) {
        self.lost = 0;
        if sound {
            self.unsound = 0;
            self.state = Checksums::Ok;
            return;
        }
        self.unsound = self.unsound.saturating_add(1);
        if self.unsound < UNSOUND {
            self.sooner(now + AGAIN);
        } else if self.state != Checksums::Broken {
            self.state = Checksums::Broken;
            self.sooner(now + BROKEN_PACE);
        }
    }

    /// One was not.
    pub fn lost(&mut self, now: Duration) {
        self.lost = self.lost.saturating_add(1);
        if self.lost < TRIES {
            self.sooner(now + LOST_AGAIN);
        } else {
            self.lost = 0;
        }
    }

    fn sooner(&mut self, at: Duration) {
        self.due = self.due.map(|due| due.min(at));
    }
}
