//! What most end-to-end tests begin with.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::agent::AgentProc;
use crate::cluster::join_args;
use crate::lab::{Host, Lab, LabSpec};
use crate::ns::Ns;
use crate::probe::ping;
use crate::process::wait_until;

/// How long what a test did may take to be the same everywhere.
const VERIFY_WAIT: Duration = Duration::from_secs(30);

/// Runs an end-to-end test in a lab of its own. What it returns lives until `overlay-dp verify` has
/// looked at all hosts: the agents, unless it says [`Lab::ends_without_agents`]. A failure shows the agents' logs. Without root
/// it is skipped, which fails under `CI=true`.
///
/// # Panics
/// When the test fails.
pub fn test<T>(bin: &str, spec: LabSpec, body: impl FnOnce(&Lab) -> Result<T>) {
    if !rustix::process::geteuid().is_root() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "end-to-end tests need root, and CI=true forbids to skip them"
        );
        eprintln!("SKIPPED: end-to-end tests need root");
        return;
    }
    let lab = Lab::new(&spec, Path::new(bin)).unwrap_or_else(|error| panic!("{error:?}"));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _agents = body(&lab)?;
        // What was agreed, told, in the maps and in the kernel must agree after every test.
        lab.verify_end(VERIFY_WAIT)
    }));
    let logs = lab.logs();
    drop(lab);
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}\n{logs}"),
        Err(panic) => {
            eprintln!("{logs}");
            resume_unwind(panic);
        }
    }
}

/// A container namespace that has been added to a network.
#[derive(Clone, Debug)]
pub struct Container {
    /// `test.1`, `test.2`, …
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Its namespace.
    pub ns: Ns,
    /// Its first address in the overlay.
    pub ip: IpAddr,
    /// All its addresses.
    pub ips: Vec<IpAddr>,
    /// Its MAC address.
    pub mac: String,
}

impl Container {
    /// Adds namespace `ns` to `uber-net` on host `host` as `name`.
    ///
    /// # Errors
    /// When `overlay-dp container add` fails.
    pub fn add(lab: &Lab, host: usize, ns: &Ns, name: &str) -> Result<Container> {
        Container::attach(lab.host(host), ns, name, "--network uber-net")
    }

    /// Adds namespace `ns` on `host` as `name`, with options such as `--network …`.
    ///
    /// # Errors
    /// When `overlay-dp container add` fails.
    pub fn attach(host: &Host, ns: &Ns, name: &str, options: &str) -> Result<Container> {
        let added = host.overlay_json(&format!(
            "container add {name} {options} --netns {}",
            ns.name()
        ))?;
        Container::from_json(&added, ns)
    }

    /// What `overlay-dp container add --json` told of namespace `ns`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn from_json(added: &Value, ns: &Ns) -> Result<Container> {
        let text = |field: &Value| {
            let text = field.as_str().with_context(|| format!("not text: {added}"));
            text.map(str::to_owned)
        };
        let ips = added["ips"]
            .as_array()
            .with_context(|| format!("no addresses: {added}"))?;
        let ips: Vec<IpAddr> = ips
            .iter()
            .map(|ip| Ok(text(ip)?.parse()?))
            .collect::<Result<_>>()?;
        Ok(Container {
            name: text(&added["name"])?,
            network: text(&added["network"])?,
            ns: ns.clone(),
            ip: *ips
                .first()
                .with_context(|| format!("no address: {added}"))?,
            ips,
            mac: text(&added["mac"])?,
        })
    }

    /// Removes it from its network on `host`.
    ///
    /// # Errors
    /// When `overlay-dp container rm` fails.
    pub fn detach(&self, host: &Host) -> Result<()> {
        host.overlay(&format!(
            "container rm {} --network {}",
            self.name, self.network
        ))
        .map(drop)
    }

    /// Whether one ping to all addresses of another container is answered.
    pub fn reaches(&self, to: &Container) -> bool {
        to.ips
            .iter()
            .all(|ip| ping(&self.ns, *ip, 1, 56, false).is_ok_and(|stats| stats.lost() == 0))
    }

    /// Waits until [`Container::reaches`].
    ///
    /// # Errors
    /// When it does not within that time.
    pub fn wait_reaches(&self, to: &Container, within: Duration) -> Result<()> {
        let what = format!("{} pings {}", self.name, to.name);
        wait_until(&what, within, || self.reaches(to))
    }
}

/// Waits until every container reaches every other one of its network.
///
/// # Errors
/// When one does not within that time after it is its turn.
pub fn all_reach_each_other<'a>(
    containers: impl IntoIterator<Item = &'a Container>,
    within: Duration,
) -> Result<()> {
    let all: Vec<&Container> = containers.into_iter().collect();
    for from in &all {
        let others = all.iter().filter(|to| to.network == from.network);
        for to in others.filter(|to| to.name != from.name) {
            from.wait_reaches(to, within)?;
        }
    }
    Ok(())
}

/// Waits until the one VTEP that a host of two knows is shown with such checksums (`vtep ls`).
///
/// # Errors
/// When it is not within 20 s.
pub fn wait_checksums(host: &Host, state: &str) -> Result<()> {
    let what = format!("checksums from {} are {state}", host.ns.label());
    wait_until(&what, Duration::from_secs(20), || {
        let rows = host.overlay_json("vtep ls");
        rows.is_ok_and(|rows| rows[0]["checksums"] == state)
    })
}

/// `uber-net` over all hosts of a lab, and in it container n on host n, those that are left over
/// on the hosts from the first again.
#[derive(Debug)]
pub struct Overlay {
    /// The agents: host n's is `agents[n - 1]`.
    pub agents: Vec<AgentProc>,
    /// The containers: `c1` is `containers[0]`.
    pub containers: Vec<Container>,
    /// The network as `network create --json` told it.
    pub network: Value,
}

impl Overlay {
    /// The commands: attach, join, create a network, add the containers.
    ///
    /// # Errors
    /// When one of them fails, or the containers can't ping each other within 10 s.
    pub fn start(lab: &Lab, attach_args: &str) -> Result<Overlay> {
        let hosts = lab.hosts().len();
        Overlay::start_on(lab, hosts, attach_args)
    }

    /// As [`Overlay::start`], with agents on the first `hosts` hosts only.
    ///
    /// # Errors
    /// As [`Overlay::start`].
    pub fn start_on(lab: &Lab, hosts: usize, attach_args: &str) -> Result<Overlay> {
        Overlay::start_each(lab, &vec![attach_args; hosts])
    }

    /// As [`Overlay::start`], with agents on the first hosts only, each with arguments of its own.
    ///
    /// # Errors
    /// As [`Overlay::start`].
    pub fn start_each(lab: &Lab, attach_args: &[&str]) -> Result<Overlay> {
        Overlay::start_network(lab, attach_args, "")
    }

    /// As [`Overlay::start_each`], with options of `network create`.
    ///
    /// # Errors
    /// As [`Overlay::start`].
    pub fn start_network(lab: &Lab, attach_args: &[&str], options: &str) -> Result<Overlay> {
        let (first, others) = attach_args.split_first().context("no agents")?;
        let mut agents = vec![lab.start_agent(1, first)?];
        let join = join_args(lab.host(1), false)?;
        for (number, args) in (2..).zip(others) {
            agents.push(lab.start_agent(number, &format!("{args} {join}"))?);
        }
        let hosts = attach_args.len();
        let network = lab
            .host(1)
            .overlay_json(&format!("network create uber-net {options}"))?;
        let containers = lab
            .containers()
            .iter()
            .enumerate()
            .map(|(index, ns)| {
                Container::add(lab, index % hosts + 1, ns, &format!("test.{}", index + 1))
            })
            .collect::<Result<_>>()?;
        let overlay = Overlay {
            agents,
            containers,
            network,
        };
        // Gossip takes its time to tell every host of every container.
        all_reach_each_other(&overlay.containers, Duration::from_secs(10))?;
        Ok(overlay)
    }

    /// Container `number`, from 1. Panics when there are fewer.
    pub fn c(&self, number: usize) -> &Container {
        &self.containers[number - 1]
    }
}
