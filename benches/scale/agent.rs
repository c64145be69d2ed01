//! An agent of a lab, and what is asked of it through its socket.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use overlay_dp::api::client::{agent_runs, call};
use overlay_dp::api::{ContainerAdd, ContainerInfo, ContainerRemove, Netns, NetworkCreate};
use overlay_dp::instance::Instance;
use overlay_lab::{AgentProc, Host, Lab, LabSpec, Ns};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
/// Of ports in one namespace.
pub const PORTS_PER_NS: usize = 25;

/// A host of its own, in a lab of its own.
pub struct Bench {
    /// Ends before its lab is removed.
    pub agent: Option<AgentProc>,
    pub lab: Lab,
    instance: Instance,
    runtime: Runtime,
}

impl Bench {
    /// Without an agent yet.
    pub fn build() -> Result<Bench> {
        let spec = LabSpec {
            hosts: 1,
            containers: 0,
            ..LabSpec::default()
        };
        let lab = Lab::new(&spec, BIN.as_ref())?;
        Ok(Bench {
            agent: None,
            instance: Instance::new(&lab.host(1).instance)?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            lab,
        })
    }

    pub fn host(&self) -> &Host {
        self.lab.host(1)
    }

    /// Starts the agent, and returns how long it took until it answered.
    pub fn start(&mut self, args: &str) -> Result<Duration> {
        let begin = Instant::now();
        let mut process = self.lab.spawn_agent(1, args)?;
        while !self.runtime.block_on(agent_runs(&self.instance)) {
            anyhow::ensure!(process.is_running(), "the agent ended:\n{}", process.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        let _: Value = self.ask(Method::GET, "/v1/status", None::<&()>)?;
        self.agent = Some(process);
        Ok(begin.elapsed())
    }

    pub fn agent(&self) -> Result<&AgentProc> {
        self.agent.as_ref().context("no agent runs")
    }

    pub fn ask<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A> {
        self.runtime
            .block_on(call(&self.instance, method, path, body))
            .with_context(|| path.to_owned())
    }

    pub fn timed<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Duration> {
        let begin = Instant::now();
        let _: Value = self.ask(method, path, body)?;
        Ok(begin.elapsed())
    }

    pub fn network(&self, name: &str, subnet: Option<&str>) -> Result<Duration> {
        let body = NetworkCreate {
            name: name.to_owned(),
            subnets: subnet.map(str::parse).transpose()?.into_iter().collect(),
            gateways: Vec::new(),
            ip_range: None,
            ipv6: false,
            vni: None,
            internal: false,
            encrypted: false,
            multicast: None,
        };
        self.timed(Method::POST, "/v1/networks", Some(&body))
    }

    /// Makes the port of container `number`, and returns how long that took.
    pub fn attach(&self, spaces: &[Ns], network: &str, number: usize) -> Result<Duration> {
        let body = ContainerAdd {
            name: Some(format!("c{number}")),
            network: network.to_owned(),
            netns: Netns::Name(spaces[number / PORTS_PER_NS].name().to_owned()),
            aliases: Vec::new(),
            service: None,
            resolv_conf: false,
            ip: None,
            mac: None,
            ifname: format!("p{number}"),
            attachment: None,
            publish: Vec::new(),
            limit: None,
        };
        let begin = Instant::now();
        let _: ContainerInfo = self.ask(Method::POST, "/v1/containers", Some(&body))?;
        Ok(begin.elapsed())
    }

    pub fn remove(&self, number: usize) -> Result<Duration> {
        let body = ContainerRemove {
            name: format!("c{number}"),
            network: None,
        };
        self.timed(Method::DELETE, "/v1/containers", Some(&body))
    }

    /// Namespaces for so many ports: a real host's each have one.
    pub fn spaces(&self, ports: usize) -> Result<Vec<Ns>> {
        let count = ports.div_ceil(PORTS_PER_NS);
        let spaces = (1..=count).map(|number| self.lab.add_container(&format!("c{number}")));
        spaces.collect()
    }

    /// What the agent's process takes, in bytes.
    pub fn memory(&self) -> Result<u64> {
        memory(&self.agent()?.pid().to_string())
    }

    /// For how long the agent has had a CPU.
    pub fn cpu(&self) -> Result<Duration> {
        let mut ns = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.agent()?.pid()))? {
            // One may end meanwhile.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let on_cpu = text.split_whitespace().next();
            ns += on_cpu.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(ns))
    }

    /// The lines of the agent's log with one word, each cut to what is behind `took=`.
    pub fn took(&self, word: &str) -> Result<Vec<String>> {
        let log = self.agent()?.log();
        let lines = log.lines().filter(|line| line.contains(word));
        Ok(lines
            .filter_map(|line| Some(line.split_once("took=")?.1.to_owned()))
            .collect())
    }
}

/// Resident memory of a process, in bytes.
pub fn memory(process: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no VmRSS")?.parse()?;
    Ok(kib << 10)
}
