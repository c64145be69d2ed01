//! A manager's side of the control port.

use std::net::SocketAddr;
use std::sync::Arc;

use overlay_core::facts::{self, Command, Version, Want};
use overlay_core::model::HostId;
use overlay_raft::ProposeError;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::admit::{check_info, join, renew};
use crate::managers::Raft;
use crate::node::{Node, count};
use crate::token::new_secret;
use crate::transport::{
    self, Goodbye, MAX_FROM_MANAGER, MAX_MESSAGE, PATIENCE, StreamError, receive_within, send,
};
use crate::wire::{Answer, Ask, Leader, Request};

/// A join request is not larger.
const MAX_JOIN: usize = 16 << 10;
/// A manager may have so many requests under way on one connection.
const MANAGER_STREAMS: u32 = 64;

/// Serves a connection to this manager.
pub fn accepted(node: &Arc<Node>, connection: Connection) {
    let served = node.clone();
    node.spawn(async move {
        let from = transport::peer(&connection);
        let ended = match from {
            Some(host) if served.is_manager(host) => many(&served, host, &connection).await,
            _ => one(&served, from, &connection).await,
        };
        if let Err(error) = ended {
            tracing::debug!(from = %connection.remote_address(), %error, "control");
        }
        Goodbye::Done.say(&connection);
    });
}

/// Another manager keeps its connection for Raft.
async fn many(node: &Arc<Node>, host: HostId, connection: &Connection) -> Result<(), StreamError> {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MANAGER_STREAMS));
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let (out, inward) = match stream {
                    Ok(stream) => stream,
                    Err(quinn::ConnectionError::ApplicationClosed(_)) => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                let node = node.clone();
                requests.spawn(async move {
                    serve(&node, Some(host), out, inward, MAX_FROM_MANAGER).await
                });
            }
            Some(ended) = requests.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%host, %error, "control");
                }
            }
        }
    }
}

/// Anybody else has one request on each connection.
async fn one(
    node: &Arc<Node>,
    from: Option<HostId>,
    connection: &Connection,
) -> Result<(), StreamError> {
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
    let (out, inward) = opened.map_err(|_| StreamError::Timeout(PATIENCE))??;
    serve(node, from, out, inward, limit).await
}

async fn serve(
    node: &Arc<Node>,
    from: Option<HostId>,
    mut out: SendStream,
    mut inward: RecvStream,
    limit: usize,
) -> Result<(), StreamError> {
    let ask: Ask = receive_within(&mut inward, limit, PATIENCE)
        .await
        .inspect_err(|_| count(&node.counted.messages_refused))?;
    let answer = answer(node, from, ask).await;
    send(&mut out, &answer, MAX_FROM_MANAGER).await?;
    let _ = out.finish();
    // Closing the connection would take back what the other side has not read yet.
    let _ = timeout(PATIENCE, out.stopped()).await;
    Ok(())
}

/// Why a request is not done.
pub(super) enum No {
    Raft(ProposeError),
    Denied(String),
    NotAMember(Version),
}

impl From<ProposeError> for No {
    fn from(error: ProposeError) -> No {
        No::Raft(error)
    }
}

pub(super) fn denied(text: impl Into<String>) -> No {
    No::Denied(text.into())
}

/// Answers a request; `from` is whose certificate the asking side has.
pub async fn answer(node: &Arc<Node>, from: Option<HostId>, ask: Ask) -> Answer {
    // A new manager knows nothing until the others have told it.
    let is_raft = matches!(ask.request, Request::Raft(_));
    let ready = |raft: &Raft| is_raft || raft.read(|_| ()).is_some();
    let Some(raft) = node.raft().filter(ready) else {
        return Answer::NotLeader(None);
    };
    let have = ask.have;
    let result = match (from, ask.request) {
        (Some(from), Request::Raft(message)) => voter(node, &raft, from, message).await,
        (Some(from), request) => member(node, &raft, from, request, have).await,
        (None, Request::Join { secret, csr, info }) => join(node, &raft, &secret, &csr, info).await,
        (None, _) => Err(denied("this needs a member's certificate: join first")),
    };
    result.unwrap_or_else(|no| {
        if from.is_none() && !matches!(no, No::Raft(ProposeError::NotLeader(_))) {
            count(&node.counted.joins_refused);
            tracing::warn!("a join was refused");
        }
        match no {
            No::Raft(ProposeError::Refused(refusal)) => Answer::Refused(refusal),
            No::Raft(ProposeError::NotLeader(leader)) => {
                Answer::NotLeader(leader.and_then(|id| locate(&raft, id)))
            }
            No::Raft(ProposeError::NoQuorum) => Answer::NoQuorum,
            No::Raft(ProposeError::Unknown) => Answer::Unknown,
            No::Raft(ProposeError::TooLarge(size)) => {
                Answer::Denied(ProposeError::TooLarge(size).to_string())
            }
            No::Raft(error) => Answer::Broken(error.to_string()),
            No::Denied(text) => Answer::Denied(text),
            No::NotAMember(version) => Answer::NotAMember(version),
        }
    })
}

fn locate(raft: &Raft, id: HostId) -> Option<Leader> {
    raft.read(|state| {
        let host = state.facts().host(id)?;
        let addr = SocketAddr::new(host.vtep, host.control_port);
        Some(Leader { id, addr })
    })
    .flatten()
}

/// Reads what this manager knows; it knows something.
pub(super) fn read<R>(raft: &Raft, look: impl FnOnce(&facts::StateMachine) -> R) -> Result<R, No> {
    let nothing = No::Raft(ProposeError::NotLeader(None));
    raft.read(look).ok_or(nothing)
}

pub(super) fn is_manager(raft: &Raft, host: HostId) -> Result<bool, No> {
    read(raft, |state| {
        state.facts().host(host).is_some_and(|host| host.manager)
    })
}

/// A message of Raft's. One that is no manager any more may have to say how it became one no more.
async fn voter(
    node: &Arc<Node>,
    raft: &Raft,
    from: HostId,
    message: Vec<u8>,
) -> Result<Answer, No> {
    // One that is about to go is in the membership until that is agreed, with a vote that is needed.
    let status = raft.status();
    let is_member = status.voters.contains(&from) || status.learners.contains(&from);
    if !node.is_manager(from) && !is_member {
        count(&node.counted.messages_refused);
        return Err(denied("only managers talk of what managers agree on"));
    }
    Ok(Answer::Raft(raft.handle(from, &message).await))
}

/// Any other request of a host with a certificate.
async fn member(
    node: &Arc<Node>,
    raft: &Raft,
    from: HostId,
    request: Request,
    have: Version,
) -> Result<Answer, No> {
    let is_member = || read(raft, |state| state.facts().host(from).is_some());
    if !is_member()? {
        if let Request::Leave = request {
            return done(raft, facts::Reply::Done, Version::default());
        }
        // It may have joined at another manager just now.
        raft.ensure_linear().await?;
        if !is_member()? {
            count(&node.counted.strangers_refused);
            return Err(No::NotAMember(read(raft, |state| state.facts().version())?));
        }
    }
    if let Request::SetRole { .. } | Request::HostRemove { .. } | Request::TokenRotate { .. } =
        request
        && !is_manager(raft, from)?
    {
        return Err(denied(
            "only managers may do this: run it on one, `overlay-dp host ls` lists them",
        ));
    }
    let command = match request {
        Request::Join { .. } => return Err(denied("this host is a member already")),
        Request::Raft(_) => return Err(denied("not here")),
        Request::Facts => {
            raft.ensure_linear().await?;
            return done(raft, facts::Reply::Done, have);
        }
        Request::Voters => {
            raft.ensure_linear().await?;
            let status = raft.status();
            // Who is about to go still has a vote: without it the change may never be completed.
            return Ok(match status.changing {
                true => Answer::NoQuorum,
                false => Answer::Voters(status.voters.into_iter().collect()),
            });
        }
        Request::Leader => {
            let leader = raft.leader().ok_or(ProposeError::NotLeader(None))?;
            return Ok(Answer::Leader(leader));
        }
        Request::Renew { csr } => {
            raft.ensure_linear().await?;
            return renew(raft, from, &csr);
        }
        Request::Update(info) => {
            check_info(&info)?;
            Command::HostUpdate {
                id: from,
                name: info.name,
                vtep: info.vtep,
                data_port: info.data_port,
                esp_port: info.esp_port,
                control_port: info.control_port,
                gossip_port: info.gossip_port,
            }
        }
        Request::NetworkCreate { spec, avoid } => Command::NetworkCreate { spec, avoid },
        Request::NetworkRemove { name } => Command::NetworkRemove { name },
        Request::NetworkEverywhere { name } => Command::NetworkEverywhere { name },
        Request::ServiceCreate { spec, leave } => Command::ServiceCreate {
            spec,
            from: leave.then_some(from),
        },
        Request::ServiceRemove { name } => Command::ServiceRemove { name },
        Request::PolicyAdd { spec } => Command::PolicyAdd { spec },
        Request::PolicyRemove { name } => Command::PolicyRemove { name },
        Request::PolicyDefault { network, deny } => Command::PolicyDefault { network, deny },
        Request::Grant { vni, want } => {
            if let (Want::Addresses(_) | Want::Spare(_), Some(wait)) = (want, node.claims_first()) {
                return Err(denied(format!(
                    "the cluster was restored from a backup just now, and hosts first claim again the addresses that they use: new ones can be had in {} s",
                    wait.as_secs() + 1
                )));
            }
            Command::Grant {
                host: from,
                vni,
                want,
            }
        }
        Request::Return {
            vni,
            ranges,
            macs,
            seen,
        } => Command::Return {
            host: from,
            vni,
            ranges,
            macs,
            seen,
        },
        Request::Unwant { vni } => Command::Unwant { host: from, vni },
        Request::SetRole { id, manager } => Command::SetRole { id, manager },
        Request::HostRemove { id } => Command::HostRemove { id },
        Request::TokenRotate { manager } => Command::TokenRotate {
            manager,
            secret: new_secret().to_vec(),
        },
        Request::Leave => Command::HostRemove { id: from },
    };
    let (_, reply) = raft.propose(command).await?;
    done(raft, reply, have)
}

/// With the news, which have the outcome of what was just done.
fn done(raft: &Raft, reply: facts::Reply, have: Version) -> Result<Answer, No> {
    let news = read(raft, |state| state.since(have))?;
    Ok(Answer::Done { reply, news })
}
