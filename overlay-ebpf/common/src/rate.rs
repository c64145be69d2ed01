//! How much a port may send: a token bucket, kept as the time at which what was sent so far is paid
//! for. One word is all of its state, so that programs on several CPUs change it with one
//! compare-and-exchange, without a lock.

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// The largest burst, in nanoseconds: what is longer makes no difference to anybody.
pub const MAX_BURST_NS: u64 = 1 << 40;

/// What `len` bytes cost, in nanoseconds, at `rate` bytes a second, which is not 0.
#[inline(always)]
pub const fn cost(len: u32, rate: u64) -> u64 {
    len as u64 * SECOND / rate
}

/// How long it takes to pay for `bytes`, at most [`MAX_BURST_NS`].
pub fn burst_ns(bytes: u64, rate: u64) -> u64 {
    let ns = u128::from(bytes) * u128::from(SECOND) / u128::from(rate.max(1));
    u64::try_from(ns).map_or(MAX_BURST_NS, |ns| ns.min(MAX_BURST_NS))
}

/// When all is paid for if something of this cost is sent `now`; `None` when that is more than
/// `burst` from now. `paid` is when all before it is. Times are nanoseconds of one clock.
#[inline(always)]
pub const fn take(paid: u64, now: u64, cost: u64, burst: u64) -> Option<u64> {
    // A time farther off than that is another bucket's, whose place this one has got.
    let paid = if paid < now || paid - now > burst {
        now
    } else {
        paid
    };
    if paid - now + cost > burst {
        return None;
    }
    Some(paid + cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_its_rate_and_one_burst() {
        // 1 MB/s, 100 kB at once; 1000 bytes every 100 µs are ten times too much.
        let (rate, burst) = (1_000_000, burst_ns(100_000, 1_000_000));
        let (mut paid, mut sent) = (0, 0u64);
        for step in 0..=50_000u64 {
            let now = 1_000_000_000 + step * 100_000;
            if let Some(next) = take(paid, now, cost(1000, rate), burst) {
                paid = next;
                sent += 1000;
            }
        }
        assert_eq!(sent, 5_000_000 + 100_000);
    }

    #[test]
    fn idle_time_is_worth_no_more_than_a_burst() {
        let burst = burst_ns(3000, 1_000_000);
        let mut paid = 0;
        let mut count = 0;
        while let Some(next) = take(paid, u64::MAX / 2, cost(1000, 1_000_000), burst) {
            paid = next;
            count += 1;
        }
        assert_eq!(count, 3);
        // Another bucket's time, far in the future, is not waited for.
        assert!(take(u64::MAX, 5, 1, 10).is_some());
    }

    #[test]
    fn bursts_have_a_limit() {
        assert_eq!(burst_ns(u64::MAX, 1), MAX_BURST_NS);
        assert_eq!(burst_ns(1_000_000, 0), MAX_BURST_NS);
        assert_eq!(burst_ns(1_000_000, 1_000_000), SECOND);
    }
}
