//! Broken networks: rules of the router that drop what some hosts send to others, and cables that
//! are pulled.

use anyhow::Result;

use crate::lab::Lab;

/// Priority of our rules at the router, by which they are found again.
const PRIORITY: u32 = 100;

impl Lab {
    /// From now on, nothing of what the hosts `from` send reaches the hosts `to`; the other way
    /// goes on. No end is told: the packets vanish.
    ///
    /// # Errors
    /// When the router refuses.
    pub fn cut(&self, from: &[usize], to: &[usize]) -> Result<()> {
        for &sender in from {
            for &receiver in to.iter().filter(|receiver| **receiver != sender) {
                let (sender, receiver) = (self.host(sender).ip, self.host(receiver).ip);
                self.router().run(&format!(
                    "ip rule add from {sender} to {receiver} priority {PRIORITY} blackhole"
                ))?;
            }
        }
        Ok(())
    }

    /// [`Lab::cut`] both ways: two parts that know nothing of each other.
    ///
    /// # Errors
    /// As [`Lab::cut`].
    pub fn partition(&self, left: &[usize], right: &[usize]) -> Result<()> {
        self.cut(left, right)?;
        self.cut(right, left)
    }

    /// Partitions one host from all others.
    ///
    /// # Errors
    /// As [`Lab::cut`].
    pub fn isolate(&self, number: usize) -> Result<()> {
        self.partition(&[number], &self.others(number))
    }

    /// Undoes all partitions and one-way cuts.
    ///
    /// # Errors
    /// When the router refuses.
    pub fn heal(&self) -> Result<()> {
        let rules = self.router().run("ip rule show")?;
        let prefix = format!("{PRIORITY}:");
        for _ in rules.lines().filter(|rule| rule.starts_with(&prefix)) {
            self.router()
                .run(&format!("ip rule del priority {PRIORITY}"))?;
        }
        Ok(())
    }

    /// Pulls host `number`'s cable: it reaches nobody, and its eth0 has no carrier.
    ///
    /// # Errors
    /// When the host is powered off.
    pub fn unplug(&self, number: usize) -> Result<()> {
        self.cable(number, "down")
    }

    /// Undoes [`Lab::unplug`].
    ///
    /// # Errors
    /// When the host is powered off.
    pub fn plug(&self, number: usize) -> Result<()> {
        self.cable(number, "up")
    }

    fn cable(&self, number: usize, state: &str) -> Result<()> {
        let port = self.host(number).router_port();
        self.router()
            .run(&format!("ip link set {port} {state}"))
            .map(drop)
    }

    /// The numbers of all hosts but one.
    pub fn others(&self, number: usize) -> Vec<usize> {
        (1..=self.hosts().len())
            .filter(|other| *other != number)
            .collect()
    }
}
