//! Frames that a NIC's driver could have brought: sent as XDP frames into one end of the path,
//! all alike and as fast as one CPU can, which also does what happens to them, while another one
//! counts what comes.
//!
//! ```text
//!   to a socket   router ──► eth0 host2 ──► c2's socket
//!   decap         router ──► eth0 host2 ──► c2's eth0, which drops them in XDP
//!   encap         c1's eth0 ──► host1 eth0 ──► router's port, which drops them
//! ```
//!
//! The router drops by what costs each path least: in XDP what comes as an XDP frame, by tcx what
//! comes as a packet. A NIC would take either as it is.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use overlay_common::outer::OuterV4;
use overlay_common::wire::OUTER_V4_LEN;
use overlay_lab::Ns;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::bed::{Bed, Peer};
use crate::bpf::{Hook, Sender, Sink, yield_to_softirqs};
use crate::link::Link;
use crate::run::{Carried, Probe};
use crate::support::pin_to_cpu;

const PAYLOAD: [u8; 64] = [0x5a; 64];
const PORT: u16 = 9;
/// Sent to find out how long it takes.
const FIRST: u32 = 4096;
/// Sent at most: for 200 ms at more than any path has reached.
const MOST: u32 = 2_000_000;
/// How long a sink is left alone.
const LOOK: Duration = Duration::from_micros(100);
/// Enough for what comes while the socket's reader is not run.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Frames into a container's socket.
pub struct ToSocket {
    sending: Sending,
    socket: UdpSocket,
    received: u64,
}

/// Frames until a sink.
pub struct ToSink {
    sending: Sending,
    sink: Sink,
    carried: fn(u64) -> Carried,
}

/// What is sent, and from where.
struct Sending {
    from: Ns,
    sender: Sender,
    frame: Vec<u8>,
    /// Who looks at what comes.
    watching_cpu: usize,
    /// How long a frame took last time.
    each: Option<Duration>,
}

/// What has come, and when the last of it.
struct Arrived {
    count: u64,
    last: Instant,
}

impl ToSocket {
    pub fn open(bed: &Bed, reader_cpu: usize) -> Result<ToSocket> {
        let socket = bed.c2().within(|| Ok(UdpSocket::bind((bed.to, PORT))?))?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        let mut to_socket = ToSocket {
            sending: Sending::to_host2(bed, reader_cpu)?,
            socket,
            received: 0,
        };
        to_socket.warm_up()?;
        Ok(to_socket)
    }
}

impl Probe for ToSocket {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let socket = &self.socket;
        let mut message = [0; 2 * PAYLOAD.len()];
        let (count, rate) = self
            .sending
            .send(length, || match socket.recv(&mut message) {
                Ok(len) => Ok(u64::from(message[..len] == PAYLOAD)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                Err(error) => Err(error.into()),
            })?;
        self.received += count;
        Ok(vec![rate])
    }

    fn carried(&self) -> Carried {
        Carried::Decapsulated(self.received)
    }
}

impl ToSink {
    /// Until the container.
    pub fn decap(bed: &Bed, watching_cpu: usize) -> Result<ToSink> {
        let sending = Sending::to_host2(bed, watching_cpu)?;
        let len = sending.frame.len() - OUTER_V4_LEN;
        let index = Link::of(bed.c2(), "eth0")?.index;
        let sink = bed.c2().within(|| Sink::attach(index, Hook::Xdp, len))?;
        ToSink::open(sending, sink, Carried::Decapsulated)
    }

    /// From the container until the wire.
    pub fn encap(bed: &Bed, watching_cpu: usize) -> Result<ToSink> {
        let sending = Sending::from_c1(bed, watching_cpu)?;
        let hook = match bed.peer {
            Peer::Xdp => Hook::Xdp,
            _ => Hook::Tcx,
        };
        let len = sending.frame.len() + OUTER_V4_LEN;
        let router = bed.lab.router();
        let index = Link::of(router, "to-host1")?.index;
        let sink = router.within(|| Sink::attach(index, hook, len))?;
        ToSink::open(sending, sink, Carried::Encapsulated)
    }

    fn open(sending: Sending, sink: Sink, carried: fn(u64) -> Carried) -> Result<ToSink> {
        let mut to_sink = ToSink {
            sending,
            sink,
            carried,
        };
        to_sink.warm_up()?;
        Ok(to_sink)
    }
}

impl Probe for ToSink {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let sink = &self.sink;
        let mut seen = sink.count()?;
        let (_, rate) = self.sending.send(length, || {
            // The counter is the other CPU's as long as nobody looks.
            thread::sleep(LOOK);
            let now = sink.count()?;
            Ok(now - std::mem::replace(&mut seen, now))
        })?;
        Ok(vec![rate])
    }

    fn carried(&self) -> Carried {
        // What can't be read now fails when it is compared.
        (self.carried)(self.sink.count().unwrap_or(u64::MAX))
    }
}

impl Sending {
    /// What host1 would send to c2, from the router.
    fn to_host2(bed: &Bed, watching_cpu: usize) -> Result<Sending> {
        let (uplink, port) = (
            Link::of(&bed.lab.host(2).ns, "eth0")?,
            Link::of(bed.lab.router(), "to-host2")?,
        );
        uplink.take_frames()?;
        let inner = inner_frame(bed)?;
        let outer = OuterV4 {
            dst_mac: uplink.mac,
            src_mac: port.mac,
            src: bed.lab.host(1).ip.octets(),
            dst: bed.lab.host(2).ip.octets(),
            tos: 0,
            src_port: 50_000,
            dst_port: 4789,
            vni: bed.vni()?,
        };
        let len = u32::try_from(inner.len())?;
        let frame = [&outer.to_bytes(len)[..], &inner].concat();
        Sending::new(bed.lab.router(), port.index, frame, watching_cpu)
    }

    /// What c1 sends to c2.
    fn from_c1(bed: &Bed, watching_cpu: usize) -> Result<Sending> {
        let inside = Link::of(bed.c1(), "eth0")?;
        Link::peer_of(&inside, &bed.lab.host(1).ns)?.take_frames()?;
        Sending::new(bed.c1(), inside.index, inner_frame(bed)?, watching_cpu)
    }

    fn new(from: &Ns, ifindex: u32, frame: Vec<u8>, watching_cpu: usize) -> Result<Sending> {
        Ok(Sending {
            from: from.clone(),
            sender: Sender::new(ifindex)?,
            frame,
            watching_cpu,
            each: None,
        })
    }

    /// Sends for about that long, while `look` tells how many more have come. Returns how many
    /// have, and thousands per second.
    fn send(
        &mut self,
        length: Duration,
        look: impl FnMut() -> Result<u64> + Send,
    ) -> Result<(u64, f64)> {
        let times = match self.each {
            Some(each) => (length.as_nanos() / each.as_nanos().max(1)).min(MOST.into()) as u32,
            None => FIRST,
        };
        let times = times.max(1);
        let stop = AtomicBool::new(false);
        let cpu = self.watching_cpu;
        let (sent, arrived) = thread::scope(|scope| {
            let watching = scope.spawn(|| watch(look, cpu, &stop));
            let sent = self.from.within(|| {
                yield_to_softirqs()?;
                let began = Instant::now();
                self.sender.send(&self.frame, times)?;
                Ok(began)
            });
            stop.store(true, Ordering::Release);
            let arrived = watching.join();
            (sent, arrived)
        });
        let arrived = arrived.ok().context("who counts has panicked")??;
        // Not when the call is over: the kernel waits for its pages, up to 30 ms. Not what it says
        // the frames have taken: it leaves out what ksoftirqd has done for them.
        let took = arrived.last.saturating_duration_since(sent?);
        ensure!(arrived.count > 0, "of {times} frames none came");
        if arrived.count < u64::from(times) / 2 {
            // Sending on costs little then, but a median does not care for one such slice.
            let from = self.from.name();
            eprintln!(
                "most of {times} frames from {from} were lost: {} came",
                arrived.count
            );
        }
        self.each = Some(took / times);
        let rate = arrived.count as f64 / took.as_secs_f64();
        Ok((arrived.count, rate / 1e3))
    }
}

/// Counts what comes until told to stop.
fn watch(mut look: impl FnMut() -> Result<u64>, cpu: usize, stop: &AtomicBool) -> Result<Arrived> {
    pin_to_cpu(cpu);
    let mut arrived = Arrived {
        count: 0,
        last: Instant::now(),
    };
    loop {
        // Asked first: what came before is then found.
        let stopped = stop.load(Ordering::Acquire);
        match look()? {
            0 if stopped => return Ok(arrived),
            0 => std::hint::spin_loop(),
            more => {
                arrived.count += more;
                arrived.last = Instant::now();
            }
        }
    }
}

/// A datagram from c1 to c2.
fn inner_frame(bed: &Bed) -> Result<Vec<u8>> {
    let (c1, c2) = (Link::of(bed.c1(), "eth0")?, Link::of(bed.c2(), "eth0")?);
    let (from, to) = (v4(bed.from)?, v4(bed.to)?);
    let builder = PacketBuilder::ethernet2(c1.mac, c2.mac)
        .ipv4(from.octets(), to.octets(), 64)
        .udp(40_000, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, &PAYLOAD)?;
    Ok(frame)
}

fn v4(ip: IpAddr) -> Result<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => bail!("{ip} is no IPv4 address"),
    }
}
