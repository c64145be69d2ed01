//! The time that one pass through a user-space program adds, with everything on one CPU: then it
//! is work, not waiting for another CPU to wake up.
//!
//! A question that is broadcast goes through the slow path of both hosts, one that is not through
//! none, and the answers go the same way: half the difference is a pass. The same for a TUN device
//! with a loop that writes UDP, socat's, as Flannel's udp backend and Weave's sleeve have it: there
//! a question and its answer are four passes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{Background, Lab, LabSpec, Ns, Overlay, check_signals, wait_until};

use crate::BIN;
use crate::support::{pin_to_cpu, test_mode};

const CPU: usize = 0;
const MESSAGE: [u8; 64] = [0x5a; 64];
const LOST: Duration = Duration::from_secs(2);
const WARM_UP: usize = 500;
const BATCH: usize = 250;
const BATCHES: usize = 60;
const PORT: u16 = 7777;

/// One way to ask.
struct Path {
    name: &'static str,
    socket: UdpSocket,
    to: SocketAddr,
    times: Vec<Duration>,
}

pub fn measure() -> Result<()> {
    // Agents and answering threads inherit it.
    pin_to_cpu(CPU);
    let lab = Lab::new(&LabSpec::default(), BIN.as_ref())?;
    let overlay = Overlay::start(&lab, "").with_context(|| lab.logs())?;
    let plain = Lab::new(&LabSpec::default(), BIN.as_ref())?;
    let _loops = tun_loops(&plain)?;

    let (c1, c2) = (overlay.c(1), overlay.c(2));
    answer(&c2.ns)?;
    let (host1, host2) = (plain.host(1), plain.host(2));
    answer(&host2.ns)?;
    let open = |name, from: &Ns, to: IpAddr| -> Result<Path> {
        let socket = from.within(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(LOST))?;
        let mut path = Path {
            name,
            socket,
            to: (to, PORT).into(),
            times: Vec::new(),
        };
        path.rounds(WARM_UP)?;
        path.times.clear();
        Ok(path)
    };
    let IpAddr::V4(ip) = c2.ip else {
        bail!("{} is no IPv4 address", c2.ip);
    };
    // Networks have 24 bits.
    let all = Ipv4Addr::from_bits(ip.to_bits() | 0xff).into();
    let mut paths = vec![
        open("fast path", &c1.ns, c2.ip)?,
        open("slow path", &c1.ns, all)?,
        open("bare routing", &host1.ns, host2.ip.into())?,
    ];
    if let Some((_, tun)) = &_loops {
        paths.push(open("TUN loop", &host1.ns, *tun)?);
    }
    let slow = |lab: &Lab, number| -> Result<u64> {
        let status = lab.host(number).overlay_json("status")?;
        status["stats"]["punted"]
            .as_u64()
            .context("status tells no punted frames")
    };
    let before = [slow(&lab, 1)?, slow(&lab, 2)?];
    let batches = if test_mode() { 1 } else { BATCHES };
    for batch in 0..batches {
        check_signals()?;
        let turns = paths.len();
        for turn in 0..turns {
            paths[(batch + turn) % turns].rounds(BATCH)?;
        }
    }
    let asked = (batches * BATCH) as u64;
    for (number, before) in [1, 2].into_iter().zip(before) {
        let punted = slow(&lab, number)? - before;
        ensure!(
            punted >= asked,
            "host{number} punted {punted} of {asked} questions"
        );
    }
    report(&mut paths);
    Ok(())
}

fn report(paths: &mut [Path]) {
    let mut p50 = Vec::new();
    for path in paths.iter_mut() {
        path.times.sort_unstable();
        let at = |percent: usize| {
            path.times[(path.times.len() * percent / 100).min(path.times.len() - 1)]
        };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "pass: {:<14} p50 {:>7.2} µs  p99 {:>7.2} µs",
            path.name,
            micros(at(50)),
            micros(at(99))
        );
        p50.push(micros(at(50)));
    }
    println!("pass: the slow path adds {:.2} µs", (p50[1] - p50[0]) / 2.0);
    if let Some(tun) = p50.get(3) {
        println!("pass: a TUN loop adds    {:.2} µs", (tun - p50[2]) / 4.0);
    }
}

impl Path {
    fn rounds(&mut self, count: usize) -> Result<()> {
        let mut answer = [0; 2 * MESSAGE.len()];
        for _ in 0..count {
            let start = Instant::now();
            self.socket.send_to(&MESSAGE, self.to)?;
            let (len, _) = self
                .socket
                .recv_from(&mut answer)
                .with_context(|| format!("{}: no answer", self.name))?;
            self.times.push(start.elapsed());
            ensure!(answer[..len] == MESSAGE, "another's answer");
        }
        Ok(())
    }
}

/// Answers inside of `ns` until this process ends.
fn answer(ns: &Ns) -> Result<()> {
    let socket = ns.within(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?))?;
    std::thread::spawn(move || {
        let mut message = [0; 2 * MESSAGE.len()];
        while let Ok((len, from)) = socket.recv_from(&mut message) {
            if socket.send_to(&message[..len], from).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// One loop on each host, and where the second one's device is.
fn tun_loops(lab: &Lab) -> Result<Option<([Background; 2], IpAddr)>> {
    if std::process::Command::new("socat")
        .arg("-V")
        .output()
        .is_err()
    {
        println!("pass: NO PEER TO COMPARE WITH: socat is not installed");
        return Ok(None);
    }
    let start = |number: usize, other: usize| {
        let (host, other) = (lab.host(number), lab.host(other).ip);
        let tun = format!("TUN:10.99.0.{number}/24,iff-up,iff-no-pi,tun-name=tun0");
        host.ns.start(&format!(
            "socat {tun} UDP-DATAGRAM:{other}:8285,bind={}:8285",
            host.ip
        ))
    };
    let loops = [start(1, 2)?, start(2, 1)?];
    let to = Ipv4Addr::new(10, 99, 0, 2);
    let ping = format!("ping -c1 -W1 {to}");
    wait_until("the TUN loops run", Duration::from_secs(10), || {
        lab.host(1)
            .ns
            .run_any(&ping)
            .is_ok_and(|done| done.status.success())
    })?;
    Ok(Some((loops, to.into())))
}
