//! The part of the API for container runtimes, which know a container by a name of their own: what
//! was attached for one is found, checked and detached by that.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/attachments` | | list of [`ContainerInfo`]: this host's that have an [`Attachment`] |
//! | `DELETE /v1/attachments` | [`AttachmentRef`] | list of [`ContainerInfo`]; empty when there was none |
//! | `POST /v1/attachments/check` | [`AttachmentRef`] | [`AttachmentCheck`] |

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::ContainerInfo;
use super::server::{Answer, Body, Ctx};
use crate::agent::Request;

/// What a runtime calls a container's attachment. With the interface inside, it is unique on this
/// host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's protocol, and the network as it calls it: `cni:overlay`.
    pub owner: String,
    /// The container, as it calls it.
    pub id: String,
}

/// Names attachments of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentRef {
    /// As in [`Attachment`].
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The interface inside; all of them when absent.
    pub ifname: Option<String>,
}

/// How attachments are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentCheck {
    /// Those that there are.
    pub containers: Vec<ContainerInfo>,
    /// What is wrong with them, one line each.
    pub problems: Vec<String>,
}

pub(super) fn router() -> Router<Ctx> {
    Router::new()
        .route("/v1/attachments", get(list).delete(remove))
        .route("/v1/attachments/check", post(check))
}

async fn list(State(ctx): State<Ctx>) -> Answer<Vec<ContainerInfo>> {
    let mut ports = ctx.ask(Request::Ports).await?;
    ports.retain(|port| port.local.attachment.is_some());
    Ok(Json(ctx.infos_of(ports)))
}

async fn remove(
    State(ctx): State<Ctx>,
    Body(which): Body<AttachmentRef>,
) -> Answer<Vec<ContainerInfo>> {
    let removed = ctx.ask(|reply| Request::AttachmentsRemove(which, reply));
    Ok(Json(ctx.infos_of(removed.await?)))
}

async fn check(
    State(ctx): State<Ctx>,
    Body(which): Body<AttachmentRef>,
) -> Answer<AttachmentCheck> {
    let checked = ctx.ask(|reply| Request::AttachmentCheck(which, reply));
    let (ports, problems) = checked.await?;
    Ok(Json(AttachmentCheck {
        containers: ctx.infos_of(ports),
        problems,
    }))
}
