//! ADD.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hyper::Method;
use overlay_host::{Host, Inside, Netns as HostNetns, NetnsRef};
use serde_json::{Value, json};

use super::config::{Config, Container};
use super::error::{CONFIG, ENVIRONMENT, Error, NO_CONTAINER, Result, TRY_AGAIN};
use crate::api::client::{agent_runs, call};
use crate::api::{ContainerAdd, ContainerInfo, Netns, NetworkInfo};
use crate::instance::Instance;
use crate::plugins::network;
use crate::plugins::ports::published;

/// Attaches a container, and tells what it got.
pub async fn add(config: &Config, container: &Container) -> Result<Value> {
    let netns = container.netns.as_ref();
    let netns = netns.ok_or_else(|| Error::new(ENVIRONMENT, "CNI_NETNS is not set"))?;
    if config.prev_result.as_ref().is_some_and(Value::is_object) {
        return Err(Error::new(
            CONFIG,
            "overlay-dp makes the interface: it must be the first plugin of its list",
        ));
    }
    let inside = HostNetns::open(&NetnsRef::Path(netns.clone()))
        .map_err(|error| Error::new(NO_CONTAINER, error.to_string()))?;
    let instance = config.instance()?;
    must_run(&instance).await?;
    let network = network::find_or_make(&instance, config.network(), &config.make)
        .await
        .map_err(|error| Error::new(CONFIG, format!("{error:#}")))?;
    let ips = config.ips(&container.args)?;
    let request = request(config, container, netns, &ips)?;
    let added: ContainerInfo = call(&instance, Method::POST, "/v1/containers", Some(&request))
        .await
        .map_err(|error| Error::refused(&error))?;
    let finished = async {
        if let Some(ip) = ips.iter().find(|ip| !added.ips.contains(ip)) {
            let msg = format!("{ip} can't be given together with {}", ips[0]);
            return Err(Error::new(CONFIG, msg));
        }
        look(&inside, &container.ifname).await
    };
    match finished.await {
        Ok(found) => Ok(result(config, container, &network, &added, &found)),
        Err(error) => {
            // The runtime is told of a failure: nothing of it is to be left.
            let which = container.reference(config);
            let _ =
                call::<_, Value>(&instance, Method::DELETE, "/v1/attachments", Some(&which)).await;
            Err(error)
        }
    }
}

/// # Errors
/// When no agent answers: it may soon.
pub async fn must_run(instance: &Instance) -> Result<()> {
    if agent_runs(instance).await {
        return Ok(());
    }
    let msg = format!("no agent answers on {}", instance.socket().display());
    Err(Error::new(TRY_AGAIN, msg).details("is 'overlay-dp attach' running on this host?"))
}

fn request(
    config: &Config,
    container: &Container,
    netns: &Path,
    ips: &[IpAddr],
) -> Result<ContainerAdd> {
    let name = container.name();
    let mut aliases = config.aliases();
    aliases.retain(|alias| *alias != name);
    aliases.sort();
    aliases.dedup();
    Ok(ContainerAdd {
        name: Some(name),
        network: config.network().to_owned(),
        netns: Netns::Path(PathBuf::from(netns)),
        aliases,
        service: None,
        resolv_conf: false,
        ip: ips.first().copied(),
        mac: config.mac(&container.args)?,
        ifname: container.ifname.clone(),
        attachment: Some(container.reference(config).attachment),
        publish: published(&config.runtime_config.port_mappings)
            .map_err(|error| Error::new(CONFIG, format!("portMappings: {error}")))?,
        limit: config.runtime_config.bandwidth.limit(),
    })
}

async fn look(inside: &HostNetns, ifname: &str) -> Result<Inside> {
    let found = async { Host::new()?.container_addresses(inside, ifname).await };
    let found = found.await;
    found.map_err(|error| Error::new(NO_CONTAINER, error.to_string()))
}

/// As the configuration's version of the protocol has it.
fn result(
    config: &Config,
    container: &Container,
    network: &NetworkInfo,
    added: &ContainerInfo,
    found: &Inside,
) -> Value {
    let is = |version| config.cni_version == version;
    let mut interface = json!({
        "name": container.ifname,
        "mac": added.mac,
        "sandbox": container.netns,
    });
    let mut interfaces = Vec::new();
    if let Some(local) = &added.local {
        if is("1.1.0") {
            interface["mtu"] = local.mtu.into();
        }
        interfaces.push(json!({ "name": local.port }));
    }
    interfaces.push(interface);
    let index = interfaces.len() - 1;
    let on_link = |ip: &IpAddr| network::on_link(network, *ip);
    let ips = added.ips.iter().filter_map(on_link);
    let ips = ips.map(|(address, gateway)| {
        let mut ip = json!({ "interface": index, "address": address, "gateway": gateway });
        if is("0.4.0") {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    });
    let routes = found.gateways.iter().map(|gateway| {
        let dst = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        json!({ "dst": dst, "gw": gateway })
    });
    json!({
        "cniVersion": config.cni_version,
        "interfaces": interfaces,
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns(config, network),
    })
}

/// The gateway knows the names, unless the runtime has others asked.
fn dns(config: &Config, network: &NetworkInfo) -> Value {
    let asked = config.runtime_config.dns.clone().unwrap_or_default();
    let mut search = asked.searches;
    search.push(network.name.clone());
    let mut options = asked.options;
    let nameservers = match asked.servers.is_empty() {
        true => {
            if options.is_empty() {
                options.push("ndots:0".to_owned());
            }
            vec![network.gateway.to_string()]
        }
        false => asked.servers,
    };
    json!({ "nameservers": nameservers, "search": search, "options": options })
}
