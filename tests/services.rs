//! What is published: of a container on its host, and of a service on every host.
//!
//! ```text
//!   c1, c4 ── host1 172.31.1.5 ──┐
//!   c2 ────── host2 192.168.1.5 ─ router ── 203.0.113.9 outside
//!   (none) ── host3 172.31.2.5 ──┘
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{
    AgentProc, Container, Host, Lab, LabSpec, Load, Ns, Outside, Teller, Told, ask_udp, iperf3,
    join_args, test, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(10);

/// Three hosts and a network.
fn cluster(lab: &Lab, args: &str) -> Result<Vec<AgentProc>> {
    let mut agents = vec![lab.start_agent(1, args)?];
    let join = join_args(lab.host(1), false)?;
    for number in 2..=lab.hosts().len() {
        agents.push(lab.start_agent(number, &format!("{args} {join}"))?);
    }
    lab.host(1).overlay("network create uber-net")?;
    Ok(agents)
}

fn spec() -> LabSpec {
    LabSpec {
        hosts: 3,
        containers: 3,
        ..LabSpec::default()
    }
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::from((host.ip, port))
}

#[test]
fn tcx_publishes_on_a_host() {
    publishes_on_a_host("tcx");
}

#[test]
fn xdp_publishes_on_a_host() {
    publishes_on_a_host("xdp");
}

fn publishes_on_a_host(datapath: &str) {
    test(
        BIN,
        LabSpec {
            containers: 3,
            ..LabSpec::default()
        },
        |lab| {
            let outside = Outside::connect(lab)?;
            let agents = cluster(lab, &format!("--datapath {datapath}"))?;
            let (host, other) = (lab.host(1), lab.host(2));
            let options = "--network uber-net --publish 8080:80 --publish 8080:80/udp";
            let c1 = Container::attach(host, lab.c(1), "c1", options)?;
            let c2 = Container::attach(other, lab.c(2), "c2", "--network uber-net")?;
            let c3 = Container::attach(host, lab.c(3), "c3", "--network uber-net")?;
            Teller::serve(&c1.ns, 80, "c1")?;
            let published = at(host, 8080);

            // The client's own address, from wherever it comes.
            for (from, seen) in [
                (&outside.ns, outside.ip),
                (&other.ns, other.ip.into()),
                (&host.ns, host.ip.into()),
                // Masqueraded by its own host on its way out.
                (&c2.ns, other.ip.into()),
                // The answer must come back the same way.
                (&c3.ns, host.router_ip(4096)?),
                (&c1.ns, host.router_ip(4096)?),
            ] {
                let mut told = Told::connect(from, published)?;
                ensure!(
                    (told.server.as_str(), told.client) == ("c1", seen),
                    "{}: {told:?}",
                    from.label()
                );
                told.echo(1 << 20)?;
                let (_, client) = ask_udp(from, published)?;
                ensure!(client == seen, "{}: {client}", from.label());
            }
            // The host's loopback leads there, too.
            let told = Told::connect(&host.ns, SocketAddr::from(([127, 0, 0, 1], 8080)))?;
            ensure!(
                told.server == "c1" && told.client == host.router_ip(4096)?,
                "{told:?}"
            );
            // And nobody else's port is touched.
            ensure!(Told::connect(&outside.ns, at(host, 8081)).is_err());

            conflicts(lab, host)?;
            c1.detach(host)?;
            ensure!(Told::connect(&outside.ns, published).is_err());
            // The port is free again.
            Teller::serve(&host.ns, 8080, "host")?;
            ensure!(Told::connect(&outside.ns, published)?.server == "host");
            Ok(agents)
        },
    );
}

fn conflicts(lab: &Lab, host: &Host) -> Result<()> {
    let ns = lab.add_container("c9")?;
    let add = |publish: &str| {
        format!(
            "container add c9 --network uber-net --netns {} --publish {publish}",
            ns.name()
        )
    };
    host.overlay_fails(&add("8080:81"), &["8080/tcp", "'c1'"])?;
    host.overlay_fails(&add("127.0.0.1:8080:81"), &["8080/tcp", "'c1'"])?;
    Teller::serve(&host.ns, 9999, "host")?;
    host.overlay_fails(&add("9999:81"), &["9999/tcp", "in use"])?;
    host.overlay_fails(&add("192.0.2.7:9998:81"), &["192.0.2.7"])?;
    let bad = host.overlay_any(&add("no"))?;
    ensure!(
        bad.stderr.contains("write [HOSTIP:]HOSTPORT:PORT"),
        "{}",
        bad.stderr
    );
    // Nothing of it is left.
    let listed = host.overlay("container ls")?;
    ensure!(!listed.contains("c9"), "{listed}");
    Ok(())
}

#[test]
fn tcx_publishes_on_every_host() {
    publishes_on_every_host("tcx");
}

#[test]
fn xdp_publishes_on_every_host() {
    publishes_on_every_host("xdp");
}

fn publishes_on_every_host(datapath: &str) {
    test(BIN, spec(), |lab| {
        let outside = Outside::connect(lab)?;
        let mut agents = cluster(lab, &format!("--datapath {datapath}"))?;
        lab.host(2).overlay(
            "service create web --network uber-net --publish 8080:80 --publish 8080:80/udp",
        )?;
        let add = |host: usize, c: usize| {
            Container::attach(
                lab.host(host),
                lab.c(c),
                &format!("c{c}"),
                "--network uber-net --service web",
            )
        };
        let (c1, c2) = (add(1, 1)?, add(2, 2)?);
        for c in [&c1, &c2] {
            Teller::serve(&c.ns, 80, &c.name)?;
        }
        let both: BTreeSet<String> = [&c1, &c2].map(|c| c.name.clone()).into();
        for host in lab.hosts() {
            let label = host.ns.label();
            reaches_all(&outside.ns, host, &both)?;
            // Bulk through each host to each task, with the client's own address.
            let mut bulk = BTreeSet::new();
            while bulk != both {
                let mut told = Told::connect(&outside.ns, at(host, 8080))?;
                ensure!(told.client == outside.ip, "{label}: {told:?}");
                if bulk.insert(told.server.clone()) {
                    told.echo(4 << 20)?;
                }
            }
            for _ in 0..8 {
                let (_, client) = ask_udp(&outside.ns, at(host, 8080))?;
                ensure!(client == outside.ip, "{label}: {client}");
                let told = Told::connect(&host.ns, at(host, 8080))?;
                ensure!(told.client == IpAddr::from(host.ip), "{label}: {told:?}");
            }
        }
        iperf_through_the_mesh(lab, &outside)?;
        keeps_connections(lab, &outside, &mut agents, (&c1, &c2))?;
        listed_and_removed(lab, &outside)?;
        Ok(agents)
    });
}

/// What the kernel's conntrack has forgotten goes on when the client speaks again. A connection with
/// a VIP, which is none of conntrack's, has no clock at all.
#[test]
fn idle_connections_are_not_reset() {
    test(BIN, spec(), |lab| {
        let outside = Outside::connect(lab)?;
        let agents = cluster(lab, "")?;
        let (first, second, third) = (lab.host(1), lab.host(2), lab.host(3));
        let created =
            third.overlay_json("service create web --network uber-net --publish 8080:80")?;
        let vip: IpAddr = created["vips"][0].as_str().context("no VIP")?.parse()?;
        let options = "--network uber-net --publish 8081:80";
        let c1 = Container::attach(first, lab.c(1), "c1", options)?;
        let c2 = Container::attach(second, lab.c(2), "c2", "--network uber-net --service web")?;
        Teller::serve(&c1.ns, 80, "c1")?;
        Teller::serve(&c2.ns, 80, "c2")?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        for host in lab.hosts() {
            host.ns
                .run("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=1")?;
            reaches_all(&outside.ns, host, &[c2.name.clone()].into())?;
        }
        c1.wait_reaches(&c2, SOON)?;
        let mut idle = Vec::new();
        for (what, from, to) in [
            (
                "published on the client's way",
                &outside.ns,
                at(first, 8081),
            ),
            (
                "a service through its task's host",
                &outside.ns,
                at(second, 8080),
            ),
            (
                "a service through another host",
                &outside.ns,
                at(third, 8080),
            ),
            ("a way out", &c1.ns, SocketAddr::from((outside.ip, 7000))),
            ("a VIP", &c1.ns, SocketAddr::from((vip, 80))),
        ] {
            let mut told = Told::connect(from, to).context(what)?;
            told.echo(1 << 16).context(what)?;
            idle.push((what, told));
        }
        sleep(Duration::from_secs(3));
        for (what, told) in &mut idle {
            told.echo(1 << 16).context(*what)?;
        }
        Ok(agents)
    });
}

/// Whether new connections come to each of these tasks, as soon as the host knows of them.
fn reaches_all(from: &Ns, host: &Host, tasks: &BTreeSet<String>) -> Result<()> {
    let (mut seen, mut last) = (BTreeSet::new(), String::new());
    let what = format!("{} reaches all tasks", host.ns.label());
    wait_until(&what, SOON, || {
        match Told::connect(from, at(host, 8080)) {
            Ok(told) => drop(seen.insert(told.server)),
            Err(error) => last = format!("{error:#}"),
        }
        seen == *tasks
    })
    .with_context(|| {
        let rules = host.ns.run("nft list ruleset").unwrap_or_default();
        format!("seen {seen:?}, last error '{last}', rules {rules}")
    })
}

/// Segments and checksums, both ways, through a host that has no task.
fn iperf_through_the_mesh(lab: &Lab, outside: &Outside) -> Result<()> {
    let host = lab.host(3);
    let ns = lab.add_container("c5")?;
    host.overlay(
        "service create perf --network uber-net --publish 5201:5201 --publish 5201:5201/udp",
    )?;
    let perf = Container::attach(lab.host(2), &ns, "c5", "--network uber-net --service perf")?;
    let through = IpAddr::from(host.ip);
    wait_until("the task is known", SOON, || {
        let rules = host.ns.run("nft list ruleset").unwrap_or_default();
        let place = format!("to {}:5201", perf.ip);
        rules.matches(&place).count() == 2
    })?;
    let tcp = iperf3(&outside.ns, &perf.ns, through, Load::Tcp, 2)?;
    ensure!(tcp.gbit > 0.05, "{tcp:?}");
    let udp = iperf3(
        &outside.ns,
        &perf.ns,
        through,
        Load::Udp {
            mbit: 20,
            payload: 1400,
        },
        1,
    )?;
    ensure!(
        udp.datagrams > 0 && udp.lost * 100 <= udp.datagrams,
        "{udp:?}"
    );
    lab.host(1).overlay("service rm perf")?;
    perf.detach(lab.host(2))?;
    Ok(())
}

/// A connection stays with its task, whatever becomes of the others and of the agents.
fn keeps_connections(
    lab: &Lab,
    outside: &Outside,
    agents: &mut Vec<AgentProc>,
    (c1, c2): (&Container, &Container),
) -> Result<()> {
    let to = |task: &Container, host: usize| loop {
        let told = Told::connect(&outside.ns, at(lab.host(host), 8080))?;
        if told.server == task.name {
            return Ok::<_, anyhow::Error>(told);
        }
    };
    let mut through: Vec<Told> = (1..=3).map(|host| to(c2, host)).collect::<Result<_>>()?;
    // Another task leaves: nobody is sent there any more, and these stay.
    c1.detach(lab.host(1))?;
    for host in lab.hosts() {
        wait_until("the task is forgotten", SOON, || {
            (0..20).all(|_| {
                Told::connect(&outside.ns, at(host, 8080)).is_ok_and(|told| told.server == c2.name)
            })
        })?;
    }
    for told in &mut through {
        told.echo(1 << 20)?;
    }
    // The entrance's agent and the task's die and come again.
    for number in [3, 2] {
        agents.remove(number - 1).kill();
        for told in &mut through {
            told.echo(1 << 18)?;
        }
        Told::connect(&outside.ns, at(lab.host(3), 8080))?.echo(1 << 18)?;
        agents.insert(number - 1, lab.start_agent(number, "")?);
        for told in &mut through {
            told.echo(1 << 18)?;
        }
    }
    Ok(())
}

fn listed_and_removed(lab: &Lab, outside: &Outside) -> Result<()> {
    let host = lab.host(3);
    let listed = host.overlay("service ls")?;
    ensure!(
        listed.contains("web") && listed.contains("8080:80/tcp"),
        "{listed}"
    );
    let shown = host.overlay_json("service inspect web")?;
    ensure!(shown[0]["tasks"][0]["name"] == "c2", "{shown}");
    host.overlay_fails("network rm uber-net", &["services", "web"])?;
    host.overlay_fails("service create web --network uber-net", &["exists"])?;
    host.overlay_fails(
        "service create api --network uber-net --publish 8080:1",
        &["8080/tcp", "'web'"],
    )?;
    let ns = lab.c(3);
    let line = format!(
        "container add x --network uber-net --netns {} --publish 8080:80",
        ns.name()
    );
    host.overlay_fails(&line, &["8080/tcp", "service 'web'"])?;
    Teller::serve(&host.ns, 8090, "host")?;
    host.overlay_fails(
        "service create api --network uber-net --publish 8090:1",
        &["8090/tcp", "in use"],
    )?;
    host.overlay_fails("service rm nobody", &["no service 'nobody'"])?;

    host.overlay("service rm web")?;
    for host in lab.hosts() {
        wait_until("nothing is published any more", SOON, || {
            Told::connect(&outside.ns, at(host, 8080)).is_err()
        })?;
    }
    // Who has no container there has no part in the network, either.
    wait_until("host3 leaves the network", SOON, || {
        host.ns
            .run("ip link")
            .is_ok_and(|links| !links.contains("ovr-"))
    })
}
