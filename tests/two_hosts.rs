//! One overlay network over two hosts, in each datapath.
//!
//! ```text
//!   c1 ─┐
//!       host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!   c3 ─┘
//!            uber-net 10.0.0.0/24: c1 .2, c2 and c3 the next ones, gateway .1
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Container, Host, LabSpec, Load, Overlay, checksum_errors, iperf3, least, ping, test,
    traceroute, wait_checksums, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

#[test]
fn xdp() {
    carries_everything(["xdp"; 2], Some(["xdp native", "xdp native"]));
}

#[test]
fn tcx() {
    // "clsact ingress" before Linux 6.6.
    carries_everything(["tcx"; 2], Some(["ingress", "ingress"]));
}

#[test]
fn auto() {
    // What it chose is `status`'s to tell.
    carries_everything(["auto"; 2], None);
}

/// What is different for such a pair is in `mixed_hooks`.
#[test]
fn tcx_and_xdp() {
    carries_everything(["tcx", "xdp"], None);
}

/// `hooks`: how the port and the uplink must be attached.
fn carries_everything(datapaths: [&str; 2], hooks: Option<[&str; 2]>) {
    let spec = LabSpec {
        containers: 3,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let [first, second] = datapaths.map(|datapath| format!("--datapath {datapath}"));
        let overlay = Overlay::start_each(lab, &[&first, &second])?;
        if first != second {
            wait_checksums(lab.host(1), "broken")?;
        }
        let (c1, c2, c3) = (overlay.c(1), overlay.c(2), overlay.c(3));
        if let Some(expected) = hooks {
            for host in lab.hosts() {
                check_hooks(host, expected)?;
            }
        }
        // Over the wire both ways, and from local port to local port.
        for (from, to) in [(c1, c2), (c2, c1), (c1, c3)] {
            pings(from, to)?;
            link_local_pings(from, to)?;
            one_hop(from, to)?;
            exact_mtu(from, to)?;
            arp_and_broadcast(from, to)?;
            load(from, to)?;
            ipv6_load(from, to)?;
        }
        nested_tunnel(c1, c2)?;
        for container in &overlay.containers {
            let errors = checksum_errors(&container.ns)?;
            ensure!(errors.is_empty(), "{}: {errors:?}", container.name);
        }
        foreign_addresses_are_not_sent(lab.host(1), c1, c2)?;
        Ok(overlay)
    });
}

fn check_hooks(host: &Host, [port, uplink]: [&str; 2]) -> Result<()> {
    let status = host.overlay_json("status")?;
    let hooks = status["hooks"].as_array().context("no hooks in status")?;
    for (site, expected) in [("port", port), ("uplink", uplink)] {
        let mut of_site = hooks.iter().filter(|hook| hook["site"] == site).peekable();
        ensure!(of_site.peek().is_some(), "no {site} hook: {status:#}");
        for hook in of_site {
            let attached = hook["attached"].as_str().unwrap_or_default();
            ensure!(attached.contains(expected), "{hook}, not {expected}");
        }
    }
    Ok(())
}

fn pings(from: &Container, to: &Container) -> Result<()> {
    let stats = ping(&from.ns, to.ip, 100, 56, false)?;
    ensure!(
        stats.lost() == 0 && stats.duplicates == 0,
        "{}",
        stats.output
    );
    // Sent as fragments by the container, and put together by the other one.
    let fragmented = ping(&from.ns, to.ip, 10, 4000, false)?;
    ensure!(
        fragmented.lost() == 0 && fragmented.duplicates == 0,
        "{}",
        fragmented.output
    );
    Ok(())
}

/// Neighbour discovery instead of ARP.
fn link_local_pings(from: &Container, to: &Container) -> Result<()> {
    let address = link_local(to)?;
    let once = format!("ping -6 -n -c 1 -W 1 {address}%eth0");
    wait_until(
        "duplicate address detection ends",
        Duration::from_secs(5),
        || from.ns.run(&once).is_ok(),
    )?;
    let text = from
        .ns
        .run(&format!("ping -6 -n -c 50 -i 0.02 -W 1 {address}%eth0"))?;
    ensure!(
        text.contains(" 50 received,") && !text.contains("duplicates"),
        "{text}"
    );
    Ok(())
}

fn link_local(of: &Container) -> Result<String> {
    let addresses = of.ns.run("ip -6 -o addr show dev eth0 scope link")?;
    let mut words = addresses.split_whitespace();
    let address = words.find_map(|word| word.strip_suffix("/64"));
    Ok(address.context("no link-local address")?.to_owned())
}

fn one_hop(from: &Container, to: &Container) -> Result<()> {
    let hops = traceroute(&from.ns, to.ip)?;
    ensure!(hops == [Some(to.ip)], "{hops:?}");
    Ok(())
}

/// 1500 of the underlay less 50 of the outer headers; 28 of them are the ping's own headers.
fn exact_mtu(from: &Container, to: &Container) -> Result<()> {
    let fits = ping(&from.ns, to.ip, 5, 1422, true)?;
    ensure!(fits.lost() == 0, "{}", fits.output);
    let local = ping(&from.ns, to.ip, 1, 1423, true)?;
    ensure!(local.output.contains("mtu=1450"), "{}", local.output);

    // A container that believes in a larger MTU hears from the gateway, and nothing is lost in
    // silence: neither one byte too many nor a full Ethernet frame.
    for size in [1423, 1472] {
        from.ns.run("ip link set eth0 mtu 1500")?;
        let told = ping(&from.ns, to.ip, 1, size, true)?;
        from.ns.run("ip link set eth0 mtu 1450")?;
        from.ns.run("ip route flush cache")?;
        let answer = "From 10.0.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1450)";
        ensure!(told.output.contains(answer), "{size}: {}", told.output);
    }
    Ok(())
}

/// Head-end replication, and ARP from somebody who does not use the kernel's table.
fn arp_and_broadcast(from: &Container, to: &Container) -> Result<()> {
    from.ns
        .run(&format!("/usr/bin/arping -c 3 -w 5 -I eth0 {}", to.ip))?;
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
    let text = from.ns.run("ping -b -n -c 5 -i 0.1 -W 1 10.0.0.255")?;
    to.ns
        .run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=1")?;
    let answers = text
        .lines()
        .filter(|line| line.contains(&format!("from {}:", to.ip)))
        .count();
    ensure!(answers == 5, "{answers} answers to 5 broadcasts:\n{text}");
    Ok(())
}

/// Checksums and segment sizes: what ping does not show.
fn load(from: &Container, to: &Container) -> Result<()> {
    let tcp = iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 1)?;
    ensure!(tcp.gbit > least(0.1), "{tcp:?}");
    for (mbit, payload) in [(100, 1400), (10, 64), (50, 8000)] {
        let udp = iperf3(&from.ns, &to.ns, to.ip, Load::Udp { mbit, payload }, 1)?;
        // A busy machine may lose a few in its queues.
        ensure!(
            udp.datagrams > 0 && udp.lost * 1000 <= udp.datagrams,
            "{payload}: {udp:?}"
        );
    }
    Ok(())
}

/// IPv6 super-packets take another way through the kernel than IPv4 ones.
fn ipv6_load(from: &Container, to: &Container) -> Result<()> {
    let address = link_local(to)?;
    let mut server = to.ns.start("iperf3 --server --one-off")?;
    let client = format!("iperf3 --client {address}%eth0 --time 1 --json");
    let mut rate = None;
    wait_until("iperf3 runs over IPv6", Duration::from_secs(15), || {
        // Until the server listens, the report is about an error.
        let report = from.ns.run(&client).unwrap_or_default();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
        rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.is_some() || !server.is_running()
    })?;
    ensure!(rate.is_some_and(|r| r > least(0.1) * 1e9), "{rate:?}");
    Ok(())
}

/// A container's own VXLAN inside of ours: ping, and TCP with its segments.
fn nested_tunnel(from: &Container, to: &Container) -> Result<()> {
    for (here, there, address) in [(from, to, "192.0.2.1"), (to, from, "192.0.2.2")] {
        let (ns, remote) = (&here.ns, there.ip);
        ns.run(&format!(
            "ip link add inner type vxlan id 7 remote {remote} dstport 4789 dev eth0"
        ))?;
        ns.run(&format!("ip addr add {address}/24 dev inner"))?;
        ns.run("ip link set inner up")?;
    }
    let inside = "192.0.2.2".parse()?;
    let stats = ping(&from.ns, inside, 20, 56, false)?;
    ensure!(stats.lost() == 0, "{}", stats.output);
    let tcp = iperf3(&from.ns, &to.ns, inside, Load::Tcp, 1)?;
    ensure!(tcp.gbit > least(0.02), "{tcp:?}");
    for container in [from, to] {
        container.ns.run("ip link delete inner")?;
    }
    Ok(())
}

fn foreign_addresses_are_not_sent(host: &Host, from: &Container, to: &Container) -> Result<()> {
    let drops = || -> Result<u64> {
        let status = host.overlay_json("status")?;
        status["drops"]["spoofed-ip"]
            .as_u64()
            .with_context(|| format!("{:#}", status["drops"]))
    };
    let before = drops()?;
    let foreign: IpAddr = "10.0.0.99".parse()?;
    from.ns.run(&format!("ip addr add {foreign}/32 dev eth0"))?;
    let done = from
        .ns
        .run_any(&format!("ping -n -c 3 -i 0.1 -W 1 -I {foreign} {}", to.ip))?;
    from.ns.run(&format!("ip addr del {foreign}/32 dev eth0"))?;
    ensure!(done.stdout.contains(" 0 received,"), "{}", done.stdout);
    let counted = drops()? - before;
    ensure!(counted >= 3, "{counted} of 3 counted as spoofed-ip");
    Ok(())
}
