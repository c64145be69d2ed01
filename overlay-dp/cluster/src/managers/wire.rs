//! Raft's messages between managers: each a request on the control port, on a connection that
//! stays.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use overlay_core::facts::Version;
use overlay_core::model::HostId;
use overlay_raft::{Transport, Unreachable};
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::control_addr;
use crate::node::Node;
use crate::pki::host_name;
use crate::transport::{Goodbye, MAX_FROM_MANAGER, StreamError, receive, send};
use crate::wire::{Answer, Ask, Request};

/// A manager that can't be reached in this time is away.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection on which nothing was answered for so long may be one with an earlier life of that
/// manager, which no longer is.
const STALE: Duration = Duration::from_secs(1);

/// The way to the other managers.
#[derive(Default)]
pub struct Wire {
    node: OnceLock<Weak<Node>>,
    peers: Mutex<BTreeMap<HostId, Arc<Peer>>>,
}

#[derive(Default)]
struct Peer {
    state: Mutex<State>,
    dialed: Notify,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    dialing: bool,
    /// Since when nothing was answered that was asked.
    waiting: Option<Instant>,
}

impl Wire {
    /// Leads nowhere until [`Wire::serve`].
    pub fn new() -> Arc<Wire> {
        Arc::default()
    }

    /// From now on, calls go out from this host.
    pub fn serve(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    fn peer(&self, to: HostId) -> Arc<Peer> {
        self.peers.lock().entry(to).or_default().clone()
    }
}

impl Transport for Wire {
    async fn call(&self, to: HostId, request: Vec<u8>) -> Result<Vec<u8>, Unreachable> {
        let node = self.node.get().and_then(Weak::upgrade);
        let node = node.ok_or_else(|| away("this host stops"))?;
        let peer = self.peer(to);
        let connection = peer
            .connection(&node, to)
            .await
            .ok_or_else(|| away("it can't be called"))?;
        peer.state.lock().waiting.get_or_insert_with(Instant::now);
        match exchange(&connection, request).await {
            Ok(Answer::Raft(reply)) => {
                peer.state.lock().waiting = None;
                Ok(reply)
            }
            Ok(_) => {
                // It runs no Raft at present.
                peer.state.lock().waiting = None;
                Err(away("it is no manager at present"))
            }
            Err(error) => {
                tracing::debug!(%to, %error, "raft");
                peer.give_up(&connection);
                Err(away(&error.to_string()))
            }
        }
    }
}

fn away(problem: &str) -> Unreachable {
    Unreachable(problem.to_owned())
}

async fn exchange(connection: &Connection, request: Vec<u8>) -> Result<Answer, StreamError> {
    let (mut out, mut inward) = connection.open_bi().await?;
    let ask = Ask {
        have: Version::default(),
        request: Request::Raft(request),
    };
    send(&mut out, &ask, MAX_FROM_MANAGER).await?;
    let _ = out.finish();
    receive(&mut inward, MAX_FROM_MANAGER).await
}

impl Peer {
    /// The standing connection, or a new one. Dialing goes on when Raft has lost its patience.
    async fn connection(self: &Arc<Self>, node: &Arc<Node>, to: HostId) -> Option<Connection> {
        let dialed = {
            let mut state = self.state.lock();
            let stale = state.waiting.is_some_and(|since| since.elapsed() > STALE);
            let live = |connection: &Connection| connection.close_reason().is_none();
            match state.connection.take() {
                Some(connection) if live(&connection) && !stale => {
                    state.connection = Some(connection.clone());
                    return Some(connection);
                }
                Some(connection) => Goodbye::Done.say(&connection),
                None => {}
            }
            state.waiting = None;
            let dialed = self.dialed.notified();
            if !std::mem::replace(&mut state.dialing, true) {
                let (peer, node) = (self.clone(), node.clone());
                tokio::spawn(async move {
                    let connection = dial(&node, to).await;
                    let mut state = peer.state.lock();
                    (state.connection, state.dialing) = (connection, false);
                    drop(state);
                    peer.dialed.notify_waiters();
                });
            }
            dialed
        };
        dialed.await;
        self.state.lock().connection.clone()
    }

    fn give_up(&self, connection: &Connection) {
        let mut state = self.state.lock();
        let same = |own: &Connection| own.stable_id() == connection.stable_id();
        if state.connection.as_ref().is_some_and(same) {
            state.connection = None;
            state.waiting = None;
        }
    }
}

async fn dial(node: &Node, to: HostId) -> Option<Connection> {
    let addr = control_addr(node, to)?;
    let socket = node.gossip_socket()?;
    let connecting = socket.connect_with(node.control_client(), addr, &host_name(to));
    timeout(CONNECT, connecting.ok()?).await.ok()?.ok()
}
