//! Frames that a NIC's driver could have brought: sent as XDP frames into one end of the path,
//! all alike and as fast as one CPU does, which also does what happens to them.
//!
//! ```text
//!   to a socket   router ──► eth0 host2 ──► c2's socket, emptied on another CPU
//!   decap         router ──► eth0 host2 ──► c2's eth0, which drops them in XDP
//!   encap         c1's eth0 ──► host1 eth0 ──► router's port, which drops them
//! ```
//!
//! The router drops by what costs each path least: in XDP what comes as an XDP frame, by tcx what
//! comes as a packet. A NIC would take either as it is.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use overlay_common::outer::OuterV4;
use overlay_lab::Ns;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use serde_json::Value;

use crate::bed::{Bed, Peer};
use crate::bpf::{Hook, Sender, Sink};
use crate::run::{Carried, Probe};
use crate::support::pin_to_cpu;

const PAYLOAD: [u8; 64] = [0x5a; 64];
const PORT: u16 = 9;
/// Sent to find out how long it takes.
const FIRST: u32 = 4096;
/// Sent at most: for 200 ms at more than any path has reached.
const MOST: u32 = 2_000_000;
const WARM_UP: Duration = Duration::from_millis(10);
/// Enough for what comes while the socket's reader is not run.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Frames into a container's socket.
pub struct ToSocket {
    sending: Sending,
    socket: UdpSocket,
    reader_cpu: usize,
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
    /// How long a frame took last time.
    each: Option<Duration>,
}

impl ToSocket {
    pub fn open(bed: &Bed, reader_cpu: usize) -> Result<ToSocket> {
        let socket = bed.c2().within(|| Ok(UdpSocket::bind((bed.to, PORT))?))?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        let sending = Sending::to_host2(bed)?;
        let mut to_socket = ToSocket {
            sending,
            socket,
            reader_cpu,
            received: 0,
        };
        // Once few, and then as many as a slice has.
        to_socket.slice(WARM_UP)?;
        to_socket.slice(WARM_UP)?;
        Ok(to_socket)
    }

    /// Counts what comes until told to stop.
    fn read(socket: &UdpSocket, cpu: usize, stop: &AtomicBool) -> u64 {
        pin_to_cpu(cpu);
        let mut message = [0; 2 * PAYLOAD.len()];
        let mut received = 0;
        loop {
            // Looked at first: what came before is then found.
            let stopped = stop.load(Ordering::Acquire);
            match socket.recv(&mut message) {
                Ok(len) => received += u64::from(message[..len] == PAYLOAD),
                Err(_) if stopped => return received,
                Err(_) => std::hint::spin_loop(),
            }
        }
    }
}

impl Probe for ToSocket {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let stop = AtomicBool::new(false);
        let Self {
            sending,
            socket,
            reader_cpu,
            ..
        } = self;
        let (sent, received, took) = thread::scope(|scope| {
            let reading = scope.spawn(|| Self::read(socket, *reader_cpu, &stop));
            let sent = sending.send(length);
            stop.store(true, Ordering::Release);
            let received = reading.join();
            let (sent, took) = sent?;
            anyhow::Ok((sent, received.ok().context("the reader panicked")?, took))
        })?;
        ensure!(received * 2 > sent, "of {sent} frames {received} came");
        self.received += received;
        Ok(vec![received as f64 / took.as_secs_f64() / 1e3])
    }

    fn carried(&self) -> Carried {
        Carried::Decapsulated(self.received)
    }
}

impl ToSink {
    /// Until the container.
    pub fn decap(bed: &Bed) -> Result<ToSink> {
        let sending = Sending::to_host2(bed)?;
        let len = inner_len(&sending.frame);
        let index = Link::of(bed.c2(), "eth0")?.index;
        let sink = bed.c2().within(|| Sink::attach(index, Hook::Xdp, len))?;
        ToSink::open(sending, sink, Carried::Decapsulated)
    }

    /// From the container until the wire.
    pub fn encap(bed: &Bed) -> Result<ToSink> {
        let sending = Sending::from_c1(bed)?;
        let hook = match bed.peer {
            Peer::Xdp => Hook::Xdp,
            _ => Hook::Tcx,
        };
        let len = sending.frame.len() + OUTER;
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
        to_sink.slice(WARM_UP)?;
        to_sink.slice(WARM_UP)?;
        Ok(to_sink)
    }
}

impl Probe for ToSink {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let before = self.sink.count()?;
        let (sent, took) = self.sending.send(length)?;
        let came = self.sink.count()? - before;
        ensure!(came * 2 > sent, "of {sent} frames {came} came");
        Ok(vec![came as f64 / took.as_secs_f64() / 1e3])
    }

    fn carried(&self) -> Carried {
        // What can't be read now fails when it is compared.
        (self.carried)(self.sink.count().unwrap_or(u64::MAX))
    }
}

impl Sending {
    /// What host1 would send to c2, from the router.
    fn to_host2(bed: &Bed) -> Result<Sending> {
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
        Sending::new(bed.lab.router(), port.index, frame)
    }

    /// What c1 sends to c2.
    fn from_c1(bed: &Bed) -> Result<Sending> {
        let inside = Link::of(bed.c1(), "eth0")?;
        Link::peer_of(&inside, &bed.lab.host(1).ns)?.take_frames()?;
        Sending::new(bed.c1(), inside.index, inner_frame(bed)?)
    }

    fn new(from: &Ns, ifindex: u32, frame: Vec<u8>) -> Result<Sending> {
        Ok(Sending {
            from: from.clone(),
            sender: Sender::new(ifindex)?,
            frame,
            each: None,
        })
    }

    /// Sends for about that long. Returns how many, and how long it was.
    fn send(&mut self, length: Duration) -> Result<(u64, Duration)> {
        let times = match self.each {
            Some(each) => (length.as_nanos() / each.as_nanos().max(1)).min(MOST.into()) as u32,
            None => FIRST,
        };
        let took = self
            .from
            .within(|| self.sender.send(&self.frame, times.max(1)))?;
        self.each = Some(took / times.max(1));
        Ok((times.into(), took))
    }
}

const OUTER: usize = overlay_common::wire::OUTER_V4_LEN;

fn inner_len(encapsulated: &[u8]) -> usize {
    encapsulated.len() - OUTER
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

/// An interface.
struct Link {
    ns: Ns,
    name: String,
    index: u32,
    /// Of a veth: the other end's index, where that is.
    other: Option<u32>,
    mac: [u8; 6],
}

impl Link {
    fn of(ns: &Ns, name: &str) -> Result<Link> {
        let mut links = Link::all(ns)?.into_iter();
        let link = links.find(|link| link.name == name);
        link.with_context(|| format!("no {name} in {}", ns.label()))
    }

    /// A veth's other end, which is in `ns`.
    fn peer_of(end: &Link, ns: &Ns) -> Result<Link> {
        let mut links = Link::all(ns)?.into_iter();
        let link = links.find(|link| end.other == Some(link.index));
        link.with_context(|| format!("no other end of {} in {}", end.name, ns.label()))
    }

    fn all(ns: &Ns) -> Result<Vec<Link>> {
        let rows: Vec<Value> = serde_json::from_str(&ns.run("ip -j link show")?)?;
        Ok(rows.iter().filter_map(|row| Link::parse(ns, row)).collect())
    }

    /// None for what is no Ethernet interface.
    fn parse(ns: &Ns, row: &Value) -> Option<Link> {
        let number = |field: &str| u32::try_from(row[field].as_u64()?).ok();
        let mut mac = [0; 6];
        let mut digits = row["address"].as_str()?.split(':');
        for byte in &mut mac {
            *byte = u8::from_str_radix(digits.next()?, 16).ok()?;
        }
        Some(Link {
            ns: ns.clone(),
            name: row["ifname"].as_str()?.to_owned(),
            index: number("ifindex")?,
            other: number("link_index"),
            mac,
        })
    }

    /// Makes a veth accept XDP frames from its other end, which it does with GRO or with an XDP
    /// program of its own.
    fn take_frames(&self) -> Result<()> {
        self.ns
            .run(&format!("ethtool -K {} gro on", self.name))
            .map(drop)
    }
}
