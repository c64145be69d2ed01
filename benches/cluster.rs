//! How fast the hosts of a cluster learn from each other: five hosts, three of them managers.
//!
//! ```text
//!   host1 ── c1 ─┐                              each asks the new container
//!   …            ├─ uber-net ─── new container  until it answers
//!   host5 ── c5 ─┘
//! ```
//!
//! - attach: from the moment that `container add` has returned until a datagram has gone there
//!   and back, for the last of the other hosts. Whoever asks knows nothing before: neighbours are
//!   flushed.
//! - dead host: from the moment that its cable is pulled and its agent killed, until no other host
//!   lists its container or forwards to it.
//! - dead leader: from that moment until `network create`, asked once, has succeeded.
//!
//! Ends with an error when a goal is missed.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{
    Cluster, Container, Lab, LabSpec, all_reach_each_other, check_signals, stop_on_signals,
    wait_until,
};

use support::{is_root, test_mode};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const HOSTS: usize = 5;
const MANAGERS: usize = 3;
const PORT: u16 = 9999;
const PATIENCE: Duration = Duration::from_secs(10);

/// For p99 of attaches.
const ATTACH_GOAL: Duration = Duration::from_millis(200);
/// For the slowest.
const WITHDRAWN_GOAL: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    if std::env::args().any(|arg| arg == "--list") {
        println!("cluster: benchmark");
        return Ok(());
    }
    if !is_root() {
        return Ok(());
    }
    stop_on_signals()?;
    let (attaches, deaths) = if test_mode() { (5, 1) } else { (100, 5) };
    let spec = LabSpec {
        hosts: HOSTS,
        containers: HOSTS,
        ..LabSpec::default()
    };
    let lab = Lab::new(&spec, FilePath::new(BIN))?;
    let measured = Bench::start(&lab).and_then(|mut bench| {
        let attached = bench.attaches(attaches)?;
        let withdrawn = bench.dead_hosts(deaths)?;
        let led = bench.dead_leaders(deaths)?;
        Ok([attached.0, attached.1, withdrawn, led])
    });
    let [added, attached, withdrawn, led] =
        measured.inspect_err(|_| eprintln!("{}", lab.logs()))?;
    println!(
        "{:<52}{:>5}{:>9}{:>9}{:>9}",
        "Milliseconds, in a lab of 5 hosts", "n", "p50", "p99", "max"
    );
    added.print("container add");
    attached.print("  … returned → reached from every other host");
    withdrawn.print("host dead → its containers withdrawn everywhere");
    led.print("leader dead → network create has succeeded");
    if test_mode() {
        return Ok(());
    }
    judge(&attached, &withdrawn)
}

fn judge(attached: &Times, withdrawn: &Times) -> Result<()> {
    if attached.quantile(99) >= ATTACH_GOAL {
        bail!("TOO SLOW: an attach must be usable within {ATTACH_GOAL:?} (p99)");
    }
    if withdrawn.quantile(100) >= WITHDRAWN_GOAL {
        bail!("TOO SLOW: a dead host must be withdrawn within {WITHDRAWN_GOAL:?}");
    }
    println!(
        "As promised: usable within {ATTACH_GOAL:?} (p99), withdrawn within {WITHDRAWN_GOAL:?}."
    );
    Ok(())
}

/// Times, in order.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Times {
        times.sort_unstable();
        Times(times)
    }

    /// The time within which so many percent were done.
    fn quantile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        let time = self.0.get(rank.saturating_sub(1));
        time.copied().unwrap_or_default()
    }

    fn print(&self, what: &str) {
        let ms = |percent| self.quantile(percent).as_secs_f64() * 1e3;
        println!(
            "{what:<52}{:>5}{:>9.1}{:>9.1}{:>9.1}",
            self.0.len(),
            ms(50),
            ms(99),
            ms(100)
        );
    }
}

struct Bench<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    containers: Vec<Container>,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab) -> Result<Bench<'a>> {
        let cluster = Cluster::start(lab, MANAGERS, "")?;
        lab.host(1).overlay("network create uber-net")?;
        let containers = (1..=HOSTS)
            .map(|number| Container::add(lab, number, lab.c(number), &format!("c{number}")))
            .collect::<Result<Vec<_>>>()?;
        all_reach_each_other(&containers, PATIENCE)?;
        Ok(Bench {
            lab,
            cluster,
            containers,
        })
    }

    /// How long `container add` took, and from then on each attach.
    fn attaches(&self, count: usize) -> Result<(Times, Times)> {
        let (mut added, mut reached) = (Vec::new(), Vec::new());
        let spaces = (1..=HOSTS)
            .map(|host| {
                let ns = self.lab.add_container(&format!("new{host}"))?;
                Ok((
                    Echo::start(ns.within(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?))?)?,
                    ns,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        for round in 0..count {
            check_signals()?;
            let (host, ns) = (round % HOSTS + 1, &spaces[round % HOSTS].1);
            let asking = self
                .containers
                .iter()
                .zip(1..)
                .filter(|(_, number)| *number != host)
                .map(|(container, _)| {
                    container.ns.run("ip neigh flush dev eth0")?;
                    let socket = container
                        .ns
                        .within(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
                    socket.set_read_timeout(Some(Duration::from_millis(2)))?;
                    Ok(socket)
                })
                .collect::<Result<Vec<_>>>()?;
            let given = Instant::now();
            let new = Container::attach(
                self.lab.host(host),
                ns,
                &format!("new{round}"),
                "--network uber-net",
            )?;
            let returned = Instant::now();
            added.push(returned - given);
            let last = thread::scope(|scope| {
                let asking: Vec<_> = asking
                    .iter()
                    .map(|socket| scope.spawn(move || until_answered(socket, new.ip)))
                    .collect();
                let answered = asking.into_iter().map(|job| job.join().expect("no panic"));
                answered.collect::<Result<Vec<Instant>>>()
            })
            .with_context(|| format!("attach {round}, on host{host}"))?;
            let last = last.into_iter().max().context("nobody asked")?;
            reached.push(last - returned);
            new.detach(self.lab.host(host))?;
        }
        Ok((Times::new(added), Times::new(reached)))
    }

    /// Host5 dies.
    fn dead_hosts(&mut self, count: usize) -> Result<Times> {
        let mac = self.containers[HOSTS - 1].mac.clone();
        let mut times = Vec::new();
        for _ in 0..count {
            check_signals()?;
            let died = Instant::now();
            self.cluster.die(HOSTS)?;
            for number in 1..HOSTS {
                let host = self.lab.host(number);
                wait_until("it is withdrawn", PATIENCE, || {
                    ["fdb show --json", "container ls --json"]
                        .iter()
                        .all(|line| host.overlay(line).is_ok_and(|text| !text.contains(&mac)))
                })?;
            }
            times.push(died.elapsed());
            self.cluster.revive(HOSTS)?;
            self.cluster.wait_settled(PATIENCE)?;
            all_reach_each_other(&self.containers, PATIENCE)?;
        }
        Ok(Times::new(times))
    }

    /// Whoever leads dies, and host4 wants a network.
    fn dead_leaders(&mut self, count: usize) -> Result<Times> {
        let mut times = Vec::new();
        for round in 0..count {
            check_signals()?;
            let leader = self.cluster.leader(4)?;
            ensure!(leader <= MANAGERS, "host{leader} leads");
            let died = Instant::now();
            self.cluster.die(leader)?;
            self.lab
                .host(4)
                .overlay(&format!("network create next{round}"))?;
            times.push(died.elapsed());
            self.cluster.revive(leader)?;
            self.cluster.wait_settled(2 * PATIENCE)?;
        }
        Ok(Times::new(times))
    }
}

/// Asks again and again; when the answer was there.
fn until_answered(socket: &UdpSocket, ip: IpAddr) -> Result<Instant> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        // There may be no way there yet.
        let _ = socket.send_to(b"there?", (ip, PORT));
        match socket.recv_from(&mut [0; 16]) {
            Ok((_, from)) if from.ip() == ip => return Ok(Instant::now()),
            // An earlier one's late answer.
            Ok(_) => {}
            Err(error) if is_timeout(error.kind()) => {}
            // An ICMP error to what was sent.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    bail!("{ip} does not answer within {PATIENCE:?}");
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Answers until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(socket: UdpSocket) -> Result<Echo> {
        let stop = Arc::<AtomicBool>::default();
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut message = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut message) {
                    let _ = socket.send_to(&message[..length], from);
                }
            }
        });
        Ok(Echo {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
