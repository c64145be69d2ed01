//! What is broken, breaking more of it, and mending it.

use anyhow::Result;

use crate::{Chaos, HOSTS};

/// So many hosts may be without an agent at the same time.
const MOST_DOWN: usize = 2;

/// What is broken at present.
#[derive(Default)]
pub struct Damage {
    /// Hosts whose agent was killed, and how the host itself is.
    down: Vec<(usize, Down)>,
    /// Whether the router drops something.
    cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    /// The data path runs on.
    Agent,
    /// Nothing comes through, but all is there.
    Unplugged,
    /// All that was in its memory is gone.
    PoweredOff,
}

impl Chaos<'_> {
    pub fn break_something(&mut self) -> Result<()> {
        let hosts = self.cluster.running();
        let Some(host) = self.pick(&hosts) else {
            return Ok(());
        };
        let may_go_down = self.damage.down.len() < MOST_DOWN;
        match self.pick(&[0, 1, 2, 3, 4, 5, 6, 7]) {
            Some(0 | 1) => {
                self.note(&format!("host{host}'s agent is killed and restarted"));
                self.cluster.kill(host);
                self.cluster.restart(host)
            }
            Some(2) if may_go_down => {
                self.note(&format!("host{host}'s agent is killed"));
                self.cluster.kill(host);
                self.damage.down.push((host, Down::Agent));
                Ok(())
            }
            Some(3) if may_go_down => {
                self.note(&format!("host{host} is dead"));
                self.cluster.die(host)?;
                self.damage.down.push((host, Down::Unplugged));
                Ok(())
            }
            Some(4) if may_go_down => {
                self.note(&format!("host{host} is powered off"));
                self.cluster.power_off(host)?;
                self.ledger.powered_off(host)?;
                self.damage.down.push((host, Down::PoweredOff));
                Ok(())
            }
            Some(5..) if !self.damage.cut => self.cut(host),
            _ => Ok(()),
        }
    }

    /// One host alone, two hosts alone, or one way only.
    fn cut(&mut self, host: usize) -> Result<()> {
        self.damage.cut = true;
        let others = self.lab.others(host);
        let second = self.pick(&others).unwrap_or(host);
        let rest: Vec<usize> = (1..=HOSTS).filter(|n| *n != host && *n != second).collect();
        match self.pick(&[0, 1, 2]) {
            Some(0) => {
                self.note(&format!("host{host} is isolated"));
                self.lab.isolate(host)
            }
            Some(1) => {
                self.note(&format!("host{host} and host{second} are cut off"));
                self.lab.partition(&[host, second], &rest)
            }
            _ => {
                self.note(&format!("host{host} is not heard any more"));
                self.lab.cut(&[host], &others)
            }
        }
    }

    pub fn mend_something(&mut self) -> Result<()> {
        let cut = usize::from(self.damage.cut);
        let count = self.damage.down.len() + cut;
        let all: Vec<usize> = (0..count).collect();
        match self.pick(&all) {
            None => Ok(()),
            Some(index) if index < self.damage.down.len() => self.mend(index),
            Some(_) => self.heal(),
        }
    }

    pub fn mend_all(&mut self) -> Result<()> {
        self.heal()?;
        while !self.damage.down.is_empty() {
            self.mend(0)?;
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        self.note("the network is healed");
        self.damage.cut = false;
        self.lab.heal()
    }

    fn mend(&mut self, index: usize) -> Result<()> {
        let (host, down) = self.damage.down.remove(index);
        self.note(&format!("host{host} returns ({down:?})"));
        match down {
            Down::Agent => self.cluster.restart(host),
            Down::Unplugged => self.cluster.revive(host),
            Down::PoweredOff => self.cluster.power_on(host),
        }
    }
}
