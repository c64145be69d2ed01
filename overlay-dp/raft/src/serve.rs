//! Answers to the other managers' calls.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::RaftError;
use overlay_core::facts::{Facts, Version};
use overlay_core::model::HostId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::machine::decode_machine;
use crate::raft::Core;
use crate::types::{Metrics, Snapshot, SnapshotMeta, Vote};
use crate::wire::{Envelope, Fault, Receiver, Request, Response, decode_request, encode_response};

/// So long another manager's word about a host holds.
const VOUCHED: Duration = Duration::from_secs(10);

/// A snapshot that has not come in full yet.
pub(crate) struct Incoming {
    vote: Vote,
    meta: SnapshotMeta,
    total: u64,
    data: Vec<u8>,
}

impl Core {
    pub async fn handle(self: &Arc<Self>, from: HostId, request: &[u8]) -> Vec<u8> {
        let response = match self.answer(from, request).await {
            Ok(response) => response,
            Err(fault) => {
                tracing::debug!(%from, %fault, "a manager's message was refused");
                Response::Refused(fault)
            }
        };
        encode_response(&response)
    }

    async fn answer(self: &Arc<Self>, from: HostId, request: &[u8]) -> Result<Response, Fault> {
        let receiver = Receiver {
            store: self.file.store(),
            epoch: self.epoch(),
            term: self.metrics().current_term,
        };
        let (envelope, request, tail) = decode_request(from, request, &receiver)?;
        let open_to_all = matches!(request, Request::Hello | Request::Manages { .. });
        if !open_to_all && !self.known(from) {
            return Err(Fault::NoManager);
        }
        match request {
            Request::Manages { host, version } => {
                Ok(Response::Manages(self.manages(host, version)))
            }
            Request::Hello => Ok(Response::Hello(self.file.store())),
            Request::ReadIndex => Ok(Response::ReadIndex(self.own_read_index().await)),
            Request::Append(append) => {
                let vote = append.vote;
                let response = self.raft.append_entries(append).await.map_err(stopped)?;
                self.hear(&envelope, vote);
                Ok(Response::Append(response))
            }
            Request::Vote(ask) => {
                let response = self.raft.vote(ask).await.map_err(stopped)?;
                Ok(Response::Vote(response))
            }
            Request::Snapshot {
                vote,
                meta,
                offset,
                total,
            } => {
                let response = self.take_piece(vote, meta, offset, total, tail).await?;
                self.hear(&envelope, vote);
                Ok(response)
            }
        }
    }

    /// Whether to listen to a host: only managers agree. One that was away may not know the latest
    /// of them yet; then those that it knows tell, until the sender tries again.
    fn known(self: &Arc<Self>, host: HostId) -> bool {
        let Some(version) = self
            .applied
            .read()
            .machine
            .as_ref()
            .map(|m| m.facts().version())
        else {
            // A new manager has nothing to go by but who its caller lets in.
            return true;
        };
        let member = |metrics: &Metrics| {
            let config = metrics.membership_config.membership();
            config.get_node(&host.0).is_some()
        };
        if self.manages(host, version) || member(&self.raft.metrics().borrow()) {
            return true;
        }
        let mut vouched = self.vouched.lock();
        vouched.retain(|_, (asked, _)| asked.elapsed() < VOUCHED);
        match vouched.get(&host) {
            Some((asked, yes)) if *yes || asked.elapsed() < self.timings.quorum_window() => *yes,
            _ => {
                vouched.insert(host, (Instant::now(), false));
                tokio::spawn(self.clone().ask_about(host, version));
                false
            }
        }
    }

    fn manages(&self, host: HostId, version: Version) -> bool {
        let applied = self.applied.read();
        let facts = applied.machine.as_ref().map(|machine| machine.facts());
        let manages = |facts: &Facts| facts.host(host).is_some_and(|host| host.manager);
        facts.is_some_and(|facts| facts.version() >= version && manages(facts))
    }

    async fn ask_about(self: Arc<Self>, host: HostId, version: Version) {
        let mut answers = JoinSet::new();
        for manager in self.managers() {
            let (core, store) = (self.clone(), self.store_of(HostId(manager)));
            let question = Request::Manages { host, version };
            answers.spawn(async move { core.call.call(manager, store, question).await });
        }
        while let Some(answer) = answers.join_next().await {
            if let Ok(Ok(Response::Manages(true))) = answer {
                self.vouched.lock().insert(host, (Instant::now(), true));
                return;
            }
        }
    }

    /// A message of the leader counts only while no later one is known.
    fn hear(&self, envelope: &Envelope, vote: Vote) {
        if self.metrics().vote <= vote {
            *self.heard.lock() = Some((Instant::now(), envelope.leads));
        }
    }

    /// Keeps one piece; with the last one Raft gets the whole.
    async fn take_piece(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        offset: u64,
        total: u64,
        piece: &[u8],
    ) -> Result<Response, Fault> {
        let mine = self.metrics().vote;
        if mine > vote {
            return Ok(Response::Snapshot {
                vote: mine,
                received: 0,
            });
        }
        let complete = {
            let mut slot = self.incoming.lock();
            if offset == 0 {
                *slot = Some(Incoming {
                    vote,
                    meta,
                    total,
                    data: Vec::new(),
                });
            } else if !slot.as_ref().is_some_and(|incoming| {
                incoming.vote == vote
                    && incoming.meta == meta
                    && incoming.total == total
                    && incoming.data.len() as u64 == offset
            }) {
                // A piece is missing: the sender begins again.
                *slot = None;
            }
            let Some(incoming) = slot.as_mut() else {
                return Ok(Response::Snapshot { vote, received: 0 });
            };
            incoming.data.extend_from_slice(piece);
            let received = incoming.data.len() as u64;
            if received < total {
                return Ok(Response::Snapshot { vote, received });
            }
            slot.take()
        };
        let Some(Incoming { meta, data, .. }) = complete else {
            return Err(Fault::Malformed);
        };
        // What can't be read would stop Raft here.
        if decode_machine(&data).is_none() {
            return Err(Fault::Malformed);
        }
        let snapshot = Snapshot {
            meta,
            snapshot: Box::new(data),
        };
        let response = self.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(|_| Fault::Stopped)?;
        Ok(Response::Snapshot {
            vote: response.vote,
            received: total,
        })
    }
}

fn stopped(_: RaftError<u64>) -> Fault {
    Fault::Stopped
}
