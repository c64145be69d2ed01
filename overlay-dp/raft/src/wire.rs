//! What managers send each other, and the checks before any of it reaches Raft.
//!
//! A message is a version byte, a postcard header, and for a piece of a snapshot its bytes.

use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use overlay_core::model::HostId;
use serde::{Deserialize, Serialize};

use crate::types::{Entry, LogId, Membership, SnapshotMeta, Store, Types, Vote};

/// No message is longer, in bytes: a transport may refuse what is.
pub const MAX_MESSAGE: usize = 4 << 20;
/// No proposed command is longer, in bytes.
pub const MAX_COMMAND: usize = 512 << 10;
/// Entries beyond this many bytes go into another message.
pub(crate) const MAX_BATCH: usize = 1 << 20;
/// A snapshot travels in pieces of this many bytes.
pub(crate) const PIECE: usize = 512 << 10;
/// No snapshot is longer, in bytes: 1000 hosts that hold all they may need far less.
pub(crate) const MAX_SNAPSHOT: u64 = 256 << 20;

const VERSION: u8 = 5;
/// Terms rise by one per election: a jump like this is no election.
const MAX_TERM_STEP: u64 = 1 << 32;
const MAX_INDEX: u64 = 1 << 56;
const MAX_MEMBERS: usize = 64;

/// Who asks whom.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub from: HostId,
    /// Whose answer is wanted; see [`Store`].
    pub store: Store,
    /// The sender's epoch; 0 when it has no facts. Managers of a cluster before and after a restore
    /// must not mix.
    pub epoch: u64,
    /// The sender leads, and a majority follows it.
    pub leads: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Which store do you have?
    Hello,
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    /// Followed by the bytes of the snapshot from `offset` on.
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
        offset: u64,
        total: u64,
    },
    /// To the leader: up to where must I have applied to read what is committed now?
    ReadIndex,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Hello(Store),
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    /// The receiver's vote, and how much of the snapshot it has.
    Snapshot {
        vote: Vote,
        received: u64,
    },
    /// None when it leads no majority.
    ReadIndex(Option<u64>),
    Refused(Fault),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the message is malformed, or of another version")]
    Malformed,
    #[error("the message is not the sender's own")]
    Sender,
    #[error("the store is another one: {:016x}", .0.0)]
    Store(Store),
    #[error("the cluster has been restored: this manager's facts are of epoch {0}")]
    Epoch(u64),
    #[error("the sender is no manager")]
    NoManager,
    #[error("agreed facts have stopped there")]
    Stopped,
}

/// What the receiver knows itself, to judge a message by.
pub(crate) struct Receiver {
    pub store: Store,
    pub epoch: u64,
    pub term: u64,
}

pub(crate) fn encode_request(envelope: &Envelope, request: &Request, tail: &[u8]) -> Vec<u8> {
    let mut bytes = encode(&(envelope, request));
    bytes.extend_from_slice(tail);
    bytes
}

pub(crate) fn encode_response(response: &Response) -> Vec<u8> {
    encode(response)
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain data of this crate; a lone version byte would be refused as malformed.
    postcard::to_extend(value, vec![VERSION]).unwrap_or_else(|_| vec![VERSION])
}

/// A request that `from`, by its certificate, sent, and the bytes behind it.
pub(crate) fn decode_request<'a>(
    from: HostId,
    bytes: &'a [u8],
    me: &Receiver,
) -> Result<(Envelope, Request, &'a [u8]), Fault> {
    let ((envelope, request), tail) = decode::<(Envelope, Request)>(bytes)?;
    if envelope.from != from {
        return Err(Fault::Sender);
    }
    if envelope.epoch != 0 && me.epoch != 0 && envelope.epoch != me.epoch {
        return Err(Fault::Epoch(me.epoch));
    }
    if matches!(request, Request::Hello) {
        return Ok((envelope, request, &[]));
    }
    if envelope.store != me.store {
        return Err(Fault::Store(me.store));
    }
    check(from, &request, tail, me.term)?;
    Ok((envelope, request, tail))
}

pub(crate) fn decode_response(bytes: &[u8]) -> Result<Response, Fault> {
    let (response, tail) = decode(bytes)?;
    if tail.is_empty() {
        Ok(response)
    } else {
        Err(Fault::Malformed)
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), Fault> {
    if bytes.len() > MAX_MESSAGE {
        return Err(Fault::Malformed);
    }
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::take_from_bytes(body).map_err(|_| Fault::Malformed),
        _ => Err(Fault::Malformed),
    }
}

/// openraft takes its peers' word for more than it should: what breaks its rules stops here.
fn check(from: HostId, request: &Request, tail: &[u8], term: u64) -> Result<(), Fault> {
    let well_formed = match request {
        Request::Append(append) => {
            own(&append.vote, from, true)?;
            term_ok(&append.vote, term) && tail.is_empty() && entries_ok(append)
        }
        Request::Vote(ask) => {
            own(&ask.vote, from, false)?;
            let last = ask.last_log_id;
            let behind = last.is_none_or(|id| id.leader_id.term < ask.vote.leader_id.term);
            term_ok(&ask.vote, term) && tail.is_empty() && behind && last.is_none_or(index_ok)
        }
        Request::Snapshot {
            vote,
            meta,
            offset,
            total,
        } => {
            own(vote, from, true)?;
            let end = offset.checked_add(tail.len() as u64);
            term_ok(vote, term)
                && *total <= MAX_SNAPSHOT
                && end.is_some_and(|end| end <= *total)
                && !tail.is_empty()
                && meta
                    .last_log_id
                    .is_some_and(|id| index_ok(id) && id.leader_id <= vote.leader_id)
                && members_ok(meta.last_membership.membership())
        }
        Request::Hello | Request::ReadIndex => tail.is_empty(),
    };
    if well_formed {
        Ok(())
    } else {
        Err(Fault::Malformed)
    }
}

/// A manager speaks for itself only: as a leader (`committed`), or as a candidate.
fn own(vote: &Vote, from: HostId, committed: bool) -> Result<(), Fault> {
    if vote.leader_id.node_id == from.0 && vote.committed == committed {
        Ok(())
    } else {
        Err(Fault::Sender)
    }
}

fn term_ok(vote: &Vote, term: u64) -> bool {
    vote.leader_id.term <= term.saturating_add(MAX_TERM_STEP)
}

fn index_ok(id: LogId) -> bool {
    id.index < MAX_INDEX
}

/// Each entry follows the one before, and none is of a later leader.
fn entries_ok(append: &AppendEntriesRequest<Types>) -> bool {
    let mut previous = append.prev_log_id;
    let follows = append.entries.iter().all(|entry: &Entry| {
        let id = entry.log_id;
        let next = previous.map_or(0, |previous| previous.index.saturating_add(1));
        let ok = id.index == next
            && previous.is_none_or(|previous| previous.leader_id <= id.leader_id)
            && match &entry.payload {
                EntryPayload::Membership(membership) => members_ok(membership),
                EntryPayload::Blank | EntryPayload::Normal(_) => true,
            };
        previous = Some(id);
        ok
    });
    let latest = previous.into_iter().chain(append.leader_commit);
    follows
        && latest
            .chain(append.prev_log_id)
            .all(|id| index_ok(id) && id.leader_id <= append.vote.leader_id)
}

/// There are voters, in each half of a change, and each of them is a member.
fn members_ok(membership: &Membership) -> bool {
    let configs = membership.get_joint_config();
    membership.nodes().count() <= MAX_MEMBERS
        && (1..=2).contains(&configs.len())
        && configs.iter().all(|voters| {
            !voters.is_empty() && voters.iter().all(|id| membership.get_node(id).is_some())
        })
}
