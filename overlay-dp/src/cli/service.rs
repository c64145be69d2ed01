//! `service`

use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use hyper::Method;
use overlay_core::health::{HealthCheck, Probe};
use overlay_core::model::{EndpointMode, ServicePort};

use super::each::Each;
use super::render::{list, table};
use super::{lines, path_part, print};
use crate::api::client::call;
use crate::api::services::{ServiceCreate, ServiceDetail, ServiceInfo};
use crate::api::{ContainerInfo, Publish};
use crate::instance::Instance;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Make a service, known to all hosts at once
    #[command(
        after_help = "The containers that were added with '--service NAME' on its network are its tasks. The \
    containers of the network reach it by its name, at an address of its own (VIP): each TCP connection, and each UDP \
    client's port, goes to one of the tasks, and stays with it while it is there. 'tasks.NAME' is the tasks' own \
    addresses. What is published is reached at that port of every host of the cluster, and leads to one of the tasks, \
    wherever it is. The task sees the client's own address in both cases.

Examples:
  overlay-dp service create web --network uber-net
  overlay-dp service create db --network uber-net --ip 10.0.0.53
  overlay-dp service create cache --network uber-net --endpoint-mode dnsrr
  overlay-dp service create web --network uber-net --publish 8080:80
  overlay-dp service create api --network uber-net --check http:8080/healthz --health-interval 2
  overlay-dp service create dns --network uber-net --publish 53:53/udp --publish 53:53"
    )]
    Create {
        /// Its name, as 'container add --service' says it
        name: String,
        /// Its network
        #[arg(long)]
        network: String,
        /// Publish a port of its tasks on every host (repeatable)
        #[arg(long, value_name = "HOSTPORT:PORT[/udp]", value_parser = parse_port)]
        publish: Vec<ServicePort>,
        /// What its name stands for: an address of its own, or those of all of its tasks in turn
        #[arg(long, value_name = "MODE", default_value = "vip")]
        endpoint_mode: Mode,
        /// Its own address (the next free one when absent)
        #[arg(long, value_name = "ADDR")]
        ip: Option<IpAddr>,
        /// Prefer tasks that take a TCP connection, or answer an HTTP request with a status below 400
        #[arg(long, value_name = "tcp:PORT|http:PORT/PATH")]
        check: Option<Probe>,
        /// Seconds from one check of a task to the next (at most 1 while it fails)
        #[arg(long, value_name = "SECONDS", default_value = "5", requires = "check", value_parser = parse_seconds)]
        health_interval: u32,
        /// Seconds that a check may take
        #[arg(long, value_name = "SECONDS", default_value = "3", requires = "check", value_parser = parse_seconds)]
        health_timeout: u32,
        /// Checks in a row that a task must fail to be passed over
        #[arg(long, value_name = "NUMBER", default_value = "3", requires = "check")]
        health_retries: u32,
    },
    /// List services
    #[command(after_help = "Examples:
  overlay-dp service ls
  overlay-dp service ls --json")]
    Ls,
    /// Show services with their tasks, and where those are
    #[command(after_help = "Examples:
  overlay-dp service inspect web
  overlay-dp service inspect web db --json")]
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove services; their tasks stay
    #[command(
        after_help = "Connections with its own address end; those with its tasks' addresses go on.

Examples:
  overlay-dp service rm web"
    )]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// `--endpoint-mode`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// An address of its own, whose connections are spread over the tasks
    Vip,
    /// The addresses of all tasks, in random order
    Dnsrr,
}

impl From<Mode> for EndpointMode {
    fn from(mode: Mode) -> EndpointMode {
        match mode {
            Mode::Vip => EndpointMode::Vip,
            Mode::Dnsrr => EndpointMode::Dnsrr,
        }
    }
}

/// Every host publishes it, at each of its addresses.
fn parse_port(text: &str) -> Result<ServicePort> {
    let publish: Publish = text.parse()?;
    if publish.host_ip.is_some() {
        bail!("a service is published at every address of every host: write HOSTPORT:PORT");
    }
    Ok(ServicePort {
        host_port: publish.host_port,
        port: publish.port,
        protocol: publish.protocol,
    })
}

pub(super) async fn service(
    instance: &Instance,
    json: bool,
    command: ServiceCommand,
) -> Result<()> {
    let none = None::<&()>;
    let path = |name: &str| format!("/v1/services/{}", path_part(name));
    match command {
        ServiceCommand::Create {
            name,
            network,
            publish,
            endpoint_mode,
            ip,
            check,
            health_interval,
            health_timeout,
            health_retries,
        } => {
            let check = check.map(|probe| HealthCheck {
                probe,
                interval_ms: health_interval,
                timeout_ms: health_timeout,
                retries: health_retries,
            });
            let ask = ServiceCreate {
                name,
                network,
                publish,
                mode: endpoint_mode.into(),
                ip,
                check,
            };
            let made: ServiceInfo =
                call(instance, Method::POST, "/v1/services", Some(&ask)).await?;
            print(json, &made, || one(&made))
        }
        ServiceCommand::Ls => {
            let all: Vec<ServiceDetail> = call(instance, Method::GET, "/v1/services", none).await?;
            print(json, &all, || rows(&all))
        }
        ServiceCommand::Inspect { names } => {
            let ask = async |name: &String| call(instance, Method::GET, &path(name), none).await;
            let found: Each<ServiceDetail> = Each::of(&names, ask).await;
            found.print(json, |found| {
                let each = found
                    .iter()
                    .map(|detail| format!("{}\n\n{}", one(&detail.service), tasks(&detail.tasks)));
                each.collect::<Vec<_>>().join("\n\n")
            })
        }
        ServiceCommand::Rm { names } => {
            let ask = async |name: &String| call(instance, Method::DELETE, &path(name), none).await;
            let gone: Each<ServiceInfo> = Each::of(&names, ask).await;
            gone.print(json, |gone| lines(gone, |service| service.name.clone()))
        }
    }
}

/// As many milliseconds.
fn parse_seconds(text: &str) -> Result<u32> {
    let seconds: f64 = text.parse()?;
    if !(0.1..=3600.0).contains(&seconds) {
        bail!("give from 0.1 to 3600 seconds");
    }
    Ok((seconds * 1000.0).round() as u32)
}

fn tasks(tasks: &[ContainerInfo]) -> String {
    table(
        ["TASK", "IP", "HOST", "READY"],
        tasks.iter().map(|task| {
            [
                task.name.clone(),
                list(&task.ips),
                task.host_name.clone(),
                if task.ready { "yes" } else { "no" }.to_owned(),
            ]
        }),
    )
}

fn published(service: &ServiceInfo) -> String {
    let ports = service.publish.iter().map(|port| Publish::from(*port));
    or_none(list(&ports.collect::<Vec<_>>()))
}

fn or_none(text: String) -> String {
    match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    }
}

fn one(service: &ServiceInfo) -> String {
    format!(
        "{}\n  network    {}\n  mode       {}\n  VIP        {}\n  published  {}\n  check      {}",
        service.name,
        service.network,
        service.mode.name(),
        or_none(list(&service.vips)),
        published(service),
        service.check.as_ref().map_or("-".to_owned(), check),
    )
}

fn check(check: &HealthCheck) -> String {
    let seconds = |ms: u32| f64::from(ms) / 1000.0;
    format!(
        "{} every {} s, within {} s, {} times",
        check.probe,
        seconds(check.interval_ms),
        seconds(check.timeout_ms),
        check.retries
    )
}

/// How many are ready, of how many.
fn ready(tasks: &[ContainerInfo]) -> String {
    let ready = tasks.iter().filter(|task| task.ready).count();
    format!("{ready}/{}", tasks.len())
}

fn rows(services: &[ServiceDetail]) -> String {
    table(
        ["NAME", "NETWORK", "MODE", "VIP", "TASKS", "PUBLISHED"],
        services.iter().map(|ServiceDetail { service, tasks }| {
            [
                service.name.clone(),
                service.network.clone(),
                service.mode.name().to_owned(),
                or_none(list(&service.vips)),
                ready(tasks),
                published(service),
            ]
        }),
    )
}
