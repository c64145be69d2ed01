//! `overlay-dp verify`: the invariant that tests end with.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::{Host, Lab};
use crate::process::wait_until;

impl Host {
    /// Whether an agent answers here.
    pub fn has_agent(&self) -> bool {
        self.overlay_json("status").is_ok()
    }

    /// The differences that `overlay-dp verify` finds, one line each; that it can't look is one.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn differences(&self) -> Result<Vec<String>> {
        let done = self.overlay_any("verify --json")?;
        let found: Option<Vec<Value>> = serde_json::from_str(&done.stdout).ok();
        let text = |field: &Value| field.as_str().unwrap_or("?").to_owned();
        Ok(match found {
            Some(found) => found
                .iter()
                .map(|f| {
                    let [place, subject] = [text(&f["place"]), text(&f["subject"])];
                    format!("{place}: {subject}: {}", text(&f["problem"]))
                })
                .collect(),
            None => vec![format!("{}{}", done.stdout, done.stderr)],
        })
    }
}

impl Lab {
    /// Waits until `overlay-dp verify` finds nothing on all hosts that have an agent, at the same
    /// time.
    ///
    /// # Errors
    /// When it does within that time; shows what.
    pub fn verify_clean(&self, within: Duration) -> Result<()> {
        let hosts: Vec<&Host> = self.hosts().iter().filter(|h| h.has_agent()).collect();
        let mut shown = String::new();
        wait_until("overlay-dp verify finds nothing", within, || {
            shown.clear();
            for host in &hosts {
                let found = host.differences();
                for line in found.unwrap_or_else(|error| vec![format!("{error:#}")]) {
                    let _ = writeln!(shown, "  {}: {line}", host.ns.label());
                }
            }
            shown.is_empty()
        })
        .with_context(|| format!("these differ:\n{shown}"))
    }
}
