//! Docker's networks.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/docker/networks` | [`DockerCreate`] | [`DockerNetwork`] |

use anyhow::Context as _;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::server::{Answer, Body, Ctx};

/// Asks that this host's Docker gets a network of the cluster's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DockerCreate {
    /// Its name, in the cluster and in Docker.
    pub name: String,
    /// Every other host's Docker is to have it, too.
    #[serde(default)]
    pub everywhere: bool,
}

/// A network as Docker has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DockerNetwork {
    /// Its name.
    pub name: String,
    /// Docker's id of it.
    pub id: String,
    /// Its subnets.
    pub subnets: Vec<IpNetwork>,
    /// What its containers will miss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new().route("/v1/docker/networks", post(create))
}

async fn create(State(ctx): State<Ctx>, Body(ask): Body<DockerCreate>) -> Answer<DockerNetwork> {
    let client = ctx.docker.clone().context(
        "this agent serves no Docker: start it with --docker-plugin, as the default instance does",
    )?;
    let network = ctx.network(&ask.name).await?;
    // A task of its own: whoever asked may go away, but what is begun is ended.
    let made = tokio::spawn(async move {
        let made = crate::docker::create(&client, &network, false).await?;
        if ask.everywhere {
            ctx.cluster.network_everywhere(&network.name).await?;
        }
        anyhow::Ok(made)
    });
    Ok(Json(made.await??))
}
