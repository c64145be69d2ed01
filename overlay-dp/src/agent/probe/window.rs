//! What the last probes to one VTEP have shown.

use std::collections::VecDeque;
use std::time::Duration;

/// How many probes count.
const PROBES: usize = 100;
/// How much one round trip moves the average: 1 / 8, as TCP's (RFC 6298 section 2).
const WEIGHT: u32 = 8;

/// The fate of the last probes.
#[derive(Debug, Default)]
pub struct Window {
    /// Round trips, `None` for what was lost.
    probes: VecDeque<Option<Duration>>,
    average: Option<Duration>,
}

/// Round trip times of the answered probes in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The fastest.
    pub min: Duration,
    /// Moving average, also of older ones.
    pub average: Duration,
    /// All but one in a hundred are faster.
    pub p99: Duration,
}

impl Window {
    /// One more probe was answered.
    pub fn answered(&mut self, rtt: Duration) {
        self.average = Some(match self.average {
            None => rtt,
            Some(average) => (average * (WEIGHT - 1) + rtt) / WEIGHT,
        });
        self.push(Some(rtt));
    }

    /// One more probe was not answered in time.
    pub fn lost(&mut self) {
        self.push(None);
    }

    fn push(&mut self, probe: Option<Duration>) {
        if self.probes.len() == PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(probe);
    }

    /// The moving average.
    pub fn average(&self) -> Option<Duration> {
        self.average
    }

    /// Round trips; `None` while nothing in the window was answered.
    pub fn latency(&self) -> Option<Latency> {
        let mut rtts: Vec<Duration> = self.probes.iter().flatten().copied().collect();
        rtts.sort_unstable();
        // The nearest rank: the 100th of 100 when one is slow.
        let rank = (rtts.len() * 99).div_ceil(100);
        Some(Latency {
            min: *rtts.first()?,
            average: self.average?,
            p99: *rtts.get(rank.checked_sub(1)?)?,
        })
    }

    /// Lost ones and all.
    pub fn loss(&self) -> (usize, usize) {
        let lost = self.probes.iter().filter(|probe| probe.is_none()).count();
        (lost, self.probes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_count() {
        let ms = Duration::from_millis;
        let mut window = Window::default();
        assert_eq!((window.latency(), window.loss()), (None, (0, 0)));
        window.lost();
        assert_eq!((window.latency(), window.loss()), (None, (1, 1)));
        for n in 1..=100 {
            window.answered(ms(n));
        }
        assert_eq!(window.loss(), (0, 100));
        let latency = window.latency().unwrap();
        assert_eq!((latency.min, latency.p99), (ms(1), ms(99)));
        assert!(latency.average > ms(90) && latency.average < ms(100));
        for _ in 0..100 {
            window.lost();
        }
        assert_eq!((window.latency(), window.loss()), (None, (100, 100)));
    }
}
