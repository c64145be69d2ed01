//! `service`

use anyhow::{Result, bail};
use clap::Subcommand;
use hyper::Method;
use overlay_core::model::ServicePort;

use super::render::{containers, list, table};
use super::{path_part, print};
use crate::api::Publish;
use crate::api::client::call;
use crate::api::services::{ServiceCreate, ServiceDetail, ServiceInfo};
use crate::instance::Instance;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Make a service, known to all hosts at once
    #[command(
        after_help = "The containers that were added with '--service NAME' on its network are its tasks. What is \
    published is reached at that port of every host of the cluster, and leads to one of the tasks, wherever it is; \
    the task sees the client's own address.

Examples:
  overlay-dp service create web --network uber-net --publish 8080:80
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
    },
    /// List services
    Ls,
    /// Show services with their tasks
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove services; their tasks stay
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
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
        } => {
            let ask = ServiceCreate {
                name,
                network,
                publish,
            };
            let made: ServiceInfo =
                call(instance, Method::POST, "/v1/services", Some(&ask)).await?;
            print(json, &made, || rows(std::slice::from_ref(&made)))
        }
        ServiceCommand::Ls => {
            let all: Vec<ServiceInfo> = call(instance, Method::GET, "/v1/services", none).await?;
            print(json, &all, || rows(&all))
        }
        ServiceCommand::Inspect { names } => {
            let mut found: Vec<ServiceDetail> = Vec::new();
            for name in &names {
                found.push(call(instance, Method::GET, &path(name), none).await?);
            }
            print(json, &found, || {
                let one = |detail: &ServiceDetail| {
                    let service = rows(std::slice::from_ref(&detail.service));
                    format!("{service}\n\n{}", containers(&detail.tasks))
                };
                found.iter().map(one).collect::<Vec<_>>().join("\n\n")
            })
        }
        ServiceCommand::Rm { names } => {
            let mut gone: Vec<ServiceInfo> = Vec::new();
            for name in &names {
                gone.push(call(instance, Method::DELETE, &path(name), none).await?);
            }
            print(json, &gone, || {
                let names = gone.iter().map(|service| service.name.as_str());
                names.collect::<Vec<_>>().join("\n")
            })
        }
    }
}

fn rows(services: &[ServiceInfo]) -> String {
    let published = |service: &ServiceInfo| {
        let ports = service.publish.iter().map(|port| Publish::from(*port));
        list(&ports.collect::<Vec<_>>())
    };
    table(
        ["NAME", "NETWORK", "PUBLISHED"],
        services
            .iter()
            .map(|s| [s.name.clone(), s.network.clone(), published(s)]),
    )
}
