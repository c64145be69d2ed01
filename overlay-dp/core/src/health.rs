//! Whether a service's tasks are ready: what is tried of them, and what follows from it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is tried of each task of a service, by the host that it is on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What it must take.
    pub probe: Probe,
    /// In milliseconds: a try begins so long after the last one has ended.
    pub interval_ms: u32,
    /// In milliseconds: what takes longer has failed.
    pub timeout_ms: u32,
    /// So many tries in a row must fail before a task is taken for unready.
    pub retries: u32,
}

/// What a task that is ready takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Probe {
    /// A TCP connection to this port.
    Tcp(u16),
    /// An HTTP request for this path at this port: the answer's status is below 400.
    Http(u16, String),
}

/// What can be no check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CheckError {
    /// Not a probe.
    #[error("'{0}' can't be checked: write tcp:PORT or http:PORT/PATH")]
    Probe(String),
    /// Nobody waits so shortly, or so long.
    #[error(
        "a check's interval and timeout are from 0.1 to 3600 seconds, its retries from 1 to 100"
    )]
    Range,
}

/// No path is longer, in bytes: every host keeps it.
const MAX_PATH: usize = 255;
/// Of intervals and timeouts, in milliseconds.
const TIMES: std::ops::RangeInclusive<u32> = 100..=3_600_000;
/// A task that is not ready is tried at least so often: its clients wait for it.
const WAITING: Duration = Duration::from_secs(1);

impl Probe {
    /// The port that is tried.
    pub const fn port(&self) -> u16 {
        match self {
            Probe::Tcp(port) | Probe::Http(port, _) => *port,
        }
    }
}

impl FromStr for Probe {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        let bad = || CheckError::Probe(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        let (port, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let is_path = path.len() <= MAX_PATH && path.bytes().all(|b| b.is_ascii_graphic());
        let port = port.parse::<u16>().ok().filter(|port| *port != 0);
        let port = port.filter(|_| is_path).ok_or_else(bad)?;
        match (kind, path) {
            ("tcp", "") => Ok(Probe::Tcp(port)),
            ("http", "") => Ok(Probe::Http(port, "/".to_owned())),
            ("http", path) => Ok(Probe::Http(port, path.to_owned())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Tcp(port) => write!(f, "tcp:{port}"),
            Probe::Http(port, path) => write!(f, "http:{port}{path}"),
        }
    }
}

impl From<Probe> for String {
    fn from(probe: Probe) -> String {
        probe.to_string()
    }
}

impl TryFrom<String> for Probe {
    type Error = CheckError;

    fn try_from(text: String) -> Result<Self, CheckError> {
        text.parse()
    }
}

impl HealthCheck {
    /// Whether it can be carried out.
    ///
    /// # Errors
    /// [`CheckError::Range`] when it can't.
    pub fn check(&self) -> Result<(), CheckError> {
        let times = [self.interval_ms, self.timeout_ms];
        match times.iter().all(|ms| TIMES.contains(ms)) && (1..=100).contains(&self.retries) {
            true => Ok(()),
            false => Err(CheckError::Range),
        }
    }

    /// How long a try may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.into())
    }
}

/// What the tries of one task have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    ready: bool,
    failed: u32,
}

impl Health {
    /// Of a task that was, or was not, ready before the first try.
    pub const fn new(ready: bool) -> Health {
        Health { ready, failed: 0 }
    }

    /// A try has ended. Tells whether the task is ready, if that is news.
    pub fn tried(&mut self, good: bool, check: &HealthCheck) -> Option<bool> {
        self.failed = if good {
            0
        } else {
            self.failed.saturating_add(1)
        };
        let ready = good || (self.ready && self.failed < check.retries);
        (std::mem::replace(&mut self.ready, ready) != ready).then_some(ready)
    }

    /// How long to wait before the next try.
    pub fn pause(&self, check: &HealthCheck) -> Duration {
        let interval = Duration::from_millis(check.interval_ms.into());
        match self.ready {
            true => interval,
            false => interval.min(WAITING),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp(80),
            interval_ms: 5000,
            timeout_ms: 3000,
            retries: 3,
        }
    }

    #[test]
    fn probes_as_people_write_them() {
        for text in ["tcp:80", "http:8080/", "http:1/a?b=c"] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
        assert_eq!("http:80".parse(), Ok(Probe::Http(80, "/".into())));
        let long = format!("http:80/{}", "a".repeat(MAX_PATH));
        for bad in [
            "",
            "tcp",
            "tcp:0",
            "tcp:65536",
            "tcp:80/x",
            "udp:53",
            "http:/x",
            "http:80/a b",
            &long,
        ] {
            assert!(bad.parse::<Probe>().is_err(), "{bad}");
        }
        let never = HealthCheck {
            retries: 0,
            ..check()
        };
        let hasty = HealthCheck {
            interval_ms: 1,
            ..check()
        };
        assert!(check().check().is_ok() && never.check().is_err() && hasty.check().is_err());
    }

    #[test]
    fn one_good_try_makes_ready_and_some_bad_ones_in_a_row_unready() {
        let mut health = Health::new(false);
        let tries = [
            (false, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, None),
            (true, Some(true)),
        ];
        for (number, (good, news)) in tries.into_iter().enumerate() {
            assert_eq!(health.tried(good, &check()), news, "{number}");
        }
        assert_eq!(health.pause(&check()), Duration::from_secs(5));
        assert_eq!(Health::new(false).pause(&check()), WAITING);
    }
}
