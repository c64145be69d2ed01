//! The control port: what is asked of the manager, on both sides. Each request has a stream, and
//! a member asks on a connection of its own each time, so that a restarted manager is no surprise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlay_core::model::HostId;
use quinn::{Connection, Endpoint};
use rand::RngExt;
use tokio::time::{sleep, timeout};

use crate::error::Error;
use crate::manager::{self, Context};
use crate::node::{Node, count};
use crate::pki::{self, MANAGER_NAME, Presented, host_name};
use crate::token::Token;
use crate::transport::{
    self, CONTROL, Goodbye, MAX_MESSAGE, PATIENCE, StreamError, receive_within, send,
};
use crate::wire::{Facts, HostInfo, Reply, Request};

/// The port that a manager's address without one means.
pub const DEFAULT_PORT: u16 = 2377;
/// A join request is not larger.
const MAX_JOIN: usize = 16 << 10;
/// Each wrong secret costs its sender so much time.
const PENALTY: Duration = Duration::from_secs(1);

/// Microseconds since 1970.
pub fn wall_clock() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Serves a connection to the manager.
pub fn accepted(node: &Arc<Node>, connection: Connection) {
    let served = node.clone();
    node.spawn(async move {
        if let Err(error) = serve(&served, &connection).await {
            tracing::debug!(from = %connection.remote_address(), %error, "control");
        }
        Goodbye::Done.say(&connection);
    });
}

async fn serve(node: &Arc<Node>, connection: &Connection) -> Result<(), StreamError> {
    let from = transport::peer(connection);
    let (limit, _slot) = match from {
        Some(_) => (MAX_MESSAGE, None),
        None => match node.joins.try_acquire() {
            Ok(slot) => (MAX_JOIN, Some(slot)),
            Err(_) => {
                count(&node.counted.strangers_refused);
                return Err(StreamError::Protocol("too many joins at once"));
            }
        },
    };
    let opened = timeout(PATIENCE, connection.accept_bi()).await;
    let (mut out, mut inward) = opened.map_err(|_| StreamError::Timeout(PATIENCE))??;
    let request = receive_within(&mut inward, limit, PATIENCE)
        .await
        .inspect_err(|_| {
            count(&node.counted.messages_refused);
        })?;
    let reply = answer(node, from, request).await;
    send(&mut out, &reply).await?;
    let _ = out.finish();
    // Closing the connection would take back what the other side has not read yet.
    let _ = timeout(PATIENCE, out.stopped()).await;
    Ok(())
}

/// Answers a request; `from` is whose certificate the asking side has.
async fn answer(node: &Arc<Node>, from: Option<HostId>, request: Request) -> Reply {
    let result = match (from, request) {
        (Some(from), request) => {
            change(node, move |state, context| {
                manager::handle(state, from, &request, context)
            })
            .await
        }
        (None, Request::Join { secret, csr, info }) => {
            let admits = node.store.read(|state| {
                state
                    .manager
                    .as_ref()
                    .is_some_and(|manager| manager.admits(&secret))
            });
            if admits.await.unwrap_or(false) {
                change(node, move |state, context| {
                    manager::join(state, &csr, &info, context)
                })
                .await
            } else {
                sleep(PENALTY).await;
                let text = "the token's secret is not this cluster's: copy the whole token from the first host again";
                Err(Error::Refused(text.into()))
            }
        }
        (None, _) => Err(Error::Refused(
            "this needs a member's certificate: join first".into(),
        )),
    };
    result.unwrap_or_else(|error| {
        if from.is_none() {
            count(&node.counted.joins_refused);
            tracing::warn!(%error, "a join was refused");
        }
        Reply::Refused(error.to_string())
    })
}

/// Changes the agreed facts: first on disk, then everywhere.
async fn change<F>(node: &Arc<Node>, change: F) -> Result<Reply, Error>
where
    F: FnOnce(&mut crate::state::Stored, &Context<'_>) -> Result<Reply, Error> + Send + 'static,
{
    let asked = node.clone();
    let changed = node.store.update(move |state| {
        let live = |host| asked.live().contains(&host);
        let new_id = HostId(rand::rng().random());
        let context = Context {
            now: wall_clock(),
            new_id,
            live: &live,
        };
        let before = state.facts.version;
        let reply = change(state, &context)?;
        let facts = (state.facts.version != before).then(|| state.facts.clone());
        Ok((reply, facts))
    });
    let (reply, facts): (Reply, Option<Facts>) = changed.await?;
    if let Some(facts) = facts {
        node.take_facts(facts);
    }
    Ok(reply)
}

/// Asks the manager, which may be this host.
pub async fn ask(node: &Arc<Node>, request: Request) -> Result<Reply, Error> {
    let reply = if node.manager {
        answer(node, Some(node.me), request).await
    } else {
        let (manager, host, left) = node.book(|book| {
            let manager = book.facts().manager;
            (
                manager,
                book.facts().host(manager).cloned(),
                book.has_left(manager),
            )
        });
        let Some(host) = host.filter(|_| !left) else {
            return Err(Error::ManagerLeft(manager));
        };
        let addr = SocketAddr::new(host.vtep, host.control_port);
        let unreachable = |problem| Error::ManagerUnreachable { addr, problem };
        let socket = node.socket();
        let socket = socket.ok_or_else(|| unreachable("this host has shut down".into()))?;
        let config = node.control_client.clone();
        let called = call(&socket, config, addr, &host_name(manager), &request).await;
        called.map_err(|error| unreachable(error.to_string()))?
    };
    if let Reply::Network { facts, .. } | Reply::Facts(Some(facts)) = &reply {
        node.take_facts(facts.clone());
    }
    match reply {
        Reply::Refused(text) => Err(Error::Refused(text)),
        reply => Ok(reply),
    }
}

async fn call(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    addr: SocketAddr,
    name: &str,
    request: &Request,
) -> Result<Reply, StreamError> {
    let exchange = async {
        let connecting = endpoint
            .connect_with(config, addr, name)
            .map_err(|_| StreamError::Protocol("its address can't be called from here"))?;
        let connection = connecting.await?;
        let (mut out, mut inward) = connection.open_bi().await?;
        send(&mut out, request).await?;
        let _ = out.finish();
        let reply = receive_within(&mut inward, MAX_MESSAGE, PATIENCE).await;
        Goodbye::Done.say(&connection);
        reply
    };
    timeout(PATIENCE, exchange)
        .await
        .map_err(|_| StreamError::Timeout(PATIENCE))?
}

/// What a join brings.
pub struct Joined {
    pub id: HostId,
    pub identity: pki::Identity,
    pub facts: Facts,
}

/// Makes this host a member of the token's cluster. The secret goes only to a manager of that
/// cluster, and the private key nowhere.
pub async fn join(
    endpoint: &Endpoint,
    addr: &str,
    token: &Token,
    info: &HostInfo,
) -> Result<Joined, Error> {
    let addr = resolve(addr, info).await?;
    let (key, csr) = pki::new_request()?;
    let (crypto, presented) = pki::joiner(token.ca, CONTROL)?;
    let config = transport::control_client(crypto);
    let request = Request::Join {
        secret: token.secret,
        csr,
        info: info.clone(),
    };
    let reply = call(endpoint, config, addr, MANAGER_NAME, &request).await;
    let ca = match presented.get() {
        Some(Presented::Other) => return Err(Error::OtherCluster(addr)),
        Some(Presented::Ca(ca)) => ca.clone(),
        None => Vec::new(),
    };
    let problem = |problem: String| Error::Join { addr, problem };
    match reply.map_err(|error| problem(error.to_string()))? {
        Reply::Joined { id, cert, facts } => {
            let identity = pki::Identity { ca, cert, key };
            identity.check(id)?;
            if facts.host(id).is_none() || facts.host(facts.manager).is_none() {
                return Err(problem("the manager's reply contradicts itself".into()));
            }
            Ok(Joined {
                id,
                identity,
                facts,
            })
        }
        Reply::Refused(text) => Err(Error::Refused(text)),
        _ => Err(problem("the manager's reply makes no sense".into())),
    }
}

async fn resolve(addr: &str, info: &HostInfo) -> Result<SocketAddr, Error> {
    let error = |problem: String| Error::Resolve {
        addr: addr.to_owned(),
        problem,
    };
    if let Ok(ip) = addr.trim_matches(['[', ']']).parse() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    let with_port = match addr.rsplit_once(':') {
        Some(_) => addr.to_owned(),
        None => format!("{addr}:{DEFAULT_PORT}"),
    };
    let found = timeout(PATIENCE, tokio::net::lookup_host(&with_port)).await;
    let found = found.map_err(|_| error("no answer from the resolver".into()))?;
    let mut found = found.map_err(|e| error(e.to_string()))?;
    // The socket is bound to the VTEP address and can call only its kind.
    found
        .find(|addr| addr.is_ipv4() == info.vtep.is_ipv4())
        .ok_or_else(|| {
            error(format!(
                "it has no address of the same kind as {}",
                info.vtep
            ))
        })
}
