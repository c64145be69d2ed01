//! What only Docker's API tells: which container an endpoint is of, what that is called, and
//! whether Docker still has what it had, which matters after either of us was away.
//!
//! Docker is asked here alone, never while it waits for an answer of the plugin's. A question about
//! a container that starts is answered when it has started.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use overlay_core::facts::MAX_ALIASES;
use overlay_core::model::{Vni, check_name};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Plugin;
use super::book::DockerEndpoint;
use super::client::{Attached, Container};
use super::network::short;
use crate::agent::{DockerName, DockerPlug, Request};

/// The label that makes a container a task of a service.
const SERVICE_LABEL: &str = "overlay-dp.service";
/// How often Docker is called when it does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How soon it is asked again for what it did not know yet.
const AGAIN: Duration = Duration::from_millis(100);
/// How often all is compared.
const PERIOD: Duration = Duration::from_secs(20);
/// What Docker lacks for so long it has forgotten: it may be about to make it before.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What is known of Docker.
#[derive(Default)]
pub(super) struct Watch {
    /// Endpoints that have their names, and their containers.
    named: HashMap<String, String>,
    /// Since when Docker has lacked things.
    pub(super) missing: HashMap<String, Instant>,
    /// Endpoints that were there when the agent started: their ports may be lost.
    old: HashSet<String>,
    /// Names that are taken, which was said.
    taken: HashSet<String>,
    /// That Docker does not ask us was said.
    unasked: bool,
    /// Endpoints whose ports somebody else has, which was said.
    pub(super) unpublished: HashSet<String>,
}

/// A line of the events.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: HashMap<String, String>,
}

/// Asks Docker as long as the agent runs.
pub async fn run(plugin: Arc<Plugin>) {
    let mut watch = Watch {
        old: plugin
            .store
            .read(|book| book.endpoints.keys().cloned().collect()),
        ..Watch::default()
    };
    let mut said = false;
    loop {
        match timeout(RETRY * 10, plugin.client.events()).await {
            Ok(Ok(events)) => {
                tracing::debug!("connected to Docker");
                said = false;
                watch.named.clear();
                // It drops what the host forwards when it starts.
                let _ = plugin.ctx.agent.send(Request::FirewallLook).await;
                follow(&plugin, &mut watch, events).await;
            }
            Ok(Err(error)) => {
                // Without containers of Docker's there is nothing to complain about.
                let wanted = plugin.store.read(|book| !book.endpoints.is_empty());
                if wanted && !said {
                    tracing::warn!("containers of Docker's have no names yet: {error:#}");
                    said = true;
                }
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// Until the events end.
async fn follow(plugin: &Plugin, watch: &mut Watch, mut events: Incoming) {
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut text = Vec::new();
    loop {
        let (mut all, mut open) = (false, false);
        for endpoint in plugin.unnamed(watch) {
            open |= !watch.old.contains(&endpoint);
        }
        tokio::select! {
            frame = events.frame() => match frame {
                Some(Ok(frame)) => {
                    text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    for container in containers_in(&mut text) {
                        watch.named.retain(|_, of| *of != container);
                    }
                }
                Some(Err(_)) | None => return,
            },
            () = plugin.news.notified() => {}
            () = sleep(AGAIN), if open => {}
            _ = tick.tick() => all = true,
        }
        if let Err(error) = plugin.ask_docker(watch, all).await {
            tracing::debug!("Docker: {error:#}");
        }
    }
}

/// The containers that whole lines tell of; the rest of the text stays.
fn containers_in(text: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else {
        return Vec::new();
    };
    let lines: Vec<u8> = text.drain(..=end).collect();
    let events = lines.split(|byte| *byte == b'\n');
    events
        .filter_map(|line| serde_json::from_slice::<Event>(line).ok())
        .map(|event| match event.actor.attributes.get("container") {
            Some(container) => container.clone(),
            None => event.actor.id,
        })
        .collect()
}

impl Watch {
    /// Whether Docker has lacked something for so long that it has forgotten it.
    pub(super) fn is_forgotten(&mut self, what: &str, lacks: bool) -> bool {
        if !lacks {
            self.missing.remove(what);
            return false;
        }
        let since = *self
            .missing
            .entry(what.to_owned())
            .or_insert_with(Instant::now);
        since.elapsed() >= FORGOTTEN
    }
}

impl Plugin {
    /// The endpoints in containers whose names are not known.
    fn unnamed(&self, watch: &Watch) -> Vec<String> {
        self.store.read(|book| {
            let joined = book
                .endpoints
                .iter()
                .filter(|(_, endpoint)| endpoint.sandbox.is_some());
            let unnamed = joined.filter(|(id, _)| !watch.named.contains_key(*id));
            unnamed.map(|(id, _)| id.clone()).collect()
        })
    }

    /// Asks for what is not known, or for `all`.
    async fn ask_docker(&self, watch: &mut Watch, all: bool) -> Result<()> {
        let unnamed: HashSet<String> = self.unnamed(watch).into_iter().collect();
        let (networks, endpoints) = self
            .store
            .read(|book| (book.networks.clone(), book.endpoints.clone()));
        for id in networks.keys() {
            let here = || {
                endpoints
                    .iter()
                    .filter(|(_, endpoint)| endpoint.network == *id)
            };
            if !all && !here().any(|(id, _)| unnamed.contains(id)) {
                continue;
            }
            let found = self.client.network(id).await?;
            if watch.is_forgotten(id, found.is_none()) {
                tracing::info!(docker = %short(id), "Docker has forgotten a network");
                self.forget_network(id).await?;
            }
            let Some(found) = found else { continue };
            let containers = found.containers.unwrap_or_default();
            let attached: HashMap<&str, (&str, &Attached)> = containers
                .iter()
                .map(|(container, it)| (it.endpoint_id.as_str(), (container.as_str(), it)))
                .collect();
            let mut wanted = Vec::new();
            for (id, endpoint) in here() {
                let there = attached.get(id.as_str());
                if watch.is_forgotten(id, there.is_none()) {
                    tracing::info!(docker = %short(id), ips = ?endpoint.ips, "Docker has forgotten an endpoint");
                    self.forget_endpoint(id).await?;
                }
                if let Some((container, it)) = there
                    && (unnamed.contains(id) || all)
                {
                    wanted.push((id, endpoint, *container, *it));
                }
            }
            let asked = wanted
                .into_iter()
                .map(|(id, endpoint, container, it)| self.ask_for(id, endpoint, container, it));
            for answer in join_all(asked).await {
                match answer {
                    Ok(Some(known)) => self.take_name(watch, known).await?,
                    Ok(None) => {}
                    Err(error) => tracing::debug!("Docker: {error:#}"),
                }
            }
        }
        if all {
            self.publish_again(watch).await;
            self.forget_addresses(watch)?;
        }
        let ids: HashSet<&String> = endpoints.keys().collect();
        watch.named.retain(|id, _| ids.contains(id));
        watch.old.retain(|id| ids.contains(id));
        Ok(())
    }

    /// What Docker says of an endpoint's container. Its name is told at once, before it has
    /// started and Docker tells the rest.
    async fn ask_for(
        &self,
        id: &str,
        endpoint: &DockerEndpoint,
        container: &str,
        attached: &Attached,
    ) -> Result<Option<Known>> {
        let vni = self.network_of(&endpoint.network).await?.vni;
        let first = DockerName {
            id: id.to_owned(),
            name: attached.name.clone(),
            aliases: Vec::new(),
            service: None,
            pid: None,
            is_first: true,
        };
        if check_name(&first.name).is_ok() && self.is_free(vni, &first).await? {
            self.ctx
                .ask(|reply| Request::DockerName(first, reply))
                .await?;
        }
        let Some(found) = self.client.container(container).await? else {
            return Ok(None);
        };
        let settings = found.network_settings.networks.values();
        let mut here = settings.filter(|network| network.endpoint_id == id);
        let Some(here) = here.next() else {
            return Ok(None);
        };
        let name = found.name.trim_start_matches('/').to_owned();
        let mut aliases = here.aliases.clone().unwrap_or_default();
        aliases.retain(|alias| check_name(alias).is_ok() && *alias != name);
        aliases.sort_unstable();
        aliases.dedup();
        aliases.truncate(MAX_ALIASES);
        Ok(Some(Known {
            vni,
            container: container.to_owned(),
            endpoint: endpoint.clone(),
            has_resolvers: found
                .host_config
                .dns
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
            name: DockerName {
                id: id.to_owned(),
                name,
                aliases,
                service: service_of(&found),
                pid: Some(found.state.pid).filter(|pid| *pid > 0),
                is_first: false,
            },
        }))
    }

    async fn take_name(&self, watch: &mut Watch, known: Known) -> Result<()> {
        let Known {
            vni,
            container,
            endpoint,
            has_resolvers,
            mut name,
        } = known;
        if !has_resolvers
            && !watch.unasked
            && let Some(problem) = self.client.resolver_problem()
        {
            watch.unasked = true;
            tracing::warn!(container = %name.name, "{problem}");
        }
        let id = name.id.clone();
        if let Some(pid) = name.pid
            && watch.old.remove(&id)
        {
            self.plug_again(&id, &endpoint, pid).await?;
        }
        if check_name(&name.name).is_err() || !self.is_free(vni, &name).await? {
            if watch.taken.insert(id.clone()) {
                tracing::warn!(
                    container = %name.name, called = %short(&id),
                    "the name is taken on that network, or can't be one: the container has its endpoint's instead"
                );
            }
            name.name = short(&id).to_owned();
        } else {
            watch.taken.remove(&id);
        }
        let is_settled = name.pid.is_some() && !watch.taken.contains(&id);
        self.ctx
            .ask(|reply| Request::DockerName(name, reply))
            .await?;
        if is_settled || watch.taken.contains(&id) {
            watch.named.insert(id, container);
        }
        Ok(())
    }

    /// Whether nobody else has a name.
    async fn is_free(&self, vni: Vni, name: &DockerName) -> Result<bool> {
        let ports = self.ctx.ask(Request::Ports).await?;
        let mine = |port: &&crate::agent::Port| port.docker.as_ref() == Some(&name.id);
        if ports
            .iter()
            .find(mine)
            .is_some_and(|port| port.endpoint.name == name.name)
        {
            return Ok(true);
        }
        Ok(self.ctx.cluster.whose_name(vni, &name.name).await.is_none())
    }

    /// An agent that was told to stop took the port away, and Docker asks for none again.
    async fn plug_again(&self, id: &str, endpoint: &DockerEndpoint, pid: u32) -> Result<()> {
        let ports = self.ctx.ask(Request::Ports).await?;
        if ports.iter().any(|port| port.docker.as_deref() == Some(id)) {
            return Ok(());
        }
        let network = self.network_of(&endpoint.network).await?;
        let plug = DockerPlug {
            id: id.to_owned(),
            name: short(id).to_owned(),
            ips: endpoint.ips.clone(),
            mac: endpoint.mac,
            network,
            pid,
        };
        self.ctx
            .ask(|reply| Request::DockerPlug(Box::new(plug), reply))
            .await
    }
}

/// An endpoint, and what its container is called.
struct Known {
    vni: Vni,
    container: String,
    endpoint: DockerEndpoint,
    /// By `--dns`.
    has_resolvers: bool,
    name: DockerName,
}

fn service_of(container: &Container) -> Option<String> {
    let labels = container.config.labels.as_ref()?;
    let service = labels.get(SERVICE_LABEL)?;
    check_name(service).ok().map(|()| service.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_line_by_line_as_they_come() {
        let mut text = br#"{"Type":"container","Action":"rename","Actor":{"ID":"c1","Attributes":{"name":"x"}}}
{"Type":"network","Action":"connect","Actor":{"ID":"n1","Attributes":{"container":"c2"}}}
no event
{"Type":"cont"#
            .to_vec();
        assert_eq!(containers_in(&mut text), ["c1", "c2"]);
        assert_eq!(text, br#"{"Type":"cont"#);
        text.extend_from_slice(b"ainer\",\"Actor\":{\"ID\":\"c3\"}}\n");
        assert_eq!(containers_in(&mut text), ["c3"]);
        assert!(text.is_empty());
    }

    #[test]
    fn what_is_missing_is_forgotten_later() {
        let mut watch = Watch::default();
        assert!(!watch.is_forgotten("a", true));
        let long_ago = Instant::now().checked_sub(FORGOTTEN).unwrap();
        watch.missing.insert("a".to_owned(), long_ago);
        assert!(watch.is_forgotten("a", true));
        assert!(!watch.is_forgotten("a", false));
        assert!(!watch.is_forgotten("a", true), "it was there again");
    }
}
