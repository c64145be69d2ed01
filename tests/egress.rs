//! The way out of a network: through the host's own port in it, masqueraded.
//!
//! ```text
//!   c1 ── host1 eth0 172.31.1.5 ───┐
//!           ovr-4096 10.0.0.x      router ── 203.0.113.9 outside
//!   c2 ── host2 eth0 192.168.1.5 ──┘
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_lab::{
    Container, Host, Lab, LabSpec, Load, Outside, Overlay, Teller, Told, ask_udp, checksum_errors,
    iperf3, ping, test, traceroute, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const VNI: u32 = 4096;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn tcx() {
    leads_out("tcx");
}

#[test]
fn xdp() {
    leads_out("xdp");
}

fn leads_out(datapath: &str) {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
        for (number, host) in (1..).zip(lab.hosts()) {
            let c = overlay.c(number);
            // Its own addresses are not the router's to take.
            ensure!(
                c.ip == IpAddr::from([10, 0, 0, number as u8 + 1]),
                "{}",
                c.ip
            );
            masqueraded(host, c, &outside)?;
            carries(c, &outside)?;
            let hops = traceroute(&c.ns, outside.ip)?;
            ensure!(hops.len() == 3 && hops[2] == Some(outside.ip), "{hops:?}");
            ensure!(hops[0] == Some(host.router_ip(VNI)?), "{hops:?}");
        }
        host_reaches_containers(lab, &overlay)?;
        nothing_comes_in(lab, &overlay, &outside)?;
        for ns in [&overlay.c(1).ns, &overlay.c(2).ns, &outside.ns] {
            let errors = checksum_errors(ns)?;
            ensure!(errors.is_empty(), "{}: {errors:?}", ns.label());
        }
        Ok(overlay)
    });
}

/// The world sees the host.
fn masqueraded(host: &Host, c: &Container, outside: &Outside) -> Result<()> {
    let stats = ping(&c.ns, outside.ip, 20, 56, false)?;
    ensure!(stats.lost() == 0, "{}", stats.output);
    let to = SocketAddr::from((outside.ip, 7000));
    let told = Told::connect(&c.ns, to)?;
    ensure!(told.client == IpAddr::from(host.ip), "{told:?}");
    let (_, seen) = ask_udp(&c.ns, to)?;
    ensure!(seen == IpAddr::from(host.ip), "{seen}");
    // The gateway itself is still the agent's.
    let stats = ping(&c.ns, "10.0.0.1".parse()?, 3, 56, false)?;
    ensure!(stats.lost() == 0, "{}", stats.output);
    Ok(())
}

/// Checksums and segment sizes, both ways.
fn carries(c: &Container, outside: &Outside) -> Result<()> {
    let tcp = iperf3(&c.ns, &outside.ns, outside.ip, Load::Tcp, 2)?;
    ensure!(tcp.gbit > 0.05, "{tcp:?}");
    for (mbit, payload) in [(50, 1400), (5, 64), (20, 8000)] {
        let udp = iperf3(
            &c.ns,
            &outside.ns,
            outside.ip,
            Load::Udp { mbit, payload },
            1,
        )?;
        ensure!(
            udp.datagrams > 0 && udp.lost * 100 <= udp.datagrams,
            "{payload}: {udp:?}"
        );
    }
    // And what comes back is bulk, too.
    let mut told = Told::connect(&c.ns, SocketAddr::from((outside.ip, 7000)))?;
    told.echo(8 << 20)
}

/// Its own address in the network is what they see, wherever they are.
fn host_reaches_containers(lab: &Lab, overlay: &Overlay) -> Result<()> {
    for c in &overlay.containers {
        Teller::serve(&c.ns, 7001, &c.name)?;
        for host in lab.hosts() {
            let mut told = Told::connect(&host.ns, SocketAddr::from((c.ip, 7001)))?;
            ensure!(told.client == host.router_ip(VNI)?, "{told:?}");
            told.echo(1 << 20)?;
            ask_udp(&host.ns, SocketAddr::from((c.ip, 7001)))?;
        }
    }
    // From any other address of the host it works as well.
    let host = lab.host(1);
    let from = format!(
        "ping -n -c 3 -i 0.1 -W 1 -I {} {}",
        host.ip,
        overlay.c(2).ip
    );
    let text = host.ns.run(&from)?;
    ensure!(text.contains(" 3 received"), "{text}");
    Ok(())
}

/// Who routes through a host gets nowhere, and another network is as far away as before.
fn nothing_comes_in(lab: &Lab, overlay: &Overlay, outside: &Outside) -> Result<()> {
    let host = lab.host(1);
    let router = lab.router();
    router.run(&format!("ip route add 10.0.0.0/16 via {}", host.ip))?;
    let stats = ping(&outside.ns, overlay.c(1).ip, 3, 56, false)?;
    router.run("ip route del 10.0.0.0/16")?;
    ensure!(stats.lost() == 3, "{}", stats.output);
    host.overlay("network create other")?;
    let ns = lab.add_container("c9")?;
    let other = Container::attach(host, &ns, "other.1", "--network other")?;
    for (from, to) in [(overlay.c(1), &other), (&other, overlay.c(1))] {
        let stats = ping(&from.ns, to.ip, 3, 56, false)?;
        ensure!(stats.lost() == 3, "{}", stats.output);
    }
    // The host's own loopback is nobody else's.
    Teller::serve(&host.ns, 7002, "host")?;
    let c = overlay.c(1);
    c.ns.run("ip route add 127.9.9.9/32 via 10.0.0.1")?;
    c.ns.run("sysctl -qw net.ipv4.conf.eth0.route_localnet=1")?;
    ensure!(Told::connect(&c.ns, SocketAddr::from(([127, 9, 9, 9], 7002))).is_err());
    other.detach(host)?;
    host.overlay("network rm other").map(drop)
}

#[test]
fn internal_networks_have_no_way_out() {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        let host = lab.host(1);
        let agent = lab.start_agent(1, "")?;
        host.overlay("network create inside --internal --ipv6")?;
        let c = Container::attach(host, lab.c(1), "a", "--network inside")?;
        let d = Container::attach(host, lab.c(2), "b", "--network inside")?;
        ensure!(c.reaches(&d));
        ensure!(c.ns.run("ip route show default")?.is_empty());
        ensure!(c.ns.run("ip -6 route show default")?.is_empty());
        c.ns.run("ip route add default via 10.0.0.1")?;
        let stats = ping(&c.ns, outside.ip, 3, 56, false)?;
        ensure!(stats.lost() == 3, "{}", stats.output);
        ensure!(!host.ns.run("ip route")?.contains("10.0.0.0"));
        ensure!(!host.ns.run("ip link")?.contains("ovr-"));
        ensure!(host.ns.run("nft list tables")?.is_empty());
        let line = format!(
            "container add c --network inside --netns {} --publish 80:80",
            lab.c(2).name()
        );
        host.overlay_fails(&line, &["internal"])?;
        let shown = host.overlay_json("network inspect inside")?;
        ensure!(shown[0]["internal"] == true, "{shown}");
        Ok(agent)
    });
}

#[test]
fn ipv6_leads_out_too() {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        outside.with_ipv6(lab)?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        let host = lab.host(1);
        let agent = lab.start_agent(1, "--advertise-addr 172.31.1.5")?;
        host.overlay("network create dual --ipv6")?;
        let c = Container::attach(host, lab.c(1), "a", "--network dual")?;
        let stats = ping(&c.ns, outside.ip6, 20, 56, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
        for (ip, seen) in [(outside.ip6, "2001:db8:0:1::5"), (outside.ip, "172.31.1.5")] {
            let to = SocketAddr::from((ip, 7000));
            let mut told = Told::connect(&c.ns, to)?;
            ensure!(told.client == seen.parse::<IpAddr>()?, "{told:?}");
            told.echo(4 << 20)?;
            ask_udp(&c.ns, to)?;
        }
        Ok(agent)
    });
}

/// Whoever drops what the host forwards, and whoever empties its tables.
#[test]
fn others_rules_do_not_matter() {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        let (host, other) = (lab.host(1), lab.host(2));
        let works =
            |c: &Container| ping(&c.ns, outside.ip, 2, 56, false).is_ok_and(|s| s.lost() == 0);
        // As Docker does it, before us on one host and after us on the other.
        other.ns.run("iptables -P FORWARD DROP")?;
        let overlay = Overlay::start(lab, "")?;
        ensure!(works(overlay.c(1)) && works(overlay.c(2)));
        host.ns.run("iptables -P FORWARD DROP")?;
        ensure!(!works(overlay.c(1)));
        wait_until(
            "FORWARD's policy is no matter",
            Duration::from_secs(30),
            || works(overlay.c(1)),
        )?;

        host.ns.run("nft flush ruleset")?;
        let found = host.overlay_any("verify")?;
        ensure!(found.stdout.contains("nftables"), "{}", found.stdout);
        host.overlay_any("verify --repair")?;
        ensure!(works(overlay.c(1)));

        // What was changed is put back, and what others have is theirs.
        let forwarding = "sysctl -n net.ipv4.ip_forward net.ipv4.conf.eth0.forwarding";
        ensure!(other.ns.run(forwarding)? == "0\n1\n");
        overlay.c(2).detach(other)?;
        wait_until("the host is as it was", SOON, || {
            let rules = other.ns.run("iptables -S FORWARD").unwrap_or_default();
            other.ns.run(forwarding).is_ok_and(|text| text == "0\n0\n")
                && rules.trim() == "-P FORWARD DROP"
        })?;
        ensure!(!other.ns.run("ip link")?.contains("ovr-"));
        ensure!(!other.ns.run("nft list tables")?.contains("overlay-dp"));
        Ok(overlay)
    });
}

#[test]
fn connections_outlive_the_agent() {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        let mut overlay = Overlay::start(lab, "")?;
        let to = SocketAddr::from((outside.ip, 7000));
        let ns = overlay.c(1).ns.clone();
        let mut before = Told::connect(&ns, to)?;
        before.echo(1 << 20)?;
        overlay.agents.remove(0).kill();
        before.echo(1 << 20)?;
        let mut between = Told::connect(&ns, to)?;
        overlay.agents.insert(0, lab.start_agent(1, "")?);
        for told in [&mut before, &mut between] {
            told.echo(1 << 20)?;
        }
        Told::connect(&ns, to)?.echo(1 << 20)?;

        // A dead agent's things go, too.
        let host = lab.host(2);
        overlay.agents.remove(1).kill();
        host.overlay("detach")?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "{left:?}");
        let text = host.ns.run("sysctl -n net.ipv4.conf.eth0.forwarding")?;
        ensure!(text == "0\n", "{text}");
        lab.host(1).overlay("host rm host2 --force")?;
        Ok(overlay)
    });
}
