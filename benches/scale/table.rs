//! The rows that are printed and saved.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// One figure.
#[derive(Serialize)]
struct Row {
    part: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
}

/// All figures.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub fn new() -> Table {
        Table::default()
    }

    pub fn add(
        &mut self,
        part: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        let what = what.into();
        eprintln!("{part:<9} {what:<56} {value:>12.3} {unit}");
        self.rows.push(Row {
            part,
            what,
            value,
            unit,
        });
    }

    pub fn time(&mut self, part: &'static str, what: impl Into<String>, time: Duration) {
        self.add(part, what, time.as_secs_f64() * 1e3, "ms");
    }

    pub fn bytes(&mut self, part: &'static str, what: impl Into<String>, bytes: u64) {
        self.add(part, what, bytes as f64 / f64::from(1 << 20), "MiB");
    }

    pub fn print(&self) {
        println!("| part | what | | |\n|---|---|---:|---|");
        for Row {
            part,
            what,
            value,
            unit,
        } in &self.rows
        {
            println!("| {part} | {what} | {value:.2} | {unit} |");
        }
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.rows)?;
        fs::write(path, text).with_context(|| format!("can't write {}", path.display()))?;
        println!("\nThe same as JSON: {}", path.display());
        Ok(())
    }
}

/// The time within which so many percent were done.
pub fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    let time = times.get(rank.saturating_sub(1));
    time.copied().unwrap_or_default()
}
