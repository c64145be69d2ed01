//! Traffic at a rate that the path surely carries, and nothing of which may be lost.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use overlay_lab::Ns;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

const PORT: u16 = 7777;
/// Datagrams of 64 bytes, and 10 kB of a stream, each millisecond.
const TURN: Duration = Duration::from_millis(1);
const DATAGRAMS: u64 = 20;
const CHUNK: usize = 10_000;
/// What was sent is there by then.
const ARRIVED: Duration = Duration::from_secs(2);
/// Enough for all datagrams of a test, so that a busy reader loses none.
const BUFFER: usize = 512 << 20;

/// Two streams from one container to another, as long as it lives.
pub struct Load {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<(u64, u64)>>,
    datagrams: JoinHandle<Result<u64>>,
    stream: JoinHandle<Result<u64>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Report {
    pub sent: u64,
    pub received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

impl Load {
    pub fn start(from: &Ns, to: &Ns, ip: IpAddr) -> Result<Load> {
        let (inbox, listener) = to.within(|| {
            let inbox = UdpSocket::bind((ip, PORT))?;
            set_socket_recv_buffer_size_force(&inbox, BUFFER)?;
            Ok((inbox, TcpListener::bind((ip, PORT))?))
        })?;
        let (outbox, writer) = from.within(|| {
            let outbox = UdpSocket::bind(("0.0.0.0", 0))?;
            outbox.connect((ip, PORT))?;
            Ok((outbox, TcpStream::connect((ip, PORT))?))
        })?;
        let (reader, _) = listener.accept()?;
        writer.set_nodelay(true)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        Ok(Load {
            sender: thread::spawn(move || send(&outbox, writer, &stopped)),
            datagrams: thread::spawn(move || count(&inbox)),
            stream: thread::spawn(move || read(reader)),
            stop,
        })
    }

    /// Ends it, and waits for what is under way.
    pub fn finish(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        let (sent, bytes_sent) = self.sender.join().map_err(panicked)??;
        Ok(Report {
            sent,
            bytes_sent,
            received: self.datagrams.join().map_err(panicked)??,
            bytes_received: self.stream.join().map_err(panicked)??,
        })
    }
}

/// Sends until it is told to stop; how many datagrams, and bytes of the stream.
fn send(outbox: &UdpSocket, mut writer: TcpStream, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut sent, mut bytes) = (0_u64, 0_u64);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..DATAGRAMS {
            let mut message = [0; 64];
            message[..8].copy_from_slice(&sent.to_be_bytes());
            outbox.send(&message).context("a datagram is refused")?;
            sent += 1;
        }
        let chunk: Vec<u8> = (bytes..).take(CHUNK).map(|at| at as u8).collect();
        writer.write_all(&chunk).context("the stream breaks off")?;
        bytes += CHUNK as u64;
        // Who was held up does not catch up: that would be another rate.
        next = (next + TURN).max(Instant::now());
        sleep(next - Instant::now());
    }
    Ok((sent, bytes))
}

/// The datagrams that came, each counted once.
fn count(inbox: &UdpSocket) -> Result<u64> {
    inbox.set_read_timeout(Some(ARRIVED))?;
    let mut seen = Vec::new();
    let mut message = [0; 65];
    while let Ok(64) = inbox.recv(&mut message) {
        let number = u64::from_be_bytes(message[..8].try_into()?) as usize;
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        ensure!(
            !std::mem::replace(&mut seen[number], true),
            "datagram {number} came twice"
        );
    }
    Ok(seen.into_iter().filter(|seen| *seen).count() as u64)
}

/// The bytes that came, which must be those that were sent.
fn read(mut reader: TcpStream) -> Result<u64> {
    let mut bytes = 0_u64;
    let mut room = vec![0; 1 << 16];
    loop {
        let len = reader.read(&mut room)?;
        if len == 0 {
            return Ok(bytes);
        }
        let right = room[..len]
            .iter()
            .zip(bytes..)
            .all(|(byte, at)| *byte == at as u8);
        ensure!(
            right,
            "the stream is not what was sent, behind byte {bytes}"
        );
        bytes += len as u64;
    }
}
