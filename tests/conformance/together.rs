//! The two together: containers of one network, on a host with overlay-dp and on one with a Linux
//! vxlan device and a bridge, with the traffic that containers have.
//!
//! ```text
//!   c1 ─ host1: overlay-dp   eth0 ── router ── eth0 host2: vx ─ br0 ─ c2
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Lab, LabSpec, Load, Ns, checksum_errors, iperf3, ping, wait_until};

use super::BIN;
use super::bed::{KERNEL_IP, KERNEL_MAC};
use super::table::{Together, Works};

/// Underlay and network.
pub struct Kind {
    mtu: u32,
    port: u16,
    vni: u32,
    /// The kernel device's modes, one after the other.
    modes: &'static [Mode],
}

pub const USUAL: Kind = Kind {
    mtu: 1500,
    port: 4789,
    vni: (1 << 24) - 1,
    modes: &[Mode::Static, Mode::Learning, Mode::Proxy],
};

pub const JUMBO: Kind = Kind {
    mtu: 9000,
    port: 8472,
    vni: 1,
    modes: &[Mode::Learning],
};

/// How the kernel's device knows where MACs are, and who answers ARP.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// By static entries alone.
    Static,
    /// From what it receives.
    Learning,
    /// It answers ARP itself.
    Proxy,
}

pub fn section() -> Together {
    let case = |what, requires| Works { what, requires };
    Together {
        title: "Together",
        about: "A container on a host with overlay-dp and one on a host with a Linux vxlan device and \
            a bridge, in one network, with XDP and with tcx. What is listed works both ways, without \
            a loss or a checksum error.",
        cases: vec![
            case("VNI 1, VNI 16777215", "both ends of the range"),
            case(
                "UDP port 4789, port 8472 (`--data-port`)",
                "the registered port, and Linux's own",
            ),
            case(
                "device with static entries (`nolearning`)",
                "MACs, and one entry for all else",
            ),
            case(
                "device that learns",
                "what it learns from our frames is right",
            ),
            case(
                "device with `proxy`",
                "it answers ARP, and we don't miss the question",
            ),
            case(
                "ping; ping of the whole MTU with DF",
                "nothing of the MTU is lost",
            ),
            case(
                "ping of 4000 bytes, in fragments",
                "fragments inside arrive",
            ),
            case(
                "TCP, IPv4 and IPv6 (super-packets, checksums left to be computed)",
                "GSO, GRO, CHECKSUM_PARTIAL",
            ),
            case(
                "UDP, 1400 bytes and 64 bytes",
                "no checksum errors, loss below 0.1 %",
            ),
            case(
                "multicast 224.0.0.1 and ff02::1",
                "each is answered once by each",
            ),
            case(
                "a vxlan device in the container, to one in the other",
                "tunnels inside: ping and TCP",
            ),
            case(
                "underlay MTU 9000",
                "jumbo frames: ping of the whole MTU with DF, TCP, UDP",
            ),
        ],
    }
}

pub fn test(datapath: &str, kind: &Kind) {
    let spec = LabSpec {
        hosts: 2,
        containers: 1,
        mtu: kind.mtu,
    };
    overlay_lab::test(BIN, spec, |lab| {
        let args = format!("--datapath {datapath} --data-port {}", kind.port);
        let agent = lab.start_agent(1, &args)?;
        let host = lab.host(1);
        host.overlay(&format!("network create uber-net --vni {}", kind.vni))?;
        let c1 = Container::add(lab, 1, lab.c(1), "test.1")?;
        let vtep = lab.host(2).ip;
        host.overlay(&format!(
            "fdb add {KERNEL_MAC} --network uber-net --vtep {vtep} --ip {KERNEL_IP}"
        ))?;
        let c2 = lab.add_container("c2")?;
        for mode in kind.modes {
            device(lab, kind, *mode, &c1, &c2).with_context(|| format!("{mode:?}"))?;
            carries(kind, &c1, &c2).with_context(|| format!("{mode:?}"))?;
            if matches!(mode, Mode::Learning) {
                multicast(&c1, &c2)?;
                tunnel_inside(&c1, &c2)?;
            }
            for ns in [&c1.ns, &c2] {
                let errors = checksum_errors(ns)?;
                ensure!(errors.is_empty(), "{mode:?}, {}: {errors:?}", ns.label());
            }
            c2.run("ip link delete eth0")?;
            lab.host(2).ns.run("ip link delete vx")?;
            lab.host(2).ns.run("ip link delete br0")?;
        }
        Ok(agent)
    });
}

/// A vxlan device, a bridge and a veth pair into c2.
fn device(lab: &Lab, kind: &Kind, mode: Mode, c1: &Container, c2: &Ns) -> Result<()> {
    let host = lab.host(2);
    let (ns, peer) = (&host.ns, lab.host(1).ip);
    let mtu = kind.mtu - 50;
    let options = match mode {
        Mode::Static => "nolearning",
        Mode::Learning => "learning",
        Mode::Proxy => "nolearning proxy",
    };
    // A real wire carries no unfinished checksums or oversize segments from an inner packet.
    ns.run("ethtool -K eth0 tx off tso off gso off")?;
    ns.run(&format!(
        "ip link add vx mtu {mtu} type vxlan id {} local {} dstport {} {options}",
        kind.vni, host.ip, kind.port
    ))?;
    ns.run(&format!("ip link add br0 mtu {mtu} type bridge"))?;
    ns.run(&format!(
        "ip link add ve mtu {mtu} type veth peer name eth0 address {KERNEL_MAC} mtu {mtu} netns {}",
        c2.name()
    ))?;
    for port in ["vx", "ve"] {
        ns.run(&format!("ip link set {port} master br0 up"))?;
    }
    ns.run("ip link set br0 up")?;
    c2.run("ip link set eth0 up")?;
    c2.run(&format!("ip addr add {KERNEL_IP}/24 dev eth0"))?;
    let all_else = "00:00:00:00:00:00";
    ns.run(&format!("bridge fdb append {all_else} dev vx dst {peer}"))?;
    if !matches!(mode, Mode::Learning) {
        ns.run(&format!("bridge fdb append {} dev vx dst {peer}", c1.mac))?;
    }
    if matches!(mode, Mode::Proxy) {
        // It swallows what it can't answer.
        for ip in [c1.ip.to_string(), link_local(&c1.ns)?] {
            let mac = &c1.mac;
            ns.run(&format!(
                "ip neigh add {ip} lladdr {mac} dev vx nud permanent"
            ))?;
        }
        // Else its own ARP goes around the device's.
        c2.run("ip neigh flush dev eth0")?;
    }
    let kernel: IpAddr = KERNEL_IP.parse()?;
    wait_until(
        "the kernel's container answers",
        Duration::from_secs(30),
        || ping(&c1.ns, kernel, 1, 56, false).is_ok_and(|stats| stats.lost() == 0),
    )
}

fn carries(kind: &Kind, c1: &Container, c2: &Ns) -> Result<()> {
    let kernel: IpAddr = KERNEL_IP.parse()?;
    let whole = u16::try_from(kind.mtu - 50 - 28)?;
    for (from, server, to) in [(&c1.ns, c2, kernel), (c2, &c1.ns, c1.ip)] {
        for (size, df) in [(56, false), (whole, true), (4000, false)] {
            let stats = ping(from, to, 10, size, df)?;
            ensure!(
                stats.lost() == 0 && stats.duplicates == 0,
                "{size}: {}",
                stats.output
            );
        }
        let tcp = iperf3(from, server, to, Load::Tcp, 1)?;
        ensure!(tcp.gbit > 0.05, "{tcp:?}");
        tcp_over_ipv6(from, server)?;
        for (mbit, payload) in [(30, 1400), (5, 64)] {
            let udp = iperf3(from, server, to, Load::Udp { mbit, payload }, 1)?;
            ensure!(
                udp.datagrams > 0 && udp.lost * 1000 <= udp.datagrams,
                "{payload}: {udp:?}"
            );
        }
    }
    Ok(())
}

fn tcp_over_ipv6(from: &Ns, to: &Ns) -> Result<()> {
    let address = link_local(to)?;
    let mut server = to.start("iperf3 --server --one-off")?;
    let client = format!("iperf3 --client {address}%eth0 --time 1 --json");
    let mut rate = None;
    wait_until("iperf3 runs over IPv6", Duration::from_secs(30), || {
        // Until the server listens, the report is about an error.
        let report = from.run(&client).unwrap_or_default();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
        rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.is_some() || !server.is_running()
    })?;
    ensure!(rate.is_some_and(|rate| rate > 5e7), "{rate:?}");
    Ok(())
}

fn link_local(ns: &Ns) -> Result<String> {
    let mut found = None;
    // Until it has seen that nobody else has it, it is not used.
    wait_until("a link-local address", Duration::from_secs(30), || {
        let text = ns.run("ip -6 -o addr show dev eth0 scope link -tentative");
        let text = text.unwrap_or_default();
        let mut words = text.split_whitespace();
        found = words
            .find_map(|word| word.strip_suffix("/64"))
            .map(str::to_owned);
        found.is_some()
    })?;
    found.context("no link-local address")
}

/// Each is asked, and answers once.
fn multicast(c1: &Container, c2: &Ns) -> Result<()> {
    for (from, to, ip4) in [
        (&c1.ns, c2, KERNEL_IP.to_owned()),
        (c2, &c1.ns, c1.ip.to_string()),
    ] {
        to.run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        let ip6 = format!("{}%eth0", link_local(to)?);
        for (group, ip) in [("224.0.0.1", ip4), ("ff02::1%eth0", ip6)] {
            // ping ends with the last answer of its own host, which may be before the others'.
            let text = from.run(&format!("ping -n -c 6 -i 0.1 -W 1 -I eth0 {group}"))?;
            let answer = format!("from {ip}:");
            let answers: Vec<_> = text.lines().filter(|line| line.contains(&answer)).collect();
            for number in 1..=5 {
                let seq = format!("icmp_seq={number} ");
                let times = answers.iter().filter(|line| line.contains(&seq)).count();
                ensure!(times == 1, "{group}, {seq}: {times} answers:\n{text}");
            }
        }
    }
    Ok(())
}

/// Another network, carried by this one.
fn tunnel_inside(c1: &Container, c2: &Ns) -> Result<()> {
    let ends = [
        (&c1.ns, KERNEL_IP.to_owned(), "10.99.0.1"),
        (c2, c1.ip.to_string(), "10.99.0.2"),
    ];
    for (ns, remote, address) in &ends {
        ns.run(&format!(
            "ip link add nest mtu 1300 type vxlan id 7 remote {remote} dstport 4790 dev eth0"
        ))?;
        ns.run(&format!("ip addr add {address}/24 dev nest"))?;
        ns.run("ip link set nest up")?;
    }
    let (one, two): (IpAddr, IpAddr) = ("10.99.0.1".parse()?, "10.99.0.2".parse()?);
    for (from, server, to) in [(&c1.ns, c2, two), (c2, &c1.ns, one)] {
        wait_until(
            "the tunnel inside carries a ping",
            Duration::from_secs(30),
            || ping(from, to, 1, 56, false).is_ok_and(|stats| stats.lost() == 0),
        )?;
        let stats = ping(from, to, 10, 1272, true)?;
        ensure!(stats.lost() == 0, "tunnel inside: {}", stats.output);
        let tcp = iperf3(from, server, to, Load::Tcp, 1)?;
        ensure!(tcp.gbit > 0.01, "tunnel inside: {tcp:?}");
    }
    for (ns, ..) in &ends {
        ns.run("ip link delete nest")?;
    }
    Ok(())
}
