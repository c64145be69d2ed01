//! Asking Docker's daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::resolvers;

/// Docker answers about a container when it has started: so long that may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that an answer may have.
const LIMIT: usize = 64 << 20;
/// As old as Debian 12's Docker understands, and as new as what is asked for here needs.
const VERSION: &str = "/v1.40";

/// Docker's daemon.
pub struct Client {
    socket: PathBuf,
    /// The host's resolvers are named there.
    resolv_conf: PathBuf,
}

/// A network, as `docker network inspect` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Its endpoints, by their containers' ids.
    pub containers: Option<BTreeMap<String, Attached>>,
}

/// A container in a network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attached {
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
}

/// A container, as `docker inspect` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    pub name: String,
    pub config: Config,
    pub host_config: HostConfig,
    pub state: State,
    pub network_settings: NetworkSettings,
}

/// What it was made with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    pub labels: Option<BTreeMap<String, String>>,
}

/// What its host does for it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `--dns`
    pub dns: Option<Vec<String>>,
}

/// What it does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// 0 while it does not run.
    pub pid: u32,
}

/// Its networks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    pub networks: BTreeMap<String, InNetwork>,
}

/// What it is called in one of them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct InNetwork {
    pub aliases: Option<Vec<String>>,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
}

impl Client {
    /// The one on that socket, whether or not it runs, on a host with that resolv.conf.
    pub fn new(socket: PathBuf, resolv_conf: PathBuf) -> Client {
        Client {
            socket,
            resolv_conf,
        }
    }

    pub(super) fn resolv_conf(&self) -> &Path {
        &self.resolv_conf
    }

    /// Why its containers don't know the names of other hosts', unless each is given a resolver.
    pub fn resolver_problem(&self) -> Option<String> {
        resolvers::problem(&self.resolv_conf)
    }

    /// `None` when there is no such network.
    pub async fn network(&self, id: &str) -> Result<Option<Network>> {
        self.get(&format!("/networks/{id}")).await
    }

    /// `None` when there is no such container.
    pub async fn container(&self, id: &str) -> Result<Option<Container>> {
        self.get(&format!("/containers/{id}/json")).await
    }

    /// Makes a network, and returns its id.
    pub async fn create_network(&self, ask: &serde_json::Value) -> Result<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Made {
            id: String,
        }
        #[derive(Deserialize)]
        struct Refused {
            message: String,
        }
        let asked = self.exchange(Method::POST, "/networks/create", Some(ask));
        let (status, bytes) = timeout(PATIENCE, asked)
            .await
            .context("Docker does not answer")??;
        if status == 201 {
            let made: Made = serde_json::from_slice(&bytes).context("Docker's answer")?;
            return Ok(made.id);
        }
        match serde_json::from_slice::<Refused>(&bytes) {
            Ok(refused) => bail!("{}", refused.message),
            Err(_) => bail!("it answers {status}"),
        }
    }

    /// Removes a network; one that is gone is fine.
    pub async fn remove_network(&self, id: &str) -> Result<()> {
        let path = format!("/networks/{id}");
        let asked = self.exchange(Method::DELETE, &path, None);
        let (status, bytes) = timeout(PATIENCE, asked)
            .await
            .context("Docker does not answer")??;
        match status {
            204 | 404 => Ok(()),
            _ => bail!("Docker keeps it: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// The stream of what happens to containers and networks.
    pub async fn events(&self) -> Result<Incoming> {
        // {"type":["container","network"],"event":["start","rename","connect","destroy"]}
        let filters = "%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%2C%22event%22%3A%5B%22start%22%2C\
                       %22rename%22%2C%22connect%22%2C%22die%22%5D%7D";
        let path = format!("/events?filters={filters}");
        let response = self.send(Method::GET, &path, None).await?;
        if !response.status().is_success() {
            bail!("Docker refuses its events: {}", response.status());
        }
        Ok(response.into_body())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let (status, bytes) = timeout(PATIENCE, self.exchange(Method::GET, path, None))
            .await
            .with_context(|| format!("Docker does not answer {path}"))??;
        match status {
            404 => Ok(None),
            200 => Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("Docker's answer to {path} is not understood")
            })?)),
            _ => bail!("Docker answers {status} to {path}"),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<(u16, Bytes)> {
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        let body = body.map_err(|error| anyhow!("Docker's answer broke off: {error}"))?;
        Ok((status, body.to_bytes()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("no Docker on {}", self.socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let json = body.map_or(String::new(), ToString::to_string);
        let request = Request::builder()
            .method(method)
            .uri(format!("{VERSION}{path}"))
            .header("host", "docker")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(json)))?;
        Ok(sender.send_request(request).await?)
    }
}
