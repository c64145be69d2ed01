//! The tutorial.

use anyhow::{Result, ensure};
use overlay_lab::{AgentProc, Dockerd, Lab, wait_until};

use super::bed::{Bed, DRIVERS, SOON, args, ip, pings, with_dockers};

#[test]
fn the_overlay_tutorial() {
    // Nobody listens there: what is no name of ours is known at once to be none. One host is its
    // own resolver, which Docker asks on the host itself: see --dns below.
    with_dockers(["172.31.1.1", "127.0.0.1"], walk_through);
}

#[test]
fn networks_that_every_docker_has() {
    with_dockers(["172.31.1.1", "127.0.0.1"], |lab, bed| {
        let [one, two] = &bed.dockers;
        everywhere(lab, one, two)
    });
}

fn walk_through(lab: &Lab, bed: &mut Bed) -> Result<()> {
    let [one, two] = &bed.dockers;
    // One network, made where nobody has it and joined where somebody has.
    for docker in [one, two] {
        docker.docker(&format!(
            "network create {DRIVERS} -o overlay-dp.network=uber-net uber-net"
        ))?;
        let shown = docker.docker("network inspect uber-net")?;
        ensure!(
            shown.contains("\"Subnet\": \"10.0.0.0/24\"")
                && shown.contains("\"Gateway\": \"10.0.0.1"),
            "{shown}"
        );
    }
    one.run("test.1", "--network uber-net --network-alias first")?;
    two.run(
        "test.2",
        "--network uber-net --label overlay-dp.service=web --hostname second --dns 192.0.2.53",
    )?;
    let (ip1, ip2) = (
        ip(one, "test.1", "uber-net")?,
        ip(two, "test.2", "uber-net")?,
    );
    ensure!(ip1 != ip2, "both have {ip1}");

    // By name and address, both ways.
    pings(one, "test.1", "test.2")?;
    pings(two, "test.2", "test.1")?;
    pings(one, "test.1", &ip2.to_string())?;
    for name in ["first", "test.1.uber-net"] {
        pings(two, "test.2", name)?;
    }
    pings(one, "test.1", "tasks.web")?;
    let hops = one.docker("exec test.1 traceroute -m 3 -q 1 -w 2 test.2")?;
    let hops: Vec<&str> = hops.lines().skip(1).collect();
    ensure!(hops.len() == 1 && hops[0].contains("test.2"), "{hops:?}");
    let links = one.docker("exec test.1 /busybox ip -o link")?;
    ensure!(
        links.lines().count() == 2 && links.contains("mtu 1450"),
        "{links}"
    );
    let unknown = one.docker_any("exec test.1 ping -c 1 -W 1 no.such.name.example")?;
    ensure!(!unknown.status.success(), "{unknown:?}");

    a_resolver_past_us(bed)?;
    let [one, two] = &bed.dockers;
    other_networks(one, two)?;

    // A name changes.
    one.docker("rename test.1 renamed")?;
    pings(two, "test.2", "renamed")?;
    one.docker("rename renamed test.1")?;
    pings(two, "test.2", "test.1")?;

    // The agent's restart: Docker says nothing again, and nothing is lost.
    bed.agents.remove(0).kill();
    pings(two, "test.2", &ip1.to_string())?;
    bed.agents.insert(0, lab.start_agent(1, &args(lab, 1))?);
    pings(two, "test.2", "test.1")?;
    let [one, two] = &mut bed.dockers;
    one.run(
        "test.3",
        "--network uber-net --mac-address 02:00:00:00:00:33",
    )?;
    all_by_name(one, two)?;
    let links = one.docker("exec test.3 /busybox ip addr")?;
    ensure!(links.contains("02:00:00:00:00:33"), "{links}");

    a_stopped_agent(lab, &mut bed.agents, [one, two])?;

    all_by_name(one, two)?;

    // The daemon's restart, on either host.
    two.stop();
    *two = Dockerd::start(lab, 2)?;
    two.wait()?;
    two.docker("start test.2")?;
    all_by_name(one, two)?;
    pings(one, "test.3", &ip(two, "test.2", "uber-net")?.to_string())?;
    one.stop();
    *one = Dockerd::start(lab, 1)?;
    one.wait()?;
    one.docker("start test.1 test.3")?;
    all_by_name(one, two)?;

    // An end: nothing stays, in the cluster or on the hosts.
    one.docker("rm -f test.1 test.3")?;
    two.docker("rm -f test.2")?;
    for docker in [&*two, &*one] {
        docker.docker("network rm uber-net")?;
    }
    let networks = lab.host(2).overlay_json("network ls")?;
    ensure!(networks == serde_json::json!([]), "{networks}");
    for host in lab.hosts() {
        let links = host.ns.run("ip -br link")?;
        ensure!(
            !links.contains("ovc-") && !links.contains("ovp-"),
            "{links}"
        );
        wait_until("the host's own port goes, too", SOON, || {
            let gone = |command: &str| {
                let text = host.ns.run(command);
                text.is_ok_and(|text| !text.contains("ovr-") && !text.contains("overlay-dp"))
            };
            gone("ip -br link") && gone("nft list tables") && gone("iptables -S FORWARD")
        })?;
    }
    Ok(())
}

/// Each finds each, by name and alias, from wherever.
fn all_by_name(one: &Dockerd, two: &Dockerd) -> Result<()> {
    for name in ["test.1", "first", "test.3", "test.3.uber-net"] {
        pings(two, "test.2", name)?;
    }
    for from in ["test.1", "test.3"] {
        for name in ["test.2", "tasks.web"] {
            pings(one, from, name)?;
        }
    }
    pings(one, "test.3", "first")
}

/// Docker asks the loopback's resolver on the host, which does not know containers: that is said,
/// once there is a container that was given no other.
fn a_resolver_past_us(bed: &Bed) -> Result<()> {
    let [one, two] = &bed.dockers;
    let says = |number: usize| {
        let log = std::fs::read_to_string(bed.agents[number - 1].log_path());
        log.is_ok_and(|log| log.contains("Docker asks 127.0.0.1"))
    };
    ensure!(!says(2), "test.2 was given another one");
    two.run("deaf", "--network uber-net")?;
    wait_until("that it asks elsewhere is said", SOON, || says(2))?;
    let unknown = two.docker_any("exec deaf ping -c 1 -W 1 test.1")?;
    ensure!(!unknown.status.success(), "it knows, and was said not to");
    pings(one, "test.1", "deaf")?;
    pings(two, "deaf", &ip(one, "test.1", "uber-net")?.to_string())?;
    ensure!(!says(1), "the other host's resolver is asked by us");
    two.docker("rm -f deaf").map(drop)
}

/// A second network beside the first one, without a way out.
fn other_networks(one: &Dockerd, two: &Dockerd) -> Result<()> {
    for docker in [one, two] {
        docker.docker(&format!(
            "network create {DRIVERS} --internal --subnet 10.77.0.0/24 --aux-address printer=10.77.0.9 \
             -o overlay-dp.network=blue blue"
        ))?;
    }
    one.docker("network connect --ip 10.77.0.50 blue test.1")?;
    two.docker("network connect --alias sky blue test.2")?;
    pings(two, "test.2", "10.77.0.50")?;
    pings(one, "test.1", "sky.blue")?;
    one.run("alone", "--network blue")?;
    pings(one, "alone", "sky")?;
    let routes = one.docker("exec alone /busybox ip route")?;
    ensure!(!routes.contains("default"), "{routes}");
    one.docker("rm -f alone")?;
    one.docker("network disconnect blue test.1")?;
    two.docker("network disconnect blue test.2")?;
    let gone = two.docker_any("exec test.2 ping -c 1 -W 1 10.77.0.50")?;
    ensure!(!gone.status.success(), "{gone:?}");
    for docker in [two, one] {
        docker.docker("network rm blue")?;
    }
    Ok(())
}

/// One Docker is told, the other one gets it, too.
fn everywhere(lab: &Lab, one: &Dockerd, two: &Dockerd) -> Result<()> {
    let has = |docker: &Dockerd, name: &str| {
        let names = docker.docker("network ls --format {{.Name}}");
        names.is_ok_and(|names| names.lines().any(|line| line == name))
    };
    one.docker(&format!(
        "network create {DRIVERS} -o overlay-dp.everywhere=true -o overlay-dp.network=green green"
    ))?;
    lab.host(2)
        .overlay("network create red --subnet 10.88.0.0/24")?;
    // Who makes it where Docker asks past us is told so.
    let made = lab.host(2).overlay_any("docker create red --everywhere")?;
    ensure!(made.stderr.contains("Docker asks 127.0.0.1"), "{made:?}");
    made.ok()?;
    wait_until("both have both", SOON, || {
        has(two, "green") && has(one, "red")
    })?;
    one.run("r1", "--network red --ip 10.88.0.40")?;
    two.run("g2", "--network green")?;
    two.docker("network connect red g2")?;
    pings(two, "g2", "10.88.0.40")?;
    one.docker("rm -f r1")?;
    two.docker("rm -f g2")?;
    // It goes where it was made, and then elsewhere; and it stays away where it was not wanted.
    one.docker("network rm green red")?;
    wait_until("it is gone from the other one", SOON, || !has(two, "green"))?;
    ensure!(
        has(two, "red") && !has(one, "red"),
        "what is removed by hand stays removed"
    );
    two.docker("network rm red")?;
    lab.host(1).overlay("network rm red").map(drop)
}

/// An agent that is told to stop detaches its containers; the next one plugs them in again, and
/// tidies up after those that went meanwhile.
fn a_stopped_agent(
    lab: &Lab,
    agents: &mut Vec<AgentProc>,
    [one, two]: [&Dockerd; 2],
) -> Result<()> {
    one.run("short", "--network uber-net")?;
    let pid: i32 = one.inspect("short", ".State.Pid")?.parse()?;
    agents.remove(0).stop()?;
    let links = one.docker("exec test.1 /busybox ip -o link")?;
    ensure!(links.lines().count() == 1, "{links}");
    // Ended by itself: Docker then waits for the plugin in vain, and goes on.
    lab.host(1).ns.run(&format!("kill -9 {pid}"))?;
    agents.insert(0, lab.start_agent(1, &args(lab, 1))?);
    pings(two, "test.2", "test.1")?;
    pings(one, "test.1", &ip(two, "test.2", "uber-net")?.to_string())?;
    pings(two, "test.2", "test.3")?;
    one.docker("rm -f short").map(drop)
}
