//! Who calls whom: every host keeps a connection with every other one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{FactsNews, Version};
use overlay_core::model::{Host, HostId};
use quinn::{Connection, ConnectionError};
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{datagrams, stream};
use crate::control;
use crate::node::{Node, count};
use crate::pki::host_name;
use crate::transport::{self, Goodbye, PATIENCE, peer};
use crate::wire::{Answer, Request};

const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Serves a connection that somebody else made.
pub fn accepted(node: &Arc<Node>, connection: Connection) {
    let from = peer(&connection);
    match from {
        Some(host) if node.book(|book| book.is_peer(host)) => {
            node.spawn(run(node.clone(), connection, host));
        }
        Some(host) if transport::is_manager(&connection) => {
            node.spawn(unknown_manager(node.clone(), connection, host));
        }
        _ => {
            count(&node.counted.strangers_refused);
            Goodbye::NotAMember.say(&connection);
        }
    }
}

/// A manager of this cluster's CA that this host does not know: perhaps the cluster was restored
/// from a backup, and the facts are of another epoch there.
async fn unknown_manager(node: Arc<Node>, connection: Connection, host: HostId) {
    let epoch = node.version().epoch;
    let answer = timeout(PATIENCE, stream::ask(&connection, Version::default())).await;
    match answer {
        Ok(Ok(Answer::Done {
            news: FactsNews::Snapshot(facts),
            ..
        })) if facts.version().epoch > epoch
            && facts.host(host).is_some_and(|host| host.manager) =>
        {
            tracing::warn!(manager = %host, "the cluster was restored from a backup");
            super::take_news(&node, FactsNews::Snapshot(facts));
        }
        Ok(Ok(Answer::NotAMember(version))) if version.epoch > epoch => node.expel(),
        _ => {}
    }
    if node.book(|book| book.is_peer(host)) {
        run(node, connection, host).await;
    } else {
        count(&node.counted.strangers_refused);
        Goodbye::NotAMember.say(&connection);
    }
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
    let mut under_way: BTreeSet<HostId> = BTreeSet::new();
    loop {
        let peers: Vec<Host> = match node.is_expelled() {
            true => Vec::new(),
            false => node.book(|book| book.peers().cloned().collect()),
        };
        let now = Instant::now();
        attempts.retain(|id, _| peers.iter().any(|host| host.id == *id));
        for host in peers {
            if under_way.contains(&host.id) || node.gossip.link(host.id).is_some() {
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
                under_way.insert(host.id);
                let node = node.clone();
                calls.spawn(async move { (host.id, call(node, host).await) });
            }
        }
        tokio::select! {
            Some(done) = calls.join_next() => {
                let Ok((host, good)) = done else { continue };
                under_way.remove(&host);
                let attempt = attempts.remove(&host);
                if !good {
                    let pause = attempt.map_or(MIN_BACKOFF, |attempt| attempt.pause);
                    let at = Instant::now() + pause.mul_f64(rand::rng().random_range(0.75..1.25));
                    attempts.insert(host, Attempt { at, pause: (pause * 2).min(MAX_BACKOFF) });
                }
            }
            () = node.gossip.dial.notified() => {}
            () = sleep(MIN_BACKOFF) => {}
        }
    }
}

/// True when the connection stood for a while.
async fn call(node: Arc<Node>, host: Host) -> bool {
    let addr = (host.vtep, host.gossip_port).into();
    let client = node.gossip_client();
    let Some(socket) = node.gossip_socket() else {
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
    node.gossip.add_link(host, &connection);
    let ended = tokio::select! {
        ended = connection.closed() => ended,
        ended = datagrams(&node, &connection, host) => ended,
        ended = stream::serve(&node, &connection, host) => ended,
        ended = stream::follow(&node, &connection, host) => ended,
    };
    tracing::debug!(%host, reason = %ended, "connection ended");
    node.gossip.remove_link(host, &connection);
    if let ConnectionError::ApplicationClosed(close) = &ended
        && close.error_code == Goodbye::NotAMember.code()
        && node.book(|book| book.is_peer(host))
    {
        // It may be wrong, or just not know yet. The managers do: if it is so, the answer
        // expels this host.
        let asked = control::exchange(&node, Request::Facts).await;
        if let Err(error) = asked {
            tracing::debug!(%error, "whether this host is still a member is not known");
        }
    }
}
