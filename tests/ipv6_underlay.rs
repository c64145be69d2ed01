//! One overlay network over hosts that have IPv6 addresses only.
//!
//! ```text
//!   c1 ─┐                    (fe80::1)        (2001:db8:2::1)
//!       host1 eth0 2001:db8:1::5/64 ── router ── 2001:db8:2::5/64 eth0 host2 ─ c2
//!   c3 ─┘                                │
//!                                        └────── 2001:db8:3::5/64 eth0 host3 ┄ c4: its eth0 is the
//!                                                              kernel's vxlan device of host3
//! ```
//!
//! Host1's router is known by its link-local address, as one that advertises itself is.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    AgentProc, Container, Lab, LabSpec, Load, Ns, all_reach_each_other, checksum_errors, iperf3,
    ping, test, wait_checksums, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const KERNEL_MAC: &str = "02:42:0a:00:00:c8";
const KERNEL_IP: &str = "10.0.0.200";
/// 1500 of the underlay less 70 of the outer headers.
const MTU: u16 = 1430;

#[test]
fn xdp() {
    carries_everything(["xdp"; 2]);
}

#[test]
fn tcx() {
    carries_everything(["tcx"; 2]);
}

#[test]
fn tcx_and_xdp() {
    carries_everything(["tcx", "xdp"]);
}

#[test]
fn kernel_vxlan_interoperates_with_xdp() {
    kernel_vxlan_interoperates("xdp");
}

#[test]
fn kernel_vxlan_interoperates_with_tcx() {
    kernel_vxlan_interoperates("tcx");
}

/// A VTEP over IPv4 and one over IPv6 can't be of one cluster, and both ends say so.
#[test]
fn one_cluster_is_of_one_family() {
    test(BIN, LabSpec::default(), |lab| {
        for number in [1, 2] {
            add_ipv6(lab, number)?;
        }
        let first = lab.start_agent(1, "--advertise-addr 2001:db8:1::5")?;
        let host = lab.host(1);
        let status = host.overlay("status")?;
        ensure!(status.contains("2001:db8:1::5"), "{status}");
        let token = token(lab)?;
        // Host2 has an IPv4 address, which it takes by itself.
        let join = format!("attach --iface eth0 --join 2001:db8:1::5 --token {token}");
        let done = lab.host(2).overlay_any(&join)?;
        ensure!(!done.status.success(), "joined");
        ensure!(
            done.stderr.contains("--advertise-addr"),
            "it says: {}",
            done.stderr
        );
        host.overlay("network create uber-net")?;
        let entry = format!("fdb add {KERNEL_MAC} --network uber-net --vtep 192.168.1.5");
        let refused = host.overlay_any(&entry)?;
        ensure!(
            refused.stderr.contains("all of a cluster are of one kind"),
            "it says: {}",
            refused.stderr
        );
        Ok(first)
    });
}

struct Overlay {
    _agents: Vec<AgentProc>,
    /// `c1` is `containers[0]`.
    containers: Vec<Container>,
    vni: u64,
}

/// IPv6 instead of IPv4 on all hosts, then the issue's commands on the first two.
fn start(lab: &Lab, datapaths: [&str; 2]) -> Result<Overlay> {
    for number in 1..=lab.hosts().len() {
        add_ipv6(lab, number)?;
        lab.host(number).ns.run("ip -4 addr flush dev eth0")?;
    }
    let [first, second] = datapaths.map(|datapath| format!("--datapath {datapath}"));
    let first = lab.start_agent(1, &first)?;
    let join = format!("{second} --join [2001:db8:1::5] --token {}", token(lab)?);
    let second = lab.start_agent(2, &join)?;
    let network = lab.host(1).overlay_json("network create uber-net")?;
    let containers = lab.containers().iter().enumerate().map(|(index, ns)| {
        let name = format!("test.{}", index + 1);
        Container::add(lab, index % 2 + 1, ns, &name)
    });
    let containers = containers.collect::<Result<Vec<_>>>()?;
    all_reach_each_other(&containers, Duration::from_secs(10))?;
    Ok(Overlay {
        _agents: vec![first, second],
        containers,
        vni: network["vni"].as_u64().context("no vni")?,
    })
}

fn token(lab: &Lab) -> Result<String> {
    let shown = lab.host(1).overlay_json("token show")?;
    let token = shown["token"].as_str().context("no token")?;
    Ok(token.to_owned())
}

fn address(number: usize) -> Result<Ipv6Addr> {
    Ok(format!("2001:db8:{number}::5").parse()?)
}

/// Gives host `number` its IPv6 address and route.
fn add_ipv6(lab: &Lab, number: usize) -> Result<()> {
    let ns = &lab.host(number).ns;
    let router = lab.router();
    let port = format!("to-{}", ns.label());
    let subnet = format!("2001:db8:{number}:");
    router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    router.run(&format!("ip addr add {subnet}:1/64 dev {port} nodad"))?;
    router.run(&format!("ip addr add fe80::1/64 dev {port} nodad"))?;
    ns.run(&format!("ip addr add {subnet}:5/64 dev eth0 nodad"))?;
    let gateway = if number == 1 {
        "fe80::1".to_owned()
    } else {
        format!("{subnet}:1")
    };
    ns.run(&format!("ip -6 route add default via {gateway} dev eth0"))?;
    Ok(())
}

fn carries_everything(datapaths: [&str; 2]) {
    let spec = LabSpec {
        containers: 3,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let overlay = start(lab, datapaths)?;
        if datapaths == ["tcx", "xdp"] {
            wait_checksums(lab.host(1), "broken")?;
        }
        let [c1, c2, c3] = &overlay.containers[..] else {
            unreachable!("three were asked for");
        };
        // Over the wire both ways, and from local port to local port.
        for (from, to) in [(c1, c2), (c2, c1), (c1, c3)] {
            pings(from, to)?;
            exact_mtu(from, to)?;
            broadcast(from, to)?;
            load(from, to)?;
            ipv6_load(from, to)?;
        }
        for container in &overlay.containers {
            let errors = checksum_errors(&container.ns)?;
            ensure!(errors.is_empty(), "{}: {errors:?}", container.name);
        }
        Ok(overlay)
    });
}

fn pings(from: &Container, to: &Container) -> Result<()> {
    // The second kind is sent as fragments by the container.
    for (count, size) in [(100, 56), (10, 4000)] {
        let stats = ping(&from.ns, to.ip, count, size, false)?;
        ensure!(
            stats.lost() == 0 && stats.duplicates == 0,
            "{}",
            stats.output
        );
    }
    Ok(())
}

/// 28 bytes are the ping's own headers.
fn exact_mtu(from: &Container, to: &Container) -> Result<()> {
    let fits = ping(&from.ns, to.ip, 5, MTU - 28, true)?;
    ensure!(fits.lost() == 0, "{}", fits.output);
    let local = ping(&from.ns, to.ip, 1, MTU - 27, true)?;
    ensure!(local.output.contains("mtu=1430"), "{}", local.output);
    for size in [MTU - 27, 1472] {
        from.ns.run("ip link set eth0 mtu 1500")?;
        let told = ping(&from.ns, to.ip, 1, size, true)?;
        from.ns.run("ip link set eth0 mtu 1430")?;
        from.ns.run("ip route flush cache")?;
        let answer = "From 10.0.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1430)";
        ensure!(told.output.contains(answer), "{size}: {}", told.output);
    }
    Ok(())
}

/// Through the slow path, and over IPv6 from there.
fn broadcast(from: &Container, to: &Container) -> Result<()> {
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
    let text = from.ns.run("ping -b -n -c 5 -i 0.1 -W 1 10.0.0.255")?;
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=1")?;
    let from_to = format!("from {}:", to.ip);
    let answers = text.lines().filter(|line| line.contains(&from_to)).count();
    ensure!(answers == 5, "{answers} answers to 5 broadcasts:\n{text}");
    Ok(())
}

/// Checksums and segment sizes: what ping does not show.
fn load(from: &Container, to: &Container) -> Result<()> {
    let tcp = iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 2)?;
    ensure!(tcp.gbit > 0.1, "{tcp:?}");
    for (mbit, payload) in [(100, 1400), (10, 64), (50, 8000)] {
        let udp = iperf3(&from.ns, &to.ns, to.ip, Load::Udp { mbit, payload }, 2)?;
        ensure!(
            udp.datagrams > 0 && udp.lost * 1000 <= udp.datagrams,
            "{payload}: {udp:?}"
        );
    }
    Ok(())
}

/// IPv6 in IPv6: super-packets of another kind.
fn ipv6_load(from: &Container, to: &Container) -> Result<()> {
    let addresses = to.ns.run("ip -6 -o addr show dev eth0 scope link")?;
    let mut words = addresses.split_whitespace();
    let address = words.find_map(|word| word.strip_suffix("/64"));
    let address = address.context("no link-local address")?;
    let mut server = to.ns.start("iperf3 --server --one-off")?;
    let client = format!("iperf3 --client {address}%eth0 --time 2 --json");
    let mut rate = None;
    wait_until("iperf3 runs over IPv6", Duration::from_secs(15), || {
        // Until the server listens, the report is about an error.
        let report = from.ns.run(&client).unwrap_or_default();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
        rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.is_some() || !server.is_running()
    })?;
    ensure!(rate.is_some_and(|r| r > 1e8), "{rate:?}");
    Ok(())
}

/// Linux's own vxlan device, which takes no UDP checksum for one with `udp6zerocsumrx`, and may
/// send either way.
fn kernel_vxlan_interoperates(datapath: &str) {
    let spec = LabSpec {
        hosts: 3,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let overlay = start(lab, [datapath; 2])?;
        for checksum in ["udp6zerocsumtx", "noudp6zerocsumtx"] {
            let c4 = kernel_vtep(lab, &overlay, checksum)?;
            let kernel: IpAddr = KERNEL_IP.parse()?;
            for container in &overlay.containers {
                let (ns, ip) = (&container.ns, container.ip);
                wait_until("the kernel's VTEP answers", Duration::from_secs(5), || {
                    ping(ns, kernel, 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
                })?;
                for (from, to) in [(ns, kernel), (&c4, ip)] {
                    for size in [56, MTU - 28] {
                        let stats = ping(from, to, 20, size, true)?;
                        ensure!(stats.lost() == 0, "{checksum}: {}", stats.output);
                    }
                }
                let load = Load::Udp {
                    mbit: 50,
                    payload: 1300,
                };
                for (from, server, to) in [(ns, &c4, kernel), (&c4, ns, ip)] {
                    let tcp = iperf3(from, server, to, Load::Tcp, 2)?;
                    ensure!(tcp.gbit > 0.1, "{checksum}, {}: {tcp:?}", container.name);
                    let udp = iperf3(from, server, to, load, 2)?;
                    ensure!(udp.lost * 1000 <= udp.datagrams, "{checksum}: {udp:?}");
                }
            }
            for ns in [&c4, &overlay.containers[0].ns, &overlay.containers[1].ns] {
                let errors = checksum_errors(ns)?;
                ensure!(errors.is_empty(), "{}: {errors:?}", ns.label());
            }
            c4.run("ip link delete eth0")?;
        }
        Ok(overlay)
    });
}

/// Host3's kernel as a VTEP of uber-net, known to host1 and host2 by a static entry.
fn kernel_vtep(lab: &Lab, overlay: &Overlay, checksum: &str) -> Result<Ns> {
    let c4 = lab.add_container(&format!("c4-{}", &checksum[..4]))?;
    let host3 = lab.host(3);
    let address3 = address(3)?;
    // A real wire carries no unfinished checksums or oversize segments from an inner packet.
    host3.ns.run("ethtool -K eth0 tx off tso off gso off")?;
    host3.ns.run(&format!(
        "ip link add vx3 mtu {MTU} type vxlan id {} local {address3} dstport 4789 nolearning \
         udp6zerocsumrx {checksum}",
        overlay.vni
    ))?;
    host3.ns.run(&format!(
        "ip link set dev vx3 netns {} name eth0",
        c4.name()
    ))?;
    c4.run(&format!("ip link set eth0 address {KERNEL_MAC} up"))?;
    c4.run(&format!("ip addr add {KERNEL_IP}/24 dev eth0"))?;
    for (index, container) in overlay.containers.iter().enumerate() {
        let vtep = address(index + 1)?;
        for mac in [container.mac.as_str(), "00:00:00:00:00:00"] {
            c4.run(&format!("bridge fdb append {mac} dev eth0 dst {vtep}"))?;
        }
        lab.host(index + 1).overlay(&format!(
            "fdb add {KERNEL_MAC} --network uber-net --vtep {address3} --ip {KERNEL_IP}"
        ))?;
    }
    Ok(c4)
}
