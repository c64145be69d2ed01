//! A cluster over the hosts of a lab, whose agents and hosts die and return.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::AgentProc;
use crate::lab::{Host, Lab};
use crate::process::wait_until;

/// In which all hosts of a lab must have found each other.
const SETTLED: Duration = Duration::from_secs(20);

/// `--join … --token …` for a host that comes to the cluster of host `of`.
///
/// # Errors
/// When that has no token to show.
pub fn join_args(of: &Host, manager: bool) -> Result<String> {
    Ok(format!("--join {} --token {}", of.ip, token(of, manager)?))
}

/// The cluster's token for workers or managers, as host `of` shows it.
///
/// # Errors
/// When it can't, or it does not look like one.
pub fn token(of: &Host, manager: bool) -> Result<String> {
    let which = if manager { " --manager" } else { "" };
    let shown = of.overlay_json(&format!("token show{which}"))?;
    let token = shown["token"]
        .as_str()
        .with_context(|| format!("no token in {shown}"))?;
    ensure!(token.starts_with("OVTKN-1-"), "not a token: {token}");
    Ok(token.to_owned())
}

/// Agents on hosts 1 to n of a lab, in one cluster. They are killed when it is dropped: the lab
/// removes what they leave.
#[derive(Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    args: String,
    /// Host n's is `agents[n - 1]`.
    agents: Vec<Option<AgentProc>>,
}

impl<'a> Cluster<'a> {
    /// Host 1 makes a cluster, hosts up to `managers` join as managers and all others as workers.
    ///
    /// # Errors
    /// When one can't, or they do not find each other within 20 s.
    pub fn start(lab: &'a Lab, managers: usize, args: &str) -> Result<Cluster<'a>> {
        Cluster::start_on(lab, lab.hosts().len(), managers, args)
    }

    /// As [`Cluster::start`], on the first `hosts` hosts only.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_on(
        lab: &'a Lab,
        hosts: usize,
        managers: usize,
        args: &str,
    ) -> Result<Cluster<'a>> {
        let mut cluster = Cluster {
            lab,
            args: args.to_owned(),
            agents: vec![Some(lab.start_agent(1, args)?)],
        };
        for number in 2..=hosts {
            let join = join_args(lab.host(1), number <= managers)?;
            cluster.join(number, &join)?;
        }
        cluster.wait_settled(SETTLED)?;
        Ok(cluster)
    }

    /// Starts host `number`'s agent with more arguments, such as `--join …`.
    ///
    /// # Errors
    /// When it ends, or is not ready within 30 s.
    pub fn join(&mut self, number: usize, join: &str) -> Result<()> {
        let agent = self
            .lab
            .start_agent(number, &format!("{} {join}", self.args))?;
        if self.agents.len() < number {
            self.agents.resize_with(number, || None);
        }
        self.agents[number - 1] = Some(agent);
        Ok(())
    }

    /// The lab's host `number`.
    pub fn host(&self, number: usize) -> &'a Host {
        self.lab.host(number)
    }

    /// The hosts with an agent that runs.
    pub fn running(&self) -> Vec<usize> {
        let agents = self.agents.iter().zip(1..);
        agents
            .filter(|(agent, _)| agent.is_some())
            .map(|(_, number)| number)
            .collect()
    }

    /// Whether host `number`'s agent runs, as far as it was not ended by itself.
    pub fn is_running(&self, number: usize) -> bool {
        self.agents.get(number - 1).is_some_and(Option::is_some)
    }

    /// The process of host `number`'s agent, if one runs.
    pub fn pid(&self, number: usize) -> Option<u32> {
        Some(self.agents.get(number - 1)?.as_ref()?.pid())
    }

    /// That no agent has ended by itself.
    ///
    /// # Errors
    /// When one has.
    pub fn check_running(&mut self) -> Result<()> {
        for agent in self.agents.iter_mut().flatten() {
            let name = agent.host().ns.label().to_owned();
            ensure!(
                agent.is_running(),
                "the agent on {name} has ended by itself"
            );
        }
        Ok(())
    }

    /// Host `number`'s agent, to wait for its end.
    pub fn take(&mut self, number: usize) -> Option<AgentProc> {
        self.agents.get_mut(number - 1)?.take()
    }

    /// kill -9 of an agent; the data path runs on.
    pub fn kill(&mut self, number: usize) {
        if let Some(agent) = self.take(number) {
            agent.kill();
        }
    }

    /// Starts an agent as the member that it is.
    ///
    /// # Errors
    /// As [`Cluster::join`].
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.join(number, "")
    }

    /// A host's death, as the others see it: its agent is killed and its cable pulled.
    ///
    /// # Errors
    /// As [`Lab::unplug`].
    pub fn die(&mut self, number: usize) -> Result<()> {
        // First the cable: nobody hears a last word.
        self.lab.unplug(number)?;
        self.kill(number);
        Ok(())
    }

    /// Undoes [`Cluster::die`].
    ///
    /// # Errors
    /// As [`Cluster::join`].
    pub fn revive(&mut self, number: usize) -> Result<()> {
        self.lab.plug(number)?;
        self.restart(number)
    }

    /// Power cut: see [`Lab::power_off`].
    ///
    /// # Errors
    /// As there.
    pub fn power_off(&mut self, number: usize) -> Result<()> {
        self.lab.unplug(number)?;
        self.kill(number);
        self.lab.power_off(number)
    }

    /// Undoes [`Cluster::power_off`], and starts the agent.
    ///
    /// # Errors
    /// As [`Cluster::join`].
    pub fn power_on(&mut self, number: usize) -> Result<()> {
        self.lab.power_on(number)?;
        self.restart(number)
    }

    /// Waits until all hosts whose agents run see each other alive, and the managers agree.
    ///
    /// # Errors
    /// When they do not within that time; says who does not see whom.
    pub fn wait_settled(&self, within: Duration) -> Result<()> {
        let running = self.running();
        let mut problem = String::new();
        wait_until("all hosts see each other", within, || {
            let found = running.iter().try_for_each(|&number| {
                self.sees(number, &running)
                    .with_context(|| format!("host{number}"))
            });
            problem = found
                .as_ref()
                .err()
                .map_or(String::new(), |e| format!("{e:#}"));
            found.is_ok()
        })
        .with_context(|| problem.clone())
    }

    fn sees(&self, number: usize, all: &[usize]) -> Result<()> {
        let states = self.states(number)?;
        for other in all {
            let state = states.get(other).map_or("unknown", String::as_str);
            ensure!(state == "alive", "host{other} is {state}");
        }
        let cluster = self.host(number).overlay_json("cluster status")?;
        ensure!(
            cluster["quorum"] == true && !cluster["leader"].is_null(),
            "{cluster}"
        );
        Ok(())
    }

    /// `alive`, `suspect` or `down`, of every member, as host `number` sees it.
    ///
    /// # Errors
    /// When its agent can't be asked.
    pub fn states(&self, number: usize) -> Result<BTreeMap<usize, String>> {
        let rows = self.host(number).overlay_json("host ls")?;
        let rows = rows.as_array().context("not a list of hosts")?.iter();
        rows.map(|row| {
            let state = row["state"].as_str().context("no state")?;
            Ok((self.number_of(row)?, state.to_owned()))
        })
        .collect()
    }

    /// The hosts that are managers, as host `number` knows it.
    ///
    /// # Errors
    /// When its agent can't be asked.
    pub fn managers(&self, number: usize) -> Result<Vec<usize>> {
        let rows = self.host(number).overlay_json("host ls")?;
        let rows = rows.as_array().context("not a list of hosts")?.iter();
        let mut managers = rows
            .filter(|row| row["manager"] == true)
            .map(|row| self.number_of(row))
            .collect::<Result<Vec<_>>>()?;
        managers.sort_unstable();
        Ok(managers)
    }

    /// Who leads the managers, as host `number` knows it.
    ///
    /// # Errors
    /// When its agent can't be asked, or knows of none.
    pub fn leader(&self, number: usize) -> Result<usize> {
        let rows = self.host(number).overlay_json("host ls")?;
        let mut rows = rows.as_array().context("not a list of hosts")?.iter();
        let leader = rows.find(|row| row["leader"] == true);
        self.number_of(leader.context("no leader is known")?)
    }

    /// `host3` has the number 3.
    fn number_of(&self, row: &Value) -> Result<usize> {
        let name = row["name"].as_str().context("a host without a name")?;
        let hosts = self.lab.hosts();
        let index = hosts.iter().position(|host| host.ns.label() == name);
        Ok(index.with_context(|| format!("an unknown host: {row}"))? + 1)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for agent in self.agents.drain(..).flatten() {
            agent.kill();
        }
    }
}
