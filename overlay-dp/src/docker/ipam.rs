//! The IPAM driver: pools are the networks' subnets, and addresses come from this host's leases.
//!
//! Docker asks for a pool before it tells of the network, whose `-o` options the pool does not see.
//! So a pool that comes without `--subnet` and without a name is the one of a network of the
//! cluster that this Docker does not have yet, else a free one. If the network then turns out to be
//! another, `docker network create` fails, and is right when it is repeated: see [`Wish`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::{IpNetwork, Ipv4Network};
use overlay_core::model::{Network, check_name};

use super::book::{Book, Held, Pool};
use super::wire::{ADDRESS_TYPE, GATEWAY, OfPool, PoolGiven, RequestPool};
use super::{NETWORK_OPTION, Plugin};
use crate::agent;

/// How an id of a pool begins; its subnet follows.
const POOL: &str = "overlay-dp/";
/// How long a network that failed for its pool is remembered.
const REMEMBERED: Duration = Duration::from_secs(120);

/// A network that failed for its pool: the next pool without a name is for it.
pub struct Wish {
    pub name: String,
    pub since: Instant,
}

impl Plugin {
    pub(super) async fn request_pool(&self, ask: RequestPool) -> Result<PoolGiven> {
        let options = ask.options.unwrap_or_default();
        let unknown = |key: &&String| key.starts_with("overlay-dp.") && *key != NETWORK_OPTION;
        if let Some(key) = options.keys().find(unknown) {
            bail!("no such --ipam-opt: {key}; there is {NETWORK_OPTION}");
        }
        let name = options.get(NETWORK_OPTION).cloned();
        let wanted = parse_subnet(&ask.pool)?;
        if let Some(name) = &name {
            check_name(name)?;
        }
        let guess = match (&name, wanted) {
            (None, None) if !ask.v6 => self.guess().await,
            _ => None,
        };
        let network = match name.as_ref().or(guess.as_ref()) {
            Some(name) => self.ctx.cluster.network(name).await?,
            None => None,
        };
        let subnet = match (wanted, &network) {
            (Some(wanted), Some(network)) => {
                ensure!(
                    network.subnets().any(|family| family.subnet == wanted),
                    "network '{}' of the cluster has {}, not {wanted}: leave --subnet out",
                    network.name,
                    subnets(network)
                );
                wanted
            }
            (None, Some(network)) => {
                let family = network
                    .subnets()
                    .find(|family| family.subnet.is_ipv6() == ask.v6);
                let version = if ask.v6 { "IPv6" } else { "IPv4" };
                let family = family.with_context(|| {
                    format!("network '{}' of the cluster has no {version}", network.name)
                })?;
                family.subnet
            }
            (Some(wanted), None) => {
                self.check_new(wanted).await?;
                wanted
            }
            (None, None) if ask.v6 => bail!("an IPv6 subnet has to be given: --subnet"),
            (None, None) => self.free_pool().await?,
        };
        let network = network.or_else(|| self.network_with(subnet));
        let range = parse_subnet(&ask.sub_pool)?;
        if let (Some(network), Some(range)) = (&network, range) {
            self.check_range(network, range)?;
        }
        let pool_id = format!("{POOL}{subnet}");
        self.store.change(|book| {
            let pool = book.pools.entry(pool_id.clone()).or_insert(Pool {
                subnet,
                count: 0,
                range: None,
                name: None,
                given: false,
                gateway: None,
                reserved: Vec::new(),
            });
            pool.count += 1;
            pool.range = range.or(pool.range);
            pool.name = name.or(pool.name.take());
            pool.given |= wanted.is_some();
            Ok(())
        })?;
        // A network that is there has its gateway; Docker asks for one otherwise.
        let gateway = network.and_then(|network| {
            let family = network.subnets().find(|family| family.subnet == subnet)?;
            let gateway = IpNetwork::new(family.gateway, subnet.prefix()).ok()?;
            Some((GATEWAY.to_owned(), gateway.to_string()))
        });
        Ok(PoolGiven {
            pool_id,
            pool: subnet.to_string(),
            data: gateway.into_iter().collect(),
        })
    }

    pub(super) fn release_pool(&self, ask: &OfPool) -> Result<()> {
        self.store.change(|book| {
            if let Some(pool) = book.pools.get_mut(&ask.pool_id) {
                pool.count = pool.count.saturating_sub(1);
                if pool.count == 0 {
                    book.pools.remove(&ask.pool_id);
                }
            }
            Ok(())
        })
    }

    /// An address, with the length of its prefix.
    pub(super) async fn request_address(&self, ask: OfPool) -> Result<String> {
        let subnet = subnet_of(&ask.pool_id)?;
        let wanted = match ask.address.as_str() {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .with_context(|| format!("--ip {text}"))?,
            ),
        };
        let options = ask.options.unwrap_or_default();
        let is_gateway = options
            .get(ADDRESS_TYPE)
            .is_some_and(|kind| kind == GATEWAY);
        let network = match self.network_with(subnet) {
            Some(network) => Some(network),
            None if self.store.read(|book| is_made_with(book, subnet)) => {
                Some(self.make_again(subnet).await?)
            }
            None => None,
        };
        let ip = match network {
            None => self.before_network(&ask.pool_id, subnet, wanted, is_gateway)?,
            Some(network) => {
                let family = network.subnets().find(|family| family.subnet == subnet);
                let gateway = family.context("a network has its subnet")?.gateway;
                match (is_gateway, wanted) {
                    (false, Some(ip)) if ip == gateway => {
                        bail!("{ip} is the gateway of '{}'", network.name)
                    }
                    (false, Some(ip)) if !self.has_network(&network) => {
                        // For no container (`--aux-address`). Where another host has it, which may
                        // have reserved it as well, nobody gets it here, either.
                        if let Err(error) = self.reserve(&network, ip).await {
                            tracing::info!(network = %network.name, "not reserved here: {error:#}");
                        }
                        ip
                    }
                    (false, wanted) => self.take(&network, subnet.is_ipv4(), wanted).await?,
                    (true, Some(ip)) if ip != gateway => bail!(
                        "the gateway of '{}' is {gateway}, not {ip}: leave --gateway out",
                        network.name
                    ),
                    (true, _) => gateway,
                }
            }
        };
        Ok(IpNetwork::new(ip, subnet.prefix())?.to_string())
    }

    pub(super) fn release_address(&self, ask: &OfPool) -> Result<()> {
        let subnet = subnet_of(&ask.pool_id)?;
        let ip: IpAddr = ask.address.parse().context("the address to release")?;
        let Some(network) = self.network_with(subnet) else {
            return self.store.change(|book| {
                if let Some(pool) = book.pools.get_mut(&ask.pool_id) {
                    pool.reserved.retain(|reserved| *reserved != ip);
                }
                Ok(())
            });
        };
        match network.offset_of(ip) {
            Some(offset) => self.release(&network, offset, ip.is_ipv4()),
            None => Ok(()),
        }
    }

    /// Docker does not have this address any more; the container can't have its other one alone.
    pub(super) fn release(&self, network: &Network, offset: u32, v4: bool) -> Result<()> {
        let gone = self.store.change(|book| {
            let Some(held) = book.held.get_mut(&network.name) else {
                return Ok(None);
            };
            let Some(entry) = held.get_mut(&offset) else {
                return Ok(None);
            };
            *entry.half(v4) = false;
            if entry.v4 || entry.v6 {
                return Ok(None);
            }
            let key = entry.key();
            held.remove(&offset);
            if held.is_empty() {
                book.held.remove(&network.name);
            }
            Ok(Some(key))
        })?;
        if let Some(key) = gone {
            self.ctx.addresses.give_back(network.vni, &key);
        }
        Ok(())
    }

    /// Takes an address for Docker: the other half of one that it has just got, or a new one.
    pub(super) async fn take(
        &self,
        network: &Network,
        v4: bool,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr> {
        let wanted_offset = wanted.and_then(|ip| network.offset_of(ip));
        if let Some(ip) = wanted {
            ensure!(
                wanted_offset.is_some(),
                "{ip} is not in {}",
                subnets(network)
            );
        }
        let other_half = self.store.change(|book| {
            let found = other_half(book, network, v4, wanted_offset);
            if let Some(offset) = found
                && let Some(entry) = held_at(book, network, offset)
            {
                *entry.half(v4) = true;
            }
            Ok(found)
        })?;
        if let Some(offset) = other_half {
            return address(network, offset, v4);
        }
        let serial = self.store.change(|book| {
            book.count += 1;
            Ok(book.count)
        })?;
        let mut held = Held {
            serial,
            ..Held::default()
        };
        *held.half(v4) = true;
        let key = held.key();
        let wish = agent::Wish {
            network: network.clone(),
            name: key.clone(),
            ip: wanted,
            mac: None,
            last: false,
        };
        let given = self.ctx.addresses.take(wish).await?;
        let noted = (|| {
            let offset = given.ips.iter().find_map(|ip| network.offset_of(*ip));
            let offset = offset.context("an address that is not its network's")?;
            let ip = address(network, offset, v4)?;
            self.store.change(|book| {
                let of_network = book.held.entry(network.name.clone()).or_default();
                of_network.insert(offset, held);
                Ok(())
            })?;
            Ok(ip)
        })();
        if noted.is_err() {
            self.ctx.addresses.give_back(network.vni, &key);
        }
        noted
    }

    /// Docker asks for gateways and reserved addresses before it makes the network.
    fn before_network(
        &self,
        pool_id: &str,
        subnet: IpNetwork,
        wanted: Option<IpAddr>,
        is_gateway: bool,
    ) -> Result<IpAddr> {
        self.store.change(|book| {
            let pool = book
                .pools
                .get_mut(pool_id)
                .with_context(|| unknown_pool(subnet))?;
            let inside = |ip: &IpAddr| subnet.contains(*ip) && *ip != subnet.network();
            match (is_gateway, wanted) {
                (_, Some(ip)) if !inside(&ip) => bail!("{ip} is no address of {subnet}"),
                (true, wanted) => {
                    let gateway = wanted.map_or_else(|| first_of(subnet), Ok)?;
                    pool.gateway = Some(gateway);
                    Ok(gateway)
                }
                (false, Some(ip)) => {
                    if !pool.reserved.contains(&ip) {
                        pool.reserved.push(ip);
                    }
                    Ok(ip)
                }
                (false, None) => bail!("{}", unknown_pool(subnet)),
            }
        })
    }

    /// The network of the cluster that a nameless pool may be meant for.
    async fn guess(&self) -> Option<String> {
        if let Some(wish) = self.wish.lock().take()
            && wish.since.elapsed() < REMEMBERED
        {
            return Some(wish.name);
        }
        // Somebody may have made it on another host just now; without a manager, what is known.
        let _ = self.ctx.cluster.refresh().await;
        let networks = self.ctx.cluster.networks();
        let new = self.store.read(|book| {
            let new = networks
                .into_iter()
                .filter(|network| network.subnet.is_ipv4() && !book.has_network(&network.name));
            new.max_by_key(|network| network.vni)
        });
        new.map(|network| network.name)
    }

    fn has_network(&self, network: &Network) -> bool {
        self.store.read(|book| book.has_network(&network.name))
    }

    /// The network of the cluster with exactly that subnet: there is one at most.
    pub(super) fn network_with(&self, subnet: IpNetwork) -> Option<Network> {
        self.ctx.cluster.facts(|facts| {
            let mut networks = facts.networks();
            let has = |network: &&Network| network.subnets().any(|family| family.subnet == subnet);
            networks.find(has).cloned()
        })
    }

    /// A subnet that is not a network's yet must be free.
    async fn check_new(&self, subnet: IpNetwork) -> Result<()> {
        let _ = self.ctx.cluster.refresh().await;
        if self.network_with(subnet).is_some() {
            return Ok(());
        }
        for network in self.ctx.cluster.networks() {
            if let Some(family) = network.subnets().find(|f| overlap(f.subnet, subnet)) {
                bail!(
                    "{subnet} overlaps {} of network '{}' of the cluster: choose another --subnet, or join that \
                     network with --ipam-opt {NETWORK_OPTION}={1}",
                    family.subnet,
                    network.name,
                );
            }
        }
        let host = overlay_host::Host::new()?;
        if let Some((route, interface)) = host.find_overlap(subnet).await? {
            bail!(
                "{subnet} overlaps this host's route {route} (dev {interface}): choose another --subnet"
            );
        }
        Ok(())
    }

    /// The first /24 of 10.0.0.0/8 that no network, no other pool and no route of this host has.
    async fn free_pool(&self) -> Result<IpNetwork> {
        let networks = self.ctx.cluster.networks();
        let subnets = networks.iter().flat_map(Network::subnets);
        let mut taken: Vec<IpNetwork> = subnets.map(|family| family.subnet).collect();
        taken.extend(self.store.read(|book| {
            let pools = book.pools.values().map(|pool| pool.subnet);
            pools.collect::<Vec<_>>()
        }));
        let routes = overlay_host::Host::new()?.host_routes().await?;
        taken.extend(routes.into_iter().map(|(route, _)| route));
        (0..=u16::MAX)
            .filter_map(|number| {
                let [a, b] = number.to_be_bytes();
                let subnet = Ipv4Network::new([10, a, b, 0].into(), 24).ok()?;
                Some(IpNetwork::V4(subnet))
            })
            .find(|subnet| !taken.iter().any(|taken| overlap(*taken, *subnet)))
            .context("no /24 of 10.0.0.0/8 is free: choose a --subnet")
    }

    fn check_range(&self, network: &Network, range: IpNetwork) -> Result<()> {
        let chosen = self
            .ctx
            .cluster
            .facts(|facts| facts.chosen_from(network.vni));
        let first = network.offset_of(range.network());
        let last = network.offset_of(range.broadcast());
        let usable = network.usable();
        let same = chosen
            .zip(first.zip(last))
            .is_some_and(|(chosen, (first, last))| {
                let wanted = overlay_core::facts::Range { first, last };
                wanted.intersection(usable) == Some(chosen)
            });
        ensure!(
            same,
            "network '{}' of the cluster has its own range of addresses: leave --ip-range out",
            network.name
        );
        Ok(())
    }
}

/// An address of which Docker has the other half only, and no endpoint yet: the newest, since
/// Docker makes a network's endpoints one by one.
fn other_half(book: &Book, network: &Network, v4: bool, wanted: Option<u32>) -> Option<u32> {
    let held = book.held.get(&network.name)?;
    let mut open: Vec<(u64, u32)> = held
        .iter()
        .filter(|(offset, held)| {
            let missing = if v4 {
                held.v6 && !held.v4
            } else {
                held.v4 && !held.v6
            };
            missing && wanted.is_none_or(|wanted| wanted == **offset)
        })
        .map(|(offset, held)| (held.serial, *offset))
        .collect();
    open.sort_unstable();
    let free = |offset: &u32| book.endpoint_at(network, *offset).is_none();
    open.into_iter().rev().map(|(_, offset)| offset).find(free)
}

fn held_at<'a>(book: &'a mut Book, network: &Network, offset: u32) -> Option<&'a mut Held> {
    book.held.get_mut(&network.name)?.get_mut(&offset)
}

/// Whether Docker has a network with that pool.
fn is_made_with(book: &Book, subnet: IpNetwork) -> bool {
    let mut networks = book.networks.values();
    networks.any(|network| network.spec.subnets.contains(&subnet))
}

fn address(network: &Network, offset: u32, v4: bool) -> Result<IpAddr> {
    let mut both = network.address_at(offset).into_iter();
    both.find(|ip| ip.is_ipv4() == v4)
        .context("the network has no addresses of that family")
}

fn first_of(subnet: IpNetwork) -> Result<IpAddr> {
    subnet.iter().nth(1).context("a subnet of one address")
}

fn unknown_pool(subnet: IpNetwork) -> String {
    format!(
        "this agent knows nothing of pool {subnet}: remove the network from Docker, and make it anew"
    )
}

/// What `--subnet` or `--ip-range` gave, if anything.
fn parse_subnet(text: &str) -> Result<Option<IpNetwork>> {
    if text.is_empty() {
        return Ok(None);
    }
    let subnet: IpNetwork = text
        .parse()
        .with_context(|| format!("'{text}' is no subnet"))?;
    Ok(Some(IpNetwork::new(subnet.network(), subnet.prefix())?))
}

/// An id says all that has to be known of a pool, also after its record was lost.
fn subnet_of(pool_id: &str) -> Result<IpNetwork> {
    let subnet = pool_id
        .strip_prefix(POOL)
        .and_then(|text| text.parse().ok());
    subnet.with_context(|| format!("'{pool_id}' is no pool of this driver"))
}

pub(super) fn subnets(network: &Network) -> String {
    let all: Vec<String> = network
        .subnets()
        .map(|family| family.subnet.to_string())
        .collect();
    all.join(" and ")
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// What a pool is found by.
pub(super) fn pool_id(subnet: IpNetwork) -> String {
    format!("{POOL}{subnet}")
}

/// For the answers of the driver.
pub(super) fn address_spaces() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("LocalDefaultAddressSpace", "overlay-dp"),
        ("GlobalDefaultAddressSpace", "overlay-dp"),
    ])
}
