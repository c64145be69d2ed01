//! A question and its answer: the time that a user waits. 64 bytes each way, blocking sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::bed::Bed;
use crate::run::{Carried, Probe};
use crate::support::pin_to_cpu;

const MESSAGE: [u8; 64] = [0x5a; 64];
const LOST: Duration = Duration::from_secs(2);
/// Rounds that are not counted: neighbours are found, windows open.
const WARM_UP: usize = 500;
/// In every slice, so that it has a p99.
const AT_LEAST: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

/// Who asks. The answering end runs until this one is dropped.
pub struct RoundTrips {
    asking: Socket,
    rounds: u64,
    times: Histogram<u64>,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl RoundTrips {
    /// Connects a socket in `c1` with one in `c2` that answers on this CPU.
    ///
    /// A socket stays in the namespace in which it was made, whatever thread uses it.
    pub fn open(protocol: Protocol, bed: &Bed, cpu: usize) -> Result<RoundTrips> {
        let asking = match protocol {
            Protocol::Udp => {
                let answering = bed.c2().within(|| Ok(UdpSocket::bind((bed.to, 0))?))?;
                let address = answering.local_addr()?;
                let asking = bed.c1().within(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(address)?;
                    Ok(socket)
                })?;
                asking.set_read_timeout(Some(LOST))?;
                answer(cpu, move || echo_udp(&answering));
                Socket::Udp(asking)
            }
            Protocol::Tcp => {
                let listener = bed.c2().within(|| Ok(TcpListener::bind((bed.to, 0))?))?;
                let address = listener.local_addr()?;
                let asking = bed
                    .c1()
                    .within(|| Ok(TcpStream::connect_timeout(&address, LOST)?))?;
                let (answering, _) = listener.accept()?;
                for stream in [&asking, &answering] {
                    stream.set_nodelay(true)?;
                }
                asking.set_read_timeout(Some(LOST))?;
                answer(cpu, move || echo_tcp(&answering));
                Socket::Tcp(asking)
            }
        };
        let mut trips = RoundTrips {
            asking,
            rounds: 0,
            times: Histogram::new(3)?,
        };
        for _ in 0..WARM_UP {
            trips.round()?;
        }
        Ok(trips)
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
        self.rounds += 1;
        Ok(())
    }
}

impl Probe for RoundTrips {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let mut times = Histogram::<u64>::new(3)?;
        let start = Instant::now();
        let mut now = start;
        while now - start < length || times.len() < AT_LEAST {
            let asked = now;
            self.round()?;
            now = Instant::now();
            times.record(u64::try_from((now - asked).as_nanos())?)?;
        }
        self.times.add(&times)?;
        let micros = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Ok(vec![micros(0.5), micros(0.99)])
    }

    fn carried(&self) -> Carried {
        Carried::Encapsulated(self.rounds)
    }

    fn histogram(&self) -> Option<&Histogram<u64>> {
        Some(&self.times)
    }
}

impl Drop for RoundTrips {
    fn drop(&mut self) {
        // That the answering end is gone already is fine.
        match &self.asking {
            Socket::Udp(socket) => drop(socket.send(&[])),
            Socket::Tcp(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
        }
    }
}

/// Runs an answering end on a thread of its own. It ends with who asks, else with this process.
fn answer(cpu: usize, echo: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    thread::spawn(move || {
        pin_to_cpu(cpu);
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
