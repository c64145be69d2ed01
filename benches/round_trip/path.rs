//! One path from a question to its answer, and how long that took each time.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::Ns;

use crate::support::pin_to_cpu;

const MESSAGE: [u8; 64] = [0x5a; 64];
const LOST: Duration = Duration::from_secs(2);
/// Rounds that are not counted: neighbours are found, windows open.
const WARM_UP: usize = 500;
/// Where the answers are given.
const OTHER_CPU: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Udp => "UDP",
            Protocol::Tcp => "TCP",
        })
    }
}

/// Round-trip times.
#[derive(Default)]
pub struct Times {
    sorted: Vec<Duration>,
}

impl Times {
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn p50(&self) -> Duration {
        self.quantile(50)
    }

    pub fn p99(&self) -> Duration {
        self.quantile(99)
    }

    pub fn max(&self) -> Duration {
        self.quantile(100)
    }

    /// The time within which so many percent were back.
    fn quantile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        let time = self.sorted.get(rank.saturating_sub(1));
        time.copied().unwrap_or_default()
    }
}

/// A path. Its answering end runs until it is closed.
pub struct Path {
    name: String,
    protocol: Protocol,
    asking: Socket,
    times: Times,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Path {
    /// Connects a socket in `from` with an answering one in `to`, which is reached at `ip`.
    ///
    /// A socket stays in the namespace in which it was made, whatever thread uses it.
    pub fn open(name: &str, protocol: Protocol, from: &Ns, to: &Ns, ip: IpAddr) -> Result<Path> {
        let asking = match protocol {
            Protocol::Udp => {
                let answering = to.within(|| Ok(UdpSocket::bind((ip, 0))?))?;
                let address = answering.local_addr()?;
                let asking = from.within(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(address)?;
                    Ok(socket)
                })?;
                asking.set_read_timeout(Some(LOST))?;
                answer(move || echo_udp(&answering));
                Socket::Udp(asking)
            }
            Protocol::Tcp => {
                let listener = to.within(|| Ok(TcpListener::bind((ip, 0))?))?;
                let address = listener.local_addr()?;
                let asking = from.within(|| Ok(TcpStream::connect_timeout(&address, LOST)?))?;
                let (answering, _) = listener.accept()?;
                for stream in [&asking, &answering] {
                    stream.set_nodelay(true)?;
                }
                asking.set_read_timeout(Some(LOST))?;
                answer(move || echo_tcp(&answering));
                Socket::Tcp(asking)
            }
        };
        let mut path = Path {
            name: name.to_owned(),
            protocol,
            asking,
            times: Times::default(),
        };
        path.rounds(WARM_UP)?;
        path.times = Times::default();
        Ok(path)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How long the rounds took; in order after [`Path::close`].
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Asks `count` times, one after the other.
    pub fn rounds(&mut self, count: usize) -> Result<()> {
        self.times.sorted.reserve(count);
        for _ in 0..count {
            let start = Instant::now();
            let answer = self.round();
            self.times.sorted.push(start.elapsed());
            answer.with_context(|| format!("{} {}: no answer", self.name, self.protocol))?;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<()> {
        let mut answer = [0; MESSAGE.len()];
        match &mut self.asking {
            Socket::Udp(socket) => {
                socket.send(&MESSAGE)?;
                let len = socket.recv(&mut answer)?;
                ensure!(len == MESSAGE.len(), "{len} bytes");
            }
            Socket::Tcp(stream) => {
                stream.write_all(&MESSAGE)?;
                stream.read_exact(&mut answer)?;
            }
        }
        if answer != MESSAGE {
            bail!("another's answer");
        }
        Ok(())
    }

    /// Ends the answering end, and sorts the times.
    pub fn close(&mut self) {
        // That it is gone already is fine.
        match &self.asking {
            Socket::Udp(socket) => drop(socket.send(&[])),
            Socket::Tcp(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
        }
        self.times.sorted.sort_unstable();
    }
}

/// Runs an answering end on a thread of its own. It ends with its path, else with this process.
fn answer(echo: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    thread::spawn(move || {
        pin_to_cpu(OTHER_CPU);
        match echo() {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                eprintln!("an answering end failed: {error}");
            }
            _ => {}
        }
    });
}

/// Until an empty datagram comes.
fn echo_udp(socket: &UdpSocket) -> std::io::Result<()> {
    let mut message = [0; 2 * MESSAGE.len()];
    loop {
        let (len, from) = socket.recv_from(&mut message)?;
        if len == 0 {
            return Ok(());
        }
        socket.send_to(&message[..len], from)?;
    }
}

/// Until the other end closes.
fn echo_tcp(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut message = [0; MESSAGE.len()];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}
