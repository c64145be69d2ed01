//! What a container can have the slow path do at most: ICMP errors (RFC 1812 section 4.3.2.8, RFC
//! 4443 section 2.4 f), names, and broadcast and multicast.

use core::time::Duration;

/// Ports share so many buckets, so that one container can't use up what all others have.
const BUCKETS: usize = 256;
/// One error in this time and bucket, in the long run.
const ERRORS: Duration = Duration::from_millis(1);
/// One query in this time and bucket, in the long run.
const QUERIES: Duration = Duration::from_micros(200);
/// How far ahead of that a bucket may run: about 100 errors or 500 queries at once.
const BURST: Duration = Duration::from_millis(100);

/// One frame that all must get, such as an ARP request, in this time and bucket.
const ESSENTIALS: Duration = Duration::from_micros(200);
/// One IGMP or MLD message in this time and bucket: more than answers a query at once.
const REPORTS: Duration = Duration::from_millis(1);

/// How much broadcast and multicast each port may send: frames that are replicated, not copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimit {
    /// In a second; 0 for no limit.
    pub frames: u32,
    /// In a second; 0 for no limit.
    pub bytes: u64,
}

impl Default for FloodLimit {
    /// More than nearly all need, and a small part of what the slow path can do: 5000 frames and
    /// 12.5 MB (100 Mbit) in a second.
    fn default() -> Self {
        FloodLimit {
            frames: 5000,
            bytes: 12_500_000,
        }
    }
}

/// The limits of every port.
#[derive(Debug)]
pub(super) struct Limiter {
    errors: Buckets,
    queries: Buckets,
    essentials: Buckets,
    reports: Buckets,
    flood: FloodLimit,
    frames: Buckets,
    bytes: Buckets,
}

impl Limiter {
    pub fn new(flood: FloodLimit) -> Limiter {
        Limiter {
            errors: Buckets::default(),
            queries: Buckets::default(),
            essentials: Buckets::default(),
            reports: Buckets::default(),
            flood,
            frames: Buckets::default(),
            bytes: Buckets::default(),
        }
    }

    /// Whether a port may be sent one more ICMP error.
    pub fn error(&mut self, ifindex: u32, now: Duration) -> bool {
        self.errors.allow(ifindex, ERRORS, now)
    }

    /// Whether a port may ask for one more name.
    pub fn query(&mut self, ifindex: u32, now: Duration) -> bool {
        self.queries.allow(ifindex, QUERIES, now)
    }

    /// Whether a port may have one more frame flooded that all must get.
    pub fn essential(&mut self, ifindex: u32, now: Duration) -> bool {
        self.essentials.allow(ifindex, ESSENTIALS, now)
    }

    /// Whether a port may say something about its groups once more.
    pub fn report(&mut self, ifindex: u32, now: Duration) -> bool {
        self.reports.allow(ifindex, REPORTS, now)
    }

    /// Whether a port may have one more frame of `len` bytes replicated.
    pub fn flood(&mut self, ifindex: u32, len: usize, now: Duration) -> bool {
        // By the second: what is no limit costs nothing.
        let part = |n: u64, of: u64| n.saturating_mul(1_000_000_000).checked_div(of).unwrap_or(0);
        let frame = Duration::from_nanos(part(1, self.flood.frames.into()));
        let bytes = Duration::from_nanos(part(len as u64, self.flood.bytes));
        self.bytes.has(ifindex, now)
            && self.frames.allow(ifindex, frame, now)
            && self.bytes.allow(ifindex, bytes, now)
    }
}

/// Token buckets, in the form of the generic cell rate algorithm: each is the time at which it
/// will be full again.
#[derive(Debug)]
struct Buckets {
    full_at: [Duration; BUCKETS],
}

impl Default for Buckets {
    fn default() -> Self {
        Buckets {
            full_at: [Duration::ZERO; BUCKETS],
        }
    }
}

impl Buckets {
    /// Takes from a port's bucket what fills it again in the time `cost`; false when it is empty.
    fn allow(&mut self, ifindex: u32, cost: Duration, now: Duration) -> bool {
        if !self.has(ifindex, now) {
            return false;
        }
        let full_at = &mut self.full_at[ifindex as usize % BUCKETS];
        *full_at = now.max(*full_at).saturating_add(cost);
        true
    }

    fn has(&self, ifindex: u32, now: Duration) -> bool {
        self.full_at[ifindex as usize % BUCKETS] <= now.saturating_add(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: FloodLimit = FloodLimit {
        frames: 5000,
        bytes: 12_500_000,
    };

    #[test]
    fn floods_are_limited_in_frames_and_bytes() {
        let sent = |limit, len: usize| {
            let mut limiter = Limiter::new(limit);
            let times = (0..100_000).map(|n| Duration::from_micros(1_000_000 + n * 10));
            times.filter(|now| limiter.flood(7, len, *now)).count()
        };
        // In one second, and the burst.
        assert_eq!(FloodLimit::default(), DEFAULT);
        assert_eq!(sent(DEFAULT, 64), 5500);
        assert_eq!(sent(DEFAULT, 12_500), 1100);
        let unlimited = FloodLimit {
            frames: 0,
            bytes: 0,
        };
        assert_eq!(sent(unlimited, 9000), 100_000);
        let mut limiter = Limiter::new(DEFAULT);
        let now = Duration::from_secs(9);
        while limiter.flood(7, 1500, now) {}
        assert!(limiter.essential(7, now) && limiter.report(7, now) && limiter.flood(8, 1, now));
    }

    #[test]
    fn a_burst_then_a_rate_per_port() {
        let mut limiter = Limiter::new(DEFAULT);
        let mut now = Duration::from_secs(5);
        let burst = (0..1000).filter(|_| limiter.error(7, now)).count();
        assert_eq!(burst, 101);
        assert!(limiter.error(8, now));
        let burst = (0..1000).filter(|_| limiter.query(7, now)).count();
        assert_eq!(burst, 501);
        let (mut errors, mut queries) = (0, 0);
        for _ in 0..10_000 {
            now += Duration::from_micros(100);
            errors += u32::from(limiter.error(7, now));
            queries += u32::from(limiter.query(7, now));
        }
        assert_eq!((errors, queries), (1000, 5000));
        assert!(limiter.error(7, Duration::MAX));
    }
}
