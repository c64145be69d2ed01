//! `docker run -p`: ports of the host that lead into a container.
//!
//! Docker programs them when the container's way out is the endpoint's network, and never on one
//! that it knows to be internal. It takes no answer about them: which port was chosen where it
//! leaves the choice to us, nobody would hear, so that such ones are refused.

use anyhow::{Context, Result, bail, ensure};
use overlay_core::model::Protocol;
use serde::Deserialize;
use serde_json::Value;

use super::Plugin;
use super::names::Watch;
use super::network::short;
use super::wire::{OfEndpoint, PORT_MAP};
use crate::agent::Request;
use crate::api::Publish;

/// IANA's numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// A published port (libnetwork's `types.PortBinding`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PortBinding {
    proto: u8,
    /// The container's.
    port: u16,
    /// Empty for all of the host's addresses.
    #[serde(rename = "HostIP")]
    host_ip: Option<String>,
    /// 0 where any will do.
    host_port: u16,
    /// Any of those up to it will do.
    host_port_end: u16,
}

impl PortBinding {
    fn publish(&self) -> Result<Publish> {
        let protocol = match self.proto {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            SCTP => bail!("sctp can't be published: only tcp and udp can"),
            other => bail!("protocol {other} can't be published: only tcp and udp can"),
        };
        let PortBinding {
            port, host_port, ..
        } = *self;
        ensure!(port != 0, "port 0 of the container can't be published");
        let name = protocol.name();
        ensure!(
            host_port != 0,
            "Docker can't be told which port of the host is chosen for {port}/{name}: name one, as in \
             -p {port}:{port}/{name}, and leave -P out"
        );
        ensure!(
            self.host_port_end <= host_port,
            "Docker can't be told which of the ports {host_port} to {} of the host is chosen for \
             {port}/{name}: name one, as in -p {host_port}:{port}/{name}",
            self.host_port_end
        );
        let host_ip = match self.host_ip.as_deref().unwrap_or_default() {
            "" => None,
            text => {
                let ip = text.parse();
                Some(ip.with_context(|| format!("'{text}' is no address"))?)
            }
        };
        Ok(Publish {
            host_ip,
            host_port,
            port,
            protocol,
        })
    }
}

/// What `-p` says.
fn read_ports(ports: Option<Value>) -> Result<Vec<Publish>> {
    let ports: Option<Vec<PortBinding>> = match ports {
        Some(ports) => serde_json::from_value(ports).context("the ports of -p")?,
        None => None,
    };
    let bindings = ports.unwrap_or_default();
    bindings.iter().map(PortBinding::publish).collect()
}

/// Reads a request as far as that goes without the agent.
pub(super) fn understand(ask: &OfEndpoint) {
    let options = ask.options.as_ref();
    let ports = options.and_then(|options| options.get(PORT_MAP).cloned());
    let _ = read_ports(ports);
}

impl Plugin {
    /// Publishes what `-p` says. Docker starts the container only if that succeeds.
    pub(super) async fn publish(&self, ask: OfEndpoint) -> Result<()> {
        let id = ask.endpoint_id;
        let ports = ask.options.and_then(|mut options| options.remove(PORT_MAP));
        let publish = read_ports(ports)?;
        let endpoint = self.store.read(|book| book.endpoints.get(&id).cloned());
        let Some(endpoint) = endpoint else {
            ensure!(publish.is_empty(), "no endpoint {}", short(&id));
            return Ok(());
        };
        if publish.is_empty() && endpoint.publish.is_empty() {
            return Ok(());
        }
        // First that it is to be so: the next agent finds it.
        self.note(&id, &publish)?;
        let published = async {
            self.tell_published(&id, &publish).await?;
            if publish.is_empty() {
                return Ok(());
            }
            let network = self.network_of(&endpoint.network).await?;
            match self.ctx.way_out_problem(&network).await? {
                Some(problem) => bail!("nothing can be published: {problem}"),
                None => Ok(()),
            }
        };
        if let Err(error) = published.await {
            self.unpublish(&id).await?;
            return Err(error);
        }
        Ok(())
    }

    /// Frees the ports of an endpoint.
    pub(super) async fn unpublish(&self, id: &str) -> Result<()> {
        self.note(id, &[])?;
        self.tell_published(id, &[]).await
    }

    /// What is to be published and may not be, as the container's port was made again. Where
    /// somebody else had taken it meanwhile, it is free when that one is gone.
    pub(super) async fn publish_again(&self, watch: &mut Watch) {
        let all = self.store.read(|book| {
            let publishing = book
                .endpoints
                .iter()
                .filter(|(_, it)| !it.publish.is_empty());
            publishing.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        });
        watch.unpublished.retain(|id| all.contains(id));
        for id in all {
            let mut last = None;
            // Docker may say otherwise meanwhile.
            while let Some(publish) = self.noted(&id).filter(|now| last.as_ref() != Some(now)) {
                match self.tell_published(&id, &publish).await {
                    Ok(()) => drop(watch.unpublished.remove(&id)),
                    Err(error) if watch.unpublished.insert(id.clone()) => {
                        tracing::warn!(endpoint = %short(&id), "not published again yet: {error:#}");
                    }
                    Err(_) => {}
                }
                last = Some(publish);
            }
        }
    }

    fn noted(&self, id: &str) -> Option<Vec<Publish>> {
        self.store
            .read(|book| Some(book.endpoints.get(id)?.publish.clone()))
    }

    fn note(&self, id: &str, publish: &[Publish]) -> Result<()> {
        self.store.change(|book| {
            if let Some(endpoint) = book.endpoints.get_mut(id) {
                endpoint.publish = publish.to_vec();
            }
            Ok(())
        })
    }

    async fn tell_published(&self, id: &str, publish: &[Publish]) -> Result<()> {
        let (id, publish) = (id.to_owned(), publish.to_vec());
        self.ctx
            .ask(|reply| Request::DockerPublish(id, publish, reply))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<String> {
        let binding: PortBinding = serde_json::from_str(json)?;
        Ok(binding.publish()?.to_string())
    }

    #[test]
    fn what_docker_writes_is_read() {
        let all = r#"{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}"#;
        assert_eq!(of(all).unwrap(), "8080:80/tcp");
        let one = r#"{"Proto":17,"Port":53,"HostIP":"192.0.2.1","HostPort":53}"#;
        assert_eq!(of(one).unwrap(), "192.0.2.1:53:53/udp");
        let six = r#"{"Proto":6,"Port":80,"HostIP":"::1","HostPort":80,"HostPortEnd":80}"#;
        assert_eq!(of(six).unwrap(), "[::1]:80:80/tcp");
        for (bad, words) in [
            (r#"{"Proto":132,"Port":80,"HostPort":80}"#, "sctp"),
            (r#"{"Proto":1,"Port":80,"HostPort":80}"#, "only tcp and udp"),
            (r#"{"Proto":6,"Port":80}"#, "-p 80:80/tcp"),
            (r#"{"Proto":6,"HostPort":80}"#, "port 0"),
            (
                r#"{"Proto":6,"Port":80,"HostPort":8000,"HostPortEnd":8001}"#,
                "8000 to 8001",
            ),
            (
                r#"{"Proto":6,"Port":80,"HostPort":80,"HostIP":"x"}"#,
                "no address",
            ),
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
