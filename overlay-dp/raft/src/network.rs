//! Raft's messages to the other managers, over a [`Transport`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetwork, RaftNetworkFactory};
use overlay_core::model::HostId;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::error::Unreachable;
use crate::machine::Applied;
use crate::types::{Snapshot, Store, Types, Vote};
use crate::wire::{Envelope, Fault, PIECE, Request, Response, decode_response, encode_request};

/// Carries requests to other managers. Only the receiver that has proved to be `to` may answer.
pub trait Transport: Send + Sync + 'static {
    /// Sends `request`, at most [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes, and gives what
    /// [`Raft::handle`](crate::Raft::handle) of `to` gave. Raft drops the future when it no longer
    /// waits; nothing breaks when the request arrives twice or not at all.
    fn call(
        &self,
        to: HostId,
        request: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, Unreachable>> + Send;
}

/// What all messages of this manager share.
pub(crate) struct Sender<T> {
    pub me: HostId,
    pub transport: Arc<T>,
    pub applied: Arc<RwLock<Applied>>,
    pub peers: Arc<Peers>,
    pub timeout: Duration,
    pub backoff: Duration,
}

/// What the messages tell about this manager and others.
#[derive(Default)]
pub(crate) struct Peers {
    /// This manager leads a majority.
    pub leads: AtomicBool,
    /// The stores that answered in place of those that were addressed.
    pub replaced: Mutex<BTreeMap<u64, Store>>,
    /// When a manager last gave an answer that was no refusal.
    pub answered: Mutex<BTreeMap<u64, Instant>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender {
            me: self.me,
            transport: self.transport.clone(),
            applied: self.applied.clone(),
            peers: self.peers.clone(),
            timeout: self.timeout,
            backoff: self.backoff,
        }
    }
}

/// [`Sender`], whatever its transport is.
pub(crate) trait Call: Send + Sync {
    fn call(&self, to: u64, store: Store, request: Request) -> Answer<'_>;
}

pub(crate) type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response, CallError>> + Send + 'a>>;

impl<T: Transport> Call for Sender<T> {
    fn call(&self, to: u64, store: Store, request: Request) -> Answer<'_> {
        Box::pin(async move { self.send(to, store, &request, &[]).await })
    }
}

/// Why there is no usable answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("no answer in time")]
    Timeout,
    #[error("refused: {0}")]
    Refused(#[from] Fault),
    #[error("an answer to something else")]
    Mismatch,
}

impl<T: Transport> Sender<T> {
    pub async fn send(
        &self,
        to: u64,
        store: Store,
        request: &Request,
        tail: &[u8],
    ) -> Result<Response, CallError> {
        let epoch = self
            .applied
            .read()
            .machine
            .as_ref()
            .map(|m| m.facts().version().epoch);
        let envelope = Envelope {
            from: self.me,
            store,
            epoch: epoch.unwrap_or_default(),
            leads: self.peers.leads.load(Ordering::Relaxed),
        };
        let bytes = encode_request(&envelope, request, tail);
        let answer = self.transport.call(HostId(to), bytes);
        let answer = tokio::time::timeout(self.timeout, answer).await;
        let response = decode_response(&answer.map_err(|_| CallError::Timeout)??)?;
        match response {
            Response::Refused(fault) => {
                if let Fault::Store(actual) = fault {
                    self.peers.replaced.lock().insert(to, actual);
                }
                Err(fault.into())
            }
            response => {
                self.peers.answered.lock().insert(to, Instant::now());
                Ok(response)
            }
        }
    }
}

impl<T: Transport> RaftNetworkFactory<Types> for Sender<T> {
    type Network = Peer<T>;

    async fn new_client(&mut self, target: u64, node: &Store) -> Peer<T> {
        Peer {
            sender: self.clone(),
            to: target,
            store: *node,
        }
    }
}

/// One other manager.
pub(crate) struct Peer<T> {
    sender: Sender<T>,
    to: u64,
    store: Store,
}

type RpcError = RPCError<u64, Store, RaftError<u64>>;

fn unreachable(error: &CallError) -> RpcError {
    RPCError::Unreachable(openraft::error::Unreachable::new(error))
}

impl<T: Transport> Peer<T> {
    async fn call(&self, request: &Request, tail: &[u8]) -> Result<Response, CallError> {
        self.sender.send(self.to, self.store, request, tail).await
    }

    /// Sends piece after piece, and ends early when the other has a later vote.
    async fn send_snapshot(&self, vote: Vote, snapshot: &Snapshot) -> Result<Vote, CallError> {
        let data = snapshot.snapshot.as_slice();
        let mut offset = 0;
        loop {
            let piece = &data[offset..data.len().min(offset + PIECE)];
            let request = Request::Snapshot {
                vote,
                meta: snapshot.meta.clone(),
                offset: offset as u64,
                total: data.len() as u64,
            };
            match self.call(&request, piece).await? {
                Response::Snapshot { vote: theirs, .. } if theirs > vote => return Ok(theirs),
                Response::Snapshot { received, .. }
                    if received == (offset + piece.len()) as u64 =>
                {
                    offset += piece.len();
                    if offset == data.len() {
                        return Ok(vote);
                    }
                }
                // It has lost the beginning; openraft starts again.
                _ => return Err(CallError::Mismatch),
            }
        }
    }
}

impl<T: Transport> RaftNetwork<Types> for Peer<T> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let (vote, prev) = (rpc.vote, rpc.prev_log_id);
        match self.call(&Request::Append(rpc), &[]).await {
            // openraft asserts both of these.
            Ok(Response::Append(AppendEntriesResponse::HigherVote(theirs))) if theirs <= vote => {
                Err(unreachable(&CallError::Mismatch))
            }
            Ok(Response::Append(AppendEntriesResponse::Conflict)) if prev.is_none() => {
                Err(unreachable(&CallError::Mismatch))
            }
            // This crate's managers take all of a message or nothing.
            Ok(Response::Append(AppendEntriesResponse::PartialSuccess(_))) => {
                Err(unreachable(&CallError::Mismatch))
            }
            Ok(Response::Append(response)) => Ok(response),
            Ok(_) => Err(unreachable(&CallError::Mismatch)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        match self.call(&Request::Vote(rpc), &[]).await {
            Ok(Response::Vote(response)) => Ok(response),
            Ok(_) => Err(unreachable(&CallError::Mismatch)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = self.send_snapshot(vote, &snapshot) => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(error) => Err(StreamingError::Network(NetworkError::new(&error))),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.sender.backoff))
    }
}
