//! Agents that are killed at every point of adding and removing a container.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Background, Cluster, Container, Lab, Ns, test, wait_until};

use crate::{BIN, HEALED, SOON, column, one_on_each, spec};

/// Commands take some 30 ms here, most of it in the agent.
const POINTS: [u64; 9] = [4, 8, 12, 16, 20, 25, 30, 40, 60];

#[test]
fn leaked_ip() {
    test(BIN, spec(2), |lab| {
        let mut cluster = Cluster::start(lab, 1, "")?;
        let containers = one_on_each(lab, &cluster)?;
        let ns = lab.add_container("x")?;
        for millis in POINTS {
            let add = add_line("x", &ns);
            crash_during(&mut cluster, &add, millis)?;
            if has(lab, "x")? {
                lab.host(2).overlay("container rm x")?;
            }
            lab.host(2).overlay(&add)?;
            crash_during(&mut cluster, "container rm x", millis)?;
            if has(lab, "x")? {
                lab.host(2).overlay("container rm x")?;
            }
        }
        lab.verify_clean(HEALED)?;
        for (container, host) in containers.iter().zip(lab.hosts()) {
            container.detach(host)?;
        }
        // It is refused as long as any host holds an address.
        wait_until("every address is given back", SOON, || {
            lab.host(1).overlay("network rm uber-net").is_ok()
        })?;
        for host in ["host1", "host2"] {
            let shown = lab.host(1).overlay_json(&format!("host inspect {host}"))?;
            let held = shown[0]["addresses"].as_array().context("no addresses")?;
            ensure!(held.is_empty(), "{shown:#}");
        }
        lab.verify_clean(HEALED)
    });
}

#[test]
fn interface_file_exists_after_crash() {
    test(BIN, spec(2), |lab| {
        let mut cluster = Cluster::start(lab, 1, "")?;
        let containers = one_on_each(lab, &cluster)?;
        let ns = lab.add_container("x")?;
        for millis in POINTS {
            crash_during(&mut cluster, &add_line("x", &ns), millis)?;
            // The same name in the same namespace at the first attempt: nothing is in its way.
            if has(lab, "x")? {
                lab.host(2).overlay("container rm x")?;
            }
            let again = Container::attach(lab.host(2), &ns, "x", "--network uber-net")
                .with_context(|| format!("after a crash {millis} ms into an add"))?;
            containers[0].wait_reaches(&again, SOON)?;
            again.detach(lab.host(2))?;
            let links = ns.run("ip -br link show type veth")?;
            ensure!(links.is_empty(), "{links}");
            let links = lab.host(2).ns.run("ip -br link show type veth")?;
            let ports = |prefix: &str| links.lines().filter(|l| l.starts_with(prefix)).count();
            // The host has a port of its own in the network.
            let (all, routers) = (ports("ovp-"), ports("ovr-"));
            ensure!(
                (all, routers) == (2, 1),
                "not test.2's and the host's: {links}"
            );
        }
        lab.verify_clean(HEALED)
    });
}

fn add_line(name: &str, ns: &Ns) -> String {
    format!(
        "container add {name} --network uber-net --netns {}",
        ns.name()
    )
}

/// Gives host2's agent a command, and kills it some time later.
fn crash_during(cluster: &mut Cluster, line: &str, millis: u64) -> Result<()> {
    let command = Background::start(cluster.host(2).overlay_cmd(line))?;
    sleep(Duration::from_millis(millis));
    cluster.kill(2);
    // Whatever it says: nobody can know.
    command.finish(SOON)?;
    cluster.restart(2)
}

fn has(lab: &Lab, name: &str) -> Result<bool> {
    let names = column(lab, 2, "container ls --local", "name")?;
    Ok(names.iter().any(|known| known == name))
}
