//! `overlay-dp capture` misses nothing, and what it writes others can read.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use overlay_lab::{Background, Host, Lab, LabSpec, Overlay, ping, test, wait_until};
use pcap_file::pcapng::Block;
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use rustix::process::Signal;

use crate::BIN;

#[test]
fn a_capture_has_every_packet_of_containers_and_tunnels() {
    for datapath in ["tcx", "xdp"] {
        let spec = LabSpec {
            containers: 3,
            ..LabSpec::default()
        };
        test(BIN, spec, |lab| {
            let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
            both_sides_of_a_ping(lab, &overlay)?;
            local_containers_and_answers_of_programs(lab, &overlay)?;
            drops_say_why(lab, &overlay)?;
            if datapath == "tcx" {
                filters_and_ends(lab, &overlay)?;
                without_an_agent_and_after_a_crash(lab, overlay)
            } else {
                Ok(overlay)
            }
        });
    }
}

/// A packet of a file.
#[derive(Debug)]
struct Packet {
    interface: String,
    inbound: bool,
    comment: String,
    nanoseconds: u128,
    bytes: Vec<u8>,
}

impl Packet {
    /// `icmp 8 10.0.0.2 10.0.0.3`: what is in the packet itself.
    fn what(&self) -> String {
        what(&self.bytes)
    }

    /// The same of what is in the tunnel.
    fn inside(&self) -> String {
        self.bytes.get(50..).map(what).unwrap_or_default()
    }
}

fn what(frame: &[u8]) -> String {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        return "?".to_owned();
    };
    let ends = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            format!("{} {}", header.source_addr(), header.destination_addr())
        }
        Some(LaxNetSlice::Arp(_)) => return "arp".to_owned(),
        _ => return "other".to_owned(),
    };
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => format!("icmp {} {ends}", icmp.type_u8()),
        Some(TransportSlice::Udp(udp)) => format!("udp {} {ends}", udp.destination_port()),
        _ => format!("ip {ends}"),
    }
}

/// Reads a file.
fn read(path: &Path) -> Result<Vec<Packet>> {
    let bytes = fs::read(path)?;
    let mut reader = PcapNgReader::new(&bytes[..])?;
    let (mut interfaces, mut packets) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block? {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                let nanoseconds = interface
                    .options
                    .contains(&InterfaceDescriptionOption::IfTsResol(9));
                ensure!(nanoseconds, "{:?}", interface.options);
                interfaces.push(name.context("an interface without a name")?);
            }
            Block::EnhancedPacket(packet) => {
                let (mut inbound, mut comment) = (false, String::new());
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Flags(flags) => inbound = flags & 3 == 1,
                        EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                        _ => {}
                    }
                }
                packets.push(Packet {
                    interface: interfaces[packet.interface_id as usize].clone(),
                    inbound,
                    comment,
                    nanoseconds: packet.timestamp.as_nanos(),
                    bytes: packet.data.to_vec(),
                });
            }
            _ => {}
        }
    }
    Ok(packets)
}

/// Captures on a host while something happens.
fn while_capturing(
    lab: &Lab,
    host: &Host,
    options: &str,
    happens: impl FnOnce() -> Result<()>,
) -> Result<Vec<Packet>> {
    let path = lab.dir().join("capture.pcapng");
    let _ = fs::remove_file(&path);
    let running = start(host, &path, options)?;
    happens()?;
    stop(running)?;
    read(&path)
}

fn start(host: &Host, path: &Path, options: &str) -> Result<Background> {
    let line = format!("capture -w {} {options}", path.display());
    // The programs copy once the map says so. One that was killed may still stand in it.
    let dump = || host.bpf_map("dump", "OVL_CAPTURE", "");
    let before = dump()?;
    let mut running = Background::start(host.overlay_cmd(&line))?;
    wait_until("it captures", Duration::from_secs(30), || {
        let now = dump();
        !running.is_running() || now.is_ok_and(|now| now != before && places(&now) != 0)
    })?;
    ensure!(
        running.is_running(),
        "{:?}",
        running.finish(Duration::from_secs(1))?
    );
    Ok(running)
}

/// What the control map wants copied.
fn places(dump: &str) -> u8 {
    let json: serde_json::Value = serde_json::from_str(dump).unwrap_or_default();
    let byte = json[0]["value"][8].as_str().unwrap_or("0x0");
    u8::from_str_radix(byte.trim_start_matches("0x"), 16).unwrap_or(0)
}

fn stop(mut running: Background) -> Result<String> {
    running.signal(Signal::INT);
    let done = running.finish(Duration::from_secs(10))?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(done.stderr.contains(" 0 lost"), "{}", done.stderr);
    Ok(done.stderr)
}

/// Every packet is there as often as it should be, inside and outside, on both hosts.
fn both_sides_of_a_ping(lab: &Lab, overlay: &Overlay) -> Result<()> {
    let (from, to) = (overlay.c(1), overlay.c(2));
    for host in lab.hosts() {
        let packets = while_capturing(lab, host, "--inner --outer icmp", || {
            let stats = ping(&from.ns, to.ip, 20, 56, false)?;
            ensure!(stats.lost() == 0, "{}", stats.output);
            Ok(())
        })?;
        let container = if host.ns.label() == "host1" { from } else { to };
        let ask = format!("icmp 8 {} {}", from.ip, to.ip);
        let answer = format!("icmp 0 {} {}", to.ip, from.ip);
        let inner = |what: &str, inbound: bool| {
            let all = packets.iter();
            all.filter(|p| {
                p.interface == container.name && p.inbound == inbound && p.what() == what
            })
            .count()
        };
        let outer = |what: &str, inbound: bool| {
            let all = packets.iter();
            all.filter(|p| p.interface == "eth0" && p.inbound == inbound && p.inside() == what)
                .count()
        };
        let asks = container.name == from.name;
        for (count, of) in [
            (inner(&ask, !asks), "inner requests"),
            (inner(&answer, asks), "inner answers"),
            (outer(&ask, !asks), "outer requests"),
            (outer(&answer, asks), "outer answers"),
        ] {
            ensure!(
                count == 20,
                "{}: {count} {of} of 20: {packets:?}",
                host.ns.label()
            );
        }
        ensure!(packets.len() == 80, "{} packets", packets.len());
        ensure!(packets.iter().all(|p| p.comment.is_empty()), "{packets:?}");
        ensure!(
            packets.is_sorted_by_key(|p| p.nanoseconds),
            "the order is not that of time"
        );
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let late = now.as_nanos().abs_diff(packets[0].nanoseconds);
        ensure!(late < 60_000_000_000, "the time is off by {late} ns");
    }
    Ok(())
}

/// What never leaves the host, and what the programs answer themselves.
fn local_containers_and_answers_of_programs(lab: &Lab, overlay: &Overlay) -> Result<()> {
    let (from, to) = (overlay.c(1), overlay.c(3));
    let packets = while_capturing(lab, lab.host(1), "", || {
        from.ns.run("ip neigh flush dev eth0")?;
        ping(&from.ns, to.ip, 3, 56, false).map(drop)
    })?;
    let count = |interface: &str, inbound: bool, what: &str| {
        let all = packets.iter();
        all.filter(|p| {
            p.interface == interface && p.inbound == inbound && p.what().starts_with(what)
        })
        .count()
    };
    for (name, inbound) in [(&from.name, false), (&to.name, true)] {
        ensure!(count(name, inbound, "icmp 8") == 3, "{packets:?}");
        ensure!(count(name, !inbound, "icmp 0") == 3, "{packets:?}");
    }
    ensure!(
        count(&from.name, false, "arp") >= 1 && count(&from.name, true, "arp") >= 1,
        "{packets:?}"
    );
    // But for containers that look for IPv6 routers, which they do when they like.
    let is_of_these = |p: &Packet| p.interface == "eth0" && p.inside() != "other";
    ensure!(!packets.iter().any(is_of_these), "{packets:?}");
    Ok(())
}

fn drops_say_why(lab: &Lab, overlay: &Overlay) -> Result<()> {
    let (from, to) = (overlay.c(1), overlay.c(2));
    let packets = while_capturing(
        lab,
        lab.host(1),
        &format!("--container {}", from.name),
        || {
            from.ns.run("ip addr add 10.9.9.9/32 dev eth0")?;
            from.ns
                .run_any(&format!("ping -n -c 2 -i 0.1 -W 1 -I 10.9.9.9 {}", to.ip))?;
            from.ns.run("ip addr del 10.9.9.9/32 dev eth0")?;
            // A broadcast is the agent's to send on.
            from.ns.run_any("ping -b -n -c 1 -W 1 10.0.0.255").map(drop)
        },
    )?;
    let comments: BTreeSet<&str> = packets.iter().map(|p| p.comment.as_str()).collect();
    ensure!(comments.contains("dropped: spoofed-ip"), "{packets:?}");
    ensure!(comments.contains("to the agent: flood"), "{packets:?}");
    ensure!(
        packets.iter().all(|p| p.interface == from.name),
        "{packets:?}"
    );
    Ok(())
}

fn filters_and_ends(lab: &Lab, overlay: &Overlay) -> Result<()> {
    let (from, to) = (overlay.c(1), overlay.c(2));
    let host = lab.host(1);
    // Another network's packets are not in it.
    host.overlay("network create other")?;
    let none = while_capturing(lab, host, "--inner --outer --network other", || {
        ping(&from.ns, to.ip, 3, 56, false).map(drop)
    })?;
    ensure!(none.is_empty(), "{none:?}");
    host.overlay("network rm other")?;
    // So many, and no more; in what tcpdump can read.
    let path = lab.dir().join("five.pcapng");
    let counting = start(host, &path, "--outer --count 5 icmp")?;
    ping(&from.ns, to.ip, 10, 56, false)?;
    let done = counting.finish(Duration::from_secs(10))?;
    ensure!(
        done.status.success() && done.stderr.starts_with("5 packets written"),
        "{done:?}"
    );
    ensure!(read(&path)?.len() == 5);
    let shown = host.ns.run(&format!("tcpdump -n -r {}", path.display()))?;
    ensure!(
        shown.contains("VXLAN") && shown.contains("vni 4096") && shown.lines().count() >= 5,
        "{shown}"
    );
    // A pipe; and cut.
    let shell = format!(
        "OVERLAY_DP_INSTANCE={} {} capture -w - --count 2 --snap 40 icmp | tcpdump -n -r -",
        host.instance, BIN
    );
    let mut piped = Background::start(host.ns.cmd("sh", ["-c", &shell]))?;
    wait_until("the pipe has two packets", Duration::from_secs(15), || {
        let _ = ping(&from.ns, to.ip, 2, 56, false);
        !piped.is_running()
    })?;
    let piped = piped.finish(Duration::from_secs(5))?;
    ensure!(piped.stdout.matches("[|icmp]").count() == 2, "{piped:?}");
    // Nothing happens, and it ends all the same.
    let quiet = host.overlay_any(&format!(
        "capture -w {} --duration 1 port 9",
        path.display()
    ))?;
    ensure!(
        quiet.status.success() && quiet.stderr.starts_with("0 packets written"),
        "{quiet:?}"
    );
    for (line, words) in [
        ("capture -w /dev/null prot 80", ["filter", "'prot'"]),
        (
            "capture -w /dev/null --container test.2",
            ["test.2", "where it is"],
        ),
        ("capture -w /nowhere/x", ["/nowhere/x", "can't write"]),
        (
            "--instance nobody capture -w /dev/null",
            ["no data path", "attach"],
        ),
    ] {
        host.overlay_fails(line, &words)?;
    }
    // Whatever it was before, the file is its owner's alone; but one that is refused touches none.
    let mode = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.permissions().mode());
    fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    let first = start(host, &path, "")?;
    ensure!(mode(&path)? & 0o777 == 0o600, "{:o}", mode(&path)?);
    let other = lab.dir().join("other.pcapng");
    let line = format!("capture -w {}", other.display());
    host.overlay_fails(&line, &["another", "capture"])?;
    ensure!(!other.exists());
    fs::write(&other, "of an earlier day")?;
    host.overlay_fails(&line, &["another", "capture"])?;
    ensure!(fs::read_to_string(&other)? == "of an earlier day");
    host.overlay_fails("capture -w /dev/null", &["another", "capture"])?;
    stop(first).map(drop)
}

/// The data path is captured from, not the agent; and a capture that dies leaves nothing on.
fn without_an_agent_and_after_a_crash(lab: &Lab, mut overlay: Overlay) -> Result<Overlay> {
    let (from, to) = (overlay.c(1).clone(), overlay.c(2).clone());
    let host = lab.host(1);
    let path = lab.dir().join("crash.pcapng");
    let mut dies = start(host, &path, "")?;
    dies.signal(Signal::KILL);
    drop(dies);
    overlay.agents.remove(0).kill();
    let packets = while_capturing(lab, host, "icmp", || {
        let stats = ping(&from.ns, to.ip, 5, 56, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
        Ok(())
    })?;
    ensure!(
        packets.len() == 10 && packets.iter().all(|p| p.interface.starts_with("ifindex-")),
        "{packets:?}"
    );
    overlay
        .agents
        .insert(0, lab.start_agent(1, "--datapath tcx")?);
    Ok(overlay)
}
