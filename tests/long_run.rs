//! Three hosts for long: traffic without an end, while all else comes and goes.
//!
//! ```text
//!   p1, s1 ── host1 ─┐           ┌─ host3 ── p3, s3     plain:  p1 → p2 → p3 → p1, p2 → web, which is p1
//!                    ├─ router ──┤                      secret: s1 → s2, s3 → s1; encrypted
//!   p2, s2 ── host2 ─┘           └─ guests that come and go, on all hosts
//! ```
//!
//! In each round containers, networks, services and their tasks come and go, keys are rotated,
//! agents are killed and stopped and started again, and uplinks lose their carrier. Then all that
//! came is removed, and every host must have just what it had after the first round: nothing is
//! leaked. And each packet that is lost was sent while something was broken that it had to pass.
//!
//! It runs for a few rounds; `OVERLAY_DP_LONG_SECONDS=3600` for longer. `OVERLAY_DP_LONG_SEED`
//! brings the same events again. What was counted is left in `target/long_run.json`.

#[path = "long_run/blame.rs"]
mod blame;
#[path = "long_run/census.rs"]
mod census;
#[path = "long_run/events.rs"]
mod events;
#[path = "long_run/flow.rs"]
mod flow;

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use overlay_lab::{Cluster, Container, Lab, LabSpec, Ns, test};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};

use blame::Blame;
use census::{Census, Trend};
use events::{Event, Guest, ROUND};
use flow::{Clock, End, Flow, Stream};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/long_run.json");
const HOSTS: usize = 3;
/// Its agent is never restarted, so what it leaks is there in the end.
const MANAGER_ALL_THE_TIME: usize = 1;
/// Namespaces for guests.
const SPARE: usize = 8;
/// In which all hosts see each other again.
const SETTLED: Duration = Duration::from_secs(20);
/// In which what was removed is gone from everywhere.
const GONE: Duration = Duration::from_secs(40);
/// Every so many rounds a host is lost for long.
const OUTAGES: usize = 3;
/// An agent that lives all the time may have so much more in the end than after the first round:
/// what malloc does not give back, not what is used.
const MEMORY: u64 = 4 << 20;

#[test]
fn nothing_leaks_and_nothing_is_lost() {
    let seconds = setting("OVERLAY_DP_LONG_SECONDS").unwrap_or(35);
    let seed = setting("OVERLAY_DP_LONG_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default().as_micros() as u64
    });
    println!("OVERLAY_DP_LONG_SEED={seed} OVERLAY_DP_LONG_SECONDS={seconds}");
    let spec = LabSpec {
        hosts: HOSTS,
        containers: 2 * HOSTS + SPARE,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let run = LongRun::start(lab, seed).and_then(|mut run| {
            run.run(Duration::from_secs(seconds))?;
            run.conclude()
        });
        run.with_context(|| format!("OVERLAY_DP_LONG_SEED={seed}"))
    });
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// All of a run.
struct LongRun<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    rng: StdRng,
    clock: Clock,
    /// One on each host, all the time.
    plain: Vec<Container>,
    /// The same on the encrypted network.
    secret: Vec<Container>,
    flows: Vec<Flow>,
    stream: Stream,
    blame: Blame,
    guests: Vec<Guest>,
    guests_ever: usize,
    free: Vec<Ns>,
    /// After the first round.
    first: Option<Census>,
    samples: Vec<(f64, BTreeMap<String, u64>)>,
}

impl<'a> LongRun<'a> {
    fn start(lab: &'a Lab, seed: u64) -> Result<LongRun<'a>> {
        let cluster = Cluster::start(lab, HOSTS, "--on-exit keep")?;
        let first = lab.host(1);
        first.overlay("network create plain")?;
        first.overlay("network create secret --encrypted")?;
        let made = first.overlay_json("service create web --network plain")?;
        let vip = made["vips"][0].as_str().context("no VIP")?.parse()?;
        let (mut plain, mut secret) = (Vec::new(), Vec::new());
        for number in 1..=HOSTS {
            let host = lab.host(number);
            let service = if number == 1 { "--service web" } else { "" };
            let options = format!("--network plain {service}");
            let (p, s) = (lab.c(2 * number - 1), lab.c(2 * number));
            plain.push(Container::attach(host, p, &format!("p{number}"), &options)?);
            secret.push(Container::attach(
                host,
                s,
                &format!("s{number}"),
                "--network secret",
            )?);
        }
        for all in [&plain, &secret] {
            overlay_lab::all_reach_each_other(all, SETTLED)?;
        }
        let clock = Clock(Instant::now());
        let mut flows = Vec::new();
        let mut port = 7000;
        let ways = [(&plain, 1, 2), (&plain, 2, 3), (&plain, 3, 1)];
        let ways = ways.into_iter().chain([(&secret, 1, 2), (&secret, 3, 1)]);
        let end = |of: &'_ [Container], host: usize| (of[host - 1].ns.clone(), of[host - 1].ip);
        let direct = ways.map(|(of, from, to)| {
            let name = format!("{} → {}", of[from - 1].name, of[to - 1].name);
            (name, of, from, to, end(of, to).1)
        });
        let by_service = ("p2 → web".to_owned(), &plain, 2, 1, vip);
        for (name, of, from, to, ip) in direct.chain([by_service]) {
            port += 1;
            let ends = [(from, end(of, from).0), (to, end(of, to).0)];
            let [from, to] = ends.each_ref().map(|(host, ns)| End { ns, host: *host });
            let encrypted = std::ptr::eq(of, &raw const secret);
            flows.push(Flow::start(
                &name,
                (from, to),
                (ip, port).into(),
                encrypted,
                clock,
            )?);
        }
        Ok(LongRun {
            lab,
            cluster,
            rng: StdRng::seed_from_u64(seed),
            clock,
            stream: Stream::start(&plain[2].ns, &plain[1].ns, plain[1].ip, 7000)?,
            plain,
            secret,
            flows,
            blame: Blame::default(),
            guests: Vec::new(),
            guests_ever: 0,
            free: lab.containers()[2 * HOSTS..].to_vec(),
            first: None,
            samples: Vec::new(),
        })
    }

    /// Two rounds at least: one to begin with, one to compare with it.
    fn run(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        for round in 0.. {
            if round > 1 && Instant::now() >= end {
                break;
            }
            self.round(round)
                .with_context(|| format!("round {round}"))?;
        }
        Ok(())
    }

    fn round(&mut self, round: usize) -> Result<()> {
        self.note(&format!("round {round}"));
        let mut events = ROUND.to_vec();
        if round % OUTAGES == 1 {
            events.push(Event::Outage);
        }
        events.shuffle(&mut self.rng);
        for event in events {
            self.happen(event)?;
            self.cluster.check_running()?;
            self.pause();
        }
        self.remove_all()?;
        self.cluster.wait_settled(SETTLED)?;
        self.lab.verify_clean(GONE)?;
        for flow in &self.flows {
            self.blame.judge(flow)?;
        }
        self.count()
    }

    /// What is there must be what was there after the first round, soon.
    fn count(&mut self) -> Result<()> {
        let deadline = Instant::now() + GONE;
        loop {
            let census = self.census()?;
            let Some(first) = &self.first else {
                self.sample(&census);
                self.first = Some(census);
                return Ok(());
            };
            let differences = census.differences(first);
            if differences.is_empty() {
                self.sample(&census);
                return Ok(());
            }
            let late = Instant::now() >= deadline;
            ensure!(!late, "this has leaked:\n{}", differences.join("\n"));
            sleep(Duration::from_millis(200));
        }
    }

    fn census(&self) -> Result<Census> {
        let mut census = Census::default();
        census.take_namespaces(self.lab.id())?;
        for (number, host) in (1..).zip(self.lab.hosts()) {
            let pid = self.cluster.pid(number).context("no agent")?;
            census
                .take(host, pid)
                .with_context(|| host.ns.label().to_owned())?;
        }
        for ns in self.lab.containers() {
            census.take_container(ns)?;
        }
        Ok(census)
    }

    fn sample(&mut self, census: &Census) {
        let hours = self.clock.now().as_secs_f64() / 3600.0;
        self.samples.push((hours, census.numbers()));
    }

    /// Nothing is lost, nothing has grown, and nothing is left.
    fn conclude(mut self) -> Result<()> {
        let mut sent = 0;
        for flow in &mut self.flows {
            flow.stop()?;
            self.blame.judge(flow)?;
            sent += flow.sent();
        }
        let bytes = self.stream.stop()?;
        let trends = census::trends(&self.samples)?;
        println!("{}", table(&trends));
        let Blame {
            by_links,
            by_agents,
            after_link,
            after_agent,
            ..
        } = self.blame;
        println!(
            "{} rounds, {} guests; {sent} datagrams, {by_links} lost by links without carrier, the last {after_link:.0?} \
             after it was back; {by_agents} on the encrypted network without an agent, the last {after_agent:.0?} \
             after it was back; none otherwise; {bytes} bytes of the stream",
            self.samples.len(),
            self.guests_ever
        );
        let report = json!({
            "sent": sent, "lost_by_links": by_links, "lost_by_agents": by_agents,
            "after_link_ms": after_link.as_millis() as u64,
            "after_agent_ms": after_agent.as_millis() as u64,
            "stream_bytes": bytes,
            "samples": self.samples,
            "trends": trends.iter().map(of_trend).collect::<Vec<Value>>(),
        });
        fs::write(REPORT, format!("{report:#}\n"))
            .with_context(|| format!("can't write {REPORT}"))?;
        for Trend {
            what, first, last, ..
        } in &trends
        {
            let is_memory = what.ends_with("anonymous") || what.ends_with("socket queues");
            ensure!(
                !is_memory || *last < first + first / 10 + MEMORY,
                "{what} has grown from {first} to {last} bytes"
            );
        }
        leave(self.lab, self.cluster)
    }

    /// For the reader of a failure.
    fn note(&self, what: &str) {
        println!("{:8.3} {what}", self.clock.now().as_secs_f64());
    }
}

/// The managers' last one goes last.
fn leave(lab: &Lab, mut cluster: Cluster<'_>) -> Result<()> {
    for number in (1..=HOSTS).rev() {
        lab.host(number).overlay("detach")?;
        let mut agent = cluster.take(number).context("no agent")?;
        let status = agent.ended()?;
        ensure!(status.success(), "{status}");
        let left = lab.host(number).leftovers()?;
        ensure!(left.is_empty(), "left on host{number}: {left:#?}");
    }
    let mut inside = Census::default();
    for ns in lab.containers() {
        inside.take_container(ns)?;
    }
    for (what, interfaces) in inside.things {
        ensure!(interfaces.iter().eq(["lo"]), "{what}: {interfaces:?}");
    }
    Ok(())
}

fn of_trend(trend: &Trend) -> Value {
    json!({
        "what": trend.what, "first": trend.first, "last": trend.last, "most": trend.most,
        "per_hour": trend.per_hour,
    })
}

fn table(trends: &[Trend]) -> String {
    let head = format!(
        "{:<28}{:>12}{:>12}{:>12}{:>12}\n",
        "", "first round", "last", "most", "per hour"
    );
    let rows = trends.iter().map(|trend| {
        format!(
            "{:<28}{:>12}{:>12}{:>12}{:>12.0}\n",
            trend.what, trend.first, trend.last, trend.most, trend.per_hour
        )
    });
    head + &rows.collect::<String>()
}
