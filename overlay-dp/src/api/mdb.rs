//! The part of the API that is about multicast groups.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/mdb` | | list of [`MdbRow`] |

use std::net::IpAddr;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use overlay_core::model::Vni;
use serde::{Deserialize, Serialize};

use super::server::{Answer, Ctx};
use crate::agent::Request;

/// A member of a group: a container of this host, or another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdbRow {
    /// The network's name.
    pub network: String,
    /// Its VNI.
    pub vni: Vni,
    /// The group's address.
    pub group: IpAddr,
    /// The container, of this host.
    pub container: Option<String>,
    /// Its port.
    pub port: Option<String>,
    /// The host's name, of another host.
    pub host_name: Option<String>,
    /// That host's VTEP.
    pub vtep: Option<IpAddr>,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new().route("/v1/mdb", get(mdb))
}

async fn mdb(State(ctx): State<Ctx>) -> Answer<Vec<MdbRow>> {
    Ok(Json(ctx.ask(Request::Mdb).await?))
}
