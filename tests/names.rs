//! Names: what containers ask their gateway, and what ping and traceroute make of the answers.
//!
//! ```text
//!   c1 ─┐                        resolver 127.0.0.1 on both hosts, which knows example.test
//!       host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!   c3 ─┘
//!            uber-net 10.0.0.0/24, gateway and name server .1
//! ```

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use overlay_lab::{AgentProc, Background, Container, Host, Lab, LabSpec, Ns, test, wait_until};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which a change must be in the answers.
const CURRENT: Duration = Duration::from_millis(200);
const GATEWAY: &str = "10.0.0.1";
/// What the hosts' resolver says of example.test.
const EXAMPLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

#[test]
fn names_as_docker_shows_them() {
    run(|lab, names| {
        let (c1, c2) = (names.container(lab, 1, "")?, names.container(lab, 2, "")?);
        for (container, slot) in [(&c1, "test.1."), (&c2, "test.2.")] {
            let id = container.name.strip_prefix(slot);
            let id = id.with_context(|| format!("{} is not {slot}<id>", container.name))?;
            ensure!(id.len() == 12, "{}", container.name);
        }
        sleep(CURRENT);
        for (from, to) in [(&c1, &c2), (&c2, &c1)] {
            let full = format!("{}.uber-net", to.name);
            for name in [&to.name, &full, &full.to_uppercase()] {
                let text = inside(&from.ns, &format!("getent hosts {name}"))?;
                ensure!(text.starts_with(&to.ip.to_string()), "{name}: {text}");
            }
            let shown = format!("{full} ({})", to.ip);
            let text = inside(&from.ns, &format!("ping -c 2 -i 0.1 {}", to.name))?;
            ensure!(
                text.contains(&format!("from {shown}: icmp_seq=2")),
                "{text}"
            );
            let text = inside(&from.ns, &format!("traceroute -m 3 {}", to.name))?;
            ensure!(text.contains(&format!(" 1  {shown}")), "{text}");
        }
        let text = inside(&c1.ns, "ping -c 1 gateway.uber-net")?;
        ensure!(text.contains("from gateway.uber-net (10.0.0.1)"), "{text}");

        // Shown where people look, and gone with the container.
        let listed = lab.host(2).overlay_json("container ls")?;
        let row = listed.as_array().context("no list")?.iter();
        let mut row = row.filter(|row| row["name"] == c1.name.as_str());
        let row = row.next().context("c1 is not listed")?;
        ensure!(
            row["service"] == "test" && row["aliases"][0] == "db",
            "{row}"
        );
        let file = resolv_conf(&c1.ns);
        let text = std::fs::read_to_string(&file)?;
        let settings = "\nnameserver 10.0.0.1\nsearch uber-net\noptions ndots:0\n";
        ensure!(text.starts_with('#') && text.ends_with(settings), "{text}");
        lab.host(1).overlay(&format!("container rm {}", c1.name))?;
        ensure!(!file.exists());
        // The slot is free again.
        let again = names.container(lab, 1, "")?;
        ensure!(again.name.starts_with("test.1.") && again.name != c1.name);
        Ok(())
    });
}

#[test]
fn answers_are_those_of_a_name_server() {
    run(|lab, names| {
        let (c1, c2) = (names.container(lab, 1, "")?, names.container(lab, 2, "")?);
        let c3 = attach(lab.host(1), lab.c(3), "other", "--alias tool")?;
        sleep(CURRENT);
        let both: BTreeSet<String> = [&c1, &c2].map(|c| c.ip.to_string()).into();
        let mut first = BTreeSet::new();
        for name in ["test", "tasks.test", "test.uber-net", "tasks.test.uber-net"] {
            for _ in 0..8 {
                let answers = dig(&c3.ns, &format!("+short {name}"))?;
                let answers: Vec<String> = answers.lines().map(str::to_owned).collect();
                first.extend(answers.first().cloned());
                ensure!(
                    answers.iter().cloned().collect::<BTreeSet<_>>() == both,
                    "{answers:?}"
                );
            }
        }
        ensure!(first == both, "always {first:?} first");
        for name in ["tool", "other", "TOOL.uber-net"] {
            let answer = dig(&c2.ns, &format!("+short {name}"))?;
            ensure!(answer.trim() == c3.ip.to_string(), "{name}: {answer}");
        }
        let ptr = dig(&c3.ns, &format!("+short -x {}", c2.ip))?;
        ensure!(ptr.trim() == format!("{}.uber-net.", c2.name), "{ptr}");
        let srv = dig(&c3.ns, "+short _test._tcp.uber-net SRV")?;
        ensure!(
            srv.contains(&format!("0 1 0 {}.uber-net.", c1.name)),
            "{srv}"
        );

        for (question, status) in [
            ("nobody.uber-net", "NXDOMAIN"),
            ("test AAAA", "NOERROR"),
            ("-x 10.0.0.99", "NXDOMAIN"),
            ("+noedns nobody.uber-net", "NXDOMAIN"),
        ] {
            let text = dig(&c3.ns, question)?;
            let wanted = format!("status: {status}");
            ensure!(
                text.contains(&wanted) && text.contains(" aa "),
                "{question}: {text}"
            );
            ensure!(text.contains("SOA") && text.contains("ANSWER: 0"), "{text}");
        }
        // Everything else is the resolvers' matter.
        for ns in [&c1.ns, &c2.ns] {
            let answer = dig(ns, "+short example.test")?;
            ensure!(answer.trim() == EXAMPLE.to_string(), "{answer}");
            let text = dig(ns, "nobody.test")?;
            ensure!(text.contains("status: NXDOMAIN"), "{text}");
        }
        let asked = names.asked();
        ensure!(asked.contains("nobody.test"), "{asked:?}");
        let leaked = asked.iter().find(|name| {
            name.contains("uber-net") || name.contains("in-addr.arpa") || name.starts_with("test")
        });
        ensure!(leaked.is_none(), "the resolver was asked for {leaked:?}");
        let status = lab.host(1).overlay_json("status")?;
        for counter in ["answered", "forwarded"] {
            let count = status["names"][counter].as_u64();
            ensure!(count.is_some_and(|count| count > 0), "{counter}: {status}");
        }
        // Other UDP ports are closed, as before.
        let closed = inside(&c1.ns, &format!("traceroute -n -p 33000 {GATEWAY}"))?;
        ensure!(closed.contains(&format!(" 1  {GATEWAY}")), "{closed}");
        Ok(())
    });
}

#[test]
fn a_change_is_in_the_answers_within_200_ms() {
    run(|lab, names| {
        let c2 = names.container(lab, 2, "")?;
        let mut times = Vec::new();
        for round in 0..10 {
            let ip: Ipv4Addr = [10, 0, 0, 100 + round].into();
            attach(lab.host(1), lab.c(1), "flip", &format!("--ip {ip}"))?;
            times.push(becomes(&c2.ns, "flip.uber-net", Some(ip))?);
            lab.host(1).overlay("container rm flip")?;
            times.push(becomes(&c2.ns, "flip.uber-net", None)?);
        }
        eprintln!("changes were in the answers after {times:?}");
        ensure!(times.iter().all(|time| *time <= CURRENT), "{times:?}");
        Ok(())
    });
}

/// A pain of Docker's overlay: after an agent or a container has come back, its name has the
/// address that it had before.
#[test]
fn dns_stale_after_a_flap() {
    run(|lab, names| {
        let c2 = names.container(lab, 2, "")?;
        let host = lab.host(1);
        let (old, new): (Ipv4Addr, Ipv4Addr) = ([10, 0, 0, 50].into(), [10, 0, 0, 51].into());
        let at = |ip| format!("--ip {ip}");
        attach(host, lab.c(1), "web", &at(old))?;
        becomes(&c2.ns, "web", Some(old))?;

        // Its own host's agent dies and comes back: the name stays what it was.
        let args = names.args.clone();
        names.kill(0);
        ensure!(
            ask(&c2.ns, "web")? == Some(vec![old]),
            "its host's agent is dead"
        );
        names.agents.insert(0, lab.start_agent(1, &args)?);
        let c3 = attach(host, lab.c(3), "near", "")?;
        for _ in 0..20 {
            for ns in [&c2.ns, &c3.ns] {
                let answer = ask(ns, "web")?;
                ensure!(answer == Some(vec![old]), "{}: {answer:?}", ns.label());
            }
        }

        // The container comes back with another address.
        host.overlay("container rm web")?;
        attach(host, lab.c(1), "web", &at(new))?;
        sleep(CURRENT);
        for _ in 0..20 {
            for ns in [&c2.ns, &c3.ns] {
                let answer = ask(ns, "web")?;
                ensure!(answer == Some(vec![new]), "{}: {answer:?}", ns.label());
            }
        }

        // So it does while the agent of who asks is dead.
        names.kill(1);
        host.overlay("container rm web")?;
        attach(host, lab.c(1), "web", &at(old))?;
        let mut answers = 0;
        let started = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let agent = scope.spawn(|| {
                let agent = lab.start_agent(2, &args);
                started.store(true, Ordering::Relaxed);
                agent
            });
            // From its first answer on, which may come before it calls itself ready.
            let mut until = None;
            while until.is_none_or(|until| Instant::now() < until) {
                if until.is_none() && started.load(Ordering::Relaxed) {
                    until = Some(Instant::now() + 2 * SECOND);
                }
                if let Some(answer) = ask(&c2.ns, "web.uber-net")? {
                    ensure!(answer == [old], "{answer:?} as answer {answers}");
                    answers += 1;
                }
            }
            let agent = agent.join().map_err(|_| anyhow!("the start panicked"))??;
            names.agents.insert(1, agent);
            Ok(())
        })?;
        ensure!(answers > 10, "{answers} answers");
        Ok(())
    });
}

#[test]
fn a_resolv_conf_of_somebody_else_stays_and_one_of_ours_goes_after_a_crash() {
    run(|lab, names| {
        let host = lab.host(1);
        let file = resolv_conf(lab.c(1));
        std::fs::create_dir_all(file.parent().context("a directory")?)?;
        std::fs::write(&file, "nameserver 192.0.2.1\n")?;
        let add = format!(
            "container add a --network uber-net --netns {}",
            lab.c(1).name()
        );
        let refused = host.overlay_any(&format!("{add} --resolv-conf"))?;
        ensure!(
            !refused.status.success() && refused.stderr.contains("not ours"),
            "{refused:?}"
        );
        ensure!(std::fs::read_to_string(&file)? == "nameserver 192.0.2.1\n");
        // Nothing of the container is left: the name and the interface are free.
        attach(host, lab.c(1), "a", "")?;
        host.overlay("container rm a")?;
        ensure!(file.exists());
        std::fs::remove_file(&file)?;

        names.container(lab, 1, "")?;
        ensure!(file.exists());
        names.kill(0);
        lab.c(1).run("ip link del eth0")?;
        let args = names.args.clone();
        names.agents.insert(0, lab.start_agent(1, &args)?);
        wait_until("the resolv.conf is removed", 5 * SECOND, || !file.exists())?;

        names.container(lab, 1, "")?;
        // What the dead agent left in the maps would be swept within half a minute.
        host.overlay("verify --repair")?;
        lab.verify_clean(20 * SECOND)?;
        names.kill(0);
        host.overlay("detach --force")?;
        ensure!(!file.exists(), "detach has left it");
        // The other one has no manager any more that could say what is agreed.
        names.agents.clear();
        lab.ends_without_agents();
        Ok(())
    });
}

/// Two agents on a network, and a resolver on each host.
struct Names {
    agents: Vec<AgentProc>,
    resolvers: Vec<Resolver>,
    args: String,
}

fn run(body: impl FnOnce(&Lab, &mut Names) -> Result<()>) {
    let spec = LabSpec {
        containers: 3,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let _guard = NoResolvConf(lab);
        let mut file = tempfile::NamedTempFile::new()?;
        writeln!(file, "nameserver 127.0.0.1")?;
        let args = format!("--resolv-conf {}", file.path().display());
        let resolvers = lab.hosts().iter().map(Resolver::start);
        let resolvers = resolvers.collect::<Result<Vec<_>>>()?;
        // The containers are for the test to add.
        let mut agents = vec![lab.start_agent(1, &args)?];
        let join = overlay_lab::join_args(lab.host(1), false)?;
        agents.push(lab.start_agent(2, &format!("{args} {join}"))?);
        lab.host(1).overlay("network create uber-net")?;
        let mut names = Names {
            agents,
            resolvers,
            args,
        };
        body(lab, &mut names)?;
        Ok(names.agents)
    });
}

impl Names {
    /// Adds container namespace `host` on that host as the next task of the service `test`.
    fn container(&self, lab: &Lab, host: usize, options: &str) -> Result<Container> {
        let alias = if host == 1 { "--alias db" } else { "" };
        let options = format!("--service test --resolv-conf {alias} {options}");
        attach(lab.host(host), lab.c(host), "", &options)
    }

    /// What the resolvers were asked.
    fn asked(&self) -> BTreeSet<String> {
        let asked = self.resolvers.iter().map(|r| r.asked.lock().unwrap());
        asked.flat_map(|asked| asked.clone()).collect()
    }

    fn kill(&mut self, index: usize) {
        self.agents.remove(index).kill();
    }
}

fn attach(host: &Host, ns: &Ns, name: &str, options: &str) -> Result<Container> {
    Container::attach(host, ns, name, &format!("--network uber-net {options}"))
}

/// What a program in the container sees that reads its own resolv.conf.
fn inside(ns: &Ns, line: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", ns.name()]);
    command.args(line.split_whitespace());
    Background::start(command)?.finish(30 * SECOND)?.ok()
}

fn dig(ns: &Ns, question: &str) -> Result<String> {
    ns.run(&format!("dig @{GATEWAY} +time=2 +tries=1 {question}"))
}

fn resolv_conf(ns: &Ns) -> PathBuf {
    PathBuf::from("/etc/netns")
        .join(ns.name())
        .join("resolv.conf")
}

/// How long it takes until a name has this address, or none.
fn becomes(ns: &Ns, name: &str, wanted: Option<Ipv4Addr>) -> Result<Duration> {
    let begin = Instant::now();
    let wanted: Vec<Ipv4Addr> = wanted.into_iter().collect();
    loop {
        let answer = ask(ns, name)?;
        let elapsed = begin.elapsed();
        if answer.as_ref() == Some(&wanted) {
            return Ok(elapsed);
        }
        ensure!(elapsed < 5 * SECOND, "{name}: {answer:?}, not {wanted:?}");
    }
}

/// The addresses of a name; `None` without an answer within 300 ms.
fn ask(ns: &Ns, name: &str) -> Result<Option<Vec<Ipv4Addr>>> {
    ns.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        socket.send_to(&query, (GATEWAY, 53))?;
        let mut answer = [0; 600];
        let Ok(len) = socket.recv(&mut answer) else {
            return Ok(None);
        };
        ensure!(answer[..2] == query[..2], "an answer to something else");
        let count = usize::from(answer[7]);
        let records = answer[query.len()..len].chunks_exact(16).take(count);
        // Each: a pointer to the name, type, class, TTL, length, address.
        let address = |r: &[u8]| Ipv4Addr::new(r[12], r[13], r[14], r[15]);
        Ok(Some(records.map(address).collect()))
    })
}

/// A resolver on a host's 127.0.0.1, that knows of example.test.
struct Resolver {
    asked: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    fn start(host: &Host) -> Result<Resolver> {
        let socket = host.ns.within(|| Ok(UdpSocket::bind("127.0.0.1:53")?))?;
        socket.set_read_timeout(Some(SECOND / 10))?;
        let (asked, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (asked2, stop2) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&socket, &asked2, &stop2));
        Ok(Resolver {
            asked,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, asked: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    let mut buffer = [0; 2000];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut labels = Vec::new();
        let mut at = 12;
        while at < len && buffer[at] != 0 {
            let label = &buffer[at + 1..at + 1 + usize::from(buffer[at])];
            labels.push(String::from_utf8_lossy(label).to_lowercase());
            at += 1 + label.len();
        }
        let name = labels.join(".");
        let known = name == "example.test";
        asked.lock().unwrap().insert(name);
        let mut reply = buffer[..at + 5].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(known), 0, 0, 0, 0]);
        if known {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(EXAMPLE.octets());
        } else {
            reply[3] |= 3;
        }
        let _ = socket.send_to(&reply, from);
    }
}

/// Removes what a failed test has left in /etc/netns.
struct NoResolvConf<'a>(&'a Lab);

impl Drop for NoResolvConf<'_> {
    fn drop(&mut self) {
        for ns in self.0.containers() {
            let file = resolv_conf(ns);
            let _ = std::fs::remove_file(&file);
            for dir in file.ancestors().skip(1).take(2) {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
}
