//! What the network between the hosts does to them: the known pains of overlays, each by its name.
//!
//! ```text
//!                  eth1 172.31.9.5/24 ─┐ (ecmp_stable only)
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//! ```

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Container, Host, LabSpec, Load, Ns, Overlay, iperf3, join_args, ping, start_ping, test,
    wait_until,
};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which another host, or the agent itself, must have noticed.
const NOTICED: Duration = Duration::from_secs(10);
/// In which nobody sends to what was on a host that has died.
const WITHDRAWN: Duration = Duration::from_secs(2);

/// The router drops what is too big for its next link, and its ICMP errors get nowhere.
#[test]
fn mtu_black_hole() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        for host in lab.hosts() {
            wait_path_mtu(host, 1500)?;
        }
        let router = lab.router();
        for address in ["172.31.1.1", "192.168.1.1"] {
            router.run(&format!("ip rule add from {address} iif lo blackhole"))?;
        }
        router.run("ip link set to-host2 mtu 1400")?;
        let begin = Instant::now();
        let tcp = iperf3(&c1.ns, &c2.ns, c2.ip, Load::Tcp, 10)?;
        ensure!(tcp.gbit > 0.05, "{tcp:?}");
        for host in lab.hosts() {
            wait_path_mtu(host, 1400)?;
        }
        ensure!(begin.elapsed() < 2 * NOTICED, "{:?}", begin.elapsed());
        // Now the overlay itself tells who sends too much.
        c1.ns.run("ip route flush cache")?;
        let fits = ping(&c1.ns, c2.ip, 3, 1350 - 28, true)?;
        ensure!(fits.lost() == 0, "{}", fits.output);
        let told = ping(&c1.ns, c2.ip, 1, 1351 - 28, true)?;
        ensure!(told.output.contains("(mtu = 1350)"), "{}", told.output);
        Ok(overlay)
    });
}

/// Several addresses on the uplink, and routes that prefer another one than the advertised.
#[test]
fn wrong_outer_source() {
    test(BIN, LabSpec::default(), |lab| {
        let ns = &lab.host(2).ns;
        ns.run("ip addr add 192.168.1.6/24 dev eth0")?;
        ns.run("ip addr add 192.168.1.7/24 dev eth0")?;
        ns.run("ip route replace 172.31.1.0/24 via 192.168.1.1 src 192.168.1.7")?;
        let first = lab.start_agent(1, "")?;
        let join = join_args(lab.host(1), false)?;
        let second = lab.start_agent(2, &format!("{join} --advertise-addr 192.168.1.6"))?;
        lab.host(1).overlay("network create uber-net")?;
        let c1 = Container::add(lab, 1, lab.c(1), "test.1")?;
        let c2 = Container::add(lab, 2, lab.c(2), "test.2")?;
        wait_until("they reach each other", NOTICED, || {
            answers(&c1.ns, &c2) && answers(&c2.ns, &c1)
        })?;
        wait_data_path(lab.host(1), "answers")?;
        wait_data_path(lab.host(2), "answers")?;
        let strangers = || -> Result<Value> {
            Ok(lab.host(1).overlay_json("status")?["drops"]["unknown-vtep"].clone())
        };
        let before = strangers()?;
        // Another source would be a stranger's, and dropped.
        for to in [(&c1, &c2), (&c2, &c1)] {
            let stats = ping(&to.0.ns, to.1.ip, 50, 56, false)?;
            ensure!(stats.lost() == 0, "{}", stats.output);
        }
        let vtep = only_vtep(lab.host(1))?;
        ensure!(vtep["address"] == "192.168.1.6", "{vtep:#}");
        let after = strangers()?;
        ensure!(before == after, "{before} {after}");
        Ok((first, second))
    });
}

/// The gateway does not answer ARP for a while, and its entry is lost meanwhile.
#[test]
fn could_not_resolve_peer() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        let (router, host) = (lab.router(), &lab.host(1).ns);
        let arp = |answers: bool| {
            let ignore = if answers { 0 } else { 8 };
            router.run(&format!(
                "sysctl -qw net.ipv4.conf.to-host1.arp_ignore={ignore}"
            ))
        };
        // The same gateway as before: what carried the traffic goes on to.
        let run = start_ping(&c1.ns, c2.ip, 600, SECOND / 100)?;
        arp(false)?;
        host.run("ip neigh flush dev eth0")?;
        sleep(4 * SECOND);
        arp(true)?;
        let stats = run.finish()?;
        ensure!(stats.lost() == 0, "{}", stats.output);

        // Another machine takes its place: nothing passes, until it can be asked.
        wait_data_path(lab.host(1), "answers")?;
        let shown: Value = serde_json::from_str(&host.run("ip -j link show eth0")?)?;
        let mac = shown[0]["address"].as_str().context("no MAC")?;
        arp(false)?;
        router.run("ip link set to-host1 address 02:00:00:00:00:aa")?;
        // It does not tell its address by asking for ours.
        router.run(&format!(
            "ip neigh replace 172.31.1.5 lladdr {mac} dev to-host1 nud permanent"
        ))?;
        host.run("ip neigh flush dev eth0")?;
        sleep(4 * SECOND);
        ensure!(!answers(&c1.ns, c2), "nothing can pass");
        arp(true)?;
        let begin = Instant::now();
        wait_until("test.1 pings test.2", NOTICED, || answers(&c1.ns, c2))?;
        ensure!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
        Ok(overlay)
    });
}

/// The uplink goes down and up, and its address goes and comes back.
#[test]
fn uplink_flap() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        let ns = &lab.host(1).ns;
        let flaps: [(&[&str], &[&str], &str); 2] = [
            (
                &["ip link set eth0 down"],
                &["ip link set eth0 up"],
                "is down",
            ),
            (
                &["ip addr flush dev eth0"],
                &["ip addr add 172.31.1.5/24 dev eth0"],
                "address",
            ),
        ];
        for (down, up, what) in flaps {
            for line in down {
                ns.run(line)?;
            }
            wait_problem(lab.host(1), Some(what))?;
            sleep(2 * SECOND);
            for line in up {
                ns.run(line)?;
            }
            ns.run("ip route add default via 172.31.1.1")?;
            wait_until(
                &format!("they reach each other after {down:?}"),
                2 * NOTICED,
                || answers(&c1.ns, c2) && answers(&c2.ns, c1),
            )?;
            wait_problem(lab.host(1), None)?;
        }
        // An unplugged cable and the router's reboot are one to the host.
        lab.unplug(1)?;
        wait_problem(lab.host(1), Some("carrier"))?;
        lab.plug(1)?;
        wait_until("they reach each other", 2 * NOTICED, || answers(&c1.ns, c2))?;
        Ok(overlay)
    });
}

/// The uplink's interface is deleted, and one of the same name is made.
#[test]
fn uplink_recreated() {
    for datapath in ["tcx", "xdp"] {
        test(BIN, LabSpec::default(), |lab| {
            let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
            let (c1, c2) = (overlay.c(1), overlay.c(2));
            let (router, ns) = (lab.router(), &lab.host(1).ns);
            ns.run("ip link del eth0")?;
            wait_problem(lab.host(1), Some("no interface 'eth0'"))?;
            ns.run(&format!(
                "ip link add eth0 type veth peer name to-host1 netns {}",
                router.name()
            ))?;
            router.run("ip addr add 172.31.1.1/24 dev to-host1")?;
            router.run("ethtool -K to-host1 gro on")?;
            router.run("ip link set to-host1 up")?;
            ns.run("ip link set eth0 up")?;
            ns.run("ip addr add 172.31.1.5/24 dev eth0")?;
            ns.run("ip route add default via 172.31.1.1")?;
            wait_until("they reach each other", 2 * NOTICED, || {
                answers(&c1.ns, c2) && answers(&c2.ns, c1)
            })?;
            wait_problem(lab.host(1), None)?;
            let status = lab.host(1).overlay_json("status")?;
            let hooks = status["hooks"].as_array().context("no hooks")?;
            let uplinks: Vec<_> = hooks.iter().filter(|h| h["site"] == "uplink").collect();
            ensure!(uplinks.len() == 1, "{hooks:#?}");
            ensure!(uplinks[0]["attached"] != "MISSING", "{hooks:#?}");
            for host in lab.hosts() {
                wait_data_path(host, "answers")?;
                wait_path_mtu(host, 1500)?;
            }
            let tcp = iperf3(&c1.ns, &c2.ns, c2.ip, Load::Tcp, 1)?;
            ensure!(tcp.gbit > 0.01, "{tcp:?}");
            Ok(overlay)
        });
    }
}

/// Two equal ways: each VTEP has one of them, and changes only when that goes.
#[test]
fn ecmp_stable() {
    let spec = LabSpec {
        containers: 0,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let (router, ns) = (lab.router(), &lab.host(1).ns);
        ns.run(&format!(
            "ip link add eth1 type veth peer name to-host1b netns {}",
            router.name()
        ))?;
        router.run("ip addr add 172.31.9.1/24 dev to-host1b")?;
        router.run("ip link set to-host1b up")?;
        ns.run("ip addr add 172.31.9.5/24 dev eth1")?;
        ns.run("ip link set eth1 up")?;
        let both = "ip route replace 192.168.0.0/16 nexthop via 172.31.1.1 dev eth0 nexthop via 172.31.9.1 dev eth1";
        ns.run(both)?;
        let host = lab.host(1);
        let agent = lab.start_agent(1, "")?;
        host.overlay("network create uber-net")?;
        for n in 1..=16 {
            host.overlay(&format!(
                "fdb add 02:42:0a:00:00:{n:02x} --network uber-net --vtep 192.168.7.{n}"
            ))?;
        }
        let ways = || -> Result<Vec<(String, String)>> {
            let rows = host.overlay_json("vtep ls")?;
            let text = |row: &Value, field: &str| row[field].as_str().unwrap_or("-").to_owned();
            let rows = rows.as_array().context("not a list")?;
            Ok(rows
                .iter()
                .map(|row| (text(row, "address"), text(row, "interface")))
                .collect())
        };
        let on = |ways: &[(String, String)], name: &str| {
            ways.iter()
                .filter(|(_, interface)| interface == name)
                .count()
        };
        wait_until("all are resolved", NOTICED, || {
            ways().is_ok_and(|ways| on(&ways, "eth0") + on(&ways, "eth1") == 16)
        })?;
        let before = ways()?;
        ensure!(
            on(&before, "eth0") >= 3 && on(&before, "eth1") >= 3,
            "{before:?}"
        );
        // Changes elsewhere.
        for n in 0..30 {
            ns.run(&format!("ip route add 203.0.113.{n}/32 via 172.31.9.1"))?;
            if n % 10 == 0 {
                ns.run("ip neigh flush dev eth1")?;
                ns.run("ip route flush cache")?;
            }
            let now = ways()?;
            ensure!(now == before, "{before:?}\n{now:?}");
        }
        // One way goes: only what used it moves.
        ns.run("ip link set eth1 down")?;
        wait_until("nothing goes over eth1", NOTICED, || {
            ways().is_ok_and(|ways| on(&ways, "eth0") == 16)
        })?;
        ns.run("ip link set eth1 up")?;
        ns.run(both)?;
        wait_until("it is as before", NOTICED, || {
            ways().is_ok_and(|ways| ways == before)
        })?;
        Ok(agent)
    });
}

/// A host dies with all that is on it: what is known of it must not outlive it, and must come back
/// with it, under whatever MAC addresses.
#[test]
fn stale_fdb_and_arp_after_host_restart() {
    test(BIN, LabSpec::default(), |lab| {
        let mut overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1).clone(), overlay.c(2).clone());
        wait_data_path(lab.host(1), "answers")?;
        sleep(2 * SECOND);
        let died = Instant::now();
        lab.power_off(2)?;
        wait_until("its endpoints are withdrawn", NOTICED, || {
            !knows(lab.host(1), &c2)
        })?;
        ensure!(died.elapsed() < WITHDRAWN, "{:?}", died.elapsed());
        drop(overlay.agents.pop());

        lab.power_on(2)?;
        overlay.agents.push(lab.start_agent(2, "--datapath tcx")?);
        let again = Container::add(lab, 2, &c2.ns, "test.2")?;
        wait_until("test.1 pings test.2", NOTICED, || answers(&c1.ns, &again))?;
        ensure!(knows(lab.host(1), &again));
        Ok(overlay)
    });
}

/// The agent alone dies: its host's data path says that it is alive.
#[test]
fn a_dead_agent_is_no_dead_host() {
    test(BIN, LabSpec::default(), |lab| {
        let mut overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1).clone(), overlay.c(2).clone());
        wait_data_path(lab.host(1), "answers")?;
        overlay.agents.remove(1).kill();
        wait_until("its agent is down", NOTICED, || {
            only_vtep(lab.host(1)).is_ok_and(|vtep| vtep["state"] == "down")
        })?;
        let stats = ping(&c1.ns, c2.ip, 300, 56, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
        let vtep = only_vtep(lab.host(1))?;
        ensure!(vtep["data_path"] == "answers", "{vtep:#}");
        let latency = vtep["latency"]["average_us"].as_u64();
        ensure!(latency.is_some_and(|us| us > 0), "{vtep:#}");
        let loss = |vtep: &Value| vtep["loss_percent"].as_f64();
        let before = loss(&vtep).context("no loss is shown")?;
        // Then the host dies, too.
        lab.unplug(2)?;
        let begin = Instant::now();
        wait_until("its endpoints are withdrawn", NOTICED, || {
            !knows(lab.host(1), &c2)
        })?;
        ensure!(begin.elapsed() < 6 * SECOND, "{:?}", begin.elapsed());
        wait_until("the loss is shown", NOTICED, || {
            let vtep = only_vtep(lab.host(1)).ok();
            vtep.and_then(|vtep| loss(&vtep))
                .is_some_and(|now| now > before)
        })?;
        Ok(overlay)
    });
}

/// The uplink gets another address, as by DHCP. (The peer is a kernel vxlan device, which learns
/// from outer source addresses.)
#[test]
fn uplink_readdressed() {
    let spec = LabSpec {
        hosts: 1,
        containers: 1,
        ..LabSpec::default()
    };
    for advertise in [false, true] {
        test(BIN, spec.clone(), |lab| {
            let (host, router) = (lab.host(1), lab.router());
            let args = if advertise {
                "--advertise-addr 172.31.1.5"
            } else {
                ""
            };
            let agent = lab.start_agent(1, args)?;
            host.overlay("network create uber-net")?;
            let c1 = Container::add(lab, 1, lab.c(1), "test.1")?;
            router.run("ip link add vx0 address 02:42:0a:00:00:c8 mtu 1450 type vxlan id 4096 local 172.31.1.1 dstport 4789")?;
            router.run("ip addr add 10.0.0.200/24 dev vx0")?;
            router.run("ip link set vx0 up")?;
            host.overlay(
                "fdb add 02:42:0a:00:00:c8 --network uber-net --vtep 172.31.1.1 --ip 10.0.0.200",
            )?;
            let peer = Container {
                ip: "10.0.0.200".parse()?,
                ..c1.clone()
            };
            // Known for good, so that only its VTEP has to be learnt.
            router.run(&format!(
                "ip neigh replace {} lladdr {} dev vx0",
                c1.ip, c1.mac
            ))?;
            wait_until("test.1 pings the peer", NOTICED, || answers(&c1.ns, &peer))?;

            host.ns.run("ip addr flush dev eth0")?;
            host.ns.run("ip addr add 172.31.1.99/24 dev eth0")?;
            if advertise {
                wait_problem(host, Some("172.31.1.5 is not an address of interface eth0"))?;
                sleep(4 * SECOND);
                wait_problem(host, Some("eth0 has 172.31.1.99"))?;
                return Ok(agent);
            }
            wait_until("it has the new address", NOTICED, || {
                host.overlay_json("status")
                    .is_ok_and(|status| status["uplink"]["address"] == "172.31.1.99")
            })?;
            wait_problem(host, None)?;
            wait_until("test.1 pings the peer", NOTICED, || answers(&c1.ns, &peer))?;
            let sockets = host.ns.run("ss -Haun")?;
            ensure!(sockets.contains("172.31.1.99:7946"), "{sockets}");
            ensure!(!sockets.contains("172.31.1.5:"), "{sockets}");
            Ok(agent)
        });
    }
}

/// As above, between hosts of a cluster: first a worker's address changes, then the manager's.
#[test]
fn cluster_host_readdressed() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "--datapath tcx")?;
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        for (number, address, gateway) in [
            (2, "192.168.1.99", "192.168.1.1"),
            (1, "172.31.1.99", "172.31.1.1"),
        ] {
            let ns = &lab.host(number).ns;
            ns.run("ip addr flush dev eth0")?;
            ns.run(&format!("ip addr add {address}/24 dev eth0"))?;
            ns.run(&format!("ip route add default via {gateway}"))?;
            let other = lab.host(3 - number);
            wait_until("the other host knows the new address", 2 * NOTICED, || {
                only_vtep(other).is_ok_and(|vtep| vtep["address"] == address)
            })?;
            wait_until("they reach each other", NOTICED, || {
                answers(&c1.ns, c2) && answers(&c2.ns, c1)
            })?;
            lab.verify_clean(2 * NOTICED)?;
        }
        // And they still agree.
        lab.host(2).overlay("network create another")?;
        Ok(overlay)
    });
}

/// Whether a host's forwarding table has a container.
fn knows(host: &Host, container: &Container) -> bool {
    let rows = host.overlay("fdb show --json");
    rows.map_or(true, |rows| rows.contains(&container.mac))
}

fn answers(from: &Ns, to: &Container) -> bool {
    ping(from, to.ip, 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
}

/// The one VTEP that a host of two knows.
fn only_vtep(host: &Host) -> Result<Value> {
    let rows = host.overlay_json("vtep ls")?;
    let rows = rows.as_array().context("not a list")?;
    ensure!(rows.len() == 1, "{rows:#?}");
    Ok(rows[0].clone())
}

fn wait_path_mtu(host: &Host, mtu: u32) -> Result<()> {
    let what = format!("{} finds a path MTU of {mtu}", host.ns.label());
    wait_until(&what, 2 * NOTICED, || {
        only_vtep(host).is_ok_and(|vtep| vtep["path_mtu"] == mtu)
    })
}

fn wait_data_path(host: &Host, path: &str) -> Result<()> {
    let what = format!("the data path from {} {path}", host.ns.label());
    wait_until(&what, NOTICED, || {
        only_vtep(host).is_ok_and(|vtep| vtep["data_path"] == path)
    })
}

/// Waits until `status` says that something is wrong with the uplink, or nothing.
fn wait_problem(host: &Host, what: Option<&str>) -> Result<()> {
    wait_until(&format!("status says {what:?}"), NOTICED, || {
        let status = host.overlay_json("status");
        let problem = status.map(|status| status["uplink"]["problem"].clone());
        match (problem, what) {
            (Ok(Value::String(problem)), Some(what)) => problem.contains(what),
            (Ok(Value::Null), None) => true,
            _ => false,
        }
    })
}
