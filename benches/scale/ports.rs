//! Many ports on one host, and many networks.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::Method;
use overlay_lab::check_signals;

use crate::agent::Bench;
use crate::start::shares;
use crate::table::{Table, quantile};

pub fn measure(table: &mut Table, count: usize) -> Result<()> {
    const PART: &str = "ports";
    let mut bench = Bench::build()?;
    let spaces = bench.spaces(count + 1)?;
    bench.start("")?;
    bench.network("scale", Some("10.128.0.0/12"))?;
    let without = bench.memory()?;
    let mut times = Vec::new();
    for number in 0..count {
        check_signals()?;
        times.push(bench.attach(&spaces, "scale", number)?);
    }
    table.time(PART, "attach, the first", times[0]);
    // Each as the median of some around it.
    for (number, name) in [(100, "100th"), (count, "last")] {
        if number <= count {
            let around = &times[number.saturating_sub(25)..number];
            table.time(
                PART,
                format!("attach, the {name} of {count}"),
                quantile(around, 50),
            );
        }
    }
    table.time(PART, "attach, p50 of all", quantile(&times, 50));
    table.time(PART, "attach, p99 of all", quantile(&times, 99));
    // What the slowest of them waited for.
    let mut steps = bench.took("container attached")?;
    steps.sort_by(|a, b| all(b).total_cmp(&all(a)));
    shares(
        table,
        PART,
        "the slowest in a hundred",
        &steps[..count.div_ceil(100).min(steps.len())],
    );
    let begin = Instant::now();
    bench.host().overlay(&format!(
        "container add by-hand --network scale --netns {} --ifname p{count}",
        spaces[count / crate::agent::PORTS_PER_NS].name()
    ))?;
    table.time(PART, "container add, by a CLI process", begin.elapsed());
    table.bytes(
        PART,
        format!("the agent's memory for {count} ports"),
        bench.memory()?.saturating_sub(without),
    );
    table.bytes(PART, "its state file", state_size(&bench));
    for (what, path) in [
        ("status", "/v1/status"),
        ("container ls", "/v1/containers"),
        ("fdb show", "/v1/fdb"),
    ] {
        table.time(
            PART,
            format!("{what} with {count} ports"),
            bench.timed(Method::GET, path, None::<&()>)?,
        );
    }
    let begin = Instant::now();
    bench.host().overlay("verify")?;
    table.time(PART, format!("verify with {count} ports"), begin.elapsed());

    if let Some(agent) = bench.agent.take() {
        agent.kill();
    }
    let restart = bench.start("")?;
    table.time(
        PART,
        format!("restart with {count} ports after kill -9"),
        restart,
    );
    let starts = bench.took("INFO attached")?;
    shares(
        table,
        PART,
        "of that",
        &starts[starts.len().saturating_sub(1)..],
    );
    let gone: Vec<Duration> = (0..count / 10)
        .map(|number| bench.remove(number))
        .collect::<Result<_>>()?;
    table.time(PART, "detach of one, p50", quantile(&gone, 50));
    let left = count + 1 - gone.len();
    let begin = Instant::now();
    let detached: Result<serde_json::Value> = bench.ask(
        Method::POST,
        "/v1/detach",
        Some(&serde_json::json!({ "force": true })),
    );
    detached?;
    table.time(
        PART,
        format!("detach of the host with {left} ports"),
        begin.elapsed(),
    );
    Ok(())
}

/// Milliseconds of all steps together.
fn all(steps: &str) -> f64 {
    let words = steps.rsplit(' ').nth(1);
    words.and_then(|ms| ms.parse().ok()).unwrap_or(0.0)
}

fn state_size(bench: &Bench) -> u64 {
    let dir = PathBuf::from("/var/lib/overlay-dp").join(&bench.host().instance);
    let size = |name| fs::metadata(dir.join(name)).map_or(0, |file| file.len());
    size("agent.journal") + size("agent.json")
}

pub fn measure_networks(table: &mut Table, count: usize) -> Result<()> {
    const PART: &str = "networks";
    let mut bench = Bench::build()?;
    let spaces = bench.spaces(count)?;
    bench.start("")?;
    let without = bench.memory()?;
    let (mut made, mut attached) = (Vec::new(), Vec::new());
    for number in 0..count {
        check_signals()?;
        let name = format!("n{number}");
        made.push(bench.network(&name, None)?);
        attached.push(bench.attach(&spaces, &name, number)?);
    }
    for (what, times) in [
        ("network create", &made),
        ("attach of its first port", &attached),
    ] {
        table.time(PART, format!("{what}, the first"), times[0]);
        let last = &times[count.saturating_sub(10)..];
        table.time(
            PART,
            format!("{what}, the last of {count}"),
            quantile(last, 50),
        );
    }
    let memory = bench.memory()?.saturating_sub(without);
    table.bytes(
        PART,
        format!("the agent's memory for {count} networks"),
        memory,
    );
    let listed = bench.timed(Method::GET, "/v1/networks", None::<&()>)?;
    table.time(PART, format!("network ls with {count} networks"), listed);
    Ok(())
}
