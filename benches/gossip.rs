//! What hosts tell each other, in a cluster as large as it may become, in virtual time: the same
//! code as in the agent, on simulated wires (see overlay-dp/gossip/tests/sim). Prints
//!
//! - how long it takes until a host that starts knows everything, and until a change is known
//!   everywhere,
//! - how long it takes until all others know of a dead host,
//! - what each host sends, idle, with changes and with lost packets, with the headers of QUIC, UDP
//!   and IP but without QUIC's own keep-alives,
//! - what the state of a host takes.
//!
//! `cargo bench -p overlay-gossip -- [--hosts N] [--endpoints N] [--networks N] [--seed N]`. By
//! default 1,000 hosts with 1,000,000 endpoints in 4,000 networks of 10 hosts each. Everything but
//! the time that it takes itself follows from the seed. Ends with an error when a promise is
//! broken: a dead host is found within 2 s, a change known within 200 ms (p99).

#[path = "../overlay-dp/gossip/tests/sim/mod.rs"]
mod sim;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::{IndexedRandom, IteratorRandom};
use sim::{Link, Nanos, Spec, World, nanos};

const SECOND: Duration = Duration::from_secs(1);
const HOSTS_OF_A_NETWORK: usize = 10;
/// Changes per host and second.
const CHURN: f64 = 1.0;
/// Shares of lost packets that are measured.
const LOSSES: [f64; 2] = [0.0, 0.05];
/// How long each of these is measured.
const WINDOW: Duration = Duration::from_secs(4);

struct Args {
    hosts: usize,
    endpoints: usize,
    networks: usize,
    seed: u64,
}

fn args() -> Args {
    let all: Vec<String> = std::env::args().collect();
    let has = |flag: &str| all.iter().any(|arg| arg == flag);
    let value = |flag: &str, default: usize| {
        let at = all.iter().position(|arg| arg == flag);
        let value = at.and_then(|at| all.get(at + 1));
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    // As the other benches do it: `cargo test --benches` only sees that it works.
    let small = has("--test") || !has("--bench");
    let hosts = value("--hosts", if small { 40 } else { 1000 });
    let networks = value("--networks", hosts * 4);
    Args {
        hosts,
        networks,
        endpoints: value("--endpoints", networks * 250),
        seed: value("--seed", 1) as u64,
    }
}

fn main() -> ExitCode {
    let args = args();
    let start = Instant::now();
    let empty = resident();
    let mut world = populated(&args);
    println!(
        "{} hosts, {} endpoints in {} networks of {HOSTS_OF_A_NETWORK} hosts, seed {}",
        args.hosts, args.endpoints, args.networks, args.seed
    );
    println!("set up in {:.0?}", start.elapsed());
    let own = resident();
    let facts = facts_size(&world);

    let done = until_all_know(&mut world, &args);
    println!("\nall hosts start at once: everybody knows everything after {done:.2?}");
    let full = resident();
    let told: i64 = world.nodes.iter().map(|node| node.count).sum();
    let share = |bytes: usize| bytes as f64 / args.hosts as f64 / 1e6;
    println!(
        "memory per host: {:.1} MB for {} endpoints of others and what SWIM and the streams take, \
         {:.1} MB for its own (twice, as the simulation holds them, too), and {:.1} MB for the \
         facts (which all hosts share here)",
        share(full.saturating_sub(own)),
        told / args.hosts as i64,
        share(own.saturating_sub(empty + facts)),
        facts as f64 / 1e6
    );
    // Until those who have nothing new to say have become quiet.
    world.run(8 * SECOND);

    let mut broken = Vec::new();
    println!(
        "\n  loss   changes/s   sent per host        known everywhere, ms      suspected   down"
    );
    println!("                      packets/s  bytes/s   p50     p99     max      by mistake");
    for loss in LOSSES {
        for churn in [0.0, CHURN] {
            let p99 = run_for(&mut world, &args, loss, churn);
            if p99 > 200_000_000 {
                broken.push(format!("a change took {} ms (p99)", p99 / 1_000_000));
            }
        }
    }
    println!("\n  loss   a dead host is known to be, ms: p50     p90     p99     max");
    for loss in LOSSES {
        let slowest = deaths(&mut world, &args, loss);
        if slowest > 2_000_000_000 {
            broken.push(format!(
                "a dead host was found after {} ms",
                slowest / 1_000_000
            ));
        }
    }
    println!(
        "\n{} events in {:.0?}, {:.1} GB at most",
        world.measured.events,
        start.elapsed(),
        peak() as f64 / 1e9
    );
    for problem in &broken {
        eprintln!("broken promise: {problem}");
    }
    ExitCode::from(u8::from(!broken.is_empty()))
}

/// A cluster that stands, in which nobody has said anything yet.
fn populated(args: &Args) -> World {
    let spec = Spec {
        mesh: false,
        views: false,
        managers: args.hosts.min(5),
        ..Spec::new(args.hosts, args.seed)
    };
    let mut world = World::new(spec);
    let mut networks_of = vec![Vec::new(); args.hosts];
    for n in 0..args.networks {
        let vni = world.create_quietly(n);
        let members = HOSTS_OF_A_NETWORK.min(args.hosts);
        for host in (0..args.hosts).sample(&mut world.rng, members) {
            networks_of[host].push(vni);
        }
    }
    let each = args.endpoints / (args.networks * HOSTS_OF_A_NETWORK).max(1);
    world.populate(&networks_of, each as u32);
    world.introduce_all();
    world
}

fn until_all_know(world: &mut World, args: &Args) -> Duration {
    let each = (args.endpoints / (args.networks * HOSTS_OF_A_NETWORK)) as i64;
    let others = HOSTS_OF_A_NETWORK.min(args.hosts) as i64 - 1;
    world.until("everybody knows everything", 60 * SECOND, |world| {
        let missing = world
            .nodes
            .iter()
            .map(|node| node.networks().len() as i64 * others * each - node.count);
        match missing.sum::<i64>() {
            0 => Ok(()),
            missing => Err(format!("{missing} are missing")),
        }
    })
}

/// A while with changes; returns the p99 of how long one took to be known.
fn run_for(world: &mut World, args: &Args, loss: f64, churn: f64) -> Nanos {
    set_loss(world, loss);
    let (before, suspected) = (world.traffic(), accusations(world));
    let false_downs = world.measured.false_downs;
    world.measured.convergence.clear();
    let (start, step) = (world.now, Duration::from_millis(50));
    let mut changes = 0;
    for round in 0.. {
        if world.now - start >= nanos(WINDOW) {
            break;
        }
        let each_round = churn * args.hosts as f64 / 20.0;
        for change in 0..each_round as usize {
            let n = world.rng.random_range(0..args.hosts);
            let name = format!("x{loss}.{round}.{change}");
            let networks = world.nodes[n].networks();
            let vni = networks.into_iter().filter(|vni| {
                let free = world.nodes[n].free_offset(*vni);
                free.is_some()
            });
            let vni: Vec<_> = vni.collect();
            if let Some(vni) = vni.choose(&mut world.rng).copied() {
                world.measured.published.insert(name.clone(), world.now);
                world.attach(n, vni, &name);
                world.run(step / each_round as u32 / 2);
                world.detach(n, vni, &name);
                changes += 2;
            }
        }
        world.run(step / 2);
    }
    let time = (world.now - start) as f64 / 1e9;
    let (sent, hosts) = (world.traffic(), args.hosts as f64);
    let packets = sent.datagrams + sent.frames - before.datagrams - before.frames;
    let bytes = sent.bytes() - before.bytes();
    let times = percentiles(&mut world.measured.convergence);
    println!(
        "{:5.0} % {:9.0} {:12.1} {:10.0} {} {:10} {:8}",
        loss * 100.0,
        changes as f64 / time,
        packets as f64 / time / hosts,
        bytes as f64 / time / hosts,
        match &times {
            Some([p50, _, p99, max]) => format!("{p50:7.1} {p99:7.1} {max:7.1}"),
            None => " ".repeat(23),
        },
        accusations(world) - suspected,
        world.measured.false_downs - false_downs,
    );
    times.map_or(0, |[_, _, p99, _]| (p99 * 1e6) as Nanos)
}

/// Kills some hosts, one after the other; returns how long it took until the last one knew.
fn deaths(world: &mut World, args: &Args, loss: f64) -> Nanos {
    set_loss(world, loss);
    world.measured.detection.clear();
    for _ in 0..6 {
        let alive: Vec<usize> = (0..args.hosts).filter(|n| world.runs(*n)).collect();
        let n = world.rng.random_range(0..alive.len());
        world.kill(alive[n], false);
        world.run(Duration::from_millis(2137));
    }
    let slowest = world.measured.detection.iter().max().copied();
    if let Some([p50, p90, p99, max]) = percentiles(&mut world.measured.detection) {
        println!(
            "{:5.0} % {p50:39.0} {p90:7.0} {p99:7.0} {max:7.0}",
            loss * 100.0
        );
    }
    slowest.unwrap_or(0)
}

fn set_loss(world: &mut World, loss: f64) {
    world.spec.link = Link {
        loss,
        ..Link::lan()
    };
    world.run(SECOND);
}

fn accusations(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.swim.accusations()).sum()
}

/// p50, p90, p99 and the maximum, in milliseconds.
fn percentiles(times: &mut [Nanos]) -> Option<[f64; 4]> {
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    let at = |share: f64| times[(last as f64 * share) as usize] as f64 / 1e6;
    Some([at(0.5), at(0.9), at(0.99), at(1.0)])
}

/// What one more copy of the facts takes.
fn facts_size(world: &World) -> usize {
    let before = resident();
    let copies = vec![world.managers.facts().clone(); 4];
    let size = resident().saturating_sub(before) / copies.len();
    drop(copies);
    size
}

fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

fn resident() -> usize {
    status("VmRSS:")
}

fn peak() -> usize {
    status("VmHWM:")
}
