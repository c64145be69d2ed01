//! The part of the API that is about the cluster itself: its hosts, managers, tokens and backup,
//! and whether everything is as it should be.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/hosts` | | list of [`HostInfo`] |
//! | `GET /v1/hosts/{host}` | | [`HostDetail`] |
//! | `DELETE /v1/hosts/{host}` | [`HostRemove`] | [`HostInfo`] |
//! | `POST /v1/hosts/{host}/role` | [`Role`] | [`HostInfo`] |
//! | `POST /v1/token` | [`TokenAsk`] | [`TokenInfo`] |
//! | `GET /v1/cluster` | | [`ClusterInfo`] |
//! | `GET /v1/cluster/backup` | | the backup's bytes |
//! | `POST /v1/verify` | [`VerifyAsk`] | list of [`Finding`] |
//!
//! A `{host}` is a host's id or its name.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use overlay_cluster::{Member, MemberState};
use overlay_core::facts::Range;
use overlay_core::model::{HostId, Network};
use serde::{Deserialize, Serialize};

use super::server::{Answer, Body, Ctx};
use super::{ContainerInfo, TokenInfo};
use crate::agent::{Finding, Request, Verify, join_address, join_command};

/// A host of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostInfo {
    /// Who it is.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Whether it is a manager.
    pub manager: bool,
    /// Whether it leads the managers, as far as this host knows.
    pub leader: bool,
    /// `alive`, `suspect` or `down`.
    pub state: String,
    /// Its tunnel address.
    pub vtep: std::net::IpAddr,
    /// Round trip of the control connection with it, in microseconds.
    pub rtt_us: Option<u64>,
    /// Whether it is the host that answers.
    pub this: bool,
}

/// A host with what it has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostDetail {
    /// The host.
    #[serde(flatten)]
    pub host: HostInfo,
    /// UDP port of its VTEP.
    pub data_port: u16,
    /// UDP port of its encrypted networks.
    pub esp_port: u16,
    /// UDP port of its managers' part.
    pub control_port: u16,
    /// UDP port of its gossip.
    pub gossip_port: u16,
    /// When its certificate ends, in seconds since 1970: of another host the one that it had when
    /// it connected with this one, if it did.
    #[serde(default)]
    pub certificate_end: Option<u64>,
    /// The addresses that are leased to it.
    pub addresses: Vec<HostAddresses>,
    /// Its containers.
    pub containers: Vec<ContainerInfo>,
}

/// What a host holds of a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostAddresses {
    /// The network.
    pub network: String,
    /// Leased to it: `first-last`, or one address.
    pub leased: Vec<String>,
    /// How many that are.
    pub count: u64,
}

/// Asks to remove a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostRemove {
    /// Also when it is up.
    pub force: bool,
}

/// Asks for another role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Role {
    /// Whether it is to be a manager.
    pub manager: bool,
}

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenAsk {
    /// That of managers.
    pub manager: bool,
    /// A new one, which replaces the old.
    pub rotate: bool,
}

/// The managers' agreement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Who leads, as far as this host knows.
    pub leader: Option<HostId>,
    /// Whether new facts can be agreed on, as far as this host knows.
    pub quorum: bool,
    /// How many managers may fail at the same time.
    pub may_fail: usize,
    /// What is known here: `epoch.index`.
    pub version: String,
    /// How many hosts there are.
    pub hosts: usize,
    /// How many networks there are.
    pub networks: usize,
    /// The managers.
    pub managers: Vec<HostInfo>,
}

/// Asks for a verification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyAsk {
    /// Put right what can be.
    pub repair: bool,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new()
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{host}", get(host).delete(host_remove))
        .route("/v1/hosts/{host}/role", post(role))
        .route("/v1/token", post(token))
        .route("/v1/cluster", get(cluster))
        .route("/v1/cluster/backup", get(backup))
        .route("/v1/verify", post(verify))
}

fn host_info(leader: Option<HostId>, member: &Member) -> HostInfo {
    let state = match member.state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
    };
    HostInfo {
        id: member.host.id,
        name: member.host.name.clone(),
        manager: member.host.manager,
        leader: leader == Some(member.host.id),
        state: state.to_owned(),
        vtep: member.host.vtep,
        rtt_us: member.rtt.map(micros),
        this: member.me,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The member with this id, or the only one with this name.
fn find(ctx: &Ctx, text: &str) -> Result<Member> {
    let members = ctx.cluster.members();
    let by_id = text.parse::<HostId>().ok();
    if let Some(member) = members.iter().find(|m| Some(m.host.id) == by_id) {
        return Ok(member.clone());
    }
    let mut named = members.into_iter().filter(|m| m.host.name == text);
    match (named.next(), named.next()) {
        (Some(member), None) => Ok(member),
        (Some(_), Some(_)) => {
            bail!("several hosts are called '{text}': give the id that 'overlay-dp host ls' shows")
        }
        (None, _) => bail!("no host '{text}': see 'overlay-dp host ls'"),
    }
}

async fn hosts(State(ctx): State<Ctx>) -> Answer<Vec<HostInfo>> {
    let leader = ctx.cluster.control_now().await.leader;
    Ok(Json(host_infos(&ctx, leader)))
}

/// All hosts, by their names.
pub(super) fn host_infos(ctx: &Ctx, leader: Option<HostId>) -> Vec<HostInfo> {
    let members = ctx.cluster.members();
    let mut list: Vec<HostInfo> = members.iter().map(|m| host_info(leader, m)).collect();
    list.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    list
}

async fn host(State(ctx): State<Ctx>, Path(text): Path<String>) -> Answer<HostDetail> {
    let member = find(&ctx, &text)?;
    let id = member.host.id;
    let mut addresses = Vec::new();
    let mut containers = Vec::new();
    for network in ctx.cluster.networks() {
        let ranges = ctx.cluster.facts(|facts| facts.granted(id, network.vni));
        if ranges.is_empty() {
            continue;
        }
        addresses.push(held(&network, &ranges));
        let all = ctx.containers_of(&network).await?;
        containers.extend(all.into_iter().filter(|c| c.host == id));
    }
    Ok(Json(HostDetail {
        host: host_info(ctx.cluster.control_now().await.leader, &member),
        data_port: member.host.data_port,
        esp_port: member.host.esp_port,
        control_port: member.host.control_port,
        gossip_port: member.host.gossip_port,
        certificate_end: ctx.cluster.certificate_end(id),
        addresses,
        containers,
    }))
}

fn held(network: &Network, ranges: &[Range]) -> HostAddresses {
    let text = |offset| {
        let first = network.address_at(offset).into_iter().next();
        first.map_or_else(|| format!("#{offset}"), |ip| ip.to_string())
    };
    let leased = ranges.iter().map(|range| match range.first == range.last {
        true => text(range.first),
        false => format!("{}-{}", text(range.first), text(range.last)),
    });
    HostAddresses {
        network: network.name.clone(),
        leased: leased.collect(),
        count: ranges
            .iter()
            .map(|range| u64::from(range.last - range.first) + 1)
            .sum(),
    }
}

async fn host_remove(
    State(ctx): State<Ctx>,
    Path(text): Path<String>,
    Body(ask): Body<HostRemove>,
) -> Answer<HostInfo> {
    let member = find(&ctx, &text)?;
    let name = &member.host.name;
    if member.me {
        return Err(anyhow!("{name} is this host: 'overlay-dp detach' leaves the cluster").into());
    }
    if member.state == MemberState::Alive && !ask.force {
        return Err(anyhow!(
            "{name} is up: run 'overlay-dp detach' there, or cut it off with 'overlay-dp host rm --force {text}'"
        )
        .into());
    }
    let info = host_info(ctx.cluster.control().leader, &member);
    ctx.cluster.host_remove(member.host.id).await?;
    Ok(Json(info))
}

async fn role(
    State(ctx): State<Ctx>,
    Path(text): Path<String>,
    Body(ask): Body<Role>,
) -> Answer<HostInfo> {
    let member = find(&ctx, &text)?;
    let (name, id) = (&member.host.name, member.host.id);
    if member.host.manager == ask.manager {
        let role = if ask.manager { "manager" } else { "worker" };
        return Err(anyhow!("{name} is a {role} already").into());
    }
    if ask.manager && member.state != MemberState::Alive {
        return Err(anyhow!("{name} is down: it can be made a manager when it is up").into());
    }
    ctx.cluster.set_role(id, ask.manager).await?;
    let leader = ctx.cluster.control().leader;
    Ok(Json(host_info(leader, &find(&ctx, &id.to_string())?)))
}

async fn token(State(ctx): State<Ctx>, Body(ask): Body<TokenAsk>) -> Answer<TokenInfo> {
    let token = match ask.rotate {
        true => ctx.cluster.token_rotate(ask.manager).await?,
        false => ctx.cluster.token(ask.manager).await?,
    };
    let token = token.to_string();
    // Any manager lets hosts in; this host does if it is one.
    let me = ctx.cluster.me();
    let managers = ctx.cluster.members().into_iter().map(|m| m.host);
    let Some(door) = Some(me)
        .filter(|me| me.manager)
        .or_else(|| managers.into_iter().find(|host| host.manager))
    else {
        return Err(anyhow!("no manager is known here").into());
    };
    Ok(Json(TokenInfo {
        join_command: join_command(&door, &token),
        address: join_address(&door),
        token,
    }))
}

async fn cluster(State(ctx): State<Ctx>) -> Answer<ClusterInfo> {
    Ok(Json(cluster_info(&ctx).await))
}

/// How the managers are.
pub(super) async fn cluster_info(ctx: &Ctx) -> ClusterInfo {
    let control = ctx.cluster.control_now().await;
    let members = ctx.cluster.members();
    let managers = members.iter().filter(|m| m.host.manager);
    let managers: Vec<HostInfo> = managers.map(|m| host_info(control.leader, m)).collect();
    ClusterInfo {
        leader: control.leader,
        quorum: control.quorum,
        may_fail: managers.len().saturating_sub(1) / 2,
        version: format!("{}.{}", control.version.epoch, control.version.index),
        hosts: members.len(),
        networks: ctx.cluster.networks().len(),
        managers,
    }
}

async fn backup(State(ctx): State<Ctx>) -> Result<Vec<u8>, super::server::Failure> {
    Ok(ctx.cluster.backup().await?)
}

async fn verify(State(ctx): State<Ctx>, Body(ask): Body<VerifyAsk>) -> Answer<Vec<Finding>> {
    // What is verified against is what is agreed on now. The agent's loop must not wait for it.
    let asked = ctx.cluster.refresh().await;
    let verify = Verify {
        repair: ask.repair,
        unasked: asked.err().map(|error| error.to_string()),
    };
    Ok(Json(ctx.ask(|reply| Request::Verify(verify, reply)).await?))
}
