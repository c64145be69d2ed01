//! Agents and containers that come, die and go.
//!
//! ```text
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//! ```

#[path = "lifecycle/load.rs"]
mod load;

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use load::Load;
use overlay_lab::{Container, Host, Lab, LabSpec, Ns, Overlay, start_ping, test, wait_until};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which another host, or the agent itself, must have noticed.
const NOTICED: Duration = Duration::from_secs(10);

#[test]
fn kill_9_and_restart_lose_nothing_with_xdp() {
    kill_9_and_restart_lose_nothing("xdp");
}

#[test]
fn kill_9_and_restart_lose_nothing_with_tcx() {
    kill_9_and_restart_lose_nothing("tcx");
}

fn kill_9_and_restart_lose_nothing(datapath: &str) {
    test(BIN, LabSpec::default(), |lab| {
        let args = format!("--datapath {datapath}");
        let mut overlay = Overlay::start(lab, &args)?;
        for number in [1, 2] {
            let (c1, c2) = (overlay.c(1), overlay.c(2));
            let run = start_ping(&c1.ns, c2.ip, 1000, Duration::from_millis(10))?;
            sleep(SECOND);
            overlay.agents.remove(number - 1).kill();
            sleep(3 * SECOND);
            let agent = lab.start_agent(number, &args)?;
            overlay.agents.insert(number - 1, agent);
            let stats = run.finish()?;
            ensure!(
                stats.lost() == 0 && stats.duplicates == 0,
                "{}",
                stats.output
            );
        }
        // They took over the whole state: more containers can come, and old ones can go.
        let ns = lab.add_container("c3")?;
        let c3 = Container::add(lab, 1, &ns, "test.3")?;
        wait_until("test.2 pings test.3", NOTICED, || overlay.c(2).reaches(&c3))?;
        lab.host(2).overlay("container rm test.2")?;
        ensure!(links(&overlay.c(2).ns)? == ["lo"]);
        Ok(overlay)
    });
}

#[test]
fn restarts_at_full_load_lose_nothing_with_xdp() {
    restarts_at_full_load_lose_nothing("xdp");
}

#[test]
fn restarts_at_full_load_lose_nothing_with_tcx() {
    restarts_at_full_load_lose_nothing("tcx");
}

/// 20,000 datagrams a second, and a TCP stream beside them, while each agent is killed, started,
/// stopped in order and started again.
fn restarts_at_full_load_lose_nothing(datapath: &str) {
    test(BIN, LabSpec::default(), |lab| {
        let args = format!("--datapath {datapath} --on-exit keep");
        let mut overlay = Overlay::start(lab, &args)?;
        let (c1, c2) = (overlay.c(1).clone(), overlay.c(2).clone());
        let load = Load::start(&c1.ns, &c2.ns, c2.ip)?;
        sleep(SECOND / 2);
        for number in [1, 2] {
            for orderly in [false, true] {
                let agent = overlay.agents.remove(number - 1);
                if orderly {
                    let status = agent.stop()?;
                    ensure!(status.success(), "{status}");
                } else {
                    agent.kill();
                }
                sleep(SECOND / 2);
                let agent = lab.start_agent(number, &args)?;
                overlay.agents.insert(number - 1, agent);
                sleep(SECOND / 2);
            }
        }
        let report = load.finish()?;
        ensure!(
            report.received == report.sent && report.bytes_received == report.bytes_sent,
            "{report:?}"
        );
        // Of what it is about, not of a machine that was too slow for it.
        ensure!(report.sent > 10_000, "{report:?}");
        Ok(overlay)
    });
}

#[test]
fn sigterm_undoes_everything() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        for agent in overlay.agents {
            let host = agent.host().clone();
            let status = agent.stop()?;
            ensure!(status.success(), "{status}");
            nothing_left(&host)?;
        }
        for container in &overlay.containers {
            ensure!(links(&container.ns)? == ["lo"], "{}", container.name);
        }
        lab.ends_without_agents();
        Ok(())
    });
}

#[test]
fn detach_undoes_everything() {
    test(BIN, LabSpec::default(), |lab| {
        let mut overlay = Overlay::start(lab, "")?;
        // The manager last.
        for number in [2, 1] {
            lab.host(number).overlay("detach")?;
            let status = overlay.agents[number - 1].ended()?;
            ensure!(status.success(), "{status}");
            nothing_left(lab.host(number))?;
            ensure!(links(lab.c(number))? == ["lo"]);
        }
        lab.ends_without_agents();
        Ok(())
    });
}

#[test]
fn detach_undoes_what_a_dead_agent_left() {
    for datapath in ["xdp", "tcx"] {
        test(
            BIN,
            LabSpec {
                hosts: 1,
                containers: 1,
                ..LabSpec::default()
            },
            |lab| {
                let mut overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
                overlay.agents.remove(0).kill();
                ensure!(
                    !lab.host(1).leftovers()?.is_empty(),
                    "the data path must run on"
                );
                lab.host(1).overlay("detach")?;
                nothing_left(lab.host(1))?;
                ensure!(links(lab.c(1))? == ["lo"]);
                lab.ends_without_agents();
                Ok(())
            },
        );
    }
}

#[test]
fn a_removed_container_leaves_no_trace() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let gone = overlay.c(1);
        lab.host(1).overlay("container rm test.1")?;
        ensure!(links(&gone.ns)? == ["lo"]);
        is_forgotten(lab, gone)?;
        // Its name and namespace are free again.
        let again = Container::add(lab, 1, &gone.ns, "test.1")?;
        wait_until("test.2 pings it", NOTICED, || overlay.c(2).reaches(&again))?;
        Ok(overlay)
    });
}

#[test]
fn a_deleted_namespace_is_noticed() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        lab.c(1).delete()?;
        is_forgotten(lab, overlay.c(1))?;
        Ok(overlay)
    });
}

#[test]
fn a_dead_process_with_its_namespace_is_noticed() {
    test(
        BIN,
        LabSpec {
            containers: 1,
            ..LabSpec::default()
        },
        |lab| {
            let overlay = Overlay::start(lab, "")?;
            let host = lab.host(1);
            let process = host.ns.start("unshare --net sleep 1000")?;
            // The container is up when the program inside is, not before.
            let program = format!("/proc/{}/comm", process.pid());
            wait_until("its namespace is made", SECOND, || {
                std::fs::read_to_string(&program).is_ok_and(|name| name == "sleep\n")
            })?;
            let added = host.overlay_json(&format!(
                "container add by-pid --network uber-net --pid {}",
                process.pid()
            ))?;
            let by_pid = Container::from_json(&added, &overlay.c(1).ns)?;
            wait_until("test.1 pings it", NOTICED, || overlay.c(1).reaches(&by_pid))?;
            drop(process);
            is_forgotten(lab, &by_pid)?;
            Ok(overlay)
        },
    );
}

/// No host lists the container or forwards to it, and its port is gone.
fn is_forgotten(lab: &Lab, gone: &Container) -> Result<()> {
    let ports = || -> Result<usize> {
        let status = lab.host(1).overlay_json("status")?;
        let ports = status["ports"].as_u64().context("no ports in status")?;
        let interfaces = links(&lab.host(1).ns)?;
        let begin = |prefix: &str| {
            let names = interfaces.iter();
            names.filter(|name| name.starts_with(prefix)).count()
        };
        // The host has a port of its own in the network.
        let interfaces = begin("ovp-") - begin("ovr-");
        ensure!(
            interfaces as u64 == ports,
            "{interfaces} ovp- interfaces for {ports} ports"
        );
        Ok(interfaces)
    };
    for host in lab.hosts() {
        for table in ["container ls", "fdb show"] {
            let what = format!("{} is not in {table} of {}", gone.name, host.ns.label());
            wait_until(&what, NOTICED, || {
                host.overlay(&format!("{table} --json"))
                    .is_ok_and(|text| !text.contains(&gone.mac))
            })?;
        }
    }
    wait_until("its port is gone", NOTICED, || {
        let local = lab.host(1).overlay_json("container ls --local").ok();
        let local = local.and_then(|rows| rows.as_array().map(Vec::len));
        local.is_some() && ports().ok() == local
    })
}

fn nothing_left(host: &Host) -> Result<()> {
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "left on {}: {left:#?}", host.ns.label());
    Ok(())
}

fn links(ns: &Ns) -> Result<Vec<String>> {
    let links: serde_json::Value = serde_json::from_str(&ns.run("ip -j link show")?)?;
    let names = links.as_array().context("not a list")?.iter();
    Ok(names
        .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
        .collect())
}
