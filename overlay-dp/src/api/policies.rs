//! The part of the API that is about policies.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/policies` | | list of [`PolicyInfo`] |
//! | `POST /v1/policies` | [`PolicyAdd`] | [`PolicyInfo`] |
//! | `GET /v1/policies/{name}` | | [`PolicyInfo`] |
//! | `DELETE /v1/policies/{name}` | | [`PolicyInfo`] |
//! | `GET /v1/policy-defaults` | | list of [`PolicyDefault`] |
//! | `POST /v1/policy-defaults` | [`PolicyDefault`] | [`PolicyDefault`] |

use anyhow::{Result, anyhow};
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use overlay_core::facts::PolicySpec;
use overlay_core::model::Vni;
use overlay_core::policy::{Action, Policy, PolicyProtocol, PolicyRule, PortRange, Selector};
use serde::{Deserialize, Serialize};

use super::server::{Answer, Body, Ctx};
use crate::agent::Request;

/// A policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// Its name.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Its network's VNI.
    pub vni: Vni,
    /// Which containers are reached.
    pub to: Selector,
    /// By whom.
    pub from: Selector,
    /// By which protocol; any when absent.
    pub protocol: Option<PolicyProtocol>,
    /// At which ports; any when absent.
    pub ports: Option<PortRange>,
    /// Whether they may.
    pub action: Action,
}

/// Asks for a policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyAdd {
    /// Its name.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Which containers are reached.
    #[serde(default)]
    pub to: Selector,
    /// By whom.
    #[serde(default)]
    pub from: Selector,
    /// By which protocol; any when absent.
    #[serde(default)]
    pub protocol: Option<PolicyProtocol>,
    /// At which ports; any when absent.
    #[serde(default)]
    pub ports: Option<PortRange>,
    /// Whether they may.
    #[serde(default)]
    pub action: Action,
}

/// What becomes in a network of what no policy is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyDefault {
    /// The network's name.
    pub network: String,
    /// What becomes of it.
    pub action: Action,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new()
        .route("/v1/policies", get(policies).post(add))
        .route("/v1/policies/{name}", get(policy).delete(remove))
        .route("/v1/policy-defaults", get(defaults).post(set_default))
}

fn info(ctx: &Ctx, policy: Policy) -> PolicyInfo {
    let Policy { name, vni, rule } = policy;
    let network = ctx
        .cluster
        .facts(|facts| facts.network(vni).map(|network| network.name.clone()));
    PolicyInfo {
        name,
        network: network.unwrap_or_else(|| vni.to_string()),
        vni,
        to: rule.to,
        from: rule.from,
        protocol: rule.protocol,
        ports: rule.ports,
        action: rule.action,
    }
}

/// The policy of this name; one that is not known here yet is asked of a manager.
async fn find(ctx: &Ctx, name: &str) -> Result<Policy> {
    let known = || ctx.cluster.facts(|facts| facts.policy(name).cloned());
    if known().is_none() {
        ctx.cluster.refresh().await?;
    }
    known().ok_or_else(|| anyhow!("no policy '{name}': see 'overlay-dp policy ls'"))
}

async fn policies(State(ctx): State<Ctx>) -> Answer<Vec<PolicyInfo>> {
    let all: Vec<Policy> = ctx
        .cluster
        .facts(|facts| facts.policies().cloned().collect());
    Ok(Json(all.into_iter().map(|p| info(&ctx, p)).collect()))
}

async fn add(State(ctx): State<Ctx>, Body(ask): Body<PolicyAdd>) -> Answer<PolicyInfo> {
    let spec = PolicySpec {
        name: ask.name,
        network: ask.network,
        rule: PolicyRule {
            to: ask.to,
            from: ask.from,
            protocol: ask.protocol,
            ports: ask.ports,
            action: ask.action,
        },
    };
    let policy = ctx.cluster.policy_add(spec).await?;
    // It holds for this host's containers when the answer arrives.
    ctx.ask(Request::PoliciesFit).await?;
    Ok(Json(info(&ctx, policy)))
}

async fn policy(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<PolicyInfo> {
    let policy = find(&ctx, &name).await?;
    Ok(Json(info(&ctx, policy)))
}

async fn remove(State(ctx): State<Ctx>, Path(name): Path<String>) -> Answer<PolicyInfo> {
    let policy = find(&ctx, &name).await?;
    ctx.cluster.policy_remove(&name).await?;
    ctx.ask(Request::PoliciesFit).await?;
    Ok(Json(info(&ctx, policy)))
}

async fn defaults(State(ctx): State<Ctx>) -> Answer<Vec<PolicyDefault>> {
    let all = ctx.cluster.facts(|facts| {
        let of = |network: &overlay_core::model::Network| PolicyDefault {
            network: network.name.clone(),
            action: match facts.denies(network.vni) {
                true => Action::Deny,
                false => Action::Allow,
            },
        };
        facts.networks().map(of).collect()
    });
    Ok(Json(all))
}

async fn set_default(
    State(ctx): State<Ctx>,
    Body(ask): Body<PolicyDefault>,
) -> Answer<PolicyDefault> {
    let deny = ask.action == Action::Deny;
    ctx.cluster.policy_default(&ask.network, deny).await?;
    ctx.ask(Request::PoliciesFit).await?;
    Ok(Json(ask))
}
