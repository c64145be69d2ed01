//! Floods and lies: from strangers on the underlay, from a host that knows too much, and from a
//! container. What is known to the data path loses nothing by them, and other containers' questions
//! are answered.
//!
//! ```text
//!   c1, c3 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2, c4
//!   (c1 is the attacker)                   └ strangers: frames of any sender
//! ```

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Container, Host, Lab, LabSpec, Ns, Overlay, PacketSocket, PingRun, ping, start_ping, test,
    wait_until,
};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
const HANG: Duration = Duration::from_secs(30);
/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(4);
/// Frames of a flood between two looks at the clock.
const BURST: u64 = 10;

#[test]
fn floods_from_the_underlay_with_xdp() {
    floods_from_the_underlay("xdp");
}

#[test]
fn floods_from_the_underlay_with_tcx() {
    floods_from_the_underlay("tcx");
}

#[test]
fn floods_from_a_container_with_xdp() {
    floods_from_a_container("xdp");
}

#[test]
fn floods_from_a_container_with_tcx() {
    floods_from_a_container("tcx");
}

#[test]
fn lies_of_a_container() {
    test(BIN, spec(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let [attacker, far, near] = [1, 2, 3].map(|number| overlay.c(number));
        let before = known(lab)?;
        let run = traffic(near, far)?;
        let socket = PacketSocket::open(&attacker.ns, "eth0")?;
        let (own, host) = (Who::of(attacker)?, lab.host(1));
        let counted = drops(host)?;
        for victim in [near, far] {
            let victim = Who::of(victim)?;
            for number in 0..200_u16 {
                // It has moved to here; it is me; and so says its own MAC.
                socket.send(&datagram(victim, own, victim.ip, number))?;
                socket.send(&datagram(own, victim, victim.ip, number))?;
                socket.send(&announcement(own.mac, victim.ip))?;
                socket.send(&announcement(victim.mac, victim.ip))?;
            }
        }
        for (reason, times) in [
            ("spoofed-mac", 800),
            ("spoofed-ip", 400),
            ("spoofed-neighbour", 400),
        ] {
            let now = drops(host)?;
            let risen = count(&now, reason) - count(&counted, reason);
            ensure!(risen >= times, "{reason}: {risen} of {times}");
        }
        nothing_lost(run)?;
        ensure!(known(lab)? == before, "an endpoint has moved");
        // Nobody has learned anything else, either.
        for (who, of) in [(near, far), (far, near)] {
            let neighbours = who.ns.run(&format!("ip neigh show {}", of.ip))?;
            ensure!(neighbours.contains(&of.mac), "{neighbours}");
        }
        Ok(overlay)
    });
}

fn spec() -> LabSpec {
    LabSpec {
        containers: 4,
        ..LabSpec::default()
    }
}

/// From senders that are no VTEPs; and, as a host could that has gone mad, from a VTEP with inner
/// senders that nobody has, all of which go to the agent.
fn floods_from_the_underlay(datapath: &str) {
    test(BIN, spec(), |lab| {
        let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
        let [c1, c2, c3] = [1, 2, 3].map(|number| overlay.c(number));
        let host = lab.host(1);
        let wire = PacketSocket::open(lab.router(), "to-host1")?;
        let to = Wire {
            dst_mac: mac_of(&host.ns)?,
            vni: u32::try_from(overlay.network["vni"].as_u64().context("no vni")?)?,
            dst: host.ip.octets(),
        };
        let (one, two) = (Who::of(c1)?, Who::of(c2)?);
        let good = datagram(two, one, two.ip, 9);
        let stranger = |number: u64| {
            let [.., a, b] = number.to_be_bytes();
            to.frame([203, 0, a, b], &good)
        };
        let nobody = |number: u64| {
            let [.., a, b, c] = number.to_be_bytes();
            let mut inner = good.clone();
            inner[6..12].copy_from_slice(&[2, 0x99, 0, a, b, c]);
            to.frame(lab.host(2).ip.octets(), &inner)
        };
        flood(&wire, 20_000, &[c1, c2, c3], lab, "unknown-vtep", stranger)?;
        flood(&wire, 10_000, &[c1, c2, c3], lab, "unknown-source", nobody)?;
        Ok(overlay)
    });
}

/// Of ARP requests for nobody, each of which is flooded; and of frames to nobody, which go to the
/// agent and no further.
fn floods_from_a_container(datapath: &str) {
    test(BIN, spec(), |lab| {
        let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
        let [c1, c2, c3, c4] = [1, 2, 3, 4].map(|number| overlay.c(number));
        let socket = PacketSocket::open(&c1.ns, "eth0")?;
        let (own, nobody) = (Who::of(c1)?, [2, 0x99, 0, 0, 0, 1]);
        let storm = |number: u64| {
            let [.., last] = number.to_be_bytes();
            request(own, [10, 0, 0, 100 + last % 100])
        };
        let to_nobody = |number: u64| {
            let to = Who {
                mac: nobody,
                ip: [10, 0, 0, 250],
            };
            datagram(own, to, own.ip, number as u16)
        };
        flood(&socket, 10_000, &[c3, c4, c2], lab, "", storm)?;
        let reason = "unknown-destination";
        flood(&socket, 10_000, &[c3, c4, c2], lab, reason, to_nobody)?;
        Ok(overlay)
    });
}

/// So many frames each second, for a while. Meanwhile the first container and the second, on
/// different hosts, lose nothing of what they say to each other, and the first is answered by its
/// gateway, which is the agent; and a new container is known to the third soon afterwards.
fn flood(
    socket: &PacketSocket,
    rate: u64,
    [from, to, other]: &[&Container; 3],
    lab: &Lab,
    reason: &str,
    frame: impl Fn(u64) -> Vec<u8> + Sync,
) -> Result<()> {
    let host = lab.host(1);
    let before = drops(host)?;
    let run = traffic(from, to)?;
    let asking = AtomicBool::new(true);
    let (sent, answered) = std::thread::scope(|scope| -> Result<(u64, u32)> {
        let asks = scope.spawn(|| gateway_answers(&from.ns, &asking));
        let sent = send_for(socket, rate, frame);
        asking.store(false, Ordering::Relaxed);
        let answered = asks.join().ok().context("who asks has panicked")?;
        Ok((sent?, answered?))
    })?;
    nothing_lost(run)?;
    ensure!(answered > 0, "the gateway has answered nobody else");
    if !reason.is_empty() {
        // What does not get as far as its reason is dropped before, and counted nowhere of ours.
        wait_until(reason, HANG, || {
            drops(host).is_ok_and(|now| count(&now, reason) - count(&before, reason) > sent / 4)
        })
        .with_context(|| format!("of {sent}: {:#}", drops(host).unwrap_or_default()))?;
    }
    // The agent is as it was.
    let late = lab.add_container(&format!("late-{reason}"))?;
    let late = Container::add(lab, 1, &late, &format!("late{}", reason.len()))?;
    late.wait_reaches(other, HANG)?;
    late.detach(host)
}

/// Sends at that rate, or slower where the machine can't.
fn send_for(socket: &PacketSocket, rate: u64, frame: impl Fn(u64) -> Vec<u8>) -> Result<u64> {
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < FLOOD {
        for _ in 0..BURST {
            socket.send(&frame(sent))?;
            sent += 1;
        }
        let due = Duration::from_micros(sent * 1_000_000 / rate);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    Ok(sent)
}

/// How many of the questions to the gateway are answered, until nobody asks any more.
fn gateway_answers(ns: &Ns, asking: &AtomicBool) -> Result<u32> {
    let gateway: IpAddr = "10.0.0.1".parse()?;
    let mut answered = 0;
    while asking.load(Ordering::Relaxed) {
        answered += ping(ns, gateway, 5, 56, false)?.received;
    }
    Ok(answered)
}

/// Pings a hundred times in a second, for longer than a flood lasts.
fn traffic(from: &Container, to: &Container) -> Result<PingRun> {
    start_ping(&from.ns, to.ip, 500, SECOND / 100)
}

fn nothing_lost(run: PingRun) -> Result<()> {
    let stats = run.finish()?;
    ensure!(
        stats.lost() == 0 && stats.duplicates == 0,
        "{}",
        stats.output
    );
    Ok(())
}

/// Where all endpoints are, as both hosts know it.
fn known(lab: &Lab) -> Result<Vec<Value>> {
    let hosts = lab.hosts().iter();
    hosts.map(|host| host.overlay_json("fdb show")).collect()
}

fn drops(host: &Host) -> Result<Value> {
    Ok(host.overlay_json("status")?["drops"].take())
}

fn count(drops: &Value, reason: &str) -> u64 {
    drops[reason].as_u64().unwrap_or(0)
}

type Mac = [u8; 6];

/// An endpoint.
#[derive(Clone, Copy)]
struct Who {
    mac: Mac,
    ip: [u8; 4],
}

impl Who {
    fn of(container: &Container) -> Result<Who> {
        let IpAddr::V4(ip) = container.ip else {
            anyhow::bail!("no IPv4 address");
        };
        Ok(Who {
            mac: mac(&container.mac)?,
            ip: ip.octets(),
        })
    }
}

fn mac(text: &str) -> Result<Mac> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("no MAC address")
}

fn mac_of(ns: &Ns) -> Result<Mac> {
    let text = ns.run("ip -j link show dev eth0")?;
    let links: Value = serde_json::from_str(&text)?;
    mac(links[0]["address"].as_str().context("no address")?)
}

/// A datagram, and who it says it is from.
fn datagram(from: Who, to: Who, src: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.mac, to.mac)
        .ipv4(src, to.ip, 64)
        .udp(port, 9)
        .write(&mut frame, &[7; 20])
        .expect("a vector takes it");
    frame
}

fn arp(dst: Mac, op: u8, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    [
        &dst[..],
        &sender.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, op],
        &sender.0,
        &sender.1,
        &target.0,
        &target.1,
    ]
    .concat()
}

fn request(who: Who, ip: [u8; 4]) -> Vec<u8> {
    arp([0xff; 6], 1, (who.mac, who.ip), ([0; 6], ip))
}

/// A gratuitous ARP: "that address is mine".
fn announcement(mac: Mac, ip: [u8; 4]) -> Vec<u8> {
    arp([0xff; 6], 2, (mac, ip), (mac, ip))
}

/// A host's uplink.
struct Wire {
    dst_mac: Mac,
    vni: u32,
    dst: [u8; 4],
}

impl Wire {
    /// In a tunnel from that sender.
    fn frame(&self, src: [u8; 4], inner: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = self.vni.to_be_bytes();
        let payload = [&[8, 0, 0, 0, a, b, c, 0], inner].concat();
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.dst_mac)
            .ipv4(src, self.dst, 64)
            .udp(50_000, 4789)
            .write(&mut frame, &payload)
            .expect("a vector takes it");
        frame
    }
}
