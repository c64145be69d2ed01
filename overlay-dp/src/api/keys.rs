//! The part of the API that is about the keys of encrypted networks. None of them is ever told.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/keys` | | list of [`KeyInfo`] |
//! | `POST /v1/keys/rotate` | | list of [`KeyInfo`], as they were before |

use std::net::IpAddr;

use anyhow::Result;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use overlay_core::model::HostId;
use overlay_esp::keys::{Answer as KeyAnswer, Row, Talk, Use};
use serde::{Deserialize, Serialize};

use super::peers::{self, Question};
use super::server::{Answer, Ctx};

/// Security associations with another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The other host.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// Its VTEP's address.
    pub vtep: Option<IpAddr>,
    /// What it sends to this host with, the newest last.
    pub inbound: Vec<SaInfo>,
    /// What this host sends to it with.
    pub outbound: Option<SaInfo>,
}

/// A security association.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaInfo {
    /// Its security parameter index, as `0x` and eight digits.
    pub spi: String,
    /// How long it has been there, in seconds.
    pub age_s: u64,
    /// Packets that came with it, or were sent.
    pub packets: u64,
    /// Whether it is known to be the one that is sent with.
    pub current: bool,
}

impl From<&Use> for SaInfo {
    fn from(sa: &Use) -> SaInfo {
        SaInfo {
            spi: format!("{:#010x}", sa.spi),
            age_s: sa.age.as_secs(),
            packets: sa.packets,
            current: sa.current,
        }
    }
}

pub(super) fn router() -> Router<Ctx> {
    Router::new()
        .route("/v1/keys", get(keys))
        .route("/v1/keys/rotate", post(rotate))
}

/// Agrees on keys with the other hosts, as long as the agent runs.
pub(super) async fn agree(ctx: Ctx) {
    let book = ctx.keys.clone();
    book.run(|host, talk| ask(ctx.clone(), host, talk)).await;
}

async fn ask(ctx: Ctx, host: HostId, talk: Talk) -> Result<KeyAnswer> {
    peers::ask(&ctx, host, &Question::Keys(talk), peers::PATIENCE).await
}

async fn keys(State(ctx): State<Ctx>) -> Answer<Vec<KeyInfo>> {
    Ok(Json(infos(&ctx)))
}

async fn rotate(State(ctx): State<Ctx>) -> Answer<Vec<KeyInfo>> {
    let before = infos(&ctx);
    ctx.keys.rotate();
    Ok(Json(before))
}

fn infos(ctx: &Ctx) -> Vec<KeyInfo> {
    let members = ctx.cluster.members();
    let info = |row: Row| {
        let member = members.iter().find(|member| member.host.id == row.host);
        KeyInfo {
            host: row.host,
            host_name: member.map_or_else(|| row.host.to_string(), |m| m.host.name.clone()),
            vtep: member.map(|member| member.host.vtep),
            inbound: row.inbound.iter().map(SaInfo::from).collect(),
            outbound: row.outbound.as_ref().map(SaInfo::from),
        }
    };
    let mut infos: Vec<KeyInfo> = ctx.keys.rows().into_iter().map(info).collect();
    infos.sort_by(|a, b| a.host_name.cmp(&b.host_name));
    infos
}
