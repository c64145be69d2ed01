//! What a container can have the slow path do at most: ICMP errors (RFC 1812 section 4.3.2.8, RFC
//! 4443 section 2.4 f) and names.

use core::time::Duration;

/// Ports share so many buckets, so that one container can't use up what all others have.
const BUCKETS: usize = 256;
/// One error in this time and bucket, in the long run.
const ERRORS: Duration = Duration::from_millis(1);
/// One query in this time and bucket, in the long run.
const QUERIES: Duration = Duration::from_micros(200);
/// How far ahead of that a bucket may run: about 100 errors or 500 queries at once.
const BURST: Duration = Duration::from_millis(100);

/// The limits of every port.
#[derive(Debug)]
pub(super) struct Limiter {
    errors: Buckets,
    queries: Buckets,
}

impl Default for Limiter {
    fn default() -> Self {
        Limiter {
            errors: Buckets::new(ERRORS),
            queries: Buckets::new(QUERIES),
        }
    }
}

impl Limiter {
    /// Whether a port may be sent one more ICMP error.
    pub fn error(&mut self, ifindex: u32, now: Duration) -> bool {
        self.errors.allow(ifindex, now)
    }

    /// Whether a port may ask for one more name.
    pub fn query(&mut self, ifindex: u32, now: Duration) -> bool {
        self.queries.allow(ifindex, now)
    }
}

/// Token buckets, in the form of the generic cell rate algorithm: each is the time at which it
/// will be full again.
#[derive(Debug)]
struct Buckets {
    interval: Duration,
    full_at: [Duration; BUCKETS],
}

impl Buckets {
    fn new(interval: Duration) -> Buckets {
        Buckets {
            interval,
            full_at: [Duration::ZERO; BUCKETS],
        }
    }

    /// Takes a token from a port's bucket; false when there is none.
    fn allow(&mut self, ifindex: u32, now: Duration) -> bool {
        let full_at = &mut self.full_at[ifindex as usize % BUCKETS];
        if *full_at > now.saturating_add(BURST) {
            return false;
        }
        *full_at = now.max(*full_at).saturating_add(self.interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_per_port() {
        let mut limiter = Limiter::default();
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
