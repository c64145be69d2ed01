//! Steady traffic: numbered datagrams, of each of which it is known when it was sent, and a stream.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use overlay_lab::Ns;
use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// Between two datagrams of a flow, and between two pieces of the stream.
const TURN: Duration = Duration::from_millis(2);
/// A piece of the stream.
const CHUNK: usize = 1000;
/// What has not come by then will not.
const ARRIVED: Duration = Duration::from_secs(2);
/// Enough for a reader that is held up for minutes.
const BUFFER: usize = 64 << 20;
/// A stream that stands still for longer is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub Instant);

impl Clock {
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// Datagrams from one container to another.
pub struct Flow {
    pub name: String,
    /// The hosts at its ends.
    pub hosts: [usize; 2],
    /// Whether the agents carry it, and not the programs alone.
    pub encrypted: bool,
    clock: Clock,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// When each was sent.
    sent: Mutex<Vec<Duration>>,
    got: Mutex<Got>,
}

#[derive(Default)]
struct Got {
    /// Behind the last one that came.
    next: usize,
    /// Before that, and not here.
    missing: BTreeSet<usize>,
    twice: usize,
}

/// Where a flow begins or ends.
pub struct End<'a> {
    pub ns: &'a Ns,
    pub host: usize,
}

impl Flow {
    /// Sends to `ip`, which is an address of the container at the end `to` or leads there.
    pub fn start(
        name: &str,
        (from, to): (End<'_>, End<'_>),
        at: SocketAddr,
        encrypted: bool,
        clock: Clock,
    ) -> Result<Flow> {
        let inbox = to.ns.within(|| {
            let inbox = UdpSocket::bind(("0.0.0.0", at.port()))?;
            set_socket_recv_buffer_size_force(&inbox, BUFFER)?;
            inbox.set_read_timeout(Some(Duration::from_millis(200)))?;
            Ok(inbox)
        })?;
        let outbox = from.ns.within(|| {
            let outbox = UdpSocket::bind(("0.0.0.0", 0))?;
            outbox.connect(at)?;
            Ok(outbox)
        })?;
        let shared = Arc::<Shared>::default();
        let (sends, receives) = (Arc::clone(&shared), Arc::clone(&shared));
        Ok(Flow {
            name: name.to_owned(),
            hosts: [from.host, to.host],
            encrypted,
            clock,
            shared,
            threads: vec![
                thread::spawn(move || send(&outbox, clock, &sends)),
                thread::spawn(move || receive(&inbox, &receives)),
            ],
        })
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.shared.sent.lock().len()
    }

    /// When those were sent that are lost, each told once.
    ///
    /// # Errors
    /// When one came twice.
    pub fn lost(&self) -> Result<Vec<Duration>> {
        let sent = self.shared.sent.lock();
        let mut got = self.shared.got.lock();
        let Got {
            next,
            missing,
            twice,
        } = &mut *got;
        ensure!(*twice == 0, "{}: {twice} datagrams came twice", self.name);
        let now = self.clock.now();
        let due = sent.partition_point(|at| *at + ARRIVED < now);
        // That nothing came since is no better than a hole.
        missing.extend(*next..due.max(*next));
        *next = due.max(*next);
        let still = missing.split_off(&due);
        let lost = std::mem::replace(missing, still);
        Ok(lost.into_iter().map(|number| sent[number]).collect())
    }

    /// Ends it, and waits for what is under way. [`Flow::lost`] knows all then.
    ///
    /// # Errors
    /// When it has broken.
    pub fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        sleep(ARRIVED);
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
            ended.with_context(|| self.name.clone())?;
        }
        Ok(())
    }
}

fn send(outbox: &UdpSocket, clock: Clock, shared: &Shared) -> Result<()> {
    let mut next = Instant::now();
    for number in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let mut message = [0; 64];
        message[..8].copy_from_slice(&number.to_be_bytes());
        shared.sent.lock().push(clock.now());
        // One that is refused is lost as any other: it was not refused without a reason.
        let _ = outbox.send(&message);
        // Who was held up does not catch up: that would be another rate.
        next = (next + TURN).max(Instant::now());
        sleep(next - Instant::now());
    }
    Ok(())
}

fn receive(inbox: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut message = [0; 65];
    loop {
        let Ok(len) = inbox.recv(&mut message) else {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            continue;
        };
        ensure!(len == 64, "{len} bytes that nobody sent");
        let number = u64::from_be_bytes(message[..8].try_into()?) as usize;
        let mut got = shared.got.lock();
        let Got {
            next,
            missing,
            twice,
        } = &mut *got;
        if number >= *next {
            missing.extend(*next..number);
            *next = number + 1;
        } else if !missing.remove(&number) {
            *twice += 1;
        }
    }
}

/// A TCP connection that carries a little all the time.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Stream {
    pub fn start(from: &Ns, to: &Ns, ip: IpAddr, port: u16) -> Result<Stream> {
        let listener = to.within(|| Ok(TcpListener::bind((ip, port))?))?;
        let writer = from.within(|| Ok(TcpStream::connect((ip, port))?))?;
        let (reader, _) = listener.accept()?;
        writer.set_write_timeout(Some(PATIENCE))?;
        reader.set_read_timeout(Some(PATIENCE))?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        Ok(Stream {
            sender: thread::spawn(move || write(writer, &stopped)),
            receiver: thread::spawn(move || read(reader)),
            stop,
        })
    }

    /// Ends it; how many bytes it has carried, all of them.
    ///
    /// # Errors
    /// When it broke off, or carried something else than was sent.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        let sent = self.sender.join().map_err(panicked)??;
        let received = self.receiver.join().map_err(panicked)??;
        ensure!(sent == received, "{received} of {sent} bytes came");
        Ok(sent)
    }
}

fn write(mut writer: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut bytes = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let chunk: Vec<u8> = (bytes..).take(CHUNK).map(|at| at as u8).collect();
        writer.write_all(&chunk).context("the stream breaks off")?;
        bytes += CHUNK as u64;
        sleep(TURN * 5);
    }
    Ok(bytes)
}

fn read(mut reader: TcpStream) -> Result<u64> {
    let mut bytes = 0_u64;
    let mut room = vec![0; 1 << 16];
    loop {
        let len = reader
            .read(&mut room)
            .context("the stream stands still or breaks off")?;
        if len == 0 {
            return Ok(bytes);
        }
        let right = room[..len]
            .iter()
            .zip(bytes..)
            .all(|(byte, at)| *byte == at as u8);
        ensure!(right, "not what was sent, behind byte {bytes}");
        bytes += len as u64;
    }
}
