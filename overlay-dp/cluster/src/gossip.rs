//! The connections between hosts: each host calls every other one, and on each connection follows
//! the other's log. SWIM's packets travel beside as datagrams.
//!
//! A host that follows opens a stream and says how far it has come; the owner answers with what
//! is missing, then with every change as it happens, and every few seconds with a digest. One
//! ordered stream of one authenticated host: nobody else's word on its facts is ever taken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::model::{Host, HostId};
use quinn::{Connection, RecvStream, SendStream};
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::log::{Gap, MAX_ENDPOINTS, News};
use crate::node::{Node, count};
use crate::pki::host_name;
use crate::transport::{
    Goodbye, MAX_MESSAGE, PATIENCE, StreamError, peer, receive, receive_within, send,
};
use crate::wire::{Frame, Subscribe};

/// Endpoints in one part of a snapshot, which stays far below the largest message.
const PART: usize = 2048;
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

fn jittered(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * rand::rng().random_range(0.75..1.25))
}

/// Serves a connection that somebody else made.
pub fn accepted(node: &Arc<Node>, connection: Connection) {
    let host = peer(&connection).filter(|host| node.book(|book| book.is_peer(*host)));
    let Some(host) = host else {
        count(&node.counted.strangers_refused);
        Goodbye::NotAMember.say(&connection);
        return;
    };
    node.spawn(run(node.clone(), connection, host));
}

/// When a host is called next, and how long the pause after that is.
struct Attempt {
    at: Instant,
    pause: Duration,
}

/// Keeps a connection with every other host.
pub async fn dial_all(node: Arc<Node>) {
    let mut calls: JoinSet<(HostId, bool)> = JoinSet::new();
    let mut attempts: BTreeMap<HostId, Attempt> = BTreeMap::new();
    let mut under_way: Vec<HostId> = Vec::new();
    loop {
        let peers: Vec<Host> = node.book(|book| {
            let hosts = book.peers().filter(|host| !book.has_left(host.id));
            hosts.cloned().collect()
        });
        let now = Instant::now();
        attempts.retain(|id, _| peers.iter().any(|host| host.id == *id));
        for host in peers {
            if under_way.contains(&host.id) || node.link(host.id).is_some() {
                continue;
            }
            // Both sides see each other at the same moment: one of them waits for the other.
            let head_start = if node.me > host.id {
                MIN_BACKOFF
            } else {
                Duration::ZERO
            };
            let attempt = attempts.entry(host.id).or_insert_with(|| Attempt {
                at: now + head_start,
                pause: MIN_BACKOFF,
            });
            if attempt.at <= now {
                under_way.push(host.id);
                let node = node.clone();
                calls.spawn(async move { (host.id, call(node, host).await) });
            }
        }
        tokio::select! {
            Some(done) = calls.join_next() => {
                let Ok((host, good)) = done else { continue };
                under_way.retain(|id| *id != host);
                let attempt = attempts.remove(&host);
                if !good {
                    let pause = attempt.map_or(MIN_BACKOFF, |attempt| attempt.pause);
                    let at = Instant::now() + pause.mul_f64(rand::rng().random_range(0.75..1.25));
                    attempts.insert(host, Attempt { at, pause: (pause * 2).min(MAX_BACKOFF) });
                }
            }
            () = node.dial.notified() => {}
            () = sleep(MIN_BACKOFF) => {}
        }
    }
}

/// True when the connection stood for a while.
async fn call(node: Arc<Node>, host: Host) -> bool {
    let addr = (host.vtep, host.gossip_port).into();
    let client = node.gossip_client.clone();
    let Some(socket) = node.socket() else {
        return false;
    };
    let connecting = match socket.connect_with(client, addr, &host_name(host.id)) {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::debug!(host = host.name, %error, "can't call");
            return false;
        }
    };
    match timeout(PATIENCE, connecting).await {
        Ok(Ok(connection)) => {
            let start = Instant::now();
            run(node, connection, host.id).await;
            start.elapsed() > MAX_BACKOFF
        }
        Ok(Err(error)) => {
            tracing::debug!(host = host.name, %error, "can't call");
            false
        }
        Err(_) => false,
    }
}

/// Everything that happens on one connection, until it ends.
async fn run(node: Arc<Node>, connection: Connection, host: HostId) {
    node.add_link(host, &connection);
    let ended = tokio::select! {
        ended = connection.closed() => ended,
        ended = datagrams(&node, &connection, host) => ended,
        ended = streams(&node, &connection, host) => ended,
        ended = follow_again(&node, &connection, host) => ended,
    };
    let closed = |code: &quinn::ApplicationClose| code.error_code == Goodbye::NotAMember.code();
    match &ended {
        quinn::ConnectionError::ApplicationClosed(close)
            if closed(close) && node.book(|book| book.facts().manager) == host =>
        {
            tracing::warn!(
                "the manager says that this host is no member any more: leave, and join again"
            );
        }
        _ => tracing::debug!(%host, reason = %ended, "connection ended"),
    }
    node.remove_link(host, &connection);
}

async fn datagrams(node: &Node, connection: &Connection, host: HostId) -> quinn::ConnectionError {
    loop {
        let packet = match connection.read_datagram().await {
            Ok(packet) => packet,
            Err(ended) => return ended,
        };
        let taken = node.swim(|swim, now| {
            let book = node.book.lock();
            let known = |id| id == node.me || book.is_peer(id);
            swim.receive(host, &packet, known, now)
        });
        if taken.is_err() {
            count(&node.counted.packets_refused);
        }
    }
}

async fn streams(
    node: &Arc<Node>,
    connection: &Connection,
    host: HostId,
) -> quinn::ConnectionError {
    let mut followers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    followers.spawn(lead(node.clone(), host, send, recv));
                }
                Err(ended) => return ended,
            },
            Some(ended) = followers.join_next() => {
                if let Ok(Err(error)) = ended {
                    note(node, host, &error);
                }
            }
        }
    }
}

async fn follow_again(
    node: &Arc<Node>,
    connection: &Connection,
    host: HostId,
) -> quinn::ConnectionError {
    loop {
        match follow(node, connection, host).await {
            Ok(never) => match never {},
            Err(StreamError::Connection(ended)) => return ended,
            Err(error) => note(node, host, &error),
        }
        sleep(jittered(0.5)).await;
    }
}

fn note(node: &Node, host: HostId, error: &StreamError) {
    if let StreamError::Malformed(_) | StreamError::Protocol(_) | StreamError::Size(_) = error {
        count(&node.counted.messages_refused);
    }
    tracing::debug!(%host, %error, "gossip");
}

/// Tells a follower all of this host's facts.
async fn lead(
    node: Arc<Node>,
    host: HostId,
    mut out: SendStream,
    mut inward: RecvStream,
) -> Result<(), StreamError> {
    let subscribe: Subscribe = receive_within(&mut inward, MAX_MESSAGE, PATIENCE).await?;
    if subscribe.swim.host() != host {
        return Err(StreamError::Protocol("somebody else's identity"));
    }
    node.swim(|swim, now| swim.connected(subscribe.swim, now));
    let me = node.swim.lock().me();
    send(&mut out, &Frame::Hello(me)).await?;

    let Subscribe {
        mut have,
        facts: mut version,
        ..
    } = subscribe;
    let mut changed = node.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let (facts, news, at) = node.book(|book| {
            let newer = node.manager && book.facts().version > version;
            let facts = newer.then(|| book.facts().clone());
            (facts, book.own.since(have), book.own.position())
        });
        if let Some(facts) = facts {
            version = facts.version;
            send(&mut out, &Frame::Facts(facts)).await?;
        }
        match news {
            News::Nothing => {}
            News::Changes { first, changes } => {
                let incarnation = at.incarnation;
                send(
                    &mut out,
                    &Frame::Changes {
                        incarnation,
                        first,
                        changes,
                    },
                )
                .await?;
            }
            News::Snapshot {
                settled,
                mut endpoints,
            } => loop {
                let rest = endpoints.split_off(endpoints.len().min(PART));
                let last = rest.is_empty();
                send(
                    &mut out,
                    &Frame::Snapshot {
                        at,
                        settled,
                        endpoints,
                        last,
                    },
                )
                .await?;
                if last {
                    break;
                }
                endpoints = rest;
            },
        }
        have = at;
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep(jittered(4.0)) => send(&mut out, &Frame::Digest(have)).await?,
        }
    }
}

/// Takes another host's facts; returns when something is wrong, to be called again.
async fn follow(
    node: &Arc<Node>,
    connection: &Connection,
    host: HostId,
) -> Result<std::convert::Infallible, StreamError> {
    let (mut out, mut inward) = connection.open_bi().await?;
    let swim = node.swim.lock().me();
    let (have, facts) = node.book(|book| (book.have(host), book.facts().version));
    send(&mut out, &Subscribe { swim, have, facts }).await?;
    let _ = out.finish();

    let Frame::Hello(id) = receive_within(&mut inward, MAX_MESSAGE, PATIENCE).await? else {
        return Err(StreamError::Protocol("no greeting"));
    };
    if id.host() != host {
        return Err(StreamError::Protocol("somebody else's identity"));
    }
    node.swim(|swim, now| swim.connected(id, now));
    node.book(|book| book.up(host));

    let mut parts = Vec::new();
    loop {
        // The connection itself notices when nothing comes any more.
        let frame: Frame = receive(&mut inward, MAX_MESSAGE).await?;
        node.room().await;
        let now = Instant::now();
        match frame {
            Frame::Hello(_) => return Err(StreamError::Protocol("a second greeting")),
            Frame::Snapshot {
                at,
                settled,
                mut endpoints,
                last,
            } => {
                parts.append(&mut endpoints);
                if parts.len() > MAX_ENDPOINTS {
                    return Err(StreamError::Protocol("too many endpoints"));
                }
                if last {
                    let endpoints = std::mem::take(&mut parts);
                    node.book(|book| book.snapshot(host, at, settled, endpoints, now));
                }
            }
            Frame::Changes {
                incarnation,
                first,
                changes,
            } => node
                .book(|book| book.changes(host, incarnation, first, changes, now))
                .map_err(|Gap| StreamError::Behind)?,
            Frame::Digest(at) => {
                if at > node.book(|book| book.have(host)) {
                    return Err(StreamError::Behind);
                }
            }
            Frame::Facts(facts) => {
                if node.book(|book| book.facts().manager) != host {
                    return Err(StreamError::Protocol("facts that are not its own"));
                }
                node.take_facts(facts);
            }
        }
    }
}
