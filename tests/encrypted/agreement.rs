//! Keys are agreed with an agent by a test that has a host's certificate.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use overlay_lab::Ns;
use quinn::{Endpoint, EndpointConfig};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::strangers::{GOSSIP, GOSSIP_PORT, Identity, client_config};

/// What a stream for a question of the other host's agent begins with.
const ASK_PEER: u8 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the agent at a gossip port in the name of `identity`, a host of its cluster.
pub fn ask_agent(
    ns: &Ns,
    to: Ipv4Addr,
    identity: &Identity,
    question: &serde_json::Value,
) -> Result<serde_json::Value> {
    let socket = ns.within(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let config = client_config(GOSSIP, Some(identity))?;
    Runtime::new()?.block_on(async {
        let quic = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, quic)?;
        let to = (to, GOSSIP_PORT).into();
        let connecting = endpoint.connect_with(config, to, "any.hosts.overlay-dp")?;
        let connection = timeout(PATIENCE, connecting).await??;
        let (mut out, mut inward) = connection.open_bi().await?;
        let question = counted(&counted_varint(question.to_string().as_bytes())?)?;
        out.write_all(&[&[ASK_PEER], &question[..]].concat())
            .await?;
        out.finish()?;
        let mut length = [0; 4];
        timeout(PATIENCE, inward.read_exact(&mut length)).await??;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        timeout(PATIENCE, inward.read_exact(&mut answer)).await??;
        // Postcard's length of bytes: seven bits of it in each byte but the last one.
        let text = answer.iter().position(|byte| byte & 0x80 == 0);
        let text = text.context("no length")? + 1;
        Ok(serde_json::from_slice(&answer[text..])?)
    })
}

/// A message as streams have it: its length, then itself.
fn counted(message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len())?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Bytes as postcard has them, shorter than 16 KiB.
fn counted_varint(bytes: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(bytes.len())?;
    let varint = [length as u8 | 0x80, (length >> 7) as u8 & 0x7f];
    Ok([&varint, bytes].concat())
}
