//! Making the Docker network of a network of the cluster's, through Docker's API: with all that it
//! must be told, so that nothing has to be guessed.

use anyhow::{Context, Result};
use overlay_core::model::Network;
use serde_json::{Value, json};

use super::client::Client;
use super::{EVERYWHERE_OPTION, FOLLOWS, NETWORK_OPTION};
use crate::api::docker::DockerNetwork;

/// Makes it, by the name that the cluster has for it. Docker calls the plugin meanwhile. One that
/// `follows` goes with the cluster's.
///
/// # Errors
/// When Docker does not answer, or refuses; a network of that name is an error.
pub(crate) async fn create(
    client: &Client,
    network: &Network,
    follows: bool,
) -> Result<DockerNetwork> {
    let ask = request(network, follows);
    let id = client.create_network(&ask).await;
    let id = id.with_context(|| format!("Docker has no network '{}'", network.name))?;
    Ok(DockerNetwork {
        name: network.name.clone(),
        id,
        subnets: network.subnets().map(|family| family.subnet).collect(),
        warning: client.resolver_problem(),
    })
}

fn request(network: &Network, follows: bool) -> Value {
    let mut options = json!({NETWORK_OPTION: network.name});
    if follows {
        options[EVERYWHERE_OPTION] = json!(FOLLOWS);
    }
    let config: Vec<Value> = network
        .subnets()
        .map(|family| json!({"Subnet": family.subnet, "Gateway": family.gateway}))
        .collect();
    json!({
        "Name": network.name,
        "CheckDuplicate": true,
        "Driver": "overlay-dp",
        "EnableIPv6": network.ipv6.is_some(),
        "Internal": network.internal,
        "IPAM": {
            "Driver": "overlay-dp",
            "Config": config,
            "Options": {NETWORK_OPTION: network.name},
        },
        "Options": options,
    })
}
