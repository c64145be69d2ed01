//! Ways out of networks, and in: what Docker's containers reach, and what `-p` publishes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Dockerd, Host, Lab, Ns, Outside, Teller, Told, ask_udp, ping, wait_until};

use super::bed::{Bed, DRIVERS, SOON, args, pings, with_dockers};

/// Nobody answers there.
const RESOLVERS: [&str; 2] = ["172.31.1.1", "192.168.1.1"];

fn create(docker: &Dockerd, name: &str, options: &str) -> Result<()> {
    let network = format!("-o overlay-dp.network={name} {name}");
    docker
        .docker(&format!("network create {DRIVERS} {options} {network}"))
        .map(drop)
}

/// Has a container tell whom it sees, at port 80. Each has a label of its own.
fn serve(lab: &Lab, docker: &Dockerd, container: &str, label: &str) -> Result<Ns> {
    let pid = docker.inspect(container, ".State.Pid")?.parse()?;
    let ns = lab.adopt(label, pid)?;
    Teller::serve(&ns, 80, container)?;
    Ok(ns)
}

/// `from` finds `server` at an address of a host, over TCP and UDP, and is seen as itself.
fn finds(from: &Outside, to: impl Into<SocketAddr>, server: &str) -> Result<()> {
    let to = to.into();
    let seen = match to.is_ipv6() {
        true => from.ip6,
        false => from.ip,
    };
    let mut told = Told::connect(&from.ns, to)?;
    ensure!(
        (told.server.as_str(), told.client) == (server, seen),
        "{to}: {told:?}"
    );
    told.echo(1 << 20)?;
    let told = ask_udp(&from.ns, to)?;
    ensure!(told == (server.to_owned(), seen), "{to}: {told:?}");
    Ok(())
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::from((host.ip, port))
}

/// `docker run` fails, with these words, and leaves nothing.
fn refused(docker: &Dockerd, options: &str, words: &[&str]) -> Result<()> {
    let run = format!("run -d --name refused {options} overlay-lab /busybox sleep 60");
    let done = docker.docker_any(&run)?;
    docker.docker("rm -f refused")?;
    ensure!(!done.status.success(), "{options}: not refused");
    for word in words {
        ensure!(
            done.stderr.contains(word),
            "{options}: no '{word}': {}",
            done.stderr
        );
    }
    Ok(())
}

#[test]
fn published_ports_and_ways_out() {
    with_dockers(RESOLVERS, |lab, bed| {
        let outside = Outside::connect(lab)?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        let [one, two] = &bed.dockers;
        let (host1, host2) = (lab.host(1), lab.host(2));
        for docker in [one, two] {
            create(docker, "uber-net", "")?;
        }
        let mine = format!("-p {}:9000-9002:80-82", host1.ip);
        one.run(
            "web",
            &format!("--network uber-net -p 8080:80 -p 8080:80/udp {mine}"),
        )?;
        two.run("shop", "--network uber-net -p 8080:80 -p 8080:80/udp")?;
        let web = serve(lab, one, "web", "web")?;
        let shop = serve(lab, two, "shop", "shop")?;

        pings(two, "shop", "web")?;
        pings(one, "web", "shop")?;

        // Out: what the world sees is the host, from the first container on.
        for (ns, host) in [(&web, host1), (&shop, host2)] {
            let told = Told::connect(ns, SocketAddr::from((outside.ip, 7000)))?;
            ensure!(told.client == IpAddr::from(host.ip), "{told:?}");
            let (_, seen) = ask_udp(ns, SocketAddr::from((outside.ip, 7000)))?;
            ensure!(seen == IpAddr::from(host.ip), "{seen}");
        }
        // In: through each host, by the client's own address.
        finds(&outside, at(host1, 8080), "web")?;
        finds(&outside, at(host2, 8080), "shop")?;
        ensure!(Told::connect(&outside.ns, at(host1, 9000))?.server == "web");
        ensure!(
            Told::connect(&host1.ns, SocketAddr::from(([127, 0, 0, 1], 8080)))?.server == "web"
        );
        ensure!(Told::connect(&host1.ns, SocketAddr::from(([127, 0, 0, 1], 9000))).is_err());
        // From a container of the other host, and from itself.
        ensure!(Told::connect(&shop, at(host1, 8080))?.client == IpAddr::from(host2.ip));
        ensure!(Told::connect(&web, at(host1, 8080))?.server == "web");
        let shown = host1.overlay("container ls")?;
        ensure!(shown.contains("8080:80/tcp"), "{shown}");

        refusals(one)?;
        restarts(lab, bed, &outside)?;

        let [one, two] = &bed.dockers;
        one.docker("rm -f web")?;
        two.docker("rm -f shop")?;
        ensure!(Told::connect(&outside.ns, at(host1, 8080)).is_err());
        // It is free for others.
        Teller::serve(&host1.ns, 8080, "host")?;
        ensure!(Told::connect(&outside.ns, at(host1, 8080))?.server == "host");
        refused(
            one,
            "--network uber-net -p 8080:80",
            &["8080/tcp", "in use"],
        )?;
        for docker in [one, two] {
            docker.docker("network rm uber-net")?;
        }
        Ok(())
    });
}

/// What can't be published is an error of `docker run`, which says what to do.
fn refusals(docker: &Dockerd) -> Result<()> {
    for (options, words) in [
        ("-p 80", &["which port of the host", "-p 80:80/tcp"][..]),
        ("--expose 81 -P", &["which port of the host"]),
        ("-p 8000-8001:80", &["8000 to 8001"]),
        ("-p 8080:81", &["8080/tcp", "'web'"]),
        ("-p 127.0.0.1:8080:81", &["8080/tcp", "'web'"]),
        ("-p 8099:80/sctp", &["sctp", "only tcp and udp"]),
        ("-p 192.0.2.7:8099:80", &["192.0.2.7"]),
    ] {
        refused(docker, &format!("--network uber-net {options}"), words)?;
    }
    // Nothing of them is left.
    docker.run("free", "--network uber-net -p 8099:80")?;
    docker.docker("rm -f free").map(drop)
}

/// Whoever is started anew, and in whatever order: the ports stay published.
fn restarts(lab: &Lab, bed: &mut Bed, outside: &Outside) -> Result<()> {
    let host = lab.host(1);
    let published = at(host, 8080);
    let comes_back = |what: &str| {
        wait_until(what, SOON, || Told::connect(&outside.ns, published).is_ok())?;
        finds(outside, published, "web")
    };
    // The agent alone: killed, nothing is lost; stopped, it is back with the next one.
    bed.agents.remove(0).kill();
    finds(outside, published, "web")?;
    bed.agents.insert(0, lab.start_agent(1, &args(lab, 1))?);
    finds(outside, published, "web")?;
    bed.agents.remove(0).stop()?;
    ensure!(Told::connect(&outside.ns, published).is_err());
    bed.agents.insert(0, lab.start_agent(1, &args(lab, 1))?);
    comes_back("published again by the next agent")?;
    // The daemon alone.
    let docker = &mut bed.dockers[0];
    docker.stop();
    ensure!(Told::connect(&outside.ns, published).is_err());
    *docker = Dockerd::start(lab, 1)?;
    docker.wait()?;
    docker.docker("start web")?;
    serve(lab, docker, "web", "web2")?;
    comes_back("published again by the next daemon")?;
    pings(docker, "web", "shop")?;
    // Both, and the daemon first.
    docker.stop();
    bed.agents.remove(0).stop()?;
    let docker = &mut bed.dockers[0];
    *docker = Dockerd::start(lab, 1)?;
    bed.agents.insert(0, lab.start_agent(1, &args(lab, 1))?);
    docker.wait()?;
    docker.docker("start web")?;
    serve(lab, docker, "web", "web3")?;
    comes_back("published again after both")
}

#[test]
fn internal_networks_are_internal_on_every_host() {
    with_dockers(RESOLVERS, |lab, bed| {
        let outside = Outside::connect(lab)?;
        let [one, two] = &bed.dockers;
        let (host1, host2) = (lab.host(1), lab.host(2));
        // Made so by one Docker, joined by the other, which need not be told.
        create(one, "dark", "--internal")?;
        create(two, "dark", "")?;
        let shown = host2.overlay_json("network inspect dark")?;
        ensure!(shown[0]["internal"] == true, "{shown}");
        one.run("in.1", "--network dark -p 8080:80")?;
        two.run("in.2", "--network dark --cap-add NET_ADMIN")?;
        pings(one, "in.1", "in.2")?;
        pings(two, "in.2", "in.1")?;
        two.run("in.3", "--network dark --dns 192.0.2.53")?;
        pings(two, "in.3", "in.1")?;
        for (docker, name) in [(one, "in.1"), (two, "in.2")] {
            let routes = docker.docker(&format!("exec {name} /busybox ip route"))?;
            ensure!(!routes.contains("default"), "{name}: {routes}");
            let links = docker.docker(&format!("exec {name} /busybox ip -o link"))?;
            ensure!(links.lines().count() == 2, "{name}: {links}");
        }
        let (ns, _) = two.adopt(lab, "in.2", "dark")?;
        two.docker("exec in.2 /busybox ip route add default via 10.0.0.1")?;
        let stats = ping(&ns, outside.ip, 2, 56, false)?;
        ensure!(stats.lost() == 2, "{}", stats.output);
        ensure!(Told::connect(&outside.ns, at(host1, 8080)).is_err());
        for host in [host1, host2] {
            let links = host.ns.run("ip -br link")?;
            ensure!(!links.contains("ovr-"), "{links}");
        }

        // By the cluster's own way, on every host.
        host1.overlay("network create night --internal")?;
        host1.overlay("docker create night --everywhere")?;
        wait_until("the other Docker has it", SOON, || {
            two.docker("network inspect night").is_ok()
        })?;
        for docker in [one, two] {
            let shown = docker.docker("network inspect -f {{.Internal}} night")?;
            ensure!(shown == "true", "{shown}");
        }

        // Nobody is promised what is not so.
        host1.overlay("network create bright")?;
        let made = format!(
            "network create {DRIVERS} --internal --ipam-opt overlay-dp.network=bright \
             -o overlay-dp.network=bright bright"
        );
        let made = two.docker_any(&made)?;
        ensure!(
            !made.status.success() && made.stderr.contains("leave --internal out"),
            "{made:?}"
        );
        one.docker("rm -f in.1")?;
        two.docker("rm -f in.2 in.3")?;
        for docker in [one, two] {
            docker.docker("network rm dark night")?;
        }
        Ok(())
    });
}

#[test]
fn ipv6_leads_out_and_in_too() {
    with_dockers(RESOLVERS, |lab, bed| {
        let outside = Outside::connect(lab)?;
        outside.with_ipv6(lab)?;
        Teller::serve(&outside.ns, 7000, "outside")?;
        let [one, two] = &bed.dockers;
        let subnets = "--ipv6 --subnet 10.66.0.0/24 --subnet fd66::/64";
        for docker in [one, two] {
            create(docker, "dual", subnets)?;
        }
        one.run("web", "--network dual -p 8080:80 -p 8080:80/udp")?;
        two.run("shop", "--network dual -p [2001:db8:0:2::5]:8081:80")?;
        let web = serve(lab, one, "web", "web")?;
        serve(lab, two, "shop", "shop")?;
        for to in [outside.ip, outside.ip6] {
            Told::connect(&web, SocketAddr::from((to, 7000)))?.echo(1 << 20)?;
        }
        let host1: IpAddr = "2001:db8:0:1::5".parse()?;
        let host2: IpAddr = "2001:db8:0:2::5".parse()?;
        let told = Told::connect(&web, SocketAddr::from((outside.ip6, 7000)))?;
        ensure!(told.client == host1, "{told:?}");
        finds(&outside, (host1, 8080), "web")?;
        finds(&outside, at(lab.host(1), 8080), "web")?;
        let told = Told::connect(&outside.ns, (host2, 8081)).context("at its one address")?;
        ensure!(
            (told.server.as_str(), told.client) == ("shop", outside.ip6),
            "{told:?}"
        );
        ensure!(Told::connect(&outside.ns, at(lab.host(2), 8081)).is_err());
        one.docker("rm -f web")?;
        two.docker("rm -f shop")?;
        for docker in [one, two] {
            docker.docker("network rm dual")?;
        }
        Ok(())
    });
}
