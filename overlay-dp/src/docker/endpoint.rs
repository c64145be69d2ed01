//! Endpoints: a container's place in a network, and the port that Docker moves into it.
//!
//! Nothing here asks Docker anything, which holds locks while it waits for the answer: the
//! container's name comes later, see [`super::names`].

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;
use overlay_core::model::{Endpoint, MacAddr, Network};

use super::book::{DockerEndpoint, Held};
use super::network::short;
use super::wire::{Interface, InterfaceName, Joined, OfEndpoint, StaticRoute};
use super::{Plugin, resolvers};
use crate::agent::{DockerJoin, Request};

impl Plugin {
    pub(super) async fn create_endpoint(&self, ask: OfEndpoint) -> Result<Interface> {
        let network = self.network_of(&ask.network_id).await?;
        ensure!(!ask.endpoint_id.is_empty(), "an endpoint without an id");
        let wanted = ask.interface.unwrap_or_default();
        let given = [&wanted.address, &wanted.address_ipv6];
        let given = given.into_iter().filter(|text| !text.is_empty());
        let ips = given
            .map(|text| address(text))
            .collect::<Result<Vec<_>>>()?;
        let offset = self.offset_of(&network, &ips)?;
        let derived = network.mac_at(offset);
        let mac: MacAddr = match wanted.mac_address.as_str() {
            "" => derived,
            text => text.parse()?,
        };
        ensure!(
            mac.is_unicast(),
            "{mac} is no single interface's address: it is a group's, or zero"
        );
        let endpoint = DockerEndpoint {
            network: ask.network_id,
            ips,
            mac,
            sandbox: None,
            publish: Vec::new(),
        };
        let before = self.store.read(|book| {
            let before = book.endpoints.get(&ask.endpoint_id).cloned();
            (before, book.endpoint_at(&network, offset).cloned())
        });
        match before {
            (Some(before), _) if (&before.ips, before.mac) == (&endpoint.ips, endpoint.mac) => {}
            (Some(_), _) => bail!("endpoint {} is there already", short(&ask.endpoint_id)),
            (None, Some(other)) => bail!(
                "{} has another endpoint already: {}",
                endpoint.ips[0],
                other.mac
            ),
            (None, None) => {
                if mac != derived {
                    self.take_mac(&network, offset, mac).await?;
                }
                self.store.change(|book| {
                    book.endpoints.insert(ask.endpoint_id.clone(), endpoint);
                    Ok(())
                })?;
            }
        }
        Ok(Interface {
            mac_address: match wanted.mac_address.is_empty() {
                true => mac.to_string(),
                false => String::new(),
            },
            ..Interface::default()
        })
    }

    /// The offset that Docker's addresses have in common. They were taken before.
    fn offset_of(&self, network: &Network, ips: &[IpAddr]) -> Result<u32> {
        let mut offsets = ips.iter().map(|ip| {
            let offset = network.offset_of(*ip);
            offset.with_context(|| format!("{ip} is no address of '{}'", network.name))
        });
        let first = offsets.next().context("an endpoint without an address")??;
        for other in offsets {
            ensure!(
                other? == first,
                "a container's IPv4 and IPv6 addresses have the same number in '{}': with --ip, {}; or leave one out",
                network.name,
                network
                    .address_at(first)
                    .get(1)
                    .map_or("leave --ip6 out".to_owned(), |ip| format!("--ip6 {ip}")),
            );
        }
        let held = self.store.read(|book| {
            let held = book.held.get(&network.name);
            held.is_some_and(|held| held.contains_key(&first))
        });
        ensure!(held, "{} was not asked of this driver's IPAM", ips[0]);
        Ok(first)
    }

    async fn take_mac(&self, network: &Network, offset: u32, mac: MacAddr) -> Result<()> {
        let held = |held: &mut Held| held.mac = Some(mac);
        let key = self.store.read(|book| {
            let held = book.held.get(&network.name)?.get(&offset)?;
            Some(held.key())
        });
        let key = key.context("its address was not asked of this driver's IPAM")?;
        self.ctx.addresses.take_mac(network, &key, mac).await?;
        self.store.change(|book| {
            let of_network = book.held.get_mut(&network.name);
            of_network.and_then(|of| of.get_mut(&offset)).map(held);
            Ok(())
        })
    }

    pub(super) async fn join(&self, ask: OfEndpoint) -> Result<Joined> {
        let network = self.network_of(&ask.network_id).await?;
        let (endpoint, internal) = self.store.read(|book| {
            let endpoint = book.endpoints.get(&ask.endpoint_id).cloned();
            let of = book.networks.get(&ask.network_id);
            let internal = network.internal || of.is_some_and(|of| of.internal);
            (endpoint, internal)
        });
        let endpoint = endpoint
            .filter(|endpoint| endpoint.network == ask.network_id)
            .with_context(|| format!("no endpoint {}", short(&ask.endpoint_id)))?;
        let sandbox = PathBuf::from(&ask.sandbox_key);
        let mut ips = endpoint.ips.clone();
        // Docker gives a container without an IPv6 address no link-local one, either.
        if ips.iter().any(IpAddr::is_ipv6) {
            ips.push(endpoint.mac.link_local().into());
        }
        let join = DockerJoin {
            id: ask.endpoint_id.clone(),
            endpoint: Endpoint {
                // Until Docker can be asked for the container's.
                name: short(&ask.endpoint_id).to_owned(),
                vni: network.vni,
                mac: endpoint.mac,
                ips,
                aliases: Vec::new(),
                service: None,
                router: false,
                unready: false,
            },
            sandbox: sandbox.clone(),
        };
        self.store.change(|book| {
            if let Some(endpoint) = book.endpoints.get_mut(&ask.endpoint_id) {
                endpoint.sandbox = Some(sandbox);
                // Docker says it again after this.
                endpoint.publish.clear();
            }
            Ok(())
        })?;
        let src_name = self
            .ctx
            .ask(|reply| Request::DockerJoin(Box::new(join), reply))
            .await?;
        self.names_wanted();
        if let Some(problem) = self.ctx.way_out_problem(&network).await? {
            tracing::warn!(network = %network.name, "there is no way out of this host: {problem}");
        }
        let gateway = |v4: bool| {
            let has = endpoint.ips.iter().any(|ip| ip.is_ipv4() == v4);
            let gateway = network.gateways().find(|ip| ip.is_ipv4() == v4);
            gateway
                .filter(|_| has && !internal)
                .map_or(String::new(), |ip| ip.to_string())
        };
        Ok(Joined {
            interface_name: InterfaceName {
                src_name,
                dst_prefix: "eth".to_owned(),
            },
            gateway: gateway(true),
            gateway_ipv6: gateway(false),
            static_routes: match internal {
                true => self.ways_to_resolvers(&network),
                false => Vec::new(),
            },
            disable_gateway_service: internal,
        })
    }

    /// Docker's resolver asks the host's from inside the container. A network without a way out
    /// needs one that far: the agent answers there in their name.
    fn ways_to_resolvers(&self, network: &Network) -> Vec<StaticRoute> {
        let IpAddr::V4(gateway) = network.gateway else {
            return Vec::new();
        };
        let inside = |ip: &IpAddr| network.subnet.contains(*ip);
        resolvers::asked_inside(self.client.resolv_conf())
            .into_iter()
            .filter(|ip| ip.is_ipv4() && !inside(ip))
            .map(|ip| StaticRoute {
                destination: format!("{ip}/32"),
                route_type: 0,
                next_hop: gateway.to_string(),
            })
            .collect()
    }

    /// Docker takes the interface out of the container by itself: the port goes with the endpoint.
    pub(super) fn leave(&self, ask: &OfEndpoint) -> Result<()> {
        self.store.change(|book| {
            if let Some(endpoint) = book.endpoints.get_mut(&ask.endpoint_id) {
                endpoint.sandbox = None;
            }
            Ok(())
        })
    }

    pub(super) async fn delete_endpoint(&self, id: &str) -> Result<()> {
        let port = id.to_owned();
        self.ctx
            .ask(|reply| Request::DockerLeave(port, reply))
            .await?;
        self.store.change(|book| {
            book.endpoints.remove(id);
            Ok(())
        })
    }

    /// The cluster's network behind one of Docker's.
    pub(super) async fn network_of(&self, id: &str) -> Result<Network> {
        let name = self
            .store
            .read(|book| book.networks.get(id).map(|network| network.name.clone()));
        let name = name.with_context(|| {
            format!(
                "network {} is not known to this agent: remove it from Docker, and make it anew",
                short(id)
            )
        })?;
        let network = self.ctx.cluster.network(&name).await?;
        network.with_context(|| format!("the cluster has no network '{name}' any more"))
    }
}

fn address(text: &str) -> Result<IpAddr> {
    let network: IpNetwork = text
        .parse()
        .with_context(|| format!("'{text}' is no address"))?;
    Ok(network.ip())
}
