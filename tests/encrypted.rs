//! A network that is encrypted between hosts, in each datapath.
//!
//! ```text
//!   c1 ─┐
//!       host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!   c3 ─┘                             │
//!                                     └─ tcpdump
//!            secret 10.0.0.0/24, fd…/64: c1 .2, c2 .3, c3 .4; encrypted, MTU 1408
//! ```

#[path = "encrypted/agreement.rs"]
mod agreement;
#[path = "encrypted/encap.rs"]
mod encap;
#[path = "encrypted/hostile.rs"]
mod hostile;
#[path = "encrypted/keys.rs"]
mod keys;
#[path = "encrypted/linux.rs"]
mod linux;
#[path = "encrypted/linux_frames.rs"]
mod linux_frames;
#[path = "lifecycle/load.rs"]
mod load;
#[allow(dead_code, reason = "the cluster's tests use the rest")]
#[path = "cluster/strangers.rs"]
mod strangers;
#[path = "encrypted/wire.rs"]
mod wire;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    AgentProc, Container, Host, Lab, LabSpec, Load, checksum_errors, iperf3, ping, test, wait_until,
};

use wire::Tap;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
/// What 1500 bytes leave for a container: IPv4 20, UDP 8, ESP 16, UDP 8, VXLAN 8, Ethernet 14,
/// trailer 2, ICV 16.
const MTU: u16 = 1408;
/// What nobody between the hosts may see.
const MARKER: &[u8] = b"-- this line is for the other container alone --";

/// Two hosts with agents, and containers on `secret`.
struct Secret<'a> {
    lab: &'a Lab,
    agents: Vec<AgentProc>,
    containers: Vec<Container>,
    vni: u32,
}

impl<'a> Secret<'a> {
    fn start(lab: &'a Lab, datapath: &str) -> Result<Secret<'a>> {
        let args = format!("--datapath {datapath}");
        let first = lab.start_agent(1, &args)?;
        let join = overlay_lab::join_args(lab.host(1), false)?;
        let second = lab.start_agent(2, &format!("{args} {join}"))?;
        let made = lab
            .host(1)
            .overlay_json("network create secret --encrypted --ipv6")?;
        ensure!(made["encrypted"] == true, "{made}");
        let vni = u32::try_from(made["vni"].as_u64().context("no VNI")?)?;
        let mut containers = Vec::new();
        for (index, ns) in lab.containers().iter().enumerate() {
            let (host, name) = (lab.host(index % 2 + 1), format!("test.{}", index + 1));
            let added = Container::attach(host, ns, &name, "--network secret")?;
            containers.push(added);
        }
        let secret = Secret {
            lab,
            agents: vec![first, second],
            containers,
            vni,
        };
        overlay_lab::all_reach_each_other(&secret.containers, Duration::from_secs(15))?;
        Ok(secret)
    }

    fn c(&self, number: usize) -> &Container {
        &self.containers[number - 1]
    }

    /// How often host `number` counted this, a drop or another event.
    fn counted(&self, number: usize, what: &str) -> Result<u64> {
        counted(self.lab.host(number), what)
    }
}

fn counted(host: &Host, what: &str) -> Result<u64> {
    let status = host.overlay_json("status")?;
    let count = status["drops"][what].as_u64();
    count
        .or_else(|| status["stats"][what].as_u64())
        .with_context(|| format!("no {what} in {status}"))
}

fn spec() -> LabSpec {
    LabSpec {
        containers: 3,
        ..LabSpec::default()
    }
}

#[test]
fn xdp() {
    carries_everything("xdp");
}

#[test]
fn tcx() {
    carries_everything("tcx");
}

fn carries_everything(datapath: &str) {
    test(BIN, spec(), |lab| {
        let secret = Secret::start(lab, datapath)?;
        let (c1, c2, c3) = (secret.c(1), secret.c(2), secret.c(3));
        let tap = Tap::start(lab)?;
        for (from, to) in [(c1, c2), (c2, c1), (c1, c3)] {
            for ip in &to.ips {
                let stats = ping(&from.ns, *ip, 20, 56, false)?;
                ensure!(
                    stats.lost() == 0 && stats.duplicates == 0,
                    "{}",
                    stats.output
                );
            }
            exact_mtu(from, to)?;
            arp_and_broadcast(from, to)?;
            datagrams(from, to)?;
            stream(from, to)?;
        }
        let seen = tap.stop()?;
        seen.check(secret.vni)?;
        ensure!(seen.esp > 1000, "only {} ESP packets", seen.esp);
        for (from, to) in [(c1, c2), (c2, c1)] {
            let tcp = iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 2)?;
            eprintln!("{datapath}: {tcp:?}");
            ensure!(tcp.gbit > 0.01, "{tcp:?}");
            let rate = Load::Udp {
                mbit: 20,
                payload: 1300,
            };
            let udp = iperf3(&from.ns, &to.ns, to.ip, rate, 2)?;
            ensure!(udp.lost * 100 <= udp.datagrams, "{udp:?}");
        }
        for container in &secret.containers {
            let errors = checksum_errors(&container.ns)?;
            ensure!(errors.is_empty(), "{}: {errors:?}", container.name);
        }
        trace_says_where_it_goes(&secret)?;
        for number in [1, 2] {
            for reason in ["bad-icv", "replay", "malformed-esp", "clear-for-encrypted"] {
                let count = secret.counted(number, reason)?;
                ensure!(count == 0, "{count} {reason} on host{number}");
            }
        }
        Ok(secret.agents)
    });
}

fn exact_mtu(from: &Container, to: &Container) -> Result<()> {
    let fits = ping(&from.ns, to.ip, 3, MTU - 28, true)?;
    ensure!(fits.lost() == 0, "{}", fits.output);
    let local = ping(&from.ns, to.ip, 1, MTU - 27, true)?;
    ensure!(
        local.output.contains(&format!("mtu={MTU}")),
        "{}",
        local.output
    );
    from.ns.run("ip link set eth0 mtu 1500")?;
    let told = ping(&from.ns, to.ip, 1, MTU - 27, true)?;
    from.ns.run(&format!("ip link set eth0 mtu {MTU}"))?;
    from.ns.run("ip route flush cache")?;
    let answer = format!("Frag needed and DF set (mtu = {MTU})");
    ensure!(told.output.contains(&answer), "{}", told.output);
    Ok(())
}

fn arp_and_broadcast(from: &Container, to: &Container) -> Result<()> {
    from.ns
        .run(&format!("/usr/bin/arping -c 2 -w 5 -I eth0 {}", to.ip))?;
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
    let text = from.ns.run("ping -b -n -c 3 -i 0.1 -W 1 10.0.0.255")?;
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=1")?;
    let answer = format!("from {}:", to.ip);
    let answers = text.lines().filter(|line| line.contains(&answer)).count();
    ensure!(answers == 3, "{answers} answers to 3 broadcasts:\n{text}");
    Ok(())
}

/// Of all kinds of lengths, and with the marker.
fn datagrams(from: &Container, to: &Container) -> Result<()> {
    let inbox = to.ns.within(|| Ok(UdpSocket::bind((to.ip, 7000))?))?;
    inbox.set_read_timeout(Some(Duration::from_secs(30)))?;
    let outbox = from.ns.within(|| Ok(UdpSocket::bind((from.ip, 0))?))?;
    let mut buffer = vec![0; 65_536];
    for len in (0..64).chain([500, 1379, 1380, 1381, 4000, 20_000]) {
        let mut message = MARKER.repeat(len / MARKER.len() + 1);
        message.truncate(len);
        outbox.send_to(&message, (to.ip, 7000))?;
        let (got, _) = inbox
            .recv_from(&mut buffer)
            .with_context(|| format!("{len} bytes"))?;
        ensure!(buffer[..got] == message, "{len} bytes are others now");
    }
    Ok(())
}

/// Several megabytes, compared.
fn stream(from: &Container, to: &Container) -> Result<()> {
    const CHUNK: usize = 64 << 10;
    let chunk = |n: usize| -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..CHUNK)
            .map(|at| (at * 31 + n * 7 + (at >> 8)) as u8)
            .collect();
        bytes[..MARKER.len()].copy_from_slice(MARKER);
        bytes
    };
    let listener = to.ns.within(|| Ok(TcpListener::bind((to.ip, 7001))?))?;
    let mut out = from.ns.within(|| Ok(TcpStream::connect((to.ip, 7001))?))?;
    let (mut inward, _) = listener.accept()?;
    inward.set_read_timeout(Some(Duration::from_secs(30)))?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            for n in 0..64 {
                out.write_all(&chunk(n))?;
            }
            Ok(())
        });
        let mut buffer = vec![0; CHUNK];
        for n in 0..64 {
            inward
                .read_exact(&mut buffer)
                .with_context(|| format!("chunk {n}"))?;
            ensure!(buffer == chunk(n), "chunk {n} is another now");
        }
        sender
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })
}

fn trace_says_where_it_goes(secret: &Secret<'_>) -> Result<()> {
    let text = secret
        .lab
        .host(1)
        .overlay(&format!("trace test.1 {}", secret.c(2).ip))?;
    for part in [
        "sealed as ESP with SPI 0x",
        "opened by a crypt worker",
        "arrives",
    ] {
        ensure!(text.contains(part), "no '{part}' in:\n{text}");
    }
    Ok(())
}

/// Waits until `from` reaches `to`, whatever that takes.
fn wait_reaches(from: &Container, to: &Container) -> Result<()> {
    wait_until("traffic goes on", Duration::from_secs(30), || {
        from.reaches(to)
    })
}

/// An address with a port, as sockets want it.
fn at(ip: impl Into<IpAddr>, port: u16) -> (IpAddr, u16) {
    (ip.into(), port)
}
