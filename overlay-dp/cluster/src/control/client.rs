//! Asking the managers: one after the other, the one that led last first, until one does.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use overlay_core::facts::{Refusal, Reply};
use overlay_core::model::{Host, HostId};
use quinn::Endpoint;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::server;
use crate::error::Error;
use crate::gossip;
use crate::node::Node;
use crate::pki::host_name;
use crate::transport::{Goodbye, MAX_FROM_MANAGER, MAX_MESSAGE, StreamError, receive, send};
use crate::wire::{Answer, Ask, Leader, Request};

/// A manager that can't be reached in this time is passed over.
const CONNECT: Duration = Duration::from_secs(1);
/// One that does not answer in this time, too.
const ANSWER: Duration = Duration::from_secs(2);
/// Managers are asked for so long; an election takes less.
const IN_ALL: Duration = Duration::from_secs(5);
/// Before all are asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes a request, and takes the news that come with the answer: when this returns, what it
/// changed is known here. A request whose answer was lost is made again, and that is harmless.
pub async fn ask(node: &Arc<Node>, request: Request) -> Result<Reply, Error> {
    match exchange(node, request).await? {
        Answer::Done { reply, .. } => Ok(reply),
        _ => Err(nonsense()),
    }
}

/// The managers that agree among each other at present.
pub async fn voters(node: &Arc<Node>) -> Result<Vec<HostId>, Error> {
    match exchange(node, Request::Voters).await? {
        Answer::Voters(voters) => Ok(voters),
        _ => Err(nonsense()),
    }
}

/// Who leads the managers.
pub async fn leader(node: &Arc<Node>) -> Result<HostId, Error> {
    match exchange(node, Request::Leader).await? {
        Answer::Leader(leader) => Ok(leader),
        _ => Err(nonsense()),
    }
}

fn nonsense() -> Error {
    Error::Denied("the manager's answer makes no sense: it runs another version".into())
}

/// As [`ask`], for requests with an answer of their own.
pub async fn exchange(node: &Arc<Node>, request: Request) -> Result<Answer, Error> {
    let deadline = Instant::now() + IN_ALL;
    let mut ask = Ask {
        have: node.version(),
        request,
    };
    let mut hint: Option<Leader> = None;
    // Whether the request may have been met already without anybody telling.
    let mut unsure = false;
    let mut problems;
    loop {
        problems = Problems::default();
        let mut others = order(node).into_iter();
        // Whoever leads may be named twice in a row while it is only about to lead.
        let mut hints = 0;
        while let Some((id, addr)) = next(&mut hint, &mut hints, &mut others) {
            if node.is_expelled() {
                return Err(Error::Expelled);
            }
            let tried = timeout_at(deadline, attempt(node, id, addr, &ask)).await;
            let Ok(tried) = tried else {
                problems.add(id, addr, "does not answer");
                return Err(problems.error());
            };
            match tried {
                Ok(Answer::NotLeader(leader)) => {
                    hint = leader.filter(|leader| leader.id != id);
                    problems.add(id, addr, "has no leader");
                }
                Ok(Answer::NoQuorum) => problems.add(id, addr, "has no majority"),
                Ok(Answer::Unknown) => {
                    unsure = true;
                    problems.add(id, addr, "has no majority");
                }
                Ok(Answer::Broken(problem)) => problems.add(id, addr, &problem),
                Ok(Answer::NotAMember(_)) => {
                    node.expel();
                    return Err(Error::Expelled);
                }
                Ok(Answer::Refused(refusal)) => {
                    let done = unsure.then(|| met(&ask.request, &refusal)).flatten();
                    return done.ok_or(Error::Refused(refusal));
                }
                Ok(Answer::Denied(text)) => return Err(Error::Denied(text)),
                Ok(answer) => {
                    if needs_leader(&ask.request) {
                        node.set_leader(Some(id));
                    }
                    if let Answer::Done { news, .. } = &answer {
                        gossip::take_news(node, news.clone());
                    }
                    return Ok(answer);
                }
                Err(Failed { error, sent }) => {
                    unsure |= sent;
                    problems.add(id, addr, &error.to_string());
                }
            }
            ask.have = node.version();
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(problems.error());
        }
        sleep(PAUSE).await;
    }
}

/// What a refusal means for a request that may have been met before.
fn met(request: &Request, refusal: &Refusal) -> Option<Answer> {
    let done = Answer::Done {
        reply: Reply::Done,
        news: overlay_core::facts::FactsNews::Nothing,
    };
    match (request, refusal) {
        (Request::NetworkCreate { .. }, Refusal::NetworkExists(_))
        | (Request::NetworkRemove { .. }, Refusal::NoNetwork(_))
        | (Request::ServiceCreate { .. }, Refusal::ServiceExists(_))
        | (Request::ServiceRemove { .. }, Refusal::NoService(_))
        | (Request::PolicyAdd { .. }, Refusal::PolicyExists(_))
        | (Request::PolicyRemove { .. }, Refusal::NoPolicy(_))
        | (Request::HostRemove { .. } | Request::Leave, Refusal::NoHost(_)) => Some(done),
        _ => None,
    }
}

/// Other requests are answered by any manager.
fn needs_leader(request: &Request) -> bool {
    let anybody = matches!(
        request,
        Request::Facts
            | Request::Voters
            | Request::Leader
            | Request::Renew { .. }
            | Request::Join { .. }
    );
    !anybody
}

fn next(
    hint: &mut Option<Leader>,
    hints: &mut u32,
    others: &mut impl Iterator<Item = Host>,
) -> Option<(HostId, SocketAddr)> {
    if let Some(leader) = hint.take()
        && *hints < 3
    {
        *hints += 1;
        return Some((leader.id, leader.addr));
    }
    let host = others.next()?;
    Some((host.id, SocketAddr::new(host.vtep, host.control_port)))
}

/// This host itself if it is one, then the one that led last, then those that are alive.
fn order(node: &Node) -> Vec<Host> {
    let mut managers: Vec<Host> = node.facts(|facts| facts.managers().cloned().collect());
    let (good, live, own) = (node.leader(), node.gossip.live(), node.raft().is_some());
    managers.retain(|host| own || host.id != node.me);
    managers.sort_by_key(|host| {
        let (mine, alive) = (host.id == node.me, live.contains(&host.id));
        (!mine, !(alive && Some(host.id) == good), !alive)
    });
    managers
}

/// What managers said, for the error.
#[derive(Default)]
struct Problems {
    text: String,
}

impl Problems {
    fn add(&mut self, id: HostId, addr: SocketAddr, problem: &str) {
        let comma = if self.text.is_empty() { "" } else { ", " };
        let _ = write!(self.text, "{comma}manager {id} at {addr}/udp: {problem}");
    }

    fn error(self) -> Error {
        let problem = match self.text.is_empty() {
            true => "no manager is known here".to_owned(),
            false => self.text,
        };
        Error::NoManager { problem }
    }
}

struct Failed {
    error: StreamError,
    /// Whether the request may have arrived.
    sent: bool,
}

async fn attempt(
    node: &Arc<Node>,
    id: HostId,
    addr: SocketAddr,
    ask: &Ask,
) -> Result<Answer, Failed> {
    if id == node.me {
        return Ok(server::answer(node, Some(id), ask.clone()).await);
    }
    let Some(socket) = node.gossip_socket() else {
        let error = StreamError::Protocol("this host has shut down");
        return Err(Failed { error, sent: false });
    };
    let config = node.control_client();
    let mut sent = false;
    let called = call_noting(
        &socket,
        config,
        addr,
        &host_name(id),
        ask,
        ANSWER,
        &mut sent,
    )
    .await;
    #[cfg(test)]
    if node.loses_an_answer() {
        let error = StreamError::Timeout(ANSWER);
        return Err(Failed { error, sent });
    }
    called.map_err(|error| Failed { error, sent })
}

/// Makes one request on a connection of its own, so that a restarted manager is no surprise.
pub async fn call(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    addr: SocketAddr,
    name: &str,
    ask: &Ask,
    patience: Duration,
) -> Result<Answer, StreamError> {
    call_noting(endpoint, config, addr, name, ask, patience, &mut false).await
}

async fn call_noting(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    addr: SocketAddr,
    name: &str,
    ask: &Ask,
    patience: Duration,
    sent: &mut bool,
) -> Result<Answer, StreamError> {
    let connecting = endpoint
        .connect_with(config, addr, name)
        .map_err(|_| StreamError::Protocol("its address can't be called from here"))?;
    let connect = CONNECT.max(patience / 2);
    let connection = timeout(connect, connecting)
        .await
        .map_err(|_| StreamError::Timeout(connect))??;
    *sent = true;
    let exchange = async {
        let (mut out, mut inward) = connection.open_bi().await?;
        send(&mut out, ask, MAX_MESSAGE).await?;
        let _ = out.finish();
        receive(&mut inward, MAX_FROM_MANAGER).await
    };
    let answer = timeout(patience, exchange).await;
    Goodbye::Done.say(&connection);
    answer.map_err(|_| StreamError::Timeout(patience))?
}
