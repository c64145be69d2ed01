//! Is the data path to each VTEP alive, how long does it take, how large may packets be? Asked of
//! the data path itself, by echoes that the other host's program answers without its agent
//! ([`overlay_common::echo`]).
//!
//! ```text
//!   agent ── watch, suspect ──► Core (schedule, target, pmtu, window) ── Probe ──► socket
//!         ◄── news, report ───                                        ◄─ answer ──
//! ```
//!
//! An answer is as long as its request, so a path's MTU is that of its narrower direction.

mod pmtu;
mod schedule;
mod sums;
mod target;
#[cfg(test)]
mod tests;
mod window;

use std::future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_common::echo;
use overlay_host::set_udp_checksums;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

pub use schedule::{Counters, Report};

use schedule::{Core, Probe, headers};

/// No UDP payload is larger.
const LARGEST: usize = 65536;
/// Datagrams taken at a time …
const BATCH: usize = 64;
/// … and the pause when there are more: nobody sends so many answers, and a flood must not keep a
/// thread busy. The kernel drops what does not fit its queue.
const FLOOD_PAUSE: Duration = Duration::from_millis(5);

/// Probes every VTEP that it is told of. Dropping it ends that.
pub struct Prober {
    shared: Arc<Shared>,
    socket: watch::Sender<Option<Arc<UdpSocket>>>,
    task: AbortHandle,
}

struct Shared {
    core: Mutex<Core>,
    begin: Instant,
    /// UDP port of VXLAN, at every VTEP.
    port: u16,
    /// There may be something to send.
    changed: Notify,
    /// There may be news for the agent.
    news: Notify,
}

impl Prober {
    /// Begins, on a socket from [`overlay_host::echo_socket`]. `sums`: with checksum probes.
    ///
    /// # Errors
    /// When tokio does not take the socket.
    pub fn start(socket: std::net::UdpSocket, port: u16, sums: bool) -> io::Result<Prober> {
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(sums)),
            begin: Instant::now(),
            port,
            changed: Notify::new(),
            news: Notify::new(),
        });
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let (sender, receiver) = watch::channel(Some(socket));
        let task = tokio::spawn(run(Arc::clone(&shared), receiver)).abort_handle();
        Ok(Prober {
            shared,
            socket: sender,
            task,
        })
    }

    /// Goes on with another socket, or with none: nothing is answered then.
    ///
    /// # Errors
    /// When tokio does not take the socket.
    pub fn set_socket(&self, socket: Option<std::net::UdpSocket>) -> io::Result<()> {
        let socket = socket.map(UdpSocket::from_std).transpose()?;
        self.socket.send_replace(socket.map(Arc::new));
        Ok(())
    }

    /// Probes a VTEP behind a link that carries `limit` bytes; one that is probed already has
    /// another way now.
    pub fn watch(&self, vtep: IpAddr, limit: u32) {
        self.tell(|core, now| core.watch(vtep, limit, now));
    }

    /// Probes it no more.
    pub fn forget(&self, vtep: IpAddr) {
        self.tell(|core, _| core.forget(vtep));
    }

    /// Its host is said to be down: is its data path, too?
    pub fn suspect(&self, vtep: IpAddr) {
        self.tell(|core, now| core.suspect(vtep, now));
    }

    /// Its host is up.
    pub fn trust(&self, vtep: IpAddr) {
        self.tell(|core, _| core.trust(vtep));
    }

    fn tell(&self, what: impl FnOnce(&mut Core, Duration)) {
        what(&mut self.shared.core.lock(), self.shared.now());
        self.shared.changed.notify_one();
    }

    /// What is known of a VTEP; `None` when it is not probed.
    pub fn report(&self, vtep: IpAddr) -> Option<Report> {
        self.shared.core.lock().report(vtep)
    }

    /// The VTEPs that answer, and at which checksums left to be computed arrive as they are.
    pub fn broken(&self) -> Vec<IpAddr> {
        self.shared.core.lock().broken()
    }

    /// What has come in.
    pub fn counters(&self) -> Counters {
        self.shared.core.lock().counters()
    }

    /// Returns when there may be news.
    pub async fn wait_for_news(&self) {
        self.shared.news.notified().await;
    }

    /// The VTEPs whose state or MTU has changed.
    pub fn news(&self) -> Vec<(IpAddr, Report)> {
        let mut core = self.shared.core.lock();
        let vteps = core.news();
        let reports = vteps.into_iter();
        reports
            .filter_map(|vtep| Some((vtep, core.report(vtep)?)))
            .collect()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// All that is to be sent now, and when to look again.
    fn due(&self, probes: &mut Vec<Probe>) -> Option<Duration> {
        let mut core = self.core.lock();
        let now = self.now();
        while let Some(probe) = core.poll(now, &mut rand::random::<u64>) {
            probes.push(probe);
        }
        if core.has_news() {
            self.news.notify_one();
        }
        core.deadline()
    }

    fn received(&self, from: SocketAddr, payload: &[u8]) {
        let now = self.now();
        let ip = from.ip().to_canonical();
        let mut core = self.core.lock();
        match (echo::answer(payload), u32::try_from(payload.len())) {
            (Some(answer), Ok(len)) if from.port() == self.port => {
                core.answer(ip, answer, len + headers(ip), now);
            }
            _ => core.nonsense(),
        }
    }
}

async fn run(shared: Arc<Shared>, mut sockets: watch::Receiver<Option<Arc<UdpSocket>>>) {
    let mut probes = Vec::with_capacity(BATCH);
    let mut output = vec![0; LARGEST];
    let mut input = vec![0; LARGEST];
    loop {
        let socket = sockets.borrow_and_update().clone();
        let deadline = shared.due(&mut probes);
        for probe in probes.drain(..) {
            if let Some(socket) = &socket {
                send(socket, shared.port, probe, &mut output);
            }
        }
        let sleep = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.saturating_sub(shared.now())).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = receive(&shared, socket.as_deref(), &mut input) => {}
            () = sleep => {}
            () = shared.changed.notified() => {}
            changed = sockets.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// A probe that can't be sent is a lost one.
fn send(socket: &UdpSocket, port: u16, probe: Probe, output: &mut [u8]) {
    let len = probe.size.saturating_sub(headers(probe.to)) as usize;
    let Some(payload) = output.get_mut(..len) else {
        return;
    };
    if let Some(head) = payload.first_chunk_mut() {
        *head = match probe.checksum {
            false => echo::request(probe.nonce),
            true => echo::checksum_request(probe.nonce),
        };
    }
    let to = SocketAddr::new(probe.to, port);
    let sent = match probe.checksum {
        false => socket.try_send_to(payload, to),
        true => send_summed(socket, payload, to),
    };
    if let Err(error) = sent {
        tracing::debug!(vtep = %probe.to, size = probe.size, %error, "a probe is not sent");
    }
}

/// The socket sends this one with a checksum. (As each is sent in one call, no other one is.)
fn send_summed(socket: &UdpSocket, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
    set_udp_checksums(socket, to.ip(), true)?;
    let sent = socket.try_send_to(payload, to);
    set_udp_checksums(socket, to.ip(), false)?;
    sent
}

/// Takes what is there, or waits for something.
async fn receive(shared: &Shared, socket: Option<&UdpSocket>, input: &mut [u8]) {
    let Some(socket) = socket else {
        return future::pending().await;
    };
    if socket.readable().await.is_err() {
        return tokio::time::sleep(FLOOD_PAUSE).await;
    }
    for _ in 0..BATCH {
        match socket.try_recv_from(input) {
            Ok((len, from)) => shared.received(from, &input[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An ICMP error, maybe anybody's: what it is about is seen by the probes.
            Err(_) => {}
        }
    }
    tokio::time::sleep(FLOOD_PAUSE).await;
}
