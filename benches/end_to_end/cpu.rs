//! The machine's time.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// `USER_HZ`: what /proc counts in.
const TICKS_PER_SECOND: u64 = 100;

/// What all CPUs together had nothing to do for, until now.
pub struct IdleTime {
    at: Instant,
    idle: Duration,
    cpus: u32,
}

impl IdleTime {
    pub fn now() -> Result<IdleTime> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let at = Instant::now();
        let mut lines = text.lines();
        // cpu user nice system idle iowait irq softirq steal …
        let all = lines.next().context("/proc/stat is empty")?;
        let fields: Vec<u64> = all
            .split_whitespace()
            .skip(1)
            .map_while(|field| field.parse().ok())
            .collect();
        let [_, _, _, idle, iowait, _, _, stolen, ..] = fields[..] else {
            anyhow::bail!("/proc/stat begins with '{all}'");
        };
        let cpus = lines.take_while(|line| line.starts_with("cpu")).count();
        Ok(IdleTime {
            at,
            idle: Duration::from_millis((idle + iowait + stolen) * 1000 / TICKS_PER_SECOND),
            cpus: u32::try_from(cpus)?,
        })
    }

    /// How long CPUs were busy since then, added up.
    pub fn busy_since(&self) -> Result<Duration> {
        let now = IdleTime::now()?;
        let all = (now.at - self.at) * self.cpus;
        Ok(all.saturating_sub(now.idle.saturating_sub(self.idle)))
    }
}
