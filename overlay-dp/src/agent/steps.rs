//! How long each step of something took, for the log: where the time goes is seen where it goes.

use std::fmt;
use std::time::{Duration, Instant};

/// Steps that are done one after the other.
pub struct Steps {
    begin: Instant,
    last: Instant,
    took: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// The first one begins.
    pub fn begin() -> Steps {
        let now = Instant::now();
        Steps {
            begin: now,
            last: now,
            took: Vec::new(),
        }
    }

    /// It ends here, and the next one begins.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.took.push((step, now - self.last));
        self.last = now;
    }
}

/// `veth 11.3 hook 0.4 all 11.8 ms`.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = ("all", self.last - self.begin);
        for (step, took) in self.took.iter().copied().chain([all]) {
            write!(f, "{step} {:.1} ", took.as_secs_f64() * 1e3)?;
        }
        f.write_str("ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_what_took_how_long() {
        let mut steps = Steps::begin();
        steps.done("veth");
        steps.took[0].1 = Duration::from_micros(11_340);
        steps.last = steps.begin + Duration::from_millis(12);
        assert_eq!(steps.to_string(), "veth 11.3 all 12.0 ms");
    }
}
