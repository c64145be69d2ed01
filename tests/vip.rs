//! Services with addresses of their own (VIPs): real connections, through what comes and goes.
//!
//! ```text
//!   c1, c4 ── host1 172.31.1.5 ──┐
//!   c2 ────── host2 192.168.1.5 ─ router
//!   c3 ────── host3 172.31.2.5 ──┘
//! ```
//!
//! c1 and c2 are tasks of the service, c3 and c4 only its clients.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{
    AgentProc, Cluster, Container, Lab, LabSpec, Ns, Outside, Teller, Told, ask_udp, ping, test,
    wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(30);
const TASK: &str = "--network uber-net --service web";

fn spec() -> LabSpec {
    LabSpec {
        hosts: 3,
        containers: 5,
        ..LabSpec::default()
    }
}

/// The cluster with its network and service; the service's own addresses.
fn service<'a>(lab: &'a Lab, args: &str, network: &str) -> Result<(Cluster<'a>, Vec<IpAddr>)> {
    let cluster = Cluster::start(lab, 1, args)?;
    lab.host(1)
        .overlay(&format!("network create uber-net {network}"))?;
    let made = lab
        .host(2)
        .overlay_json("service create web --network uber-net")?;
    ensure!(made["mode"] == "vip", "{made}");
    let vips = made["vips"].as_array().context("no VIPs")?.iter();
    let vips = vips.map(|vip| Ok(vip.as_str().context("no text")?.parse()?));
    Ok((cluster, vips.collect::<Result<_>>()?))
}

/// Adds container `c<number>` on a host.
fn attach(lab: &Lab, host: usize, number: usize, options: &str) -> Result<Container> {
    let name = format!("c{number}");
    Container::attach(lab.host(host), lab.c(number), &name, options)
}

/// A task that serves on port 80.
fn task(lab: &Lab, host: usize, number: usize) -> Result<Container> {
    let task = attach(lab, host, number, TASK)?;
    Teller::serve(&task.ns, 80, &task.name)?;
    Ok(task)
}

fn at(vip: IpAddr) -> SocketAddr {
    (vip, 80).into()
}

/// Whether new connections from there come to just these tasks, as soon as that is known there.
fn reaches(from: &Ns, vip: IpAddr, tasks: &[&Container]) -> Result<()> {
    reaches_at(from, at(vip), tasks)
}

fn reaches_at(from: &Ns, to: SocketAddr, tasks: &[&Container]) -> Result<()> {
    let wanted: BTreeSet<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    let mut last = String::new();
    let what = format!("{} reaches {wanted:?} at {to}", from.label());
    wait_until(&what, SOON, || {
        let all = (0..24).map(|_| Ok(Told::connect(from, to)?.server));
        match all.collect::<Result<BTreeSet<String>>>() {
            Ok(seen) => {
                last = format!("{seen:?}");
                seen.iter().map(String::as_str).eq(wanted.iter().copied())
            }
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        }
    })
    .with_context(|| format!("last: {last}"))
}

/// A connection from there with this task.
fn with(from: &Ns, vip: IpAddr, task: &Container) -> Result<Told> {
    for _ in 0..100 {
        let told = Told::connect(from, at(vip))?;
        if told.server == task.name {
            return Ok(told);
        }
    }
    anyhow::bail!("{} never gets to {}", from.label(), task.name)
}

/// Nobody is there, and says so at once.
fn refuses(from: &Ns, vip: IpAddr) -> Result<()> {
    let mut last = String::new();
    wait_until("connections are refused", SOON, || {
        let Err(error) = Told::connect(from, at(vip)) else {
            last = "a connection".to_owned();
            return false;
        };
        last = format!("{error:#}");
        let kinds = error.chain().filter_map(|cause| cause.downcast_ref());
        kinds
            .map(std::io::Error::kind)
            .any(|kind| kind == ErrorKind::ConnectionRefused)
    })
    .with_context(|| format!("{}: {last}", from.label()))
}

fn dig(ns: &Ns, question: &str) -> Result<BTreeSet<String>> {
    let answer = ns.run(&format!("dig @10.0.0.1 +time=2 +tries=2 +short {question}"))?;
    Ok(answer.lines().map(str::to_owned).collect())
}

fn set<T: ToString>(items: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

#[test]
fn tcx_balances() {
    balances("tcx");
}

#[test]
fn xdp_balances() {
    balances("xdp");
}

fn balances(datapath: &str) {
    test(BIN, spec(), |lab| {
        let (cluster, vips) = service(lab, &format!("--datapath {datapath}"), "--ipv6")?;
        let &[vip, vip6] = &vips[..] else {
            anyhow::bail!("{vips:?}");
        };
        ensure!(vip.is_ipv4() && vip6.is_ipv6(), "{vips:?}");
        let c3 = attach(lab, 3, 3, "--network uber-net")?;
        // There, but nobody behind it.
        ensure!(ping(&c3.ns, vip, 2, 56, false)?.received == 2);
        refuses(&c3.ns, vip)?;
        refuses(&c3.ns, vip6)?;

        let c4 = attach(lab, 1, 4, "--network uber-net")?;
        let (c1, c2) = (task(lab, 1, 1)?, task(lab, 2, 2)?);
        // From other hosts, from the same one, and from a task, which may get itself.
        for from in [&c3, &c4, &c1, &c2] {
            for vip in [vip, vip6] {
                let label = from.ns.label();
                reaches(&from.ns, vip, &[&c1, &c2])?;
                let mut udp = BTreeSet::new();
                for to in [&c1, &c2] {
                    let mut told = with(&from.ns, vip, to)?;
                    let seen = match from.name == to.name {
                        true => vip,
                        false => from.ips[usize::from(vip.is_ipv6())],
                    };
                    ensure!(told.client == seen, "{label}: {told:?}");
                    told.echo(2 << 20)?;
                }
                for _ in 0..32 {
                    let (server, _) = ask_udp(&from.ns, at(vip))?;
                    udp.insert(server);
                }
                ensure!(udp == set(["c1", "c2"]), "{label}: {udp:?}");
            }
        }
        // So does a host itself.
        for host in [1, 2] {
            reaches(&lab.host(host).ns, vip, &[&c1, &c2])?;
        }
        named(lab, &c3, &vips, &[&c1, &c2])?;

        // Removed while in use: its address is nobody's, and can be somebody's again.
        let mut direct = Told::connect(&c3.ns, (c1.ip, 80))?;
        let mut through = with(&c3.ns, vip, &c2)?;
        lab.host(3).overlay("service rm web")?;
        wait_until("the VIP is gone", SOON, || {
            Told::connect(&c3.ns, at(vip)).is_err()
        })?;
        direct.echo(1 << 16)?;
        ensure!(through.echo(1 << 16).is_err());
        ensure!(dig(&c3.ns, "web")? == set([c1.ip, c2.ip]));
        let line = format!("--network uber-net --ip {vip}");
        let c5 = attach(lab, 2, 5, &line)?;
        ensure!(c5.ip == vip);
        Teller::serve(&c5.ns, 80, "c5")?;
        reaches(&c3.ns, vip, &[&c5])?;
        // Before the agents go.
        lab.verify_clean(SOON)?;
        drop(cluster);
        Ok(())
    });
}

/// What it is called, and how it is shown.
fn named(lab: &Lab, from: &Container, vips: &[IpAddr], tasks: &[&Container]) -> Result<()> {
    let [vip, vip6] = [vips[0], vips[1]];
    for name in ["web", "web.uber-net", "WEB"] {
        ensure!(dig(&from.ns, name)? == set([vip]), "{name}");
        ensure!(dig(&from.ns, &format!("{name} AAAA"))? == set([vip6]));
    }
    let own = set(tasks.iter().map(|task| task.ip));
    ensure!(dig(&from.ns, "tasks.web")? == own);
    for ip in [vip, vip6] {
        let name = dig(&from.ns, &format!("-x {ip}"))?;
        ensure!(name == set(["web.uber-net."]), "{name:?}");
    }
    let srv = dig(&from.ns, "_http._tcp.web SRV")?;
    ensure!(srv.len() == 2, "{srv:?}");

    let host = lab.host(3);
    let listed = host.overlay("service ls")?;
    for word in ["MODE", "vip", &vip.to_string()] {
        ensure!(listed.contains(word), "{listed}");
    }
    let shown = host.overlay_json("service inspect web")?;
    ensure!(shown[0]["vips"][1] == vip6.to_string(), "{shown}");
    let rows = shown[0]["tasks"].as_array().context("no tasks")?.iter();
    let hosts = rows.map(|row| row["host_name"].as_str().unwrap_or("?"));
    ensure!(set(hosts) == set(["host1", "host2"]), "{shown}");
    for options in [format!("--ip {vip}"), format!("--ip {vip6}")] {
        let line = format!(
            "container add x --network uber-net {options} --netns {}",
            lab.c(5).name()
        );
        host.overlay_fails(&line, &["service 'web'", "--ip"])?;
    }
    host.overlay_fails("network rm uber-net", &["services", "web"])
}

#[test]
fn tcx_keeps_connections() {
    keeps_connections("tcx");
}

#[test]
fn xdp_keeps_connections() {
    keeps_connections("xdp");
}

fn keeps_connections(datapath: &str) {
    test(BIN, spec(), |lab| {
        let (mut cluster, vips) = service(lab, &format!("--datapath {datapath}"), "")?;
        let vip = vips[0];
        let (c3, c4) = (
            attach(lab, 3, 3, "--network uber-net")?,
            attach(lab, 1, 4, "--network uber-net")?,
        );
        let (c1, c2) = (task(lab, 1, 1)?, task(lab, 2, 2)?);
        let clients = [&c3, &c4];
        for client in clients {
            reaches(&client.ns, vip, &[&c1, &c2])?;
        }
        let both = |task| {
            let all = clients.iter().map(|client| with(&client.ns, vip, task));
            all.collect::<Result<Vec<Told>>>()
        };
        let (mut to1, mut to2) = (both(&c1)?, both(&c2)?);
        let echo = |all: &mut Vec<Told>| all.iter_mut().try_for_each(|t| t.echo(1 << 17));

        // Another task comes: who has one already stays with it.
        let c5 = task(lab, 3, 5)?;
        for client in clients {
            reaches(&client.ns, vip, &[&c1, &c2, &c5])?;
        }
        echo(&mut to1)?;
        echo(&mut to2)?;
        // One leaves: only its connections end, and nobody is sent there any more.
        c1.detach(lab.host(1))?;
        for client in clients {
            reaches(&client.ns, vip, &[&c2, &c5])?;
        }
        ensure!(to1.iter_mut().all(|told| told.echo(1 << 10).is_err()));
        echo(&mut to2)?;

        // The clients' agents and a task's die and come again, under way.
        for number in [3, 2, 1] {
            cluster.kill(number);
            echo(&mut to2)?;
            for client in clients {
                Told::connect(&client.ns, at(vip))?.echo(1 << 10)?;
            }
            cluster.restart(number)?;
            echo(&mut to2)?;
            for client in clients {
                Told::connect(&client.ns, at(vip))?.echo(1 << 10)?;
            }
        }
        cluster.wait_settled(SOON)?;
        for client in clients {
            reaches(&client.ns, vip, &[&c2, &c5])?;
        }
        echo(&mut to2)?;
        // A task's whole host dies: its connections go elsewhere as soon as that is known.
        cluster.die(2)?;
        for client in clients {
            reaches(&client.ns, vip, &[&c5])?;
        }
        cluster.revive(2)?;
        cluster.wait_settled(SOON)?;
        for client in clients {
            reaches(&client.ns, vip, &[&c2, &c5])?;
        }
        // Before the agents go.
        lab.verify_clean(SOON)?;
        drop(cluster);
        Ok(())
    });
}

#[test]
fn only_who_passes_its_check_gets_connections() {
    test(BIN, spec(), |lab| {
        let outside = Outside::connect(lab)?;
        let mut cluster = Cluster::start(lab, 1, "")?;
        lab.host(1).overlay("network create uber-net")?;
        let quickly = "--health-interval 0.2 --health-timeout 1 --health-retries 2";
        let made = lab.host(3).overlay_json(&format!(
            "service create web --network uber-net --publish 8080:80 --check tcp:81 {quickly}"
        ))?;
        let vip: IpAddr = made["vips"][0].as_str().context("no VIP")?.parse()?;
        let c3 = attach(lab, 3, 3, "--network uber-net")?;
        let (c1, c2) = (task(lab, 1, 1)?, task(lab, 2, 2)?);
        let open = |task: &Container| {
            let listen = || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 81))?);
            task.ns.within(listen)
        };
        let go_to = |tasks: &[&Container]| {
            let ips = set(tasks.iter().map(|task| task.ip));
            reaches(&c3.ns, vip, tasks)?;
            for name in ["tasks.web", "web.uber-net"] {
                let wanted = match name {
                    "tasks.web" => ips.clone(),
                    _ => set([vip]),
                };
                ensure!(dig(&c3.ns, name)? == wanted, "{name}");
            }
            // The port that is published of them, and not that of the check.
            let srv = dig(&c3.ns, "_http._tcp.web SRV")?;
            let has_port = srv.iter().all(|record| record.starts_with("0 1 80 "));
            ensure!(has_port && srv.len() == tasks.len(), "{srv:?}");
            for host in lab.hosts() {
                reaches_at(&outside.ns, (host.ip, 8080).into(), tasks)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        // None passes: better one of them than nobody.
        go_to(&[&c1, &c2])?;
        let mut to2 = with(&c3.ns, vip, &c2)?;
        let first = open(&c1)?;
        go_to(&[&c1])?;
        to2.echo(1 << 16)?;
        let second = open(&c2)?;
        go_to(&[&c1, &c2])?;
        drop(first);
        go_to(&[&c2])?;
        let shown = lab.host(3).overlay_json("service inspect web")?;
        let tasks = shown[0]["tasks"].as_array().context("no tasks")?.iter();
        let ready = tasks.filter(|task| task["ready"] == true);
        ensure!(
            set(ready.map(|task| &task["name"])) == set(["\"c2\""]),
            "{shown}"
        );
        ensure!(shown[0]["check"]["probe"] == "tcp:81", "{shown}");
        // The agent that knows it dies and comes again.
        cluster.kill(1);
        go_to(&[&c2])?;
        cluster.restart(1)?;
        cluster.wait_settled(SOON)?;
        go_to(&[&c2])?;
        drop(second);
        go_to(&[&c1, &c2])?;
        to2.echo(1 << 16)?;

        // By HTTP: what answers with an error is as bad as what doesn't answer.
        lab.host(1).overlay(&format!(
            "service create api --network uber-net --check http:82/ok?x=1 {quickly}"
        ))?;
        let (c4, c5) = (
            attach(lab, 1, 4, "--network uber-net --service api")?,
            attach(lab, 2, 5, "--network uber-net --service api")?,
        );
        serve_http(&c4.ns, "200 OK")?;
        serve_http(&c5.ns, "503 Service Unavailable")?;
        wait_until("one of them is ready", SOON, || {
            dig(&c3.ns, "tasks.api").is_ok_and(|found| found == set([c4.ip]))
        })?;
        for (check, words) in [
            ("udp:53", &["tcp:PORT", "http:PORT/PATH"][..]),
            ("tcp:80 --health-interval 0.01", &["0.1"]),
            ("tcp:80 --health-retries 0", &["retries"]),
        ] {
            let line = format!("service create bad --network uber-net --check {check}");
            let done = lab.host(1).overlay_any(&line)?;
            ensure!(!done.status.success(), "{check}");
            let said = words.iter().all(|word| done.stderr.contains(word));
            ensure!(said, "{check}: {}", done.stderr);
        }
        // Before the agents go.
        lab.verify_clean(SOON)?;
        drop(cluster);
        Ok(())
    });
}

/// Answers any request for `/ok?x=1` so, on port 82, and others with 404, until this process ends.
fn serve_http(ns: &Ns, status: &str) -> Result<()> {
    let listener = ns.within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 82))?))?;
    let status = status.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut room = [0; 1024];
            let len = stream.read(&mut room).unwrap_or(0);
            let asked = room[..len].starts_with(b"GET /ok?x=1 HTTP/1.1\r\n");
            let status = if asked { &status } else { "404 Not Found" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok(())
}

#[test]
fn chosen_and_refused() {
    test(
        BIN,
        LabSpec {
            containers: 6,
            ..LabSpec::default()
        },
        |lab| {
            let agents = two_hosts(lab)?;
            let [one, two] = [lab.host(1), lab.host(2)];
            one.overlay("network create uber-net --subnet 10.0.0.0/29")?;
            let create = "service create web --network uber-net";
            for (options, words) in [
                ("--ip 10.0.0.1", &["10.0.0.1", "gateway"][..]),
                ("--ip 10.0.0.7", &["10.0.0.7", "uber-net"]),
                ("--ip 192.0.2.1", &["192.0.2.1", "uber-net"]),
                ("--endpoint-mode dnsrr --ip 10.0.0.4", &["dnsrr", "--ip"]),
            ] {
                one.overlay_fails(&format!("{create} {options}"), words)?;
            }
            let made = one.overlay_json(&format!("{create} --ip 10.0.0.4"))?;
            ensure!(made["vips"][0] == "10.0.0.4", "{made}");
            two.overlay_fails(
                "service create api --network uber-net --ip 10.0.0.4",
                &["web"],
            )?;

            // Without an address of its own, its name is its tasks'.
            two.overlay("service create rr --network uber-net --endpoint-mode dnsrr")?;
            let shown = one.overlay_json("service inspect rr")?;
            ensure!(shown[0]["mode"] == "dnsrr" && shown[0]["vips"] == serde_json::json!([]));
            let c1 = attach(lab, 1, 1, "--network uber-net --service rr")?;
            let c2 = attach(lab, 2, 2, "--network uber-net --service rr")?;
            for name in ["rr", "tasks.rr"] {
                wait_until(&format!("{name} is both"), SOON, || {
                    dig(&c1.ns, name).is_ok_and(|found| found == set([c1.ip, c2.ip]))
                })?;
            }
            one.overlay_fails(
                &format!("service create api --network uber-net --ip {}", c2.ip),
                &["address", "host2"],
            )?;
            one.overlay_fails(
                &format!("service create api --network uber-net --ip {}", c1.ip),
                &["in use"],
            )?;

            // Of 5 addresses (2 to 6) the service, the tasks and the hosts' routers have all.
            one.overlay_fails(
                "service create api --network uber-net",
                &["no free address left", "by services"],
            )?;
            c2.detach(two)?;
            // Its host may hold on to it: it gives it back for this.
            let made = one.overlay_json("service create api --network uber-net")?;
            ensure!(!made["vips"][0].is_null(), "{made}");
            for name in ["web", "rr", "api"] {
                two.overlay(&format!("service rm {name}"))?;
            }
            c1.detach(one)?;
            one.overlay("network rm uber-net")?;
            Ok(agents)
        },
    );
}

fn two_hosts(lab: &Lab) -> Result<Vec<AgentProc>> {
    let first = lab.start_agent(1, "")?;
    let join = overlay_lab::join_args(lab.host(1), false)?;
    Ok(vec![first, lab.start_agent(2, &join)?])
}
