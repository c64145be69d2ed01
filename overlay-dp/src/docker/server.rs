//! Serving Docker on the plugin's socket.
//!
//! Docker posts with an empty Host header, with a media type of its own or none, and often without
//! a body, so that all of it is taken as it comes and looked at here.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::wire::{CONTENT_TYPE, OfEndpoint, OfNetwork, OfPool, RequestPool};
use super::{Plugin, ipam};

/// The socket where Docker finds the plugin, and what is served there.
///
/// # Errors
/// When it can't be made.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let at = || format!("can't serve Docker on {} (--docker-plugin)", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(at)?;
    }
    // The instance's lock says that no other agent of ours serves there: it is a dead one's.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(at);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(at)?;
    Ok(listener)
}

pub(super) fn router(plugin: Arc<Plugin>) -> Router {
    Router::new().fallback(call).with_state(plugin)
}

async fn call(State(plugin): State<Arc<Plugin>>, uri: Uri, body: Bytes) -> Response {
    // A task of its own: whoever asked may go away, but what is begun is ended.
    let answered = tokio::spawn(async move { answer(&plugin, uri.path(), &body).await }).await;
    answered.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn answer(plugin: &Plugin, path: &str, body: &[u8]) -> Response {
    let Some((api, method)) = path.strip_prefix('/').and_then(|path| path.split_once('.')) else {
        return not_found(path);
    };
    let done = match (api, method) {
        ("Plugin", "Activate") => Ok(json!({"Implements": ["NetworkDriver", "IpamDriver"]})),
        ("NetworkDriver", method) => match network_driver(plugin, method, body).await {
            Some(done) => done,
            None => return not_found(path),
        },
        ("IpamDriver", method) => match ipam_driver(plugin, method, body).await {
            Some(done) => done,
            None => return not_found(path),
        },
        _ => return not_found(path),
    };
    match done {
        Ok(answer) => reply(StatusCode::OK, &answer),
        Err(error) => {
            tracing::warn!("Docker is told: {error:#}");
            let error = format!("{error:#}");
            reply(
                StatusCode::OK,
                &match api {
                    "IpamDriver" => json!({"Error": error}),
                    _ => json!({"Err": error}),
                },
            )
        }
    }
}

/// `None` for a method that there is not.
async fn network_driver(plugin: &Plugin, method: &str, body: &[u8]) -> Option<Result<Value>> {
    let done = match method {
        "GetCapabilities" => Ok(json!({
            "Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": false,
        })),
        "CreateNetwork" => match parse::<OfNetwork>(body) {
            Ok(ask) => plugin.create_network(ask).await.map(nothing),
            Err(error) => Err(error),
        },
        "DeleteNetwork" => match parse::<OfNetwork>(body) {
            Ok(ask) => plugin.delete_network(&ask).await.map(nothing),
            Err(error) => Err(error),
        },
        "CreateEndpoint" => match parse::<OfEndpoint>(body) {
            Ok(ask) => {
                let made = plugin.create_endpoint(ask).await;
                made.map(|interface| json!({"Interface": interface}))
            }
            Err(error) => Err(error),
        },
        "DeleteEndpoint" => match parse::<OfEndpoint>(body) {
            Ok(ask) => plugin.delete_endpoint(&ask.endpoint_id).await.map(nothing),
            Err(error) => Err(error),
        },
        "EndpointOperInfo" => Ok(json!({"Value": {}})),
        "Join" => match parse::<OfEndpoint>(body) {
            Ok(ask) => plugin.join(ask).await.and_then(to_value),
            Err(error) => Err(error),
        },
        "Leave" => parse::<OfEndpoint>(body)
            .and_then(|ask| plugin.leave(&ask))
            .map(nothing),
        "ProgramExternalConnectivity" => match parse::<OfEndpoint>(body) {
            Ok(ask) => plugin.publish(ask).await.map(nothing),
            Err(error) => Err(error),
        },
        "RevokeExternalConnectivity" => match parse::<OfEndpoint>(body) {
            Ok(ask) => plugin.unpublish(&ask.endpoint_id).await.map(nothing),
            Err(error) => Err(error),
        },
        // Discovery is of a swarm's other daemons: we know our hosts.
        "DiscoverNew" | "DiscoverDelete" => Ok(json!({})),
        _ => return None,
    };
    Some(done)
}

/// `None` for a method that there is not.
async fn ipam_driver(plugin: &Plugin, method: &str, body: &[u8]) -> Option<Result<Value>> {
    let done = match method {
        "GetCapabilities" => Ok(json!({
            "RequiresMACAddress": false, "RequiresRequestReplay": false,
        })),
        "GetDefaultAddressSpaces" => to_value(ipam::address_spaces()),
        "RequestPool" => match parse::<RequestPool>(body) {
            Ok(ask) => plugin.request_pool(ask).await.and_then(to_value),
            Err(error) => Err(error),
        },
        "ReleasePool" => parse::<OfPool>(body)
            .and_then(|ask| plugin.release_pool(&ask))
            .map(nothing),
        "RequestAddress" => match parse::<OfPool>(body) {
            Ok(ask) => {
                let given = plugin.request_address(ask).await;
                given.map(|address| json!({"Address": address, "Data": {}}))
            }
            Err(error) => Err(error),
        },
        "ReleaseAddress" => parse::<OfPool>(body)
            .and_then(|ask| plugin.release_address(&ask))
            .map(nothing),
        _ => return None,
    };
    Some(done)
}

pub(super) fn parse<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let what = "the request is not what Docker's plugin protocol says";
    // A list would be taken for the fields in their order.
    let object: serde_json::Map<String, Value> = serde_json::from_slice(body).context(what)?;
    serde_json::from_value(Value::Object(object)).context(what)
}

fn nothing((): ()) -> Value {
    json!({})
}

fn to_value(value: impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(value)?)
}

fn not_found(path: &str) -> Response {
    let error = format!("the plugin has no {path}");
    reply(StatusCode::NOT_FOUND, &json!({"Err": error}))
}

fn reply(status: StatusCode, answer: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, CONTENT_TYPE)];
    (status, headers, answer.to_string()).into_response()
}
