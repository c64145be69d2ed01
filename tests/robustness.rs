//! What a user, a signal or another program does to an agent at the wrong moment.
//!
//! ```text
//!                 eth1 172.31.9.5/24 ─┐ (another_uplink only)
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//! ```

use std::net::UdpSocket;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    AgentProc, Background, Container, Host, Lab, LabSpec, Load, Ns, Overlay, PingRun, iperf3, ping,
    start_ping, test, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which another host, or the agent itself, must have noticed.
const NOTICED: Duration = Duration::from_secs(10);
/// Where an instance keeps its things.
const DIRS: [&str; 3] = [
    "/sys/fs/bpf/overlay-dp",
    "/run/overlay-dp",
    "/var/lib/overlay-dp",
];

#[test]
fn a_second_instance_in_one_namespace_is_refused_and_harms_nothing() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        // Its name begins as the lab's things do, so that the lab would remove what it left.
        let other = format!("{}-other", lab.id());
        let run = start_ping(&overlay.c(1).ns, overlay.c(2).ip, 300, SECOND / 100)?;
        let refused = host.overlay_any(&format!(
            "--instance {other} attach --iface eth0 --data-port 4790 --control-port 2378 \
             --gossip-port 7947"
        ))?;
        refused.fails_with(&["network namespace"])?;
        host.overlay(&format!("--instance {other} detach"))?;
        let status = host.overlay_any(&format!("--instance {other} status"))?;
        status.fails_with(&["attach"])?;
        for dir in DIRS {
            let dir = Path::new(dir).join(&other);
            ensure!(!dir.exists(), "{} is left", dir.display());
        }
        nothing_lost(run)?;
        // The first one is whole: it can still add and remove.
        host.overlay("container rm test.1")?;
        Container::add(lab, 1, lab.c(1), "test.1")?;
        Ok(overlay)
    });
}

#[test]
fn interfaces_of_the_user_stay() {
    test(BIN, one_host(1), |lab| {
        let host = lab.host(1);
        host.ns
            .run("ip link add ovp-tap0 type veth peer name tap0")?;
        let undone = |how: &str| -> Result<()> {
            let left = host.leftovers()?;
            ensure!(
                left.len() == 2 && left.iter().all(|what| what.contains("tap0")),
                "after {how}: {left:#?}"
            );
            Ok(())
        };
        let attached = || -> Result<_> {
            let agent = lab.start_agent(1, "")?;
            Container::add(lab, 1, lab.c(1), "test.1")?;
            host.ns.run("ip link show ovp-tap0")?;
            host.ns.run("ip link show tap0")?;
            Ok(agent)
        };

        let first = lab.start_agent(1, "")?;
        host.overlay("network create uber-net")?;
        ensure!(first.stop()?.success());
        undone("SIGTERM without a container")?;

        ensure!(attached()?.stop()?.success());
        undone("SIGTERM")?;

        attached()?.kill();
        host.overlay("detach")?;
        undone("detach after kill -9")?;

        let mut last = lab.start_agent(1, "")?;
        host.overlay("detach")?;
        ensure!(last.ended()?.success());
        undone("detach")?;
        lab.ends_without_agents();
        Ok(())
    });
}

#[test]
fn sigterm_during_adds_ends_the_agent() {
    test(BIN, one_host(0), |lab| {
        let host = lab.host(1);
        let spaces = (1..=8)
            .map(|number| lab.add_container(&format!("c{number}")))
            .collect::<Result<Vec<_>>>()?;
        let first = lab.start_agent(1, "")?;
        host.overlay("network create uber-net")?;
        let mut agent = Some(first);
        for millis in [0, 30, 80, 200] {
            let running = match agent.take() {
                Some(agent) => agent,
                None => lab.start_agent(1, "")?,
            };
            let adds = spaces
                .iter()
                .map(|ns| Background::start(host.overlay_cmd(&add_line(ns.label(), ns))))
                .collect::<Result<Vec<_>>>()?;
            sleep(Duration::from_millis(millis));
            let status = running.stop()?;
            ensure!(status.success(), "{status} after {millis} ms");
            for add in adds {
                add.finish(NOTICED)?;
            }
            nothing_left(host).with_context(|| format!("SIGTERM after {millis} ms"))?;
            for ns in &spaces {
                is_empty(ns).with_context(|| format!("SIGTERM after {millis} ms"))?;
            }
        }
        // All names and namespaces are free again.
        let agent = lab.start_agent(1, "")?;
        for ns in &spaces {
            Container::add(lab, 1, ns, ns.label())?;
        }
        Ok(agent)
    });
}

#[test]
fn a_failed_restart_stops_no_traffic() {
    test(BIN, LabSpec::default(), |lab| {
        let mut overlay = Overlay::start(lab, "--datapath tcx")?;
        let host = lab.host(1);
        let (c1, c2) = (overlay.c(1).clone(), overlay.c(2).clone());
        let run = start_ping(&c1.ns, c2.ip, 1000, SECOND / 100)?;
        sleep(SECOND);
        overlay.agents.remove(0).kill();
        let address = (host.ip, 7946);
        let socket = host.ns.within(|| Ok(UdpSocket::bind(address)?))?;
        for changed in [
            "--datapath tcx",
            "--datapath xdp",
            "--datapath tcx --mtu 1000",
            "--datapath tcx --data-port 5000",
        ] {
            let done = host.overlay_any(&format!("attach --iface eth0 {changed}"))?;
            done.fails_with(&["7946"])
                .with_context(|| changed.to_owned())?;
        }
        drop(socket);
        overlay.agents.push(lab.start_agent(1, "--datapath tcx")?);
        nothing_lost(run)?;
        let c3 = Container::add(lab, 1, &lab.add_container("c3")?, "test.3")?;
        wait_until("test.2 pings test.3", NOTICED, || c2.reaches(&c3))?;
        Ok(overlay)
    });
}

#[test]
fn an_interrupted_add_blocks_no_name() {
    test(BIN, one_host(1), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        // From before the agent has heard of it until after it is done.
        for millis in 1..=24 {
            let name = format!("x{millis}");
            let ns = lab.add_container(&name)?;
            let add = Background::start(host.overlay_cmd(&add_line(&name, &ns)))?;
            sleep(Duration::from_millis(millis));
            // Kills it.
            drop(add);
            let remove = format!("container rm {name}");
            let mut why = String::new();
            wait_until("the name is attached or free", 5 * SECOND, || {
                let mut works = |line: &str| {
                    host.overlay(line)
                        .inspect_err(|error| why += &format!("{error:#}\n"))
                        .is_ok()
                };
                works(&remove) || (works(&add_line(&name, &ns)) && works(&remove))
            })
            .with_context(|| format!("{name}:\n{why}"))?;
            is_empty(&ns)?;
            let again = Container::add(lab, 1, &ns, &name)?;
            wait_until("test.1 pings it", NOTICED, || overlay.c(1).reaches(&again))?;
        }
        Ok(overlay)
    });
}

#[test]
fn another_uplink() {
    test(BIN, LabSpec::default(), |lab| {
        let mut overlay = Overlay::start(lab, "--datapath tcx")?;
        let host = lab.host(1);
        overlay.agents.remove(0).kill();
        let pins = Path::new(DIRS[0]).join(&host.instance);
        // Below a directory for the version of the maps' layout.
        let layouts = std::fs::read_dir(&pins)?.collect::<std::io::Result<Vec<_>>>()?;
        ensure!(layouts.len() == 1, "{layouts:?}");
        let links = layouts[0].path().join("links");
        let on_uplink = |name: &str| -> Result<usize> {
            let shown = host.ns.run(&format!("ip -o link show {name}"))?;
            let index = shown.split(':').next().context("no index")?;
            let prefix = format!("uplink-{index}-");
            let pins = std::fs::read_dir(&links)?
                .flatten()
                .filter(|pin| pin.file_name().to_string_lossy().starts_with(&prefix));
            Ok(pins.count())
        };
        ensure!(on_uplink("eth0")? == 1, "the data path must run on");
        second_interface(lab)?;

        let mut agent = Background::start(
            host.overlay_cmd("attach --iface eth1 --datapath tcx --host-name host1"),
        )?;
        wait_until("the agent is ready", NOTICED, || {
            !agent.is_running()
                || host
                    .overlay_any("status")
                    .is_ok_and(|done| done.status.success())
        })?;
        if !agent.is_running() {
            let done = agent.finish(SECOND)?;
            anyhow::bail!("it ended: {}{}", done.stdout, done.stderr);
        }
        ensure!(on_uplink("eth0")? == 0, "a program is left on eth0");
        ensure!(on_uplink("eth1")? == 1, "no program on eth1");
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        wait_until("test.1 pings test.2 over eth1", 3 * NOTICED, || {
            c1.reaches(c2)
        })?;
        Ok((overlay, agent))
    });
}

#[test]
fn another_datapath_after_kill_9() {
    let spec = LabSpec {
        containers: 2,
        ..LabSpec::default()
    };
    for [before, after] in [["tcx", "xdp"], ["xdp", "tcx"]] {
        test(BIN, spec.clone(), |lab| {
            let mut overlay = Overlay::start(lab, &format!("--datapath {before}"))?;
            let host = lab.host(1);
            let (process, by_pid) = container_by_pid(lab, host)?;
            // Both hosts change over: veths carry unfinished checksums, which XDP on a veth uplink
            // can't finish for a tcx host, as a NIC would have done.
            overlay.agents.drain(..).for_each(AgentProc::kill);
            let args = format!("--datapath {after}");
            let agents = [lab.start_agent(1, &args)?, lab.start_agent(2, &args)?];
            for peer in [overlay.c(1), overlay.c(2)] {
                wait_until("it is reached", NOTICED, || peer.reaches(&by_pid))?;
                tcp(peer, &by_pid)?;
                tcp(&by_pid, peer)?;
            }
            Ok((agents, process))
        });
    }
}

#[test]
fn small_mtu() {
    let spec = LabSpec {
        mtu: 1300,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let overlay = Overlay::start(lab, "")?;
        for container in &overlay.containers {
            let shown = container.ns.run("ip -o link show eth0")?;
            ensure!(shown.contains(" mtu 1250 "), "{shown}");
        }
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to) = (overlay.c(from), overlay.c(to));
            // 28 bytes of IP and ICMP headers.
            let fits = ping(&from.ns, to.ip, 3, 1222, true)?;
            ensure!(fits.lost() == 0, "{}", fits.output);
            let too_big = ping(&from.ns, to.ip, 3, 1223, true)?;
            ensure!(too_big.received == 0, "{}", too_big.output);
            tcp(from, to)?;
        }
        Ok(overlay)
    });
}

#[test]
fn different_data_and_esp_ports_are_refused() {
    let spec = LabSpec {
        containers: 0,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let first = lab.start_agent(1, "")?;
        let shown = lab.host(1).overlay_json("token show")?;
        let token = shown["token"].as_str().context("no token")?;
        let host = lab.host(2);
        let join = format!("--join {} --token {token}", lab.host(1).ip);
        let done = host.overlay_any(&format!("attach --iface eth0 --data-port 4790 {join}"))?;
        done.fails_with(&["4789"])?;
        nothing_left(host)?;
        // Without this, encrypted networks would be silent between the two.
        let done = host.overlay_any(&format!("attach --iface eth0 --esp-port 4501 {join}"))?;
        done.fails_with(&["--esp-port 4500"])?;
        nothing_left(host)?;
        // It has not become a member by that.
        let second = lab.start_agent(2, &join)?;
        Ok((first, second))
    });
}

fn one_host(containers: usize) -> LabSpec {
    LabSpec {
        hosts: 1,
        containers,
        ..LabSpec::default()
    }
}

fn add_line(name: &str, ns: &Ns) -> String {
    format!(
        "container add {name} --network uber-net --netns {}",
        ns.name()
    )
}

/// Gives host1 an eth1 to the router, over which everything goes from now on.
fn second_interface(lab: &Lab) -> Result<()> {
    let (host, router) = (&lab.host(1).ns, lab.router());
    host.run(&format!(
        "ip link add eth1 type veth peer name to-host1b netns {}",
        router.name()
    ))?;
    router.run("ip addr add 172.31.9.1/24 dev to-host1b")?;
    router.run("ip link set to-host1b up")?;
    host.run("ip addr add 172.31.9.5/24 dev eth1")?;
    host.run("ip link set eth1 up")?;
    host.run("ip route replace default via 172.31.9.1")?;
    Ok(())
}

/// Adds a namespace that has a process in it, and a name only for the tests.
fn container_by_pid(lab: &Lab, host: &Host) -> Result<(Background, Container)> {
    let process = host.ns.start("unshare --net sleep 1000")?;
    let program = format!("/proc/{}/comm", process.pid());
    wait_until("its namespace is made", SECOND, || {
        std::fs::read_to_string(&program).is_ok_and(|name| name == "sleep\n")
    })?;
    let added = host.overlay_json(&format!(
        "container add by-pid --network uber-net --pid {}",
        process.pid()
    ))?;
    let ns = lab.add_container("by-pid")?;
    ns.delete()?;
    host.ns
        .run(&format!("ip netns attach {} {}", ns.name(), process.pid()))?;
    Ok((process, Container::from_json(&added, &ns)?))
}

fn tcp(from: &Container, to: &Container) -> Result<()> {
    let traffic = iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 1)?;
    ensure!(
        traffic.gbit > 0.01,
        "{} → {}: {traffic:?}",
        from.name,
        to.name
    );
    Ok(())
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

fn nothing_left(host: &Host) -> Result<()> {
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "left on {}: {left:#?}", host.ns.label());
    Ok(())
}

fn is_empty(ns: &Ns) -> Result<()> {
    let veths = ns.run("ip -br link show type veth")?;
    ensure!(veths.is_empty(), "left in {}: {veths}", ns.label());
    Ok(())
}
