//! The network that a runtime's configuration names.

use std::net::IpAddr;

use anyhow::Result;
use hyper::Method;
use ipnetwork::IpNetwork;
use overlay_core::model::Multicast;
use serde::Deserialize;

use crate::api::client::call;
use crate::api::{NetworkCreate, NetworkDetail, NetworkInfo};
use crate::instance::Instance;

/// How a network is to be when there is none yet. All hosts may have the same configuration: the
/// first one that needs the network makes it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Make {
    /// Make it, with what is chosen for it.
    #[serde(default)]
    pub create: bool,
    /// Make it with these addresses.
    pub subnet: Option<IpNetwork>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Where addresses that nobody asks for come from.
    #[serde(rename = "ipRange")]
    pub ip_range: Option<IpNetwork>,
    /// IPv6 besides IPv4.
    #[serde(default)]
    pub ipv6: bool,
    /// Without a way out.
    #[serde(default)]
    pub internal: bool,
    /// Between hosts its frames are encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// What is to become of broadcast and multicast.
    pub multicast: Option<Multicast>,
}

impl Make {
    /// Whether it may be made.
    pub fn wanted(&self) -> bool {
        self.create || self.subnet.is_some()
    }
}

/// The network of this name, made if it is missing and may be.
///
/// # Errors
/// When there is none, or the agent says so.
pub async fn find_or_make(instance: &Instance, name: &str, make: &Make) -> Result<NetworkInfo> {
    let missing = match find(instance, name).await {
        Ok(network) => return Ok(network),
        Err(error) => error,
    };
    if !make.wanted() {
        return Err(missing);
    }
    let request = NetworkCreate {
        name: name.to_owned(),
        subnets: make.subnet.into_iter().collect(),
        gateways: make.gateway.into_iter().collect(),
        ip_range: make.ip_range,
        ipv6: make.ipv6,
        vni: None,
        internal: make.internal,
        encrypted: make.encrypted,
        multicast: make.multicast,
    };
    let made = call(instance, Method::POST, "/v1/networks", Some(&request)).await;
    match made {
        Ok(made) => Ok(made),
        // Another host may have been faster.
        Err(error) => find(instance, name).await.map_err(|_| error),
    }
}

/// The network of this name.
///
/// # Errors
/// When there is none, or the agent says so.
pub async fn find(instance: &Instance, name: &str) -> Result<NetworkInfo> {
    // Known here, mostly: then no other host is asked what it has there.
    let known: Vec<NetworkInfo> = call(instance, Method::GET, "/v1/networks", None::<&()>).await?;
    if let Some(network) = known.into_iter().find(|network| network.name == name) {
        return Ok(network);
    }
    overlay_core::model::check_name(name)?;
    let path = format!("/v1/networks/{name}");
    let detail: NetworkDetail = call(instance, Method::GET, &path, None::<&()>).await?;
    Ok(detail.network)
}

/// Its gateways, the IPv4 one first.
pub fn gateways(network: &NetworkInfo) -> impl Iterator<Item = IpAddr> {
    std::iter::once(network.gateway).chain(network.ipv6.map(|family| family.gateway))
}

/// The gateway of an address's family, and the address with the length of its prefix. `None` for
/// a link-local one.
pub fn on_link(network: &NetworkInfo, ip: IpAddr) -> Option<(IpNetwork, IpAddr)> {
    let second = network.ipv6.map(|family| (family.subnet, family.gateway));
    let mut families = std::iter::once((network.subnet, network.gateway)).chain(second);
    let (subnet, gateway) = families.find(|(subnet, _)| subnet.contains(ip))?;
    Some((IpNetwork::new(ip, subnet.prefix()).ok()?, gateway))
}
