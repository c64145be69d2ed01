//! The streams of one connection: on one this host follows the other one, on another it is
//! followed. The first byte says what a stream is for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{FactsNews, Version};
use overlay_core::model::HostId;
use overlay_gossip::{Follower, Leader, MAX_FRAME};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::facts_changed;
use crate::control;
use crate::node::{Node, count};
use crate::peers;
use crate::transport::{
    Frames, MAX_FROM_MANAGER, MAX_MESSAGE, PATIENCE, StreamError, receive, receive_within, send,
    send_frame,
};
use crate::wire::{Answer, Ask, Request};

/// The opener follows.
const FOLLOW: u8 = 0;
/// The opener asks a manager that it does not know.
const ASK: u8 = 1;
/// The opener's agent asks this host's.
pub const ASK_PEER: u8 = 2;

/// Serves the streams that the other host opens.
pub async fn serve(node: &Arc<Node>, connection: &Connection, host: HostId) -> ConnectionError {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((out, inward)) => {
                    streams.spawn(opened(node.clone(), host, out, inward));
                }
                Err(ended) => return ended,
            },
            Some(ended) = streams.join_next() => {
                if let Ok(Err(error)) = ended {
                    note(node, host, &error);
                }
            }
        }
    }
}

/// Follows the other host, again and again if need be.
pub async fn follow(node: &Arc<Node>, connection: &Connection, host: HostId) -> ConnectionError {
    loop {
        match follow_once(node, connection, host).await {
            Ok(never) => match never {},
            Err(StreamError::Connection(ended)) => return ended,
            Err(error) => note(node, host, &error),
        }
        let pause = rand::rng().random_range(0.4..0.6);
        sleep(Duration::from_secs_f64(pause)).await;
    }
}

fn note(node: &Node, host: HostId, error: &StreamError) {
    if let StreamError::Malformed(_)
    | StreamError::Protocol(_)
    | StreamError::Gossip(_)
    | StreamError::Size(_) = error
    {
        count(&node.counted.messages_refused);
    }
    tracing::debug!(%host, %error, "gossip");
}

async fn opened(
    node: Arc<Node>,
    host: HostId,
    mut out: SendStream,
    mut inward: RecvStream,
) -> Result<(), StreamError> {
    let mut kind = [0];
    let read = timeout(PATIENCE, inward.read_exact(&mut kind)).await;
    read.map_err(|_| StreamError::Timeout(PATIENCE))??;
    match kind {
        [FOLLOW] => match lead(&node, host, out, inward).await {
            Ok(never) => match never {},
            Err(error) => Err(error),
        },
        [ASK] => {
            let ask: Ask = receive_within(&mut inward, MAX_MESSAGE, PATIENCE).await?;
            let Request::Facts = ask.request else {
                return Err(StreamError::Protocol("a request on the wrong port"));
            };
            let answer = control::answer(&node, Some(host), ask).await;
            send(&mut out, &answer, MAX_FROM_MANAGER).await?;
            let _ = out.finish();
            Ok(())
        }
        [ASK_PEER] => peers::serve(&node, host, out, inward).await,
        _ => Err(StreamError::Protocol("a stream of no known kind")),
    }
}

/// Asks for the facts on a gossip connection, of a host whose control port is not known.
pub async fn ask(connection: &Connection, have: Version) -> Result<Answer, StreamError> {
    let (mut out, mut inward) = connection.open_bi().await?;
    out.write_all(&[ASK]).await?;
    let request = Request::Facts;
    send(&mut out, &Ask { have, request }, MAX_MESSAGE).await?;
    let _ = out.finish();
    receive(&mut inward, MAX_FROM_MANAGER).await
}

/// Tells a follower all of this host's logs that it wants to know, and on managers the facts.
async fn lead(
    node: &Arc<Node>,
    host: HostId,
    mut out: SendStream,
    inward: RecvStream,
) -> Result<Infallible, StreamError> {
    let mut frames = Frames::new(inward, MAX_FRAME);
    let mut leader = Leader::new(host);
    let mut news = node.gossip.news.subscribe();
    let first = timeout(PATIENCE, frames.next()).await;
    let mut frame = Some(first.map_err(|_| StreamError::Timeout(PATIENCE))??);
    loop {
        if let Some(frame) = frame.take()
            && let Some(id) = leader.receive(&frame)?
        {
            node.swim(|swim, now| swim.connected(id, now));
        }
        news.borrow_and_update();
        while let Some(frame) = next_of(node, &mut leader) {
            send_frame(&mut out, &frame).await?;
        }
        let idle = Instant::now() + Duration::from_secs(3600);
        tokio::select! {
            next = frames.next() => frame = Some(next?),
            _ = news.changed() => {}
            () = sleep_until(leader.deadline().unwrap_or(idle).into()) => {}
        }
    }
}

fn next_of(node: &Node, leader: &mut Leader) -> Option<Vec<u8>> {
    let me = node.gossip.swim.lock().me();
    let raft = node.raft();
    let since = |version| {
        let raft = raft.as_ref();
        let news = raft.and_then(|raft| raft.read(|state| state.since(version)));
        news.unwrap_or(FactsNews::Nothing)
    };
    let book = node.gossip.book.lock();
    leader.poll(me, &book, since, Instant::now())
}

/// Takes another host's logs, and a manager's facts; returns when something is wrong, to be called
/// again.
async fn follow_once(
    node: &Arc<Node>,
    connection: &Connection,
    host: HostId,
) -> Result<Infallible, StreamError> {
    let (mut out, inward) = connection.open_bi().await?;
    out.write_all(&[FOLLOW]).await?;
    let mut frames = Frames::new(inward, MAX_FRAME);
    let mut follower = Follower::new(host);
    let mut news = node.gossip.news.subscribe();
    loop {
        news.borrow_and_update();
        let me = node.gossip.swim.lock().me();
        while let Some(frame) = node.book(|book| follower.poll(me, book)) {
            send_frame(&mut out, &frame).await?;
        }
        // The connection itself notices when nothing comes any more.
        let frame = tokio::select! {
            next = frames.next() => next?,
            _ = news.changed() => continue,
        };
        node.room().await;
        let before = node.version();
        let greeted = node.book(|book| follower.receive(&frame, book, Instant::now()))?;
        if let Some(id) = greeted {
            node.swim(|swim, now| swim.connected(id, now));
        }
        if node.version() != before {
            facts_changed(node);
        }
        node.gossip.heard.send_replace(());
    }
}
