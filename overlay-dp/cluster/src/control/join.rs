//! Becoming a member, with nothing but an address and a token.

use std::net::SocketAddr;
use std::time::Duration;

use overlay_core::facts::{Facts, FactsNews, Version};
use overlay_core::model::HostId;
use quinn::Endpoint;
use tokio::time::{Instant, sleep, timeout};

use super::DEFAULT_PORT;
use super::client::call;
use crate::error::Error;
use crate::pki::{self, MANAGER_NAME, Presented};
use crate::token::Token;
use crate::transport::{self, CONTROL, PATIENCE};
use crate::wire::{Answer, Ask, HostInfo, Leader, Request};

/// So long after the first call, the managers may look for a leader.
const SEARCH: Duration = Duration::from_secs(5);

/// What a join brings.
pub struct Joined {
    pub id: HostId,
    pub identity: pki::Identity,
    pub facts: Facts,
}

/// Makes this host a member of the token's cluster. The secret goes only to managers of that
/// cluster, and the private key nowhere.
pub async fn join(
    endpoint: &Endpoint,
    addr: &str,
    token: &Token,
    info: &HostInfo,
) -> Result<Joined, Error> {
    let given = resolve(addr, info).await?;
    let (key, csr) = pki::new_request()?;
    let request = Request::Join {
        secret: token.secret,
        csr,
        info: info.clone(),
    };
    let ask = Ask {
        have: Version::default(),
        request,
    };
    let deadline = Instant::now() + SEARCH;
    let mut addr = given;
    loop {
        let (ca, answer) = call_stranger(endpoint, addr, token, &ask).await?;
        let problem = |problem: &str| Error::Join {
            addr,
            problem: problem.to_owned(),
        };
        match answer {
            Answer::Joined { id, cert, news } => {
                let FactsNews::Snapshot(facts) = news else {
                    return Err(problem("the manager's answer is not whole"));
                };
                let identity = pki::Identity::new(ca, cert, key);
                identity.check(id)?;
                if facts.host(id).is_none() {
                    return Err(problem("the manager's answer contradicts itself"));
                }
                return Ok(Joined {
                    id,
                    identity,
                    facts,
                });
            }
            Answer::NotLeader(leader) if Instant::now() < deadline => match leader {
                Some(Leader { addr: leads, .. }) if leads != addr => addr = leads,
                _ => {
                    sleep(Duration::from_millis(200)).await;
                    addr = given;
                }
            },
            Answer::NotLeader(_) | Answer::NoQuorum => {
                return Err(problem("the cluster's managers can't agree at present"));
            }
            Answer::Refused(refusal) => return Err(Error::Refused(refusal)),
            Answer::Denied(text) => return Err(Error::Denied(text)),
            _ => return Err(problem("the manager's answer makes no sense")),
        }
    }
}

/// Calls a manager, which has no way to know this host; its CA comes with the answer.
async fn call_stranger(
    endpoint: &Endpoint,
    addr: SocketAddr,
    token: &Token,
    ask: &Ask,
) -> Result<(Vec<u8>, Answer), Error> {
    let (crypto, presented) = pki::joiner(token.ca, CONTROL)?;
    let config = transport::control_client(crypto);
    let answer = call(endpoint, config, addr, MANAGER_NAME, ask, PATIENCE).await;
    let ca = match presented.get() {
        Some(Presented::Other) => return Err(Error::OtherCluster(addr)),
        Some(Presented::Ca(ca)) => ca.clone(),
        None => Vec::new(),
    };
    let answer = answer.map_err(|error| Error::Join {
        addr,
        problem: error.to_string(),
    })?;
    Ok((ca, answer))
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
