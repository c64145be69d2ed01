//! What most end-to-end tests begin with.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::AgentProc;
use crate::lab::{Lab, LabSpec};
use crate::ns::Ns;
use crate::probe::ping;
use crate::process::wait_until;

/// Runs an end-to-end test in a lab of its own. A failure shows the agents' logs. Without root
/// it is skipped, which fails under `CI=true`.
///
/// # Panics
/// When the test fails.
pub fn test(bin: &str, spec: LabSpec, body: impl FnOnce(&Lab) -> Result<()>) {
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
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&lab)));
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

/// A container namespace that has been added to `uber-net`.
#[derive(Clone, Debug)]
pub struct Container {
    /// `test.1`, `test.2`, …
    pub name: String,
    /// Its namespace.
    pub ns: Ns,
    /// Its address in the overlay.
    pub ip: IpAddr,
    /// Its MAC address.
    pub mac: String,
}

impl Container {
    /// Adds namespace `ns` to `uber-net` on host `host` as `name`.
    ///
    /// # Errors
    /// When `overlay-dp container add` fails.
    pub fn add(lab: &Lab, host: usize, ns: &Ns, name: &str) -> Result<Container> {
        let added = lab.host(host).overlay_json(&format!(
            "container add {name} --network uber-net --netns {}",
            ns.name()
        ))?;
        let text = |field: &str| {
            added[field]
                .as_str()
                .with_context(|| format!("{field}: {added}"))
        };
        let ip = text("ip")?;
        Ok(Container {
            name: name.to_owned(),
            ns: ns.clone(),
            // With or without a prefix length.
            ip: ip.split('/').next().unwrap_or(ip).parse()?,
            mac: text("mac")?.to_owned(),
        })
    }
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
    pub network: serde_json::Value,
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
        let mut agents = vec![lab.start_agent(1, attach_args)?];
        let join = format!("{attach_args} {}", join_args(lab)?);
        for number in 2..=hosts {
            agents.push(lab.start_agent(number, &join)?);
        }
        let network = lab.host(1).overlay_json("network create uber-net")?;
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
        overlay.wait_until_known()?;
        Ok(overlay)
    }

    /// Container `number`, from 1. Panics when there are fewer.
    pub fn c(&self, number: usize) -> &Container {
        &self.containers[number - 1]
    }

    /// Gossip takes its time to tell every host of every container.
    fn wait_until_known(&self) -> Result<()> {
        for from in &self.containers {
            for to in self.containers.iter().filter(|to| to.name != from.name) {
                let what = format!("{} pings {}", from.name, to.name);
                wait_until(&what, Duration::from_secs(10), || {
                    ping(&from.ns, to.ip, 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
                })?;
            }
        }
        Ok(())
    }
}

/// `--join … --token …` for the hosts that come after the first.
fn join_args(lab: &Lab) -> Result<String> {
    let shown = lab.host(1).overlay_json("token show")?;
    let token = shown["token"]
        .as_str()
        .with_context(|| format!("no token in {shown}"))?;
    ensure!(token.starts_with("OVTKN-1-"), "not a token: {token}");
    Ok(format!("--join {} --token {token}", lab.host(1).ip))
}
