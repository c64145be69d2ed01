//! What users do meanwhile, and what must be true of it in the end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{Background, Container, wait_until};
use rand::RngExt;
use serde_json::Value;

use crate::ledger::{Exists, Use, addresses};
use crate::{Chaos, HEALED, HOSTS, MANAGERS};

/// No command may keep its user longer, whatever is broken.
const PATIENCE: Duration = Duration::from_secs(45);

impl Chaos<'_> {
    /// Runs a command on a host. Only one that says that it has succeeded has. Some agents are
    /// killed meanwhile.
    fn command(&mut self, host: usize, line: &str) -> Result<Option<Value>> {
        let command = self
            .cluster
            .host(host)
            .overlay_cmd(&format!("{line} --json"));
        let asked = Instant::now();
        let command = Background::start(command)?;
        let killed = !self.mended && self.rng.random_range(0..8) == 0;
        if killed {
            sleep(Duration::from_millis(self.rng.random_range(0..80)));
            self.cluster.kill(host);
        }
        let done = command.finish(PATIENCE)?;
        let took = asked.elapsed();
        if took > self.slowest.0 {
            self.slowest = (took, line.to_owned());
        }
        let failed = (!done.status.success()).then(|| done.stderr.lines().last());
        let outcome = failed.map(|error| error.unwrap_or("failed without a word"));
        self.note(&format!(
            "host{host}: {line}: {} ({took:.0?})",
            outcome.unwrap_or("done")
        ));
        if killed {
            self.note(&format!("host{host}'s agent was killed meanwhile"));
            self.cluster.restart(host)?;
        }
        if outcome.is_some() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&done.stdout)?))
    }

    pub fn create_network(&mut self) -> Result<()> {
        let networks = self.ledger.networks.values();
        if networks.filter(|exists| **exists != Exists::No).count() >= 8 {
            return Ok(());
        }
        let Some(host) = self.pick(&self.cluster.running()) else {
            return Ok(());
        };
        let name = self.ledger.new_name("net");
        let made = self.command(host, &format!("network create {name}"))?;
        let exists = if made.is_some() {
            Exists::Yes
        } else {
            Exists::Doubt
        };
        self.ledger.networks.insert(name, exists);
        Ok(())
    }

    pub fn remove_network(&mut self) -> Result<()> {
        let unused = self.ledger.unused_networks();
        let indices: Vec<usize> = (0..unused.len()).collect();
        let host = self.pick(&self.cluster.running());
        let (Some(index), Some(host)) = (self.pick(&indices), host) else {
            return Ok(());
        };
        let name = &unused[index];
        let gone = self.command(host, &format!("network rm {name}"))?;
        let exists = if gone.is_some() {
            Exists::No
        } else {
            Exists::Doubt
        };
        self.ledger.networks.insert(name.clone(), exists);
        Ok(())
    }

    pub fn add_container(&mut self) -> Result<()> {
        let networks = self.ledger.sure_networks();
        let indices: Vec<usize> = (0..networks.len()).collect();
        let slot = self.pick(&self.ledger.free_slots());
        let host = self.pick(&self.cluster.running());
        let (Some(slot), Some(host), Some(index)) = (slot, host, self.pick(&indices)) else {
            return Ok(());
        };
        let network = networks[index].clone();
        let name = self.ledger.new_name("c");
        let ns = self.ledger.ns(slot).clone();
        let line = format!(
            "container add {name} --network {network} --netns {}",
            ns.name()
        );
        let usage = match self.command(host, &line)? {
            Some(added) => Use::Attached {
                host,
                container: Container::from_json(&added, &ns)?,
            },
            None => Use::Doubt {
                host,
                name,
                network,
            },
        };
        self.ledger.set(slot, usage);
        Ok(())
    }

    pub fn remove_container(&mut self) -> Result<()> {
        let running = self.cluster.running();
        let slots = self.ledger.slots_where(|usage| match usage {
            Use::Free => false,
            Use::Attached { host, .. } | Use::Doubt { host, .. } => running.contains(host),
        });
        match self.pick(&slots) {
            Some(slot) => self.remove_from(slot),
            None => Ok(()),
        }
    }

    fn remove_from(&mut self, slot: usize) -> Result<()> {
        let (host, name, network) = match self.ledger.usage(slot) {
            Use::Free => return Ok(()),
            Use::Attached { host, container } => {
                (*host, container.name.clone(), container.network.clone())
            }
            Use::Doubt {
                host,
                name,
                network,
            } => (*host, name.clone(), network.clone()),
        };
        let line = format!("container rm {name} --network {network}");
        let gone = self.command(host, &line)?.is_some() || !self.lists(host, &name)?;
        let usage = if gone {
            let left = addresses(self.ledger.ns(slot))?;
            ensure!(left.is_empty(), "{name} is removed, but has {left:?}");
            self.ledger.removed.insert(name);
            Use::Free
        } else {
            Use::Doubt {
                host,
                name,
                network,
            }
        };
        self.ledger.set(slot, usage);
        Ok(())
    }

    /// Whether a host says that a container is attached to it.
    fn lists(&self, host: usize, name: &str) -> Result<bool> {
        let rows = self
            .cluster
            .host(host)
            .overlay_json("container ls --local")?;
        Ok(rows_of(&rows).any(|row| row["name"] == name))
    }

    /// There are always as many managers as in the beginning.
    pub fn change_role(&mut self) -> Result<()> {
        let roles = &self.ledger.managers;
        let of = |wanted: bool| -> Vec<usize> {
            let hosts = roles.iter().filter(|(_, role)| **role != Some(!wanted));
            hosts.map(|(host, _)| *host).collect()
        };
        let sure = roles.values().filter(|role| **role == Some(true)).count();
        let (verb, manager, candidates) = if sure > MANAGERS {
            ("demote", false, of(true))
        } else {
            ("promote", true, of(false))
        };
        let asked: Vec<usize> = self
            .cluster
            .running()
            .into_iter()
            .filter(|host| self.ledger.managers[host] == Some(true))
            .collect();
        let (Some(changed), Some(host)) = (self.pick(&candidates), self.pick(&asked)) else {
            return Ok(());
        };
        let done = self.command(host, &format!("host {verb} host{changed}"))?;
        let role = done.is_some().then_some(manager);
        self.ledger.managers.insert(changed, role);
        Ok(())
    }

    /// What failed or was not answered: now it is asked whether it was done.
    pub fn settle_doubts(&mut self) -> Result<()> {
        let doubtful = self
            .ledger
            .slots_where(|usage| matches!(usage, Use::Doubt { .. }));
        for slot in doubtful {
            self.remove_from(slot)?;
            ensure!(
                matches!(self.ledger.usage(slot), Use::Free),
                "it can't be removed: {:?}",
                self.ledger.usage(slot)
            );
        }
        let listed = self.networks(1)?;
        for (name, exists) in &mut self.ledger.networks {
            if *exists == Exists::Doubt {
                let is = listed.contains(name);
                *exists = if is { Exists::Yes } else { Exists::No };
            }
        }
        Ok(())
    }

    /// Every host knows everything that was acknowledged, and nothing else.
    pub fn nothing_is_lost(&self) -> Result<()> {
        let mut networks = self.ledger.sure_networks();
        networks.sort_unstable();
        let attached = self.ledger.attached_on();
        for host in 1..=HOSTS {
            wait_until(&format!("host{host} knows all networks"), HEALED, || {
                self.networks(host).is_ok_and(|listed| listed == networks)
            })
            .with_context(|| format!("{:?}, not {networks:?}", self.networks(host)))?;
            let mut problem = String::new();
            wait_until(&format!("host{host} knows all containers"), HEALED, || {
                let found = self.knows(host, &attached);
                problem = found
                    .as_ref()
                    .err()
                    .map_or(String::new(), |e| format!("{e:#}"));
                found.is_ok()
            })
            .with_context(|| problem.clone())?;
            let managers = self.cluster.managers(host)?;
            for (other, role) in &self.ledger.managers {
                if let Some(role) = role {
                    ensure!(
                        managers.contains(other) == *role,
                        "host{host} says that the managers are {managers:?}; but {:?}",
                        self.ledger.managers
                    );
                }
            }
        }
        Ok(())
    }

    fn networks(&self, host: usize) -> Result<Vec<String>> {
        let rows = self.cluster.host(host).overlay_json("network ls")?;
        let mut names: Vec<String> = rows_of(&rows)
            .filter_map(|row| row["name"].as_str().map(str::to_owned))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Each container of the networks that the host takes part in, with its address and host.
    fn knows(&self, host: usize, attached: &[(usize, Container)]) -> Result<()> {
        let rows = self.cluster.host(host).overlay_json("container ls")?;
        for row in rows_of(&rows) {
            let name = row["name"].as_str().context("no name")?;
            ensure!(!self.ledger.removed.contains(name), "{name} was removed");
            let known = attached.iter().any(|(_, c)| c.name == name);
            ensure!(known, "{name} was never added");
        }
        let here: Vec<&str> = attached
            .iter()
            .filter(|(on, _)| *on == host)
            .map(|(_, c)| c.network.as_str())
            .collect();
        let seen = attached
            .iter()
            .filter(|(_, c)| here.contains(&c.network.as_str()));
        for (on, container) in seen {
            let row = rows_of(&rows)
                .find(|row| row["name"] == container.name.as_str())
                .with_context(|| format!("{} is lost", container.name))?;
            let same = row["ip"] == container.ip.to_string()
                && row["mac"] == container.mac.as_str()
                && row["host_name"] == format!("host{on}");
            ensure!(same, "{row}, not {container:?} on host{on}");
        }
        Ok(())
    }

    /// Containers first, then networks, which are refused as long as a host holds an address.
    pub fn remove_all(&mut self) -> Result<()> {
        for slot in self.ledger.slots_where(|usage| !matches!(usage, Use::Free)) {
            self.remove_from(slot)?;
            ensure!(
                matches!(self.ledger.usage(slot), Use::Free),
                "it can't be removed: {:?}",
                self.ledger.usage(slot)
            );
        }
        for name in self.ledger.sure_networks() {
            let what = format!("{name} can be removed");
            let mut why = String::new();
            wait_until(&what, HEALED, || {
                let removed = self.cluster.host(4).overlay(&format!("network rm {name}"));
                why = removed
                    .as_ref()
                    .err()
                    .map_or(String::new(), |e| format!("{e:#}"));
                removed.is_ok()
            })
            .with_context(|| why.clone())?;
        }
        Ok(())
    }

    pub fn nothing_is_left(&self) -> Result<()> {
        for number in 1..=HOSTS {
            let host = self.cluster.host(number);
            let shown = host.overlay_json(&format!("host inspect host{number}"))?;
            let held = shown[0]["addresses"].as_array().context("no addresses")?;
            ensure!(held.is_empty(), "host{number} still holds {held:?}");
            ensure!(self.networks(number)?.is_empty());
            let links = host.ns.run("ip -br link show type veth")?;
            let ports = links.lines().filter(|line| line.starts_with("ovp-"));
            let ports: Vec<&str> = ports.collect();
            ensure!(ports.is_empty(), "host{number}: {ports:?}");
        }
        for slot in self.ledger.free_slots() {
            let left = addresses(self.ledger.ns(slot))?;
            ensure!(
                left.is_empty(),
                "{}: {left:?}",
                self.ledger.ns(slot).label()
            );
        }
        Ok(())
    }
}

fn rows_of(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
