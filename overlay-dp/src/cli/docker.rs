//! Docker on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::docker::Options;
use crate::instance::Instance;

/// Where Docker finds its plugins.
const PLUGIN: &str = "/run/docker/plugins/overlay-dp.sock";

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
