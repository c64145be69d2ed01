//! The rate of ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).

use core::time::Duration;

/// Ports share this many buckets, so that one container can't use up all others' errors.
const BUCKETS: usize = 64;
/// One error in this time and bucket, in the long run.
const INTERVAL: Duration = Duration::from_millis(1);
/// How far ahead of that a bucket may run: about 100 errors at once.
const BURST: Duration = Duration::from_millis(100);

/// Token buckets, in the form of the generic cell rate algorithm: each is the time at which it
/// will be full again.
#[derive(Debug)]
pub(super) struct Limiter {
    full_at: [Duration; BUCKETS],
}

impl Default for Limiter {
    fn default() -> Self {
        Limiter {
            full_at: [Duration::ZERO; BUCKETS],
        }
    }
}

impl Limiter {
    /// Takes a token from a port's bucket; false when there is none.
    pub fn allow(&mut self, ifindex: u32, now: Duration) -> bool {
        let full_at = &mut self.full_at[ifindex as usize % BUCKETS];
        if *full_at > now.saturating_add(BURST) {
            return false;
        }
        *full_at = now.max(*full_at).saturating_add(INTERVAL);
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
        let burst = (0..1000).filter(|_| limiter.allow(7, now)).count();
        assert_eq!(burst, 101);
        assert!(limiter.allow(8, now));
        let mut allowed = 0;
        for _ in 0..10_000 {
            now += Duration::from_micros(100);
            allowed += u32::from(limiter.allow(7, now));
        }
        assert_eq!(allowed, 1000);
        assert!(limiter.allow(7, Duration::MAX));
    }
}
