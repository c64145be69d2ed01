//! Asking the agent.

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ErrorBody;
use crate::instance::Instance;

/// The most that an answer may have.
const ANSWER_LIMIT: usize = 256 << 20;

/// Whether an agent answers on the instance's socket.
pub async fn agent_runs(instance: &Instance) -> bool {
    UnixStream::connect(instance.socket()).await.is_ok()
}

/// Sends one request.
///
/// # Errors
/// When no agent runs, or with the line that the agent answers.
pub async fn call<B: Serialize, A: DeserializeOwned>(
    instance: &Instance,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<A> {
    let bytes = fetch(instance, method, path, body).await?;
    serde_json::from_slice(&bytes)
        .context("the agent's answer is not what this overlay-dp expects: are both of one version?")
}

/// Sends one request, and returns the answer as it is.
///
/// # Errors
/// As [`call`].
pub async fn fetch<B: Serialize>(
    instance: &Instance,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<Bytes> {
    let socket = instance.socket();
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            anyhow!("no permission to talk to the agent on {}: run as root, or as a member of the group of 'attach --group'", socket.display())
        } else {
            anyhow!(
                "no agent runs here (instance '{}'): start one with 'overlay-dp attach --iface <uplink>'",
                instance.name()
            )
        }
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let json = body
        .map(serde_json::to_vec)
        .transpose()?
        .unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "overlay-dp")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(json)))?;
    let response = sender
        .send_request(request)
        .await
        .context("the agent went away before it answered")?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| anyhow!("the agent's answer broke off: {error}"))?
        .to_bytes();
    if !status.is_success() {
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => bail!("{}", body.error),
            Err(_) => bail!(
                "the agent answered {status}: {}",
                String::from_utf8_lossy(&bytes)
            ),
        }
    }
    Ok(bytes)
}
