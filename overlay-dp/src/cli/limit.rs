//! `--rate` and `--burst`, as `tc` has them.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use overlay_core::policy::RateLimit;

/// How much a container may send.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LimitArgs {
    /// It may send so many bits a second, and no more: what is more is dropped
    #[arg(long, value_name = "RATE, as 100mbit", value_parser = parse_rate)]
    rate: Option<u64>,
    /// It may send so many bytes at once after it was silent [default: a quarter of a second's]
    #[arg(long, value_name = "SIZE, as 1mb", value_parser = parse_size, requires = "rate")]
    burst: Option<u64>,
}

impl LimitArgs {
    /// As the API has it.
    pub fn limit(self) -> Option<RateLimit> {
        RateLimit::new(self.rate?, self.burst)
    }
}

/// In bytes a second.
fn parse_rate(text: &str) -> Result<u64> {
    let units = [
        ("gbit", 1_000_000_000),
        ("mbit", 1_000_000),
        ("kbit", 1000),
        ("bit", 1),
    ];
    let bits = parse(text, &units).ok_or_else(|| {
        anyhow!("'{text}' is no rate: write bits a second, as 500kbit, 100mbit or 1gbit")
    })?;
    if bits < 8000 {
        bail!("a rate is at least 8kbit");
    }
    Ok(bits / 8)
}

/// In bytes.
fn parse_size(text: &str) -> Result<u64> {
    let units = [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30), ("b", 1)];
    parse(text, &units).ok_or_else(|| anyhow!("'{text}' is no size: write bytes, as 256kb or 1mb"))
}

/// A number, and one of the units, or none.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let unit = units.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) = match unit {
        Some((unit, factor)) => (text.strip_suffix(unit)?, *factor),
        None => (text.as_str(), 1),
    };
    let number: f64 = number.trim().parse().ok()?;
    let value = number * factor as f64;
    (0.0..1e15).contains(&value).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes_are_those_of_tc() {
        assert_eq!(parse_rate("100mbit").unwrap(), 12_500_000);
        assert_eq!(parse_rate("1.5Gbit").unwrap(), 187_500_000);
        assert_eq!(parse_rate("80000").unwrap(), 10_000);
        assert_eq!(parse_size("1mb").unwrap(), 1 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for text in ["", "fast", "-1mbit", "10", "1e30gbit", "nan"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
