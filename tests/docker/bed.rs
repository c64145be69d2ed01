//! Two hosts, each with an agent and a real daemon.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{AgentProc, Dockerd, Host, Lab, LabSpec, join_args, test, wait_until};

use super::BIN;

/// For what takes some milliseconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(20);
pub const DRIVERS: &str = "-d overlay-dp --ipam-driver overlay-dp";

/// The agents and daemons of both hosts. The daemons go first, as they ask the agents to.
pub struct Bed {
    pub dockers: [Dockerd; 2],
    pub agents: Vec<AgentProc>,
}

impl Bed {
    /// With a resolv.conf for each host, which its daemon sees as its own.
    fn start(lab: &Lab, resolvers: [&str; 2]) -> Result<Bed> {
        for (number, resolver) in (1..).zip(resolvers) {
            let dir = Dockerd::dir(lab, number);
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("resolv.conf"), format!("nameserver {resolver}\n"))?;
        }
        let mut dockers = [Dockerd::start(lab, 1)?, Dockerd::start(lab, 2)?];
        let mut agents = vec![lab.start_agent(1, &args(lab, 1))?];
        let join = join_args(lab.host(1), false)?;
        agents.push(lab.start_agent(2, &format!("{} {join}", args(lab, 2)))?);
        for docker in &mut dockers {
            docker.wait()?;
            docker.load_image(&["ping", "traceroute"])?;
            hostile(docker.host())?;
        }
        Ok(Bed { dockers, agents })
    }
}

/// As the hosts of users have it who have Docker: what is forwarded is dropped, and what passes
/// bridges is shown to iptables.
fn hostile(host: &Host) -> Result<()> {
    host.ns.run("iptables -P FORWARD DROP")?;
    host.ns.run("ip6tables -P FORWARD DROP")?;
    let bridge = "net.bridge.bridge-nf-call-iptables";
    if Path::new("/proc/sys/net/bridge").exists() {
        host.ns.run(&format!("sysctl -qw {bridge}=1"))?;
    } else {
        eprintln!("this kernel has no {bridge}: no bridge's packets can be dropped");
    }
    Ok(())
}

pub fn args(lab: &Lab, number: usize) -> String {
    let resolv_conf = Dockerd::dir(lab, number).join("resolv.conf");
    let plugin = Dockerd::agent_args(lab, number);
    format!("{plugin} --resolv-conf {}", resolv_conf.display())
}

pub fn pings(docker: &Dockerd, from: &str, to: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(&format!("{from} pings {to}"), SOON, || {
        let done = docker.docker(&format!("exec {from} ping -c 1 -W 1 {to}"));
        done.map_err(|error| last = format!("{error:#}")).is_ok()
    })
    .with_context(|| last)?;
    let text = docker.docker(&format!("exec {from} ping -c 3 -i 0.1 -W 1 {to}"))?;
    ensure!(text.contains(" 0% packet loss"), "{text}");
    Ok(())
}

pub fn ip(docker: &Dockerd, container: &str, network: &str) -> Result<IpAddr> {
    let shown = docker.docker(&format!("inspect {container}"))?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let ip = &shown[0]["NetworkSettings"]["Networks"][network]["IPAddress"];
    Ok(ip.as_str().context("no address")?.parse()?)
}

/// Runs a test with both, unless Docker is missing, which is said, and fails in CI.
pub fn with_dockers(resolvers: [&str; 2], body: impl FnOnce(&Lab, &mut Bed) -> Result<()>) {
    if let Err(error) = Dockerd::check_installed() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "CI=true forbids to skip: {error}");
        eprintln!("SKIPPED: {error}");
        return;
    }
    let spec = LabSpec {
        containers: 0,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let mut bed = Bed::start(lab, resolvers)?;
        let done = body(lab, &mut bed);
        let Bed { dockers, agents } = bed;
        drop(dockers);
        done?;
        Ok(agents)
    });
}
