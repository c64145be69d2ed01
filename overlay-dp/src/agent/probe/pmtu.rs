//! The search for one path's MTU by probes alone (after RFC 8899): no ICMP error is needed, and
//! none is believed. Sizes are those of whole IP packets, in bytes.
//!
//! A size is too big when it was lost three times while small probes sent at the same time were
//! answered. When not even those are, the path is dead, which says nothing about its MTU.

use std::time::Duration;

/// The least that every path is taken to carry (IPv6's least MTU; QUIC between the hosts needs it).
pub const FLOOR: u32 = 1280;
/// How often a size is tried.
const TRIES: u8 = 3;
/// How often it is tried whether larger packets pass by now.
const RAISE: Duration = Duration::from_secs(60);
/// How long packets may vanish for the sake of an exact answer; then the best one so far counts.
const PATIENCE: Duration = Duration::from_secs(2);

/// One path's MTU.
#[derive(Debug)]
pub struct Pmtu {
    /// What the way's interface and route carry.
    limit: u32,
    /// What the path carries, as far as is known.
    current: u32,
    /// Whether a probe of that size, or a search, has shown it.
    confirmed: bool,
    /// A search begins when the path answers again.
    pending: bool,
    search: Option<Search>,
    raise_at: Duration,
}

#[derive(Debug)]
struct Search {
    /// Passes.
    low: u32,
    /// Is too big.
    high: u32,
    /// Is being tried.
    size: u32,
    /// How often it was sent.
    tries: u8,
    /// Whether a probe of this size is to be sent now.
    due: bool,
    /// Whether a small one is to be sent beside it.
    control_due: bool,
    /// Whether a small one was answered since `size` is tried.
    control_answered: bool,
    /// Since when `current` is known to be too big.
    lowering: Option<Duration>,
}

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A packet of this size.
    Size(u32),
    /// A small packet.
    Control,
}

impl Pmtu {
    /// A path whose first link carries `limit`.
    pub fn new(limit: u32) -> Pmtu {
        Pmtu {
            limit,
            current: limit,
            confirmed: false,
            pending: true,
            search: None,
            raise_at: Duration::ZERO,
        }
    }

    /// What the path carries; `None` while that is not known.
    pub fn mtu(&self) -> Option<u32> {
        self.confirmed.then_some(self.current)
    }

    /// The size of a packet that should pass.
    pub fn size(&self) -> u32 {
        self.current
    }

    /// The path is another one now, and its first link carries `limit`.
    pub fn path_changed(&mut self, limit: u32) {
        self.limit = limit;
        // What it was is the best guess until the search has ended.
        self.current = match self.confirmed {
            true => self.current.min(limit),
            false => limit,
        };
        self.search = None;
        self.pending = true;
    }

    /// The path did not answer for some time: it may be another one when it does.
    pub fn path_silent(&mut self) {
        self.search = None;
        self.pending = true;
    }

    /// Some probe was answered: a search that has waited for that begins, and it may be time to
    /// look for more.
    pub fn path_answers(&mut self, now: Duration) {
        if self.search.is_some() {
            return;
        }
        if std::mem::take(&mut self.pending) {
            self.begin(FLOOR.min(self.limit), self.limit + 1, self.limit);
        } else if now >= self.raise_at && self.current < self.limit {
            self.begin(self.current, self.limit + 1, self.current + 1);
        }
    }

    /// A packet of [`Pmtu::size`] was lost: the path may have become a black hole for its like.
    pub fn large_lost(&mut self, size: u32) {
        if self.search.is_none() && !self.pending && size == self.current && size > FLOOR {
            self.begin(FLOOR, self.current + 1, self.current);
        }
    }

    fn begin(&mut self, low: u32, high: u32, size: u32) {
        self.search = Some(Search {
            low,
            high,
            size,
            tries: 0,
            due: true,
            control_due: false,
            control_answered: false,
            lowering: None,
        });
    }

    /// The next probe to send.
    pub fn poll(&mut self) -> Option<Ask> {
        let search = self.search.as_mut()?;
        if std::mem::take(&mut search.control_due) {
            return Some(Ask::Control);
        }
        if std::mem::take(&mut search.due) {
            search.tries += 1;
            return Some(Ask::Size(search.size));
        }
        None
    }

    /// Whether there is a probe to send.
    pub fn is_due(&self) -> bool {
        let search = self.search.as_ref();
        search.is_some_and(|search| search.due || search.control_due)
    }

    /// When the patience with a search ends.
    pub fn deadline(&self) -> Option<Duration> {
        let search = self.search.as_ref()?;
        let since = search.lowering.filter(|_| self.current > search.low)?;
        Some(since + PATIENCE)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline().is_some_and(|deadline| now >= deadline)
            && let Some(search) = &self.search
        {
            self.current = search.low;
            self.confirmed = true;
        }
    }

    /// A packet of this size came back, maybe late.
    pub fn passed(&mut self, size: u32, now: Duration) {
        if size > self.limit {
            return;
        }
        if let Some(search) = &mut self.search {
            if size >= search.high {
                // It was not too big after all: some loss was only loss.
                search.high = self.limit + 1;
            }
            search.low = search.low.max(size);
            if size >= self.current {
                search.lowering = None;
            }
        }
        if size > self.current || (size == self.current && !self.confirmed) {
            self.current = size;
            self.confirmed = true;
        }
        self.go_on(now);
    }

    /// A small packet that was sent beside a large one came back.
    pub fn control_passed(&mut self) {
        if let Some(search) = &mut self.search {
            search.control_answered = true;
        }
    }

    /// A packet of this size, sent for the search, did not come back in time.
    pub fn lost(&mut self, size: u32, now: Duration) {
        let Some(search) = &mut self.search else {
            return;
        };
        if size != search.size || search.due {
            return;
        }
        if search.tries < TRIES {
            search.due = true;
            search.control_due = true;
            return;
        }
        if !search.control_answered {
            self.path_silent();
            return;
        }
        search.high = size;
        if size <= self.current {
            search.lowering.get_or_insert(now);
        }
        self.go_on(now);
    }

    /// Takes the next size, unless the one that is being tried is still open.
    fn go_on(&mut self, now: Duration) {
        let Some(search) = &mut self.search else {
            return;
        };
        if search.low < search.size && search.size < search.high {
            return;
        }
        if search.low + 1 >= search.high {
            self.current = search.low;
            self.confirmed = true;
            self.search = None;
            self.raise_at = now + RAISE;
            return;
        }
        search.size = match search.high > self.limit {
            // Nothing was too big so far: mostly the whole limit passes.
            true => self.limit,
            false => search.low.midpoint(search.high),
        };
        search.tries = 0;
        search.due = true;
        search.control_due = false;
        search.control_answered = false;
    }
}
