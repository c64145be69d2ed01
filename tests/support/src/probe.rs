//! What a container sees of its network: ping, traceroute and the kernel's own error counters.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::ns::Ns;
use crate::process::{Background, emulated};

/// The result of one ping.
#[derive(Clone, Debug, PartialEq)]
pub struct PingStats {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// Answers that had come before.
    pub duplicates: u32,
    /// Fastest round trip, in ms; 0 when there was none.
    pub min_ms: f64,
    /// Mean round trip, in ms.
    pub avg_ms: f64,
    /// Slowest round trip, in ms.
    pub max_ms: f64,
    /// All that ping has written, ICMP errors among it.
    pub output: String,
}

impl PingStats {
    /// Requests not answered.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }

    fn parse(output: String) -> Result<PingStats> {
        let numbers = output
            .lines()
            .find(|line| line.contains(" packets transmitted"))
            .with_context(|| format!("ping told nothing:\n{output}"))?;
        let count = |what: &str| {
            let field = numbers.split(", ").find(|field| field.contains(what))?;
            field
                .trim_start_matches('+')
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        };
        // "rtt min/avg/max/mdev = 0.031/0.043/0.062/0.011 ms"
        let times: Vec<f64> = output
            .lines()
            .find_map(|line| {
                line.strip_prefix("rtt ")?
                    .split(" = ")
                    .nth(1)?
                    .split(' ')
                    .next()
            })
            .map(|times| {
                times
                    .split('/')
                    .filter_map(|time| time.parse().ok())
                    .collect()
            })
            .unwrap_or_default();
        let time = |index| times.get(index).copied().unwrap_or_default();
        Ok(PingStats {
            sent: count("transmitted").context("ping told no number of requests")?,
            received: count("received").context("ping told no number of answers")?,
            duplicates: count("duplicates").unwrap_or(0),
            min_ms: time(0),
            avg_ms: time(1),
            max_ms: time(2),
            output,
        })
    }
}

/// Pings `count` times, 50 ms apart, with `size` bytes of payload; `df` sets don't-fragment.
///
/// # Errors
/// When ping can't be started. That nothing is answered is no error.
pub fn ping(ns: &Ns, dst: IpAddr, count: u32, size: u16, df: bool) -> Result<PingStats> {
    let pmtu = if df { "-M do" } else { "-M dont" };
    let patience = if emulated() { 5 } else { 1 };
    let done = ns.run_any(&format!(
        "ping -n -i 0.05 -W {patience} -c {count} -s {size} {pmtu} {dst}"
    ))?;
    PingStats::parse(done.stdout + &done.stderr)
}

/// A ping that goes on while the test does something to the network.
#[derive(Debug)]
pub struct PingRun {
    process: Background,
    length: Duration,
}

/// Starts a ping of `count` requests, `interval` apart.
///
/// # Errors
/// When ping can't be started.
pub fn start_ping(ns: &Ns, dst: IpAddr, count: u32, interval: Duration) -> Result<PingRun> {
    let seconds = interval.as_secs_f32();
    Ok(PingRun {
        process: ns.start(&format!("ping -n -q -W 2 -i {seconds} -c {count} {dst}"))?,
        length: interval * count,
    })
}

impl PingRun {
    /// Waits for the last request's answer.
    ///
    /// # Errors
    /// When it does not come to its end.
    pub fn finish(self) -> Result<PingStats> {
        // A machine under load sends late, never early.
        let done = self
            .process
            .finish(self.length * 3 + Duration::from_secs(10))?;
        PingStats::parse(done.stdout + &done.stderr)
    }

    /// Ends it now. The last request may count as lost: its answer was not waited for.
    ///
    /// # Errors
    /// When it does not end within that time.
    pub fn stop(mut self, within: Duration) -> Result<PingStats> {
        self.process.signal(Signal::INT);
        let done = self.process.finish(within)?;
        PingStats::parse(done.stdout + &done.stderr)
    }

    /// Whether it still sends.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

/// One line of a traceroute: who answered, if anybody.
pub type Hop = Option<IpAddr>;

/// The hops to `dst`, the last of which is `dst` if it was reached.
///
/// # Errors
/// When traceroute fails.
pub fn traceroute(ns: &Ns, dst: IpAddr) -> Result<Vec<Hop>> {
    Ok(hops(
        &ns.run(&format!("traceroute -n -q 1 -w 2 -m 5 {dst}"))?,
    ))
}

fn hops(output: &str) -> Vec<Hop> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next()?.parse::<u8>().ok()?;
            Some(words.next()?.parse().ok())
        })
        .collect()
}

/// A kernel counter of a namespace, such as `TcpInCsumErrors`.
///
/// # Errors
/// When there is no such counter.
pub fn nstat(ns: &Ns, counter: &str) -> Result<u64> {
    counters(ns)?
        .get(counter)
        .and_then(Value::as_u64)
        .with_context(|| format!("no counter {counter}"))
}

/// The counters of bad checksums that are not 0, as `TcpInCsumErrors=3`.
///
/// # Errors
/// When nstat fails, or does not know them.
pub fn checksum_errors(ns: &Ns) -> Result<Vec<String>> {
    let counters = counters(ns)?;
    let mut known = counters
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.ends_with("InCsumErrors"))
        .peekable();
    if known.peek().is_none() {
        bail!("nstat has no checksum counters");
    }
    Ok(known
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(name, count)| format!("{name}={count}"))
        .collect())
}

fn counters(ns: &Ns) -> Result<Value> {
    // Absolute values, zeros too, and without the history file that all namespaces would share.
    let text = ns.run("nstat -a -s -z -j")?;
    let mut value: Value = serde_json::from_str(&text).context("nstat's JSON")?;
    Ok(value["kernel"].take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_statistics() {
        let text = "PING 10.0.0.3 (10.0.0.3) 56(84) bytes of data.\n\
            From 10.0.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1450)\n\n\
            --- 10.0.0.3 ping statistics ---\n\
            5 packets transmitted, 3 received, +1 duplicates, +2 errors, 40% packet loss, time 804ms\n\
            rtt min/avg/max/mdev = 0.031/0.043/0.062/0.011 ms\n";
        let stats = PingStats::parse(text.to_owned()).unwrap();
        assert_eq!((stats.sent, stats.received, stats.lost()), (5, 3, 2));
        assert_eq!(stats.duplicates, 1);
        assert_eq!(
            (stats.min_ms, stats.avg_ms, stats.max_ms),
            (0.031, 0.043, 0.062)
        );
        let none = "3 packets transmitted, 0 received, 100% packet loss, time 2035ms\n";
        assert_eq!(PingStats::parse(none.to_owned()).unwrap().lost(), 3);
        assert!(PingStats::parse("ping: unknown host".to_owned()).is_err());
    }

    #[test]
    fn traceroute_hops() {
        let text = "traceroute to 10.0.0.3 (10.0.0.3), 5 hops max, 60 byte packets\n \
            1  *\n 2  10.0.0.3  0.048 ms\n";
        assert_eq!(hops(text), [None, Some("10.0.0.3".parse().unwrap())]);
    }
}
