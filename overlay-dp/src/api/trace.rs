//! Why a packet would be dropped, or where it would go: `POST /v1/trace` with a [`TraceAsk`] answers
//! with a [`Trace`].
//!
//! Nothing is guessed: a packet as the container would send it is judged by the data path's own
//! code over the agent's tables, and run through the very programs that are attached
//! (`BPF_PROG_TEST_RUN`), here and on the host it goes to, whose agent is asked. What comes out of
//! the first program goes into the second one. Nothing is sent; the counters count it.

mod advice;
mod arrive;
mod depart;
mod packet;
mod places;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use overlay_core::model::HostId;
use serde::{Deserialize, Serialize};

use super::peers::{self, Question};
use super::server::{Answer, Body, Ctx};
use crate::agent::{Fate, Judgement, Tried};

pub(super) use arrive::arrive;
pub use packet::Protocol;

/// How long another host has for its part.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks where a packet would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceAsk {
    /// Who would send it: a container's name or address.
    pub from: String,
    /// Who is to get it: a container's or a service's name, or any address.
    pub to: String,
    /// The network, when the names are on several.
    pub network: Option<String>,
    /// What kind of packet.
    pub protocol: Protocol,
    /// Its destination port.
    pub port: u16,
    /// The packet's length in bytes, IP header included; a small one when absent.
    pub size: Option<u16>,
}

/// Where it would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// The packet.
    pub packet: String,
    /// Its way.
    pub steps: Vec<Step>,
    /// Whether it gets where it was to go.
    pub arrives: bool,
}

/// A place on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// The host.
    pub host: String,
    /// What on it.
    pub at: String,
    /// What happens there.
    pub says: String,
    /// Whether the way goes on, or ends where it should.
    pub good: bool,
    /// More about it, one line each.
    pub details: Vec<String>,
    /// What to do when it is not good.
    pub advice: Option<String>,
}

impl Step {
    fn new(host: &str, at: impl Into<String>, good: bool, says: impl Into<String>) -> Step {
        Step {
            host: host.to_owned(),
            at: at.into(),
            says: says.into(),
            good,
            details: Vec::new(),
            advice: None,
        }
    }

    fn detail(mut self, line: impl Into<String>) -> Step {
        self.details.push(line.into());
        self
    }

    fn advice(mut self, line: impl Into<String>) -> Step {
        self.advice = Some(line.into());
        self
    }
}

pub(super) fn router() -> Router<Ctx> {
    Router::new().route("/v1/trace", post(trace))
}

async fn trace(State(ctx): State<Ctx>, Body(ask): Body<TraceAsk>) -> Answer<Trace> {
    let (network, from) = places::sender(&ctx, &ask).await?;
    let me = ctx.cluster.me().id;
    if from.host == me {
        return Ok(Json(depart::depart(&ctx, &ask, &network, &from).await?));
    }
    // Only its own host can try what it sends.
    let ask = TraceAsk {
        from: from.endpoint.name.clone(),
        network: Some(network.name),
        ..ask
    };
    Ok(Json(
        peers::ask(&ctx, from.host, &Question::Trace(ask), 3 * PATIENCE).await?,
    ))
}

/// The same for another host, which says that the sender is here.
pub(super) async fn trace_here(ctx: &Ctx, ask: &TraceAsk) -> Result<Trace> {
    let (network, from) = places::sender(ctx, ask).await?;
    if from.host != ctx.cluster.me().id {
        bail!("'{}' is not on this host any more: try again", ask.from);
    }
    depart::depart(ctx, ask, &network, &from).await
}

/// A frame that another host would send here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Arrival {
    /// All its bytes, outer headers first.
    pub frame: Vec<u8>,
    /// Who is to get it.
    pub to: Option<IpAddr>,
    /// Whether it is sealed on the way.
    #[serde(default)]
    pub sealed: bool,
}

/// What the tables and the program say of one frame, as the details of a step: where they differ,
/// that is said, and what the program does counts.
fn both(judgement: &Judgement) -> Vec<String> {
    let tables = format!("the agent's tables: {}", fate(&judgement.tables));
    let program = match &judgement.programs {
        Ok(tried) => format!("the program {}: {}", judgement.program, what(tried)),
        Err(why) => format!(
            "the program {} could not be tried: {why}",
            judgement.program
        ),
    };
    let mut lines = vec![tables, program];
    if judgement
        .programs
        .as_ref()
        .is_ok_and(|tried| !agree(&judgement.tables, tried))
    {
        lines.push(
            "THEY DIFFER: the maps lack what the tables have, until a frame that misses fills them; if it stays so, \
             'overlay-dp verify' says what differs"
                .to_owned(),
        );
    }
    lines
}

fn agree(fate: &Fate, tried: &Tried) -> bool {
    match (fate, tried) {
        (Fate::Passed, Tried::Passed) => true,
        (Fate::Dropped(reason), Tried::Dropped(reasons)) => reasons.contains(reason),
        (Fate::ToAgent(reason), Tried::ToAgent(other)) => reason == other,
        (Fate::Encapsulated(to), Tried::ToSeal(_)) => to.sealed,
        (Fate::Encapsulated(to), Tried::Sent(_)) => !to.sealed,
        (Fate::Balanced, Tried::ToSeal(_)) | (Fate::ToBeOpened, Tried::ToOpen) => true,
        (
            Fate::Switched(_)
            | Fate::Decapsulated(_)
            | Fate::Answered(_)
            | Fate::Balanced
            | Fate::Other(_),
            Tried::Sent(_),
        ) => true,
        _ => false,
    }
}

fn fate(fate: &Fate) -> String {
    match fate {
        Fate::Passed => "not ours, to the host's stack".to_owned(),
        Fate::Dropped(reason) => format!("drop, {reason}"),
        Fate::ToAgent(reason) => format!("to the agent, {reason}"),
        Fate::Encapsulated(to) if to.sealed => {
            format!("encapsulate to VTEP {}, sealed", to.vtep)
        }
        Fate::Encapsulated(to) => format!("encapsulate to VTEP {}", to.vtep),
        Fate::Switched(ifindex) => format!("to the local port with ifindex {ifindex}"),
        Fate::Decapsulated(ifindex) => {
            format!("decapsulate to the local port with ifindex {ifindex}")
        }
        Fate::Answered(mac) => format!("answer with {mac}"),
        Fate::ToBeOpened => "ESP, to a crypt worker".to_owned(),
        Fate::Balanced => "to a backend of the service".to_owned(),
        Fate::Other(verdict) => verdict.clone(),
    }
}

fn what(tried: &Tried) -> String {
    match tried {
        Tried::Passed => "not ours, to the host's stack".to_owned(),
        Tried::Dropped(reasons) if reasons.is_empty() => "drop".to_owned(),
        Tried::Dropped(reasons) => format!("drop, {}", reasons.join(" or ")),
        Tried::ToAgent(reason) => format!("to the agent, {reason}"),
        Tried::Sent(bytes) => format!("redirect, {} bytes", bytes.len()),
        Tried::ToSeal(bytes) => format!("to a crypt worker to seal, {} bytes", bytes.len()),
        Tried::ToOpen => "to a crypt worker to open".to_owned(),
    }
}

/// The name of a host.
fn host_name(ctx: &Ctx, id: HostId) -> String {
    let members = ctx.cluster.members();
    let member = members.into_iter().find(|member| member.host.id == id);
    member.map_or_else(|| id.to_string(), |member| member.host.name)
}
