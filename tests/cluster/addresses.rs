//! Addresses: what a user asks for, both families, none left; and networks that are only where
//! they are used.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Cluster, Container, Host, Lab, Load, all_reach_each_other, iperf3, test, wait_until,
};

use crate::{BIN, HEALED, SOON, column, spec};

#[test]
fn subnets_ranges_and_families() {
    test(BIN, spec(3), |lab| {
        let _cluster = Cluster::start(lab, 1, "")?;
        what_is_asked_for_is_given(lab)?;
        dual_stack(lab)?;
        ipv6_only(lab)?;
        routes_of_the_host_stay_reachable(lab)?;
        a_network_is_only_where_it_is_used(lab)?;
        lab.verify_clean(HEALED)
    });
}

/// `--subnet`, `--gateway`, `--ip-range` and `--ip`.
fn what_is_asked_for_is_given(lab: &Lab) -> Result<()> {
    lab.host(2).overlay(
        "network create asked --subnet 10.20.0.0/16 --gateway 10.20.0.254 --ip-range 10.20.128.0/20",
    )?;
    let (first, last) = (
        Ipv4Addr::new(10, 20, 128, 0),
        Ipv4Addr::new(10, 20, 143, 255),
    );
    let mut all = Vec::new();
    for number in 1..=3 {
        let ns = lab.add_container(&format!("a{number}"))?;
        let name = format!("asked.{number}");
        let c = Container::attach(lab.host(number), &ns, &name, "--network asked")?;
        ensure!((first..=last).contains(&ipv4(&c)?), "{}", c.ip);
        let routes = c.ns.run("ip route show")?;
        ensure!(!routes.contains("10.20.0.1 "), "{routes}");
        all.push(c);
    }
    // Outside of the range, but inside the subnet; then nobody else may have it.
    let ns = lab.add_container("a4")?;
    let fixed = Container::attach(
        lab.host(3),
        &ns,
        "asked.4",
        "--network asked --ip 10.20.0.80",
    )?;
    ensure!(fixed.ip == IpAddr::from([10, 20, 0, 80]));
    let onto = |host: usize, ip: &str| {
        format!(
            "container add new --network asked --ip {ip} --netns {}",
            lab.c(host).name()
        )
    };
    for host in [1, 3] {
        lab.host(host)
            .overlay_fails(&onto(host, "10.20.0.80"), &["10.20.0.80"])?;
    }
    lab.host(1)
        .overlay_fails(&onto(1, "10.20.0.254"), &["gateway"])?;
    lab.host(1)
        .overlay_fails(&onto(1, "10.20.255.255"), &["10.20.255.255"])?;
    all.push(fixed);
    all_reach_each_other(&all, SOON)?;
    // It is free again when it is free, at every host.
    all.pop().context("none")?.detach(lab.host(3))?;
    wait_until("the address is free for host1", SOON, || {
        lab.host(1).overlay(&onto(1, "10.20.0.80")).is_ok()
    })?;
    lab.host(1).overlay("container rm new")?;
    remove(lab, &all)
}

fn dual_stack(lab: &Lab) -> Result<()> {
    let network = lab.host(1).overlay_json("network create dual --ipv6")?;
    let all = three(lab, "dual", "")?;
    for c in &all {
        // The last one is link-local.
        let [IpAddr::V4(_), IpAddr::V6(six), _] = c.ips[..] else {
            anyhow::bail!("{:?} in {network}", c.ips);
        };
        ensure!(six.is_unique_local(), "{six}");
    }
    all_reach_each_other(&all, SOON)?;
    for ip in &all[2].ips[..2] {
        let tcp = iperf3(&all[0].ns, &all[2].ns, *ip, Load::Tcp, 1)?;
        ensure!(tcp.gbit > 0.05, "{ip}: {tcp:?}");
    }
    remove(lab, &all)
}

fn ipv6_only(lab: &Lab) -> Result<()> {
    lab.host(3)
        .overlay("network create six --subnet 2001:db8:6::/64")?;
    let all = three(lab, "six", "")?;
    for c in &all {
        ensure!(c.ips.iter().all(IpAddr::is_ipv6), "{:?}", c.ips);
    }
    all_reach_each_other(&all, SOON)?;
    let tcp = iperf3(&all[1].ns, &all[0].ns, all[0].ip, Load::Tcp, 1)?;
    ensure!(tcp.gbit > 0.05, "{tcp:?}");
    let ns = lab.add_container("six-fixed")?;
    let wanted = "--network six --ip 2001:db8:6::beef";
    let fixed = Container::attach(lab.host(1), &ns, "six.fixed", wanted)?;
    all[2].wait_reaches(&fixed, SOON)?;
    fixed.detach(lab.host(1))?;
    remove(lab, &all)
}

/// A subnet over a route would cut the host, or the containers, off from what is there.
fn routes_of_the_host_stay_reachable(lab: &Lab) -> Result<()> {
    let host = lab.host(2);
    host.ns.run("ip route add 10.77.0.0/16 via 192.168.1.1")?;
    for subnet in ["10.77.1.0/24", "10.64.0.0/10", "192.168.1.0/24"] {
        host.overlay_fails(&format!("network create over --subnet {subnet}"), &[subnet])?;
    }
    // The first free /24 is not free when it is a route.
    host.ns.run("ip route add 10.0.0.0/23 via 192.168.1.1")?;
    let made = host.overlay_json("network create beside")?;
    let subnet = made["subnet"].as_str().context("no subnet")?;
    ensure!(
        !["10.0.0.0/24", "10.0.1.0/24"].contains(&subnet),
        "{subnet}"
    );
    host.overlay("network rm beside")?;
    host.ns.run("ip route del 10.77.0.0/16")?;
    host.ns.run("ip route del 10.0.0.0/23").map(drop)
}

fn a_network_is_only_where_it_is_used(lab: &Lab) -> Result<()> {
    lab.host(1).overlay("network create lazy")?;
    let attached = |number: usize| -> Result<bool> {
        let rows = lab.host(number).overlay_json("network ls")?;
        let mut rows = rows.as_array().context("not a list")?.iter();
        let row = rows
            .find(|row| row["name"] == "lazy")
            .context("not listed")?;
        row["attached"].as_bool().context("attached")
    };
    let macs = |number: usize| -> Result<Vec<String>> {
        column(lab, number, "fdb show --network lazy", "mac")
    };
    let one = Container::attach(lab.host(1), lab.c(1), "lazy.1", "--network lazy")?;
    for number in [2, 3] {
        ensure!(!attached(number)?, "host{number}");
        ensure!(
            macs(number)?.is_empty(),
            "host{number}: {:?}",
            macs(number)?
        );
    }
    let two = Container::attach(lab.host(2), lab.c(2), "lazy.2", "--network lazy")?;
    all_reach_each_other([&one, &two], SOON)?;
    ensure!(attached(2)? && macs(2)?.contains(&one.mac));
    ensure!(!attached(3)? && macs(3)?.is_empty(), "{:?}", macs(3)?);
    two.detach(lab.host(2))?;
    wait_until("it leaves with the last container", SOON, || {
        !attached(2).unwrap_or(true) && macs(2).is_ok_and(|macs| macs.is_empty())
    })?;
    // Whoever asks is told all the same.
    let shown = lab.host(3).overlay_json("network inspect lazy")?;
    ensure!(shown[0]["containers"][0]["name"] == "lazy.1", "{shown:#}");
    one.detach(lab.host(1))
}

#[test]
fn exhaustion_is_said_at_the_command() {
    test(BIN, spec(3), |lab| {
        let _cluster = Cluster::start(lab, 1, "")?;
        lab.host(1)
            .overlay("network create tiny --subnet 10.50.0.0/29 --internal")?;
        fill(lab, "tiny", 5)?;
        lab.host(1).overlay("network create full")?;
        // Each host has one itself.
        fill(lab, "full", 253 - 3)?;
        lab.verify_clean(HEALED)
    });
}

/// Attaches as many containers as the network has addresses, from all hosts at the same time. One
/// more is refused on each host, and gets what another host gives back.
fn fill(lab: &Lab, network: &str, size: usize) -> Result<()> {
    let hosts = lab.hosts().len();
    let of = |host: usize| (0..size).filter(move |n| n % hosts == host - 1);
    thread::scope(|scope| {
        let adding = (1..=hosts)
            .map(|host| scope.spawn(move || of(host).try_for_each(|n| add(lab, host, network, n))));
        let adding: Vec<_> = adding.collect();
        adding.into_iter().try_for_each(|job| {
            job.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
    .with_context(|| format!("filling {network}"))?;
    for host in 1..=hosts {
        let asked = Instant::now();
        let refused = lab
            .host(host)
            .overlay_any(&line(lab, host, network, size))?;
        refused.fails_with(&[network, "no free address"])?;
        ensure!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    let ips = column(lab, 1, &format!("container ls --network {network}"), "ip")?;
    let mut unique = ips.clone();
    unique.sort_unstable();
    unique.dedup();
    ensure!(
        unique.len() == size,
        "{} of {size} addresses: {ips:?}",
        unique.len()
    );

    // Host1 has one too many, and host2 takes it.
    remove_named(lab.host(1), network, [0])?;
    add(lab, 2, network, size).context("the address comes to host2")?;
    for host in 1..=hosts {
        let extra = (host == 2).then_some(size);
        remove_named(
            lab.host(host),
            network,
            of(host).filter(|n| *n > 0).chain(extra),
        )?;
    }
    wait_until("all addresses are given back", SOON, || {
        lab.host(3)
            .overlay(&format!("network rm {network}"))
            .is_ok()
    })
}

/// Number n is in its host's namespace as interface n.
fn line(lab: &Lab, host: usize, network: &str, n: usize) -> String {
    let ns = lab.c(host).name();
    format!("container add {network}.{n} --network {network} --netns {ns} --ifname n{n}")
}

/// When few are left, another host may have to give some back first.
fn add(lab: &Lab, host: usize, network: &str, n: usize) -> Result<()> {
    let line = line(lab, host, network, n);
    let mut why = String::new();
    wait_until(&line, SOON, || {
        let added = lab.host(host).overlay(&line);
        why = added
            .as_ref()
            .err()
            .map_or(String::new(), |e| format!("{e:#}"));
        added.is_ok()
    })
    .with_context(|| why.clone())
}

fn remove_named(
    host: &Host,
    network: &str,
    numbers: impl IntoIterator<Item = usize>,
) -> Result<()> {
    let names: String = numbers
        .into_iter()
        .map(|n| format!(" {network}.{n}"))
        .collect();
    host.overlay(&format!("container rm{names}")).map(drop)
}

/// One container on each of three hosts.
fn three(lab: &Lab, network: &str, options: &str) -> Result<Vec<Container>> {
    let options = format!("--network {network} {options}");
    (1..=3)
        .map(|number| {
            let name = format!("{network}.{number}");
            Container::attach(lab.host(number), lab.c(number), &name, &options)
        })
        .collect()
}

/// Removes container n from host n, and then the network.
fn remove(lab: &Lab, containers: &[Container]) -> Result<()> {
    for (container, host) in containers.iter().zip(lab.hosts()) {
        container.detach(host)?;
    }
    let network = &containers.first().context("no container")?.network;
    wait_until("its addresses are given back", SOON, || {
        lab.host(1)
            .overlay(&format!("network rm {network}"))
            .is_ok()
    })
}

fn ipv4(container: &Container) -> Result<Ipv4Addr> {
    match container.ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => anyhow::bail!("{ip} is not IPv4"),
    }
}
