//! What the hosts' agents ask each other, beside gossip: one question and its answer on a stream
//! of the connection that the two have anyway. What is in them is the agents' business.

use std::sync::Arc;
use std::time::Duration;

use overlay_core::model::HostId;
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::error::Error;
use crate::gossip::ASK_PEER;
use crate::node::Node;
use crate::transport::{MAX_MESSAGE, PATIENCE, StreamError, receive, receive_within, send};

/// No question is larger.
const MAX_QUESTION: usize = 64 << 10;
/// Questions of all hosts together that are answered at a time; the others wait.
const AT_ONCE: usize = 8;

/// A question of another host's agent.
#[derive(Debug)]
pub struct PeerAsk {
    /// Whose certificate the connection has.
    pub from: HostId,
    /// What it asks.
    pub question: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl PeerAsk {
    /// Answers; a question that is dropped has none.
    pub fn answer(self, bytes: Vec<u8>) {
        // Who asked may have lost patience.
        let _ = self.answer.send(bytes);
    }
}

/// Where this host's agent takes questions from.
pub struct Desk {
    agent: Mutex<Option<mpsc::Sender<PeerAsk>>>,
    slots: Semaphore,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            agent: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
        }
    }
}

impl Desk {
    /// From now on questions come here.
    pub fn open(&self) -> mpsc::Receiver<PeerAsk> {
        let (sender, receiver) = mpsc::channel(AT_ONCE);
        *self.agent.lock() = Some(sender);
        receiver
    }

    async fn answer(&self, from: HostId, question: Vec<u8>) -> Result<Vec<u8>, StreamError> {
        const NOBODY: StreamError = StreamError::Protocol("nobody answers questions here");
        let agent = self.agent.lock().clone().ok_or(NOBODY)?;
        let (answer, answered) = oneshot::channel();
        let ask = PeerAsk {
            from,
            question,
            answer,
        };
        agent.send(ask).await.map_err(|_| NOBODY)?;
        answered.await.map_err(|_| NOBODY)
    }
}

/// Serves a stream that another host has opened for a question.
pub async fn serve(
    node: &Arc<Node>,
    from: HostId,
    mut out: SendStream,
    mut inward: RecvStream,
) -> Result<(), StreamError> {
    let question: Vec<u8> = receive_within(&mut inward, MAX_QUESTION, PATIENCE).await?;
    let answered = async {
        // It is never closed.
        let _slot = node.peers.slots.acquire().await;
        node.peers.answer(from, question).await
    };
    let answer = timeout(PATIENCE, answered)
        .await
        .map_err(|_| StreamError::Timeout(PATIENCE))??;
    send(&mut out, &answer, MAX_MESSAGE).await?;
    let _ = out.finish();
    Ok(())
}

/// Asks another host's agent.
pub async fn ask(
    node: &Arc<Node>,
    host: HostId,
    question: &[u8],
    patience: Duration,
) -> Result<Vec<u8>, Error> {
    let silent = |problem: String| Error::HostSilent {
        name: node.facts(|facts| {
            let host_name = facts.host(host).map(|host| host.name.clone());
            host_name.unwrap_or_else(|| host.to_string())
        }),
        problem,
    };
    let connection = node
        .gossip
        .link(host)
        .ok_or_else(|| silent("there is no connection with it".into()))?;
    let asked = async {
        let (mut out, mut inward) = connection.open_bi().await?;
        out.write_all(&[ASK_PEER]).await?;
        send(&mut out, &question, MAX_QUESTION).await?;
        let _ = out.finish();
        receive(&mut inward, MAX_MESSAGE).await
    };
    match timeout(patience, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(silent(error.to_string())),
        Err(_) => Err(silent(StreamError::Timeout(patience).to_string())),
    }
}
