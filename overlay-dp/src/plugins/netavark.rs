//! The plugin protocol of netavark, podman's network stack, version 1.0.0:
//! <https://github.com/containers/netavark/blob/main/plugin-API.md>.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use hyper::Method;
use ipnetwork::IpNetwork;
use overlay_core::model::MacAddr;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::network::{Make, find_or_make, gateways, on_link};
use super::ports::{PortMapping, published};
use super::{alone, block_on};
use crate::api::client::{agent_runs, call};
use crate::api::{Attachment, AttachmentRef, ContainerAdd, ContainerInfo, Netns, NetworkInfo};
use crate::instance::Instance;

const API_VERSION: &str = "1.0.0";
/// The most that its input may have.
const INPUT_LIMIT: u64 = 16 << 20;
/// What `podman network create --opt` may set.
const OPTIONS: [&str; 3] = ["network", "instance", "socket"];

/// What netavark wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// A network was made: what is missing in its description is filled in.
    Create,
    /// Attach the container in this namespace.
    Setup(PathBuf),
    /// Detach it.
    Teardown(PathBuf),
    /// Say which protocol is spoken.
    Info,
}

impl Call {
    /// From the command line.
    pub fn parse(words: &[&str]) -> Option<Call> {
        match words {
            ["create"] => Some(Call::Create),
            ["info"] => Some(Call::Info),
            ["setup", netns] => Some(Call::Setup(PathBuf::from(netns))),
            ["teardown", netns] => Some(Call::Teardown(PathBuf::from(netns))),
            _ => None,
        }
    }
}

/// One call of netavark's.
pub fn main(call: Call) -> ExitCode {
    match block_on(answer(call)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({ "error": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

async fn answer(call: Call) -> Result<Option<Value>> {
    match call {
        Call::Info => Ok(Some(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "api_version": API_VERSION,
        }))),
        Call::Create => create(read()?).await.map(Some),
        Call::Setup(netns) => setup(netns, read()?).await.map(Some),
        Call::Teardown(netns) => teardown(netns, read()?).await.map(|()| None),
    }
}

fn read<T: DeserializeOwned>() -> Result<T> {
    let mut text = String::new();
    std::io::stdin()
        .take(INPUT_LIMIT)
        .read_to_string(&mut text)
        .context("can't read what netavark says")?;
    serde_json::from_str(&text).context("can't understand what netavark says")
}

/// Reads what netavark says as far as that goes without the agent.
pub(super) fn understand(text: &[u8]) {
    if let Ok(network) = serde_json::from_slice::<Network>(text) {
        let _ = network.make();
    }
    if let Ok(exec) = serde_json::from_slice::<Exec>(text) {
        let mappings = exec.port_mappings.as_deref().unwrap_or_default();
        let _ = (super::ports::published(mappings), exec.reference());
    }
}

/// A network, as podman keeps it.
#[derive(Debug, Deserialize)]
struct Network {
    name: String,
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
    #[serde(default)]
    ipv6_enabled: bool,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Subnet {
    subnet: IpNetwork,
    gateway: Option<IpAddr>,
    lease_range: Option<Value>,
}

impl Network {
    fn option(&self, name: &str) -> Option<&str> {
        self.options.as_ref()?.get(name).map(String::as_str)
    }

    /// Our network's name.
    fn ours(&self) -> &str {
        self.option("network").unwrap_or(&self.name)
    }

    /// Where the agent is.
    fn instance(&self) -> Result<Instance> {
        let fallback = std::env::var("OVERLAY_DP_INSTANCE").ok();
        let name = self.option("instance").map(str::to_owned).or(fallback);
        let instance = Instance::new(name.as_deref().unwrap_or("default"))?;
        Ok(match self.option("socket") {
            Some(socket) => instance.at(PathBuf::from(socket)),
            None => instance,
        })
    }

    /// How it is to be made, if it is missing.
    fn make(&self) -> Result<Make> {
        let mut make = Make {
            create: true,
            ipv6: self.ipv6_enabled,
            internal: self.internal,
            ..Make::default()
        };
        match self.subnets.as_deref().unwrap_or_default() {
            [] => {}
            [one] => {
                if one.lease_range.is_some() {
                    bail!(
                        "--ip-range is not for here: 'overlay-dp network create --ip-range' first"
                    );
                }
                make.ipv6 = false;
                make.subnet = Some(one.subnet);
                make.gateway = one.gateway;
            }
            _ => bail!("one --subnet at most: 'overlay-dp network create' makes others"),
        }
        Ok(make)
    }
}

async fn create(mut described: Value) -> Result<Value> {
    let network: Network =
        serde_json::from_value(described.clone()).context("can't understand the network")?;
    let mut options = network.options.iter().flatten().map(|(name, _)| name);
    if let Some(name) = options.find(|name| !OPTIONS.contains(&name.as_str())) {
        bail!("no option '{name}': there are {}", OPTIONS.join(", "));
    }
    let ours = find_or_make(&network.instance()?, network.ours(), &network.make()?).await?;
    let wanted = network.subnets.iter().flatten().map(|wanted| wanted.subnet);
    let known = |wanted: &IpNetwork| subnets(&ours).any(|(subnet, _)| subnet == *wanted);
    if let Some(other) = wanted.into_iter().find(|wanted| !known(wanted)) {
        bail!(
            "network '{}' has the subnet {} and not {other}: leave --subnet out",
            ours.name,
            ours.subnet
        );
    }
    let subnets: Vec<Value> = subnets(&ours)
        .map(|(subnet, gateway)| json!({ "subnet": subnet, "gateway": gateway }))
        .collect();
    described["subnets"] = subnets.into();
    described["ipv6_enabled"] = subnets_have_ipv6(&ours).into();
    // Addresses are ours. (So are names: podman starts no DNS server for a plugin's network.)
    described["ipam_options"] = json!({ "driver": "none" });
    Ok(described)
}

fn subnets(network: &NetworkInfo) -> impl Iterator<Item = (IpNetwork, IpAddr)> {
    let second = network.ipv6.map(|family| (family.subnet, family.gateway));
    std::iter::once((network.subnet, network.gateway)).chain(second)
}

fn subnets_have_ipv6(network: &NetworkInfo) -> bool {
    subnets(network).any(|(subnet, _)| subnet.is_ipv6())
}

/// What is to be attached, or was.
#[derive(Debug, Deserialize)]
struct Exec {
    container_name: String,
    container_id: String,
    #[serde(default)]
    port_mappings: Option<Vec<PortMapping>>,
    network: Network,
    network_options: NetworkOptions,
}

#[derive(Debug, Deserialize)]
struct NetworkOptions {
    #[serde(default)]
    aliases: Option<Vec<String>>,
    interface_name: String,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<MacAddr>,
}

impl Exec {
    fn reference(&self) -> AttachmentRef {
        AttachmentRef {
            attachment: Attachment {
                owner: format!("netavark:{}", self.network.name),
                id: self.container_id.clone(),
            },
            ifname: Some(self.network_options.interface_name.clone()),
        }
    }
}

async fn setup(netns: PathBuf, exec: Exec) -> Result<Value> {
    let instance = exec.network.instance()?;
    let network = find_or_make(&instance, exec.network.ours(), &Make::default()).await?;
    let options = &exec.network_options;
    let mut aliases = options.aliases.clone().unwrap_or_default();
    aliases.retain(|alias| *alias != exec.container_name);
    let ips = options.static_ips.clone().unwrap_or_default();
    let request = ContainerAdd {
        name: Some(exec.container_name.clone()),
        network: network.name.clone(),
        netns: Netns::Path(netns),
        aliases,
        service: None,
        resolv_conf: false,
        ip: ips.first().copied(),
        mac: options.static_mac,
        ifname: options.interface_name.clone(),
        attachment: Some(exec.reference().attachment),
        publish: published(exec.port_mappings.as_deref().unwrap_or_default())
            .map_err(|error| anyhow!("{error}"))?,
        limit: None,
    };
    let added: ContainerInfo =
        call(&instance, Method::POST, "/v1/containers", Some(&request)).await?;
    if let Some(ip) = ips.iter().find(|ip| !added.ips.contains(ip)) {
        remove(&instance, &exec.reference()).await?;
        bail!("{ip} can't be given together with {}", ips[0]);
    }
    let on_link = added.ips.iter().filter_map(|ip| on_link(&network, *ip));
    let subnets: Vec<Value> = on_link
        .map(|(address, gateway)| json!({ "ipnet": address, "gateway": gateway }))
        .collect();
    let dns: Vec<IpAddr> = gateways(&network).take(1).collect();
    let mut interfaces = BTreeMap::new();
    let interface = json!({ "mac_address": added.mac, "subnets": subnets });
    interfaces.insert(options.interface_name.clone(), interface);
    Ok(json!({
        "dns_search_domains": [network.name],
        "dns_server_ips": dns,
        "interfaces": interfaces,
    }))
}

async fn teardown(netns: PathBuf, exec: Exec) -> Result<()> {
    let instance = exec.network.instance()?;
    if agent_runs(&instance).await {
        return remove(&instance, &exec.reference()).await;
    }
    let ifname = &exec.network_options.interface_name;
    Ok(alone::detach(&instance, &netns, ifname).await?)
}

async fn remove(instance: &Instance, which: &AttachmentRef) -> Result<()> {
    let gone: Vec<ContainerInfo> =
        call(instance, Method::DELETE, "/v1/attachments", Some(which)).await?;
    drop(gone);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_verbs_are_none_of_the_command_lines() {
        assert_eq!(Call::parse(&["info"]), Some(Call::Info));
        let setup = Call::parse(&["setup", "/run/netns/x"]);
        assert_eq!(setup, Some(Call::Setup("/run/netns/x".into())));
        for other in [&["status"][..], &["setup"], &["create", "n"], &[]] {
            assert_eq!(Call::parse(other), None);
        }
        let command = <crate::cli::args::Cli as clap::CommandFactory>::command();
        for verb in ["create", "setup", "teardown", "info"] {
            assert!(command.find_subcommand(verb).is_none(), "{verb}");
        }
    }
}
