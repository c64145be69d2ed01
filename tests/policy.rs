//! Policies and rates, with real connections.
//!
//! ```text
//!   c1 (web), c4 ── host1 172.31.1.5 ─ router ─ host2 192.168.1.5 ── c2 (api), c3
//! ```

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{
    AgentProc, Container, Host, Lab, LabSpec, Ns, Teller, Told, ask_udp, join_args, ping, test,
    wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(20);
/// What is denied is silent: so long nothing comes.
const SILENCE: Duration = Duration::from_millis(400);

fn spec() -> LabSpec {
    LabSpec {
        containers: 5,
        ..LabSpec::default()
    }
}

struct Bed<'l> {
    lab: &'l Lab,
    agents: Vec<AgentProc>,
    args: String,
    /// A task of `web`, which serves on 80 and 81.
    web: Container,
    /// A task of `api`, on the other host.
    api: Container,
    /// Of no service, on the other host; it serves on 53.
    other: Container,
    /// Of no service, on the host of `web`.
    near: Container,
}

impl<'l> Bed<'l> {
    fn start(lab: &'l Lab, datapath: &str) -> Result<Bed<'l>> {
        let args = format!("--datapath {datapath}");
        let mut agents = vec![lab.start_agent(1, &args)?];
        let join = join_args(lab.host(1), false)?;
        agents.push(lab.start_agent(2, &format!("{args} {join}"))?);
        lab.host(1).overlay("network create uber-net")?;
        let attach = |host, number, options: &str| {
            let name = format!("c{number}");
            let options = format!("--network uber-net {options}");
            Container::attach(lab.host(host), lab.c(number), &name, &options)
        };
        let bed = Bed {
            lab,
            agents,
            args,
            web: attach(1, 1, "--service web")?,
            api: attach(2, 2, "--service api")?,
            other: attach(2, 3, "")?,
            near: attach(1, 4, "")?,
        };
        Teller::serve(&bed.web.ns, 80, "c1")?;
        Teller::serve(&bed.web.ns, 81, "c1")?;
        Teller::serve(&bed.other.ns, 53, "c3")?;
        for from in [&bed.api, &bed.other, &bed.near] {
            bed.web.wait_reaches(from, SOON)?;
        }
        Ok(bed)
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.web.ip, port).into()
    }

    /// The host that agreements are asked of: not that of `web`.
    fn asked(&self) -> &Host {
        self.lab.host(2)
    }

    /// What `web-only` makes of everybody.
    fn only_api_gets_in(&self) -> Result<()> {
        passes(&self.api.ns, self.at(80))?;
        for (from, port) in [(&self.api, 81), (&self.other, 80), (&self.near, 80)] {
            is_silent(&from.ns, self.at(port))?;
        }
        is_silent_udp(&self.api.ns, self.at(80))?;
        is_silent_udp(&self.near.ns, self.at(80))?;
        // Whom it asks may answer, over TCP and UDP, near and far.
        passes(&self.web.ns, (self.other.ip, 53).into())?;
        ensure!(ask_udp(&self.web.ns, (self.other.ip, 53))?.0 == "c3");
        ensure!(ping(&self.web.ns, self.near.ip, 2, 56, false)?.received == 2);
        ensure!(ping(&self.api.ns, self.web.ip, 1, 56, false)?.received == 0);
        Ok(())
    }
}

/// A connection comes about, and carries something.
fn passes(from: &Ns, to: SocketAddr) -> Result<()> {
    let what = format!("{} connects to {to}", from.label());
    wait_until(&what, SOON, || {
        Told::connect(from, to).is_ok_and(|mut told| told.echo(100_000).is_ok())
    })
}

/// Nothing comes back at all, not even a refusal.
fn is_silent(from: &Ns, to: SocketAddr) -> Result<()> {
    let tried = from.within(|| Ok(TcpStream::connect_timeout(&to, SILENCE)))?;
    let kind = tried.as_ref().err().map(std::io::Error::kind);
    ensure!(
        kind == Some(ErrorKind::TimedOut),
        "{} to {to}: {tried:?}",
        from.label()
    );
    Ok(())
}

fn is_silent_udp(from: &Ns, to: SocketAddr) -> Result<()> {
    let socket = from.within(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.send(b"?")?;
    let got = socket.recv(&mut [0; 64]);
    ensure!(got.is_err(), "{} to {to} over UDP: {got:?}", from.label());
    Ok(())
}

fn dropped(host: &Host, reason: &str) -> Result<u64> {
    let status = host.overlay_json("status")?;
    status["drops"][reason]
        .as_u64()
        .with_context(|| format!("{status}"))
}

const WEB_ONLY: &str = "policy add web-only --network uber-net --to service:web --from service:api \
                        --proto tcp --port 80";

#[test]
fn tcx_enforces_policies() {
    enforces("tcx");
}

#[test]
fn xdp_enforces_policies() {
    enforces("xdp");
}

fn enforces(datapath: &str) {
    test(BIN, spec(), |lab| {
        let mut bed = Bed::start(lab, datapath)?;
        let (host1, host2) = (lab.host(1), lab.host(2));
        for from in [&bed.api, &bed.other, &bed.near] {
            passes(&from.ns, bed.at(80))?;
            passes(&from.ns, bed.at(81))?;
        }
        let mut live = Told::connect(&bed.other.ns, bed.at(80))?;
        let mut kept = Told::connect(&bed.api.ns, bed.at(80))?;
        let mut own = Told::connect(&bed.web.ns, (bed.other.ip, 53))?;
        live.echo(1000)?;

        bed.asked().overlay(WEB_ONLY)?;
        wait_until("the policy is known on the other host", SOON, || {
            is_silent(&bed.other.ns, bed.at(80)).is_ok()
        })?;
        // What ran and is denied now ends; what is allowed, and what was begun inside, goes on.
        ensure!(
            live.echo(1000).is_err(),
            "a connection goes on that is denied"
        );
        kept.echo(100_000)?;
        own.echo(100_000)?;
        bed.only_api_gets_in()?;
        ensure!(dropped(host1, "policy")? > 0);
        ensure!(dropped(host2, "policy")? == 0);
        says_why(&bed)?;
        services_and_names(&bed)?;

        // Without an agent it holds as well, and while the next one starts.
        bed.agents.remove(0).kill();
        bed.only_api_gets_in()?;
        let starting = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(3);
                while Instant::now() < until {
                    is_silent(&bed.near.ns, bed.at(80))?;
                }
                anyhow::Ok(())
            });
            let agent = lab.start_agent(1, &bed.args)?;
            watcher.join().expect("no panic")?;
            anyhow::Ok(agent)
        })?;
        bed.agents.insert(0, starting);
        kept.echo(100_000)?;
        own.echo(100_000)?;
        bed.only_api_gets_in()?;
        lab.verify_clean(SOON)?;
        repairs(&bed)?;

        // Hosts, and who comes through them, are nobody's service.
        is_silent(&host1.ns, bed.at(80))?;
        bed.asked().overlay(
            "policy add from-outside --network uber-net --to service:web --from outside --proto tcp --port 80",
        )?;
        passes(&host1.ns, bed.at(80))?;
        passes(&host2.ns, bed.at(80))?;
        is_silent(&bed.other.ns, bed.at(80))?;
        // Deny wins.
        bed.asked().overlay(
            "policy add no-api --network uber-net --to service:web --from service:api --action deny",
        )?;
        wait_until("deny wins", SOON, || {
            is_silent(&bed.api.ns, bed.at(80)).is_ok()
        })?;
        bed.asked()
            .overlay("policy rm no-api from-outside web-only")?;
        for from in [&bed.api, &bed.other, &bed.near] {
            passes(&from.ns, bed.at(80))?;
        }
        by_default(&mut bed)?;
        Ok(bed.agents)
    });
}

/// `trace` and the lists tell it.
fn says_why(bed: &Bed<'_>) -> Result<()> {
    let host = bed.asked();
    let trace = host.overlay_any("trace c3 c1 --proto tcp --port 80")?;
    for word in ["policy", "no policy allows it"] {
        ensure!(trace.stdout.contains(word), "{trace:?}");
    }
    let trace = host.overlay_any("trace c2 c1 --proto tcp --port 80")?;
    ensure!(trace.status.success(), "{trace:?}");
    let listed = host.overlay("policy ls")?;
    for word in [
        "web-only",
        "allow",
        "service:api",
        "service:web",
        "tcp",
        "80",
    ] {
        ensure!(listed.contains(word), "{listed}");
    }
    let shown = host.overlay_json("policy inspect web-only")?;
    ensure!(shown[0]["ports"] == "80", "{shown}");
    host.overlay_fails(
        WEB_ONLY.replace("--port 80", "--port 81").as_str(),
        &["exists"],
    )?;
    host.overlay_fails("policy rm nothing", &["policy ls"])?;
    host.overlay_fails(
        "policy add x --network uber-net --to outside",
        &["--to outside"],
    )
}

/// A VIP leads to tasks, whose policies count; and the gateway answers.
fn services_and_names(bed: &Bed<'_>) -> Result<()> {
    let made = bed
        .asked()
        .overlay_json("service create web --network uber-net")?;
    let vip: IpAddr = made["vips"][0].as_str().context("no VIP")?.parse()?;
    passes(&bed.api.ns, (vip, 80).into())?;
    is_silent(&bed.other.ns, (vip, 80).into())?;
    // The task itself may get its own.
    passes(&bed.web.ns, (vip, 80).into())?;
    let answer = bed.web.ns.run("dig @10.0.0.1 +time=2 +tries=2 +short c2")?;
    ensure!(answer.trim() == bed.api.ip.to_string(), "{answer}");
    bed.asked().overlay("service rm web").map(drop)
}

/// What somebody did to the maps closes the port, is found, and mended.
fn repairs(bed: &Bed<'_>) -> Result<()> {
    let host = bed.lab.host(1);
    let pins = format!("/sys/fs/bpf/overlay-dp/{}", host.instance);
    let dirs = std::fs::read_dir(&pins)?.flatten();
    let mut maps = dirs.map(|dir| dir.path().join("maps/OVL_POLICIES"));
    let map = maps.find(|map| map.exists()).context("no map")?;
    let listed = host.overlay_json("container ls --local")?;
    let mut rows = listed.as_array().context("no list")?.iter();
    let row = rows.find(|row| row["name"] == "c1");
    let port = row.and_then(|row| row["local"]["port_ifindex"].as_u64());
    let key = u32::try_from(port.context("no port")?)?.to_ne_bytes();
    let key = key.map(|byte| format!("{byte:02x}")).join(" ");
    let map = map.display();
    host.ns
        .run(&format!("bpftool map delete pinned {map} key hex {key}"))?;
    is_silent(&bed.api.ns, bed.at(80))?;
    let found = host.overlay_any("verify")?;
    ensure!(found.stdout.contains("policies of a port"), "{found:?}");
    host.overlay_any("verify --repair")?;
    bed.lab.verify_clean(SOON)?;
    bed.only_api_gets_in()
}

/// A network that denies is closed from the first packet on.
fn by_default(bed: &mut Bed<'_>) -> Result<()> {
    bed.asked().overlay("policy default uber-net deny")?;
    let listed = bed.asked().overlay("policy default")?;
    ensure!(listed.contains("deny"), "{listed}");
    wait_until("everything is denied", SOON, || {
        is_silent(&bed.api.ns, bed.at(80)).is_ok() && is_silent(&bed.near.ns, bed.at(80)).is_ok()
    })?;
    // Who comes now: its port never carries anything.
    let new = Container::attach(bed.lab.host(1), bed.lab.c(5), "c5", "--network uber-net")?;
    ensure!(ping(&bed.near.ns, new.ip, 2, 56, false)?.received == 0);
    ensure!(ping(&bed.api.ns, new.ip, 1, 56, false)?.received == 0);
    bed.asked()
        .overlay("policy add ping --network uber-net --proto icmp")?;
    for from in [&bed.api, &bed.near] {
        from.wait_reaches(&new, SOON)?;
    }
    is_silent(&bed.api.ns, bed.at(80))?;
    // With their network they go.
    for container in [&bed.web, &bed.near, &new] {
        container.detach(bed.lab.host(1))?;
    }
    for container in [&bed.api, &bed.other] {
        container.detach(bed.lab.host(2))?;
    }
    let mut last = String::new();
    wait_until("the network goes", SOON, || {
        match bed.lab.host(1).overlay("network rm uber-net") {
            Ok(_) => true,
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        }
    })
    .with_context(|| last.clone())?;
    let left = bed.lab.host(1).overlay_json("policy ls")?;
    ensure!(left == serde_json::json!([]), "{left}");
    Ok(())
}

/// So many bytes come, of those that a container sends over TCP as fast as it can, in so long.
fn received(from: &Container, to: &Container, seconds: u64) -> Result<u64> {
    let listener = to.ns.within(|| Ok(TcpListener::bind(("0.0.0.0", 5000))?))?;
    let at = SocketAddr::from((to.ip, 5000));
    let mut out = from
        .ns
        .within(|| Ok(TcpStream::connect_timeout(&at, SOON)?))?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let sender = std::thread::spawn(move || {
        use std::io::Write as _;
        let chunk = vec![0; 1 << 16];
        while Instant::now() < end && out.write_all(&chunk).is_ok() {}
        let _ = out.shutdown(std::net::Shutdown::Both);
    });
    let mut total = 0;
    let mut room = vec![0; 1 << 16];
    while Instant::now() < end {
        total += stream.read(&mut room)? as u64;
    }
    drop(stream);
    let _ = sender.join();
    Ok(total)
}

#[test]
fn tcx_limits_rates() {
    limits("tcx");
}

#[test]
fn xdp_limits_rates() {
    limits("xdp");
}

/// 80 Mbit/s, 10 MB in a second.
const RATE: u64 = 10_000_000;
const BURST: u64 = 2 << 20;

fn limits(datapath: &str) {
    let spec = LabSpec {
        containers: 2,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let args = format!("--datapath {datapath}");
        let mut agents = vec![lab.start_agent(1, &args)?];
        let join = join_args(lab.host(1), false)?;
        agents.push(lab.start_agent(2, &format!("{args} {join}"))?);
        lab.host(1).overlay("network create uber-net")?;
        let options = "--network uber-net --rate 80mbit --burst 2mb";
        let c1 = Container::attach(lab.host(1), lab.c(1), "c1", options)?;
        let c2 = Container::attach(lab.host(2), lab.c(2), "c2", "--network uber-net")?;
        c1.wait_reaches(&c2, SOON)?;
        let listed = lab.host(1).overlay_json("container ls --local")?;
        ensure!(listed[0]["local"]["limit"]["rate"] == RATE, "{listed}");
        ensure!(listed[0]["local"]["limit"]["burst"] == BURST, "{listed}");

        let before = Instant::now();
        let through = received(&c1, &c2, 4)?;
        let most = RATE as f64 * before.elapsed().as_secs_f64() + BURST as f64;
        println!("{datapath}: {through} bytes in 4 s at {RATE} bytes/s");
        ensure!((through as f64) < most, "{through} bytes of at most {most}");
        // However busy the machine: a limit that lets hardly anything through is a fault.
        ensure!(through > RATE, "only {through} bytes in 4 s");
        ensure!(dropped(lab.host(1), "rate-limit")? > 0);
        // The other direction has none.
        let back = received(&c2, &c1, 1)?;
        println!("{datapath}: {back} bytes back in 1 s");

        // It outlives the agent, and what it was filled with.
        agents.remove(0).kill();
        let before = Instant::now();
        let through = received(&c1, &c2, 2)?;
        let most = RATE as f64 * before.elapsed().as_secs_f64() + BURST as f64;
        ensure!(
            (through as f64) < most,
            "without an agent: {through} of {most}"
        );
        agents.insert(0, lab.start_agent(1, &args)?);
        let before = Instant::now();
        let through = received(&c1, &c2, 2)?;
        let most = RATE as f64 * before.elapsed().as_secs_f64() + BURST as f64;
        ensure!(
            (through as f64) < most,
            "after a restart: {through} of {most}"
        );
        Ok(agents)
    });
}
