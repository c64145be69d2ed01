//! Networks as Docker makes and removes them: each Docker has its own, all of one network of the
//! cluster's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;
use overlay_cluster::Error;
use overlay_core::facts::{NetworkSpec, Refusal};
use overlay_core::model::{Network, check_name};
use serde_json::Value;

use super::book::DockerNetwork;
use super::ipam::{Wish, pool_id, subnets};
use super::wire::{GENERIC, INTERNAL, OfNetwork, PoolData};
use super::{EVERYWHERE_OPTION, FOLLOWS, NETWORK_OPTION, Plugin, VNI_OPTION};

/// How long the removal waits for other hosts to give their addresses back.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// What `-o` said.
struct Wanted {
    name: Option<String>,
    vni: Option<overlay_core::model::Vni>,
    everywhere: bool,
    /// Docker was asked by us, since it is everywhere.
    follows: bool,
    internal: bool,
}

impl Plugin {
    pub(super) async fn create_network(&self, ask: OfNetwork) -> Result<()> {
        let id = ask.network_id;
        ensure!(!id.is_empty(), "a network without an id");
        if self.store.read(|book| book.networks.contains_key(&id)) {
            return Ok(());
        }
        let wanted = Wanted::parse(&ask.options.unwrap_or_default())?;
        let (v4, v6) = (ask.ipv4.unwrap_or_default(), ask.ipv6.unwrap_or_default());
        for (family, data) in [("IPv4", &v4), ("IPv6", &v6)] {
            ensure!(
                data.len() <= 1,
                "a network has one {family} subnet: give one --subnet for each family"
            );
        }
        let given: Vec<(IpNetwork, Option<IpAddr>)> =
            v4.iter().chain(&v6).map(parse).collect::<Result<_>>()?;
        ensure!(!given.is_empty(), "a network without addresses");
        let pools = self.store.read(|book| {
            let pool = |(subnet, _): &(IpNetwork, _)| book.pools.get(&pool_id(*subnet)).cloned();
            given.iter().map(pool).collect::<Option<Vec<_>>>()
        });
        let pools = pools.context(
            "its addresses come from another IPAM driver, which knows nothing of the other hosts: add \
             --ipam-driver overlay-dp",
        )?;
        let of_pools = pools.iter().find_map(|pool| self.network_with(pool.subnet));
        let name = wanted
            .name
            .clone()
            .or_else(|| pools.iter().find_map(|pool| pool.name.clone()))
            .or_else(|| {
                let asked_for = pools.iter().any(|pool| pool.given);
                let network = of_pools.as_ref().filter(|_| asked_for)?;
                Some(network.name.clone())
            })
            .context(
                "which network of the cluster is it? Docker does not tell its name: add -o \
                 overlay-dp.network=NAME; one that does not exist is made",
            )?;
        check_name(&name)?;
        let network = self.ctx.cluster.network(&name).await?;
        let spec = NetworkSpec {
            name: name.clone(),
            subnets: given.iter().map(|(subnet, _)| *subnet).collect(),
            gateways: given.iter().filter_map(|(_, gateway)| *gateway).collect(),
            ip_range: pools.iter().find_map(|pool| pool.range),
            vni: wanted.vni,
            internal: wanted.internal,
            ..NetworkSpec::default()
        };
        let made = network.is_none();
        let network = match network {
            Some(network) => {
                self.check_joined(&network, &given)?;
                check_internal(&network, wanted.internal)?;
                network
            }
            None => {
                if let Some(other) = of_pools {
                    self.remember(&name);
                    bail!(
                        "{} is network '{}' of the cluster, not '{name}': repeat the command, which now gets other \
                         addresses, or add --subnet",
                        subnets(&other),
                        other.name,
                    );
                }
                self.make(spec.clone()).await?
            }
        };
        for pool in &pools {
            for ip in &pool.reserved {
                if let Err(error) = self.reserve(&network, *ip).await {
                    tracing::info!(network = %network.name, "not reserved here: {error:#}");
                }
            }
        }
        self.store.change(|book| {
            let docker_network = DockerNetwork {
                name: name.clone(),
                internal: wanted.internal,
                made,
                follows: wanted.follows,
                spec,
            };
            book.networks.insert(id.clone(), docker_network);
            book.declined.remove(&network.vni);
            for pool in &pools {
                if let Some(pool) = book.pools.get_mut(&pool_id(pool.subnet)) {
                    pool.reserved.clear();
                }
            }
            Ok(())
        })?;
        self.wish.lock().take();
        if wanted.everywhere {
            self.ctx.cluster.network_everywhere(&name).await?;
        }
        tracing::info!(network = %network.name, docker = %short(&id), made, "Docker has the network");
        self.news.notify_one();
        Ok(())
    }

    pub(super) async fn delete_network(&self, ask: &OfNetwork) -> Result<()> {
        let gone = self.store.change(|book| {
            book.endpoints
                .retain(|_, endpoint| endpoint.network != ask.network_id);
            Ok(book.networks.remove(&ask.network_id))
        })?;
        let Some(gone) = gone else {
            return Ok(());
        };
        tracing::info!(network = %gone.name, docker = %short(&ask.network_id), "Docker has the network no more");
        if let Some(network) = self
            .ctx
            .cluster
            .facts(|f| f.network_named(&gone.name).cloned())
        {
            self.release_reserved(&network)?;
            if self.ctx.cluster.facts(|f| f.is_everywhere(network.vni)) {
                self.store.change(|book| {
                    book.declined.insert(network.vni);
                    Ok(())
                })?;
            }
        }
        if gone.made && !self.store.read(|book| book.has_network(&gone.name)) {
            self.remove_from_cluster(&gone.name).await;
        }
        Ok(())
    }

    /// Takes an address that no container is to get.
    pub(super) async fn reserve(&self, network: &Network, ip: IpAddr) -> Result<()> {
        self.take(network, ip.is_ipv4(), Some(ip)).await?;
        self.store.change(|book| {
            let held = book.held.get_mut(&network.name);
            let offset = network.offset_of(ip);
            if let Some(held) = held.zip(offset).and_then(|(held, at)| held.get_mut(&at)) {
                held.reserved = true;
            }
            Ok(())
        })
    }

    /// `--aux-address`es go with the last network of this Docker's.
    fn release_reserved(&self, network: &Network) -> Result<()> {
        if self.store.read(|book| book.has_network(&network.name)) {
            return Ok(());
        }
        let left = self.store.read(|book| {
            let held = book.held.get(&network.name).into_iter().flatten();
            held.map(|(offset, _)| *offset).collect::<Vec<_>>()
        });
        for offset in left {
            self.release(network, offset, true)?;
            self.release(network, offset, false)?;
        }
        Ok(())
    }

    /// The network was made for Docker and goes with it, unless other hosts use it.
    async fn remove_from_cluster(&self, name: &str) {
        self.ctx.addresses.settle(GIVE_BACK).await;
        let deadline = Instant::now() + GIVE_BACK;
        loop {
            match self.ctx.cluster.network_remove(name).await {
                Ok(()) | Err(Error::Refused(Refusal::NoNetwork(_))) => return,
                Err(Error::Refused(Refusal::InUse { .. })) if Instant::now() < deadline => {
                    tokio::time::sleep(GIVE_BACK / 30).await;
                }
                Err(error) => {
                    tracing::warn!(network = name, %error, "the cluster keeps the network: see 'overlay-dp network rm'");
                    return;
                }
            }
        }
    }

    /// Makes a network that Docker has and the cluster has no more.
    pub(super) async fn make_again(&self, subnet: IpNetwork) -> Result<Network> {
        let spec = self.store.read(|book| {
            let mut networks = book.networks.values();
            let found = networks.find(|network| network.spec.subnets.contains(&subnet));
            found.map(|network| network.spec.clone())
        });
        let spec = spec.context("no network of Docker's has that pool")?;
        if let Some(network) = self.ctx.cluster.network(&spec.name).await? {
            ensure!(
                network.subnets().any(|family| family.subnet == subnet),
                "network '{}' of the cluster has {} by now, not {subnet}: remove it from Docker, and make it anew",
                network.name,
                subnets(&network)
            );
            return Ok(network);
        }
        tracing::info!(network = %spec.name, "making the network again: Docker still has it");
        self.make(spec).await
    }

    async fn make(&self, spec: NetworkSpec) -> Result<Network> {
        let host = overlay_host::Host::new()?;
        for subnet in &spec.subnets {
            if let Some((route, interface)) = host.find_overlap(*subnet).await? {
                bail!(
                    "{subnet} overlaps this host's route {route} (dev {interface}): choose another --subnet"
                );
            }
        }
        let name = spec.name.clone();
        match self
            .ctx
            .cluster
            .network_create(spec.clone(), Vec::new())
            .await
        {
            // Another host's Docker was first.
            Err(Error::Refused(Refusal::NetworkExists(_))) => {
                let network = self.ctx.cluster.network(&name).await?;
                let network = network.context("it came and went: try again")?;
                let same = |subnet: &IpNetwork| network.subnets().any(|f| f.subnet == *subnet);
                if !spec.subnets.iter().all(same) {
                    self.remember(&name);
                    bail!(
                        "another host has just made '{name}' with {}: repeat the command",
                        subnets(&network)
                    );
                }
                check_internal(&network, spec.internal)?;
                Ok(network)
            }
            made => Ok(made?),
        }
    }

    /// That what Docker was given before is the network's.
    fn check_joined(&self, network: &Network, given: &[(IpNetwork, Option<IpAddr>)]) -> Result<()> {
        for (subnet, gateway) in given {
            let Some(family) = network.subnets().find(|family| family.subnet == *subnet) else {
                self.remember(&network.name);
                bail!(
                    "network '{}' of the cluster has {}, and {subnet} was chosen before its name was known: repeat the \
                     command within two minutes, or add --ipam-opt {NETWORK_OPTION}={0} (or --subnet {})",
                    network.name,
                    subnets(network),
                    network.subnet,
                );
            };
            if let Some(gateway) = gateway {
                ensure!(
                    *gateway == family.gateway,
                    "the gateway of '{}' is {}, not {gateway}: leave --gateway out",
                    network.name,
                    family.gateway
                );
            }
        }
        Ok(())
    }

    /// The next pool without a name is this network's.
    fn remember(&self, name: &str) {
        *self.wish.lock() = Some(Wish {
            name: name.to_owned(),
            since: Instant::now(),
        });
    }
}

/// Reads a request as far as that goes without the agent.
pub(super) fn understand(ask: &OfNetwork) {
    if let Some(options) = &ask.options {
        let _ = Wanted::parse(options);
    }
}

impl Wanted {
    fn parse(options: &BTreeMap<String, Value>) -> Result<Wanted> {
        let flag = |key| options.get(key).is_some_and(|value: &Value| is_true(value));
        let mut wanted = Wanted {
            name: None,
            vni: None,
            everywhere: false,
            follows: false,
            internal: flag(INTERNAL),
        };
        let generic = options.get(GENERIC).and_then(Value::as_object);
        for (key, value) in generic.into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            match key.as_str() {
                NETWORK_OPTION => wanted.name = Some(text.to_owned()),
                EVERYWHERE_OPTION if text == FOLLOWS => wanted.follows = true,
                EVERYWHERE_OPTION => wanted.everywhere = is_true(value),
                VNI_OPTION => {
                    let number: u32 = text.parse().with_context(|| format!("-o {key}={text}"))?;
                    wanted.vni = Some(number.try_into()?);
                }
                _ if key.starts_with("overlay-dp.") => bail!(
                    "no such option: -o {key}; there are {NETWORK_OPTION}, {EVERYWHERE_OPTION} and {VNI_OPTION}"
                ),
                _ => {}
            }
        }
        Ok(wanted)
    }
}

/// A network without a way out is one everywhere: who joins it without `--internal` gets none,
/// either, and nobody is promised that it has none where it has one.
fn check_internal(network: &Network, wanted: bool) -> Result<()> {
    ensure!(
        network.internal || !wanted,
        "network '{}' of the cluster has ways out, on all hosts: leave --internal out, or choose another name",
        network.name
    );
    Ok(())
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(is) => *is,
        Value::String(text) => matches!(text.as_str(), "" | "true" | "1" | "yes"),
        _ => false,
    }
}

fn parse(data: &PoolData) -> Result<(IpNetwork, Option<IpAddr>)> {
    let cidr = |text: &str| {
        text.parse::<IpNetwork>()
            .with_context(|| format!("'{text}' is no address range"))
    };
    let pool = cidr(&data.pool)?;
    let gateway = match data.gateway.as_str() {
        "" => None,
        text => Some(cidr(text)?.ip()),
    };
    Ok((IpNetwork::new(pool.network(), pool.prefix())?, gateway))
}

/// As Docker shows its ids.
pub(super) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
