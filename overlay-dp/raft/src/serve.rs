//! Answers to the other managers' calls.

use openraft::error::RaftError;
use overlay_core::facts::StateMachine;
use overlay_core::model::HostId;
use tokio::time::Instant;

use crate::machine::decode_machine;
use crate::raft::Core;
use crate::types::{Snapshot, SnapshotMeta, Vote};
use crate::wire::{Envelope, Fault, Receiver, Request, Response, decode_request, encode_response};

/// A snapshot that has not come in full yet.
pub(crate) struct Incoming {
    vote: Vote,
    meta: SnapshotMeta,
    total: u64,
    data: Vec<u8>,
}

impl Core {
    pub async fn handle(&self, from: HostId, request: &[u8]) -> Vec<u8> {
        let response = match self.answer(from, request).await {
            Ok(response) => response,
            Err(fault) => {
                tracing::debug!(%from, %fault, "a manager's message was refused");
                Response::Refused(fault)
            }
        };
        encode_response(&response)
    }

    async fn answer(&self, from: HostId, request: &[u8]) -> Result<Response, Fault> {
        let receiver = Receiver {
            store: self.file.store(),
            epoch: self.epoch(),
            term: self.metrics().current_term,
        };
        let (envelope, request, tail) = decode_request(from, request, &receiver)?;
        if !matches!(request, Request::Hello) && !self.known(from) {
            return Err(Fault::NoManager);
        }
        match request {
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

    /// Whether to listen to a host. Those that are no managers are refused while a leader is heard
    /// of, for the facts here are fresh then. Without one they may be old, and who leads now may be
    /// a manager that they don't know: then who this crate's caller lets in must do.
    fn known(&self, host: HostId) -> bool {
        let manages = |machine: &StateMachine| {
            let host = machine.facts().host(host);
            host.is_some_and(|host| host.manager)
        };
        self.leader_lately().is_none_or(|leader| leader == host)
            || self.applied.read().machine.as_ref().is_none_or(manages)
            || self.is_member(host)
    }

    fn leader_lately(&self) -> Option<HostId> {
        if self.leads() {
            return Some(self.me);
        }
        let (when, leader) = (*self.led.lock())?;
        (when.elapsed() < self.timings.fresh()).then_some(leader)
    }

    /// One that is no manager any more is a member until it knows.
    fn is_member(&self, host: HostId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        membership.get_node(&host.0).is_some()
    }

    /// A message of the leader counts only while no later one is known.
    fn hear(&self, envelope: &Envelope, vote: Vote) {
        if self.metrics().vote <= vote {
            *self.heard.lock() = Some((Instant::now(), envelope.leads));
            if envelope.leads {
                *self.led.lock() = Some((Instant::now(), envelope.from));
            }
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
