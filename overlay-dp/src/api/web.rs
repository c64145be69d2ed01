//! What `attach --metrics` serves over TCP: the status page and the metrics. It can only be looked
//! at, and whoever can reach the address may: so it is off unless asked for, and on loopback unless
//! told otherwise.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the status page, with `/style.css` and `/page.js` |
//! | `GET /metrics` | the metrics |
//! | `GET /api/overview` | [`super::overview::Overview`] of the whole cluster |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, http::uri::Authority};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use super::server::{Ctx, Failure};
use super::{metrics, overview};

/// Nothing from elsewhere, nothing inline, nothing but looking.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Viewers that are served at a time; the others wait.
const CONNECTIONS: usize = 64;
/// How long one has for a request and its answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Whatever is asked within this time gets the same answer.
const FRESH: Duration = Duration::from_secs(1);

/// The listening socket.
pub struct Web {
    listener: TcpListener,
    address: SocketAddr,
}

impl Web {
    /// Takes the address.
    ///
    /// # Errors
    /// When it can't be had: one line that says what to do.
    pub async fn bind(address: SocketAddr) -> Result<Web> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("can't serve metrics on {address}/tcp: choose another address with --metrics")
        })?;
        let address = listener.local_addr()?;
        Ok(Web { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for ever.
    pub(super) async fn serve(self, ctx: Ctx) {
        let service = TowerToHyperService::new(router(ctx, self.address.ip()));
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a viewer could not be let in");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let service = service.clone();
            tokio::spawn(async move {
                let _slot = slot;
                // Whoever is slow, or silent, must not keep others out.
                let _ = tokio::time::timeout(PATIENCE, one(stream, service)).await;
            });
        }
    }
}

async fn one(stream: TcpStream, service: TowerToHyperService<Router>) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a viewer's connection");
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    ctx: Ctx,
    overview: Arc<Kept>,
    metrics: Arc<Kept>,
}

/// An answer for all who ask within [`FRESH`], and when it was made. Many viewers cost as much as
/// one.
type Kept = Mutex<Option<(Instant, HeaderValue, Bytes)>>;

fn router(ctx: Ctx, at: IpAddr) -> Router {
    Router::new()
        .route(
            "/",
            get(|| part("text/html", include_str!("web/index.html"))),
        )
        .route(
            "/style.css",
            get(|| part("text/css", include_str!("web/style.css"))),
        )
        .route(
            "/page.js",
            get(|| part("text/javascript", include_str!("web/page.js"))),
        )
        .route("/api/overview", get(overview_kept))
        .route("/metrics", get(metrics_kept))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no such page\n") })
        .with_state(Shared {
            ctx,
            overview: Arc::default(),
            metrics: Arc::default(),
        })
        .layer(middleware::from_fn(move |request, next| {
            guard(at, request, next)
        }))
}

async fn part(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, format!("{kind}; charset=utf-8"))], text).into_response()
}

async fn overview_kept(State(shared): State<Shared>) -> Result<Response, Failure> {
    kept(&shared.overview, async {
        let overview = overview::gather(&shared.ctx, true).await?;
        let json = serde_json::to_vec(&overview)?;
        Ok((HeaderValue::from_static("application/json"), json.into()))
    })
    .await
}

async fn metrics_kept(State(shared): State<Shared>) -> Result<Response, Failure> {
    kept(&shared.metrics, async {
        let kind = HeaderValue::from_static(metrics::OPEN_METRICS);
        Ok((kind, metrics::text(&shared.ctx).await?.into()))
    })
    .await
}

async fn kept(
    kept: &Kept,
    make: impl Future<Output = Result<(HeaderValue, Bytes)>>,
) -> Result<Response, Failure> {
    let mut kept = kept.lock().await;
    let fresh = kept.as_ref().filter(|(at, ..)| at.elapsed() < FRESH);
    let (kind, bytes) = match fresh {
        Some((_, kind, bytes)) => (kind.clone(), bytes.clone()),
        None => {
            let (kind, bytes) = make.await?;
            *kept = Some((Instant::now(), kind.clone(), bytes.clone()));
            (kind, bytes)
        }
    };
    Ok(([(CONTENT_TYPE, kind)], bytes).into_response())
}

/// Refuses what comes by a strange name, and says to browsers what this page may do.
async fn guard(at: IpAddr, request: Request, next: Next) -> Response {
    let mut response = match is_meant(at, request.headers()) {
        true => next.run(request).await,
        false => (
            StatusCode::MISDIRECTED_REQUEST,
            "ask for this page by its address, or as localhost\n",
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// On loopback only this machine's users may look: another site's page, whose name was made to
/// lead here (DNS rebinding), asks for its own name.
fn is_meant(at: IpAddr, headers: &HeaderMap) -> bool {
    if !at.is_loopback() {
        return true;
    }
    let Some(host) = headers.get(HOST) else {
        return true;
    };
    let authority = host.to_str().ok().and_then(|h| h.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(at: &str, host: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(HOST, HeaderValue::from_static(host));
        }
        is_meant(at.parse().unwrap(), &headers)
    }

    #[test]
    fn loopback_is_for_this_machine() {
        for good in [
            "localhost",
            "LocalHost:9478",
            "127.0.0.1:9478",
            "[::1]:9478",
        ] {
            assert!(meant("127.0.0.1", Some(good)), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:9478",
            "localhost.evil.example",
            "",
            "a b",
        ] {
            assert!(!meant("::1", Some(bad)), "{bad}");
        }
        assert!(meant("127.0.0.1", None));
        assert!(meant("172.31.1.5", Some("host1.example:9478")));
    }

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        let page = include_str!("web/index.html");
        for inline in [
            "<style",
            "style=",
            "onclick",
            "onload",
            "javascript:",
            "http://",
            "https://",
        ] {
            assert!(!page.contains(inline), "{inline}");
        }
        let script = include_str!("web/page.js");
        for unsafe_way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "setAttribute(\"style",
        ] {
            assert!(!script.contains(unsafe_way), "{unsafe_way}");
        }
    }
}
