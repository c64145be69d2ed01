//! QUIC sockets, and messages on their streams: a 32-bit big-endian length, then postcard.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use overlay_core::model::HostId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, RecvStream,
    SendStream, ServerConfig, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Error;
use crate::pki::host_of;

/// Joining, and requests to the manager.
pub const CONTROL: &[u8] = b"overlay-dp/control/6";
/// Membership and endpoints.
pub const GOSSIP: &[u8] = b"overlay-dp/gossip/6";

/// No message of a member is larger.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Nor one of a manager: the facts of the largest cluster fit.
pub const MAX_FROM_MANAGER: usize = 64 << 20;
/// Nobody takes longer for a handshake, a request or a reply.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A peer that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(8);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// So many handshakes may be under way; from half of them on, callers must prove their address.
const MAX_HANDSHAKES: usize = 128;

/// Why a connection is closed.
#[derive(Clone, Copy)]
pub enum Goodbye {
    /// This host stops.
    Shutdown = 0,
    /// The peer is not in the roster.
    NotAMember = 1,
    /// Nothing is left to say.
    Done = 2,
}

impl Goodbye {
    pub fn say(self, connection: &Connection) {
        connection.close(self.code(), self.reason());
    }

    pub fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    fn reason(self) -> &'static [u8] {
        match self {
            Goodbye::Shutdown => b"shutting down",
            Goodbye::NotAMember => b"not a member of this cluster",
            Goodbye::Done => b"done",
        }
    }
}

/// A socket that can call; it answers once it is given a server configuration.
pub fn bind(addr: SocketAddr, flag: &'static str) -> Result<Endpoint, Error> {
    let bound = UdpSocket::bind(addr).and_then(|socket| {
        let runtime = Arc::new(quinn::TokioRuntime);
        Endpoint::new(EndpointConfig::default(), None, socket, runtime)
    });
    bound.map_err(|source| Error::Bind { addr, flag, source })
}

/// Says goodbye on all connections of a socket, and gives it up.
pub async fn close(endpoint: Endpoint) {
    endpoint.close(Goodbye::Shutdown.code(), Goodbye::Shutdown.reason());
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

pub fn control_server(crypto: QuicServerConfig) -> ServerConfig {
    server(crypto, control_transport())
}

pub fn control_client(crypto: QuicClientConfig) -> ClientConfig {
    client(crypto, control_transport())
}

pub fn gossip_server(crypto: QuicServerConfig) -> ServerConfig {
    server(crypto, gossip_transport())
}

pub fn gossip_client(crypto: QuicClientConfig) -> ClientConfig {
    client(crypto, gossip_transport())
}

fn server(crypto: QuicServerConfig, transport: TransportConfig) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    // A host's address is in the roster; a connection that moves elsewhere is not that host's.
    config.migration(false);
    config.max_incoming(MAX_HANDSHAKES);
    config
}

fn client(crypto: QuicClientConfig, transport: TransportConfig) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    config
}

fn control_transport() -> TransportConfig {
    let mut transport = transport(4);
    transport.datagram_receive_buffer_size(None);
    transport
}

fn gossip_transport() -> TransportConfig {
    let mut transport = transport(3);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport.datagram_receive_buffer_size(Some(128 << 10));
    transport.datagram_send_buffer_size(128 << 10);
    transport
}

fn transport(streams: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(MAX_MESSAGE as u32))
        .receive_window(VarInt::from_u32(2 * MAX_MESSAGE as u32))
        .max_idle_timeout(IdleTimeout::try_from(SILENCE).ok());
    transport
}

/// Accepts connections for ever, and gives those whose handshake succeeds to `serve`, which must
/// return at once.
pub async fn accept(endpoint: Endpoint, serve: impl Fn(Connection) + Clone + Send + 'static) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let crowded = slots.available_permits() < MAX_HANDSHAKES / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let serve = serve.clone();
        tokio::spawn(async move {
            if let Some(connection) = handshake(incoming, slot).await {
                serve(connection);
            }
        });
    }
}

async fn handshake(incoming: Incoming, _slot: OwnedSemaphorePermit) -> Option<Connection> {
    let from = incoming.remote_address();
    match timeout(PATIENCE, incoming.accept().ok()?).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Whose certificate the other side has; `None` when it has none.
pub fn peer(connection: &Connection) -> Option<HostId> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    host_of(chain.first()?)
}

/// Whether the other side's certificate is a manager's.
pub fn is_manager(connection: &Connection) -> bool {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.is_some_and(|chain| chain.first().is_some_and(crate::pki::is_manager))
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    #[error(transparent)]
    Read(#[from] quinn::ReadExactError),
    #[error("a message of {0} bytes is too large")]
    Size(usize),
    #[error("a malformed message: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("a message against the protocol: {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Gossip(#[from] overlay_gossip::Fault),
    #[error(transparent)]
    Stream(#[from] quinn::ReadError),
    #[error("the stream has ended")]
    Ended,
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

pub async fn send<T: Serialize>(
    stream: &mut SendStream,
    message: &T,
    limit: usize,
) -> Result<(), StreamError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])?;
    let length = bytes.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= limit);
    let header = header.ok_or(StreamError::Size(length))?;
    bytes[..4].copy_from_slice(&header.to_be_bytes());
    stream.write_all(&bytes).await?;
    Ok(())
}

pub async fn receive<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<T, StreamError> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let length = u32::from_be_bytes(header) as usize;
    if length > limit {
        return Err(StreamError::Size(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes)
}

/// A message that is all there is.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StreamError> {
    let (message, rest) = postcard::take_from_bytes(bytes)?;
    if !rest.is_empty() {
        return Err(StreamError::Protocol("trailing bytes"));
    }
    Ok(message)
}

/// As [`receive`], but not for ever.
pub async fn receive_within<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
    patience: Duration,
) -> Result<T, StreamError> {
    let received = timeout(patience, receive(stream, limit)).await;
    received.map_err(|_| StreamError::Timeout(patience))?
}

/// Sends what overlay-gossip made, behind a 32-bit length.
pub async fn send_frame(stream: &mut SendStream, frame: &[u8]) -> Result<(), StreamError> {
    let length = u32::try_from(frame.len()).map_err(|_| StreamError::Size(frame.len()))?;
    let length = Bytes::copy_from_slice(&length.to_be_bytes());
    let mut chunks = [length, Bytes::copy_from_slice(frame)];
    stream.write_all_chunks(&mut chunks).await?;
    Ok(())
}

/// Cuts a stream into frames.
pub struct Frames {
    stream: RecvStream,
    limit: usize,
    received: BytesMut,
}

impl Frames {
    /// Frames larger than `limit` are refused before they are received.
    pub fn new(stream: RecvStream, limit: usize) -> Frames {
        Frames {
            stream,
            limit,
            received: BytesMut::new(),
        }
    }

    /// The next one. Nothing is lost when this is dropped before it is ready.
    pub async fn next(&mut self) -> Result<BytesMut, StreamError> {
        loop {
            if let Some(header) = self.received.first_chunk::<4>() {
                let length = u32::from_be_bytes(*header) as usize;
                if length > self.limit {
                    return Err(StreamError::Size(length));
                }
                if self.received.len() >= 4 + length {
                    self.received.advance(4);
                    return Ok(self.received.split_to(length));
                }
            }
            let chunk = self.stream.read_chunk(self.limit, true).await?;
            let chunk = chunk.ok_or(StreamError::Ended)?;
            self.received.extend_from_slice(&chunk.bytes);
        }
    }
}
