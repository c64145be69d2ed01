//! `overlay-dp verify`: the invariant that tests end with.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::{Agents, Host, Lab};
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
    /// When it does within that time, and shows what; when no agent answers.
    pub fn verify_clean(&self, within: Duration) -> Result<()> {
        let hosts: Vec<&Host> = self.hosts().iter().filter(|h| h.has_agent()).collect();
        ensure!(!hosts.is_empty(), "no agent answers: nothing is verified");
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
        .with_context(|| format!("these differ:\n{shown}"))?;
        self.set_agents(Agents::Verified);
        Ok(())
    }

    /// The same at a test's end. Where no agent is left, the test must have verified what there
    /// was since it started the last one, or have said that there is nothing to verify.
    ///
    /// # Errors
    /// As [`Lab::verify_clean`], and when it has not.
    pub(crate) fn verify_end(&self, within: Duration) -> Result<()> {
        if self.hosts().iter().any(Host::has_agent) {
            return self.verify_clean(within);
        }
        ensure!(
            self.agents() != Agents::Started,
            "no agent answers at the test's end, so nothing is verified: return the agents from the test, or \
             say lab.ends_without_agents()"
        );
        Ok(())
    }
}
