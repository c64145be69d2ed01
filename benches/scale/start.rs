//! Agents that start, and what an attach is made of.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::Bench;
use crate::table::{Table, quantile};

const PART: &str = "start";

pub fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let mut cold = Vec::new();
    let mut steps = Vec::new();
    for _ in 0..rounds {
        let mut bench = Bench::build()?;
        cold.push(bench.start("")?);
        steps.extend(bench.took("INFO attached")?.pop());
    }
    table.time(PART, "the first start of a host, p50", quantile(&cold, 50));
    shares(table, PART, "the first start", &steps);

    let mut bench = Bench::build()?;
    let spaces = bench.spaces(1)?;
    bench.start("")?;
    bench.network("scale", None)?;
    bench.attach(&spaces, "scale", 0)?;
    let mut warm = Vec::new();
    for _ in 0..rounds {
        bench.agent.take().context("the agent")?.kill();
        warm.push(bench.start("")?);
    }
    table.time(
        PART,
        "after kill -9, one container, p50",
        quantile(&warm, 50),
    );
    let steps = bench.took("INFO attached")?;
    shares(
        table,
        PART,
        "after kill -9",
        &steps[steps.len().saturating_sub(rounds)..],
    );

    let mut by_socket = Vec::new();
    let mut by_process = Vec::new();
    for _ in 0..rounds * 10 {
        by_socket.push(bench.attach(&spaces, "scale", 1)?);
        bench.remove(1)?;
        let begin = std::time::Instant::now();
        bench.host().overlay(&format!(
            "container add by-hand --network scale --netns {} --ifname eth0",
            spaces[0].name()
        ))?;
        by_process.push(begin.elapsed());
        bench.host().overlay("container rm by-hand")?;
    }
    for (what, times) in [
        ("through the socket", &by_socket),
        ("by a CLI process", &by_process),
    ] {
        for percent in [50, 99] {
            let what = format!("container add {what}, p{percent}");
            table.time(PART, what, quantile(times, percent));
        }
    }
    let steps = bench.took("container attached")?;
    shares(table, PART, "container add", &steps);
    Ok(())
}

/// The median of each step that the log tells of.
pub fn shares(table: &mut Table, part: &'static str, of: &str, lines: &[String]) {
    let mut order = Vec::new();
    let mut steps: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.chunks_exact(2) {
            let Ok(ms) = pair[1].parse::<f64>() else {
                continue;
            };
            if !order.contains(&pair[0].to_owned()) {
                order.push(pair[0].to_owned());
            }
            let took = Duration::from_secs_f64(ms / 1e3);
            steps.entry(pair[0].to_owned()).or_default().push(took);
        }
    }
    for step in order {
        table.time(part, format!("… {of}: {step}"), quantile(&steps[&step], 50));
    }
}
