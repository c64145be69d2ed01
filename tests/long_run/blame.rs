//! Which fault may have lost which packet.

use std::time::Duration;

use anyhow::{Result, bail};

use super::flow::Flow;

/// What was under way when the fault came is lost with it.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// What may lose packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A host's uplink has no carrier.
    Link,
    /// A host's agent does not run: encrypted networks wait for it, others must not notice.
    Agent,
}

/// Something that may lose packets, for as long as it may.
#[derive(Debug)]
pub struct Fault {
    pub kind: Kind,
    pub host: usize,
    pub from: Duration,
    /// What was broken is whole …
    pub mended: Duration,
    /// … and by then nothing may be lost any more.
    pub until: Duration,
}

impl Fault {
    fn excuses(&self, flow: &Flow, sent: Duration) -> bool {
        let affects = self.kind == Kind::Link || flow.encrypted;
        let within = self.from.saturating_sub(UNDER_WAY)..self.until;
        affects && flow.hosts.contains(&self.host) && within.contains(&sent)
    }
}

/// All of a run.
#[derive(Debug, Default)]
pub struct Blame {
    faults: Vec<Fault>,
    pub by_links: usize,
    pub by_agents: usize,
    /// The last packet that was lost after a link was up again: so much later.
    pub after_link: Duration,
    /// The same after an agent was ready again, on an encrypted network.
    pub after_agent: Duration,
}

impl Blame {
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Finds a fault for each lost packet.
    ///
    /// # Errors
    /// When there is none for some of them.
    pub fn judge(&mut self, flow: &Flow) -> Result<()> {
        let mut unexplained = Vec::new();
        for sent in flow.lost()? {
            let Some(fault) = self.faults.iter().find(|f| f.excuses(flow, sent)) else {
                unexplained.push(sent);
                continue;
            };
            let late = sent.saturating_sub(fault.mended);
            let (count, after) = match fault.kind {
                Kind::Link => (&mut self.by_links, &mut self.after_link),
                Kind::Agent => (&mut self.by_agents, &mut self.after_agent),
            };
            *count += 1;
            *after = late.max(*after);
        }
        match (unexplained.first(), unexplained.last()) {
            (Some(first), Some(last)) => bail!(
                "{}: {} packets are lost that were sent between {:.3} and {:.3} s, of no fault that may lose them: {:?}",
                flow.name,
                unexplained.len(),
                first.as_secs_f64(),
                last.as_secs_f64(),
                self.faults.iter().rev().take(6).collect::<Vec<_>>()
            ),
            _ => Ok(()),
        }
    }
}
