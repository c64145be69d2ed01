//! Docker on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use hyper::Method;

use super::each::Each;
use super::lines;
use crate::api::client::call;
use crate::api::docker::{DockerCreate, DockerNetwork};
use crate::docker::Options;
use crate::instance::Instance;

/// Where Docker finds its plugins.
const PLUGIN: &str = "/run/docker/plugins/overlay-dp.sock";

/// `docker`
#[derive(Debug, Subcommand)]
pub enum DockerCommand {
    /// Have this host's Docker make its network of a network of the cluster's, by the same name
    #[command(
        after_help = "As 'docker network create -d overlay-dp --ipam-driver overlay-dp' with the network's name, subnets \
    and gateways, so that 'docker run --ip' works, too. 'docker network rm' undoes it.

Examples:
  overlay-dp network create uber-net
  overlay-dp docker create uber-net --everywhere
  docker run -d --name test.1 --network uber-net nginx"
    )]
    Create {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// Every other host's Docker gets it, too, also of hosts that join later
        #[arg(long)]
        everywhere: bool,
    },
}

pub(super) async fn run(instance: &Instance, json: bool, command: DockerCommand) -> Result<()> {
    let DockerCommand::Create { names, everywhere } = command;
    let ask = async |name| {
        let body = DockerCreate { name, everywhere };
        call(instance, Method::POST, "/v1/docker/networks", Some(&body)).await
    };
    let made: Each<DockerNetwork> = Each::of(names, ask).await;
    let mut all = made.done.iter();
    if let Some(warning) = all.find_map(|network| network.warning.as_ref()) {
        eprintln!("warning: {warning}");
    }
    made.print(json, |made| {
        lines(made, |network| {
            let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
            format!("{}: {}, {}", network.name, subnets.join(", "), network.id)
        })
    })
}

/// What `attach` is told about Docker.
#[derive(Debug, Args)]
pub struct DockerArgs {
    /// The socket where the network driver 'overlay-dp' is served to Docker, or 'off' [default:
    /// /run/docker/plugins/overlay-dp.sock; off for other instances than the default one]
    #[arg(long, value_name = "PATH|off")]
    docker_plugin: Option<PathBuf>,
    /// Docker's own socket: there its containers' names are asked for
    #[arg(long, default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker_socket: PathBuf,
}

impl DockerArgs {
    /// With the defaults of an instance.
    pub(super) fn options(self, instance: &Instance) -> Result<Options> {
        let plugin = match self.docker_plugin {
            Some(path) if path.as_os_str() == "off" => None,
            Some(path) => Some(std::path::absolute(path).context("--docker-plugin")?),
            None if instance.is_default() => Some(PathBuf::from(PLUGIN)),
            None => None,
        };
        Ok(Options {
            plugin,
            daemon: std::path::absolute(self.docker_socket).context("--docker-socket")?,
        })
    }
}
