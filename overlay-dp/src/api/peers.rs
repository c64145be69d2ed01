//! What this host's agent answers other hosts' agents. They are members of the cluster, by their
//! certificates, and may only look, and agree on what the two send to each other with.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use overlay_cluster::PeerAsk;
use overlay_core::model::HostId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::server::Ctx;
use super::trace;
use crate::agent::Request;

/// What may be asked. JSON: an agent of another version says that it does not know the question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Question {
    /// The ways from there to all VTEPs: a list of [`super::VtepInfo`].
    Vteps,
    /// Where a packet of a container there would go: a [`trace::Trace`].
    Trace(trace::TraceAsk),
    /// What would become there of a frame that the asking host sends: a list of [`trace::Step`].
    Arrival(trace::Arrival),
    /// What the two send to each other with: an [`overlay_esp::keys::Answer`].
    Keys(overlay_esp::keys::Talk),
}

/// How long an agent may take to answer, when nobody waits for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// An answer, or why there is none.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply<T> {
    Answer(T),
    Error(String),
}

/// Asks the agent of another host.
pub(super) async fn ask<T: DeserializeOwned>(
    ctx: &Ctx,
    host: HostId,
    question: &Question,
    patience: Duration,
) -> Result<T> {
    let question = serde_json::to_vec(question)?;
    let answer = ctx.cluster.ask_host(host, &question, patience).await?;
    match serde_json::from_slice(&answer)
        .context("its agent's answer makes no sense: is it of another version?")?
    {
        Reply::Answer(answer) => Ok(answer),
        Reply::Error(error) => Err(anyhow!(error)),
    }
}

/// Answers until the agent stops.
pub(super) async fn serve(ctx: Ctx, mut asks: mpsc::Receiver<PeerAsk>) {
    while let Some(ask) = asks.recv().await {
        let ctx = ctx.clone();
        // The cluster lets only a few through at a time.
        tokio::spawn(async move {
            match answer(&ctx, ask.from, &ask.question).await {
                Ok(bytes) => ask.answer(bytes),
                Err(error) => {
                    tracing::debug!(from = %ask.from, "a question of another agent's: {error:#}")
                }
            }
        });
    }
}

async fn answer(ctx: &Ctx, from: HostId, question: &[u8]) -> Result<Vec<u8>> {
    let Ok(question) = serde_json::from_slice(question) else {
        return reply::<()>(Err(anyhow!(
            "the agent there does not know this question: it is of another version"
        )));
    };
    match question {
        Question::Vteps => reply(ctx.ask(Request::Vteps).await),
        Question::Trace(ask) => reply(trace::trace_here(ctx, &ask).await),
        Question::Keys(talk) => reply(ctx.keys.asked(from, &talk)),
        Question::Arrival(arrival) => reply(trace::arrive(ctx, from, arrival).await),
    }
}

fn reply<T: Serialize>(done: Result<T>) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&match done {
        Ok(answer) => Reply::Answer(answer),
        Err(error) => Reply::Error(format!("{error:#}")),
    })?)
}
