//! The data path from container to container, side by side with what else there is: no overlay at
//! all, and a Linux vxlan device with a bridge, as Docker's overlay networks have it.
//!
//! ```text
//!   c1 ─veth─ host1 eth0 ─veth─ router ─veth─ eth0 host2 ─veth─ c2
//! ```
//!
//! With `--docker` also Docker itself, its overlay network between its own containers.
//!
//! One such lab for each peer, all with the same namespaces and links. The peers take turns in
//! short slices, and what counts is the ratio of two peers within one round of turns: whatever
//! else the machine does meets all of them alike. Medians of these are compared with the goals.
//!
//! Both ends of a round trip have one CPU, unless `--cpus 0,1` says otherwise: on a virtual
//! machine to wake a CPU up (an IPI, which its host has to deliver) takes longer than the whole
//! way there and back, and would be most of what is measured. A stream's ends have two CPUs
//! (`--stream-cpus`).
//!
//! Ends with an error when overlay-dp is not in the class that users were promised (round trips
//! with p50 below 1 ms, p99 below 5 ms); with `--strict` when a goal is missed; with `--baseline`
//! when a ratio to kernel vxlan is worse than it was.

#[path = "end_to_end/args.rs"]
mod args;
#[path = "end_to_end/bed.rs"]
mod bed;
#[path = "end_to_end/bpf.rs"]
mod bpf;
#[path = "end_to_end/cpu.rs"]
mod cpu;
#[path = "end_to_end/docker.rs"]
mod docker;
#[path = "end_to_end/judge.rs"]
mod judge;
#[path = "end_to_end/kernel_vxlan.rs"]
mod kernel_vxlan;
#[path = "end_to_end/link.rs"]
mod link;
#[path = "end_to_end/live.rs"]
mod live;
#[path = "end_to_end/metric.rs"]
mod metric;
#[path = "end_to_end/plot.rs"]
mod plot;
#[path = "end_to_end/report.rs"]
mod report;
#[path = "end_to_end/round_trip.rs"]
mod round_trip;
#[path = "end_to_end/routed.rs"]
mod routed;
#[path = "end_to_end/run.rs"]
mod run;
#[path = "end_to_end/stats.rs"]
mod stats;
#[path = "end_to_end/stream.rs"]
mod stream;
mod support;
#[path = "end_to_end/table.rs"]
mod table;
#[path = "end_to_end/udp_rate.rs"]
mod udp_rate;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use overlay_lab::stop_on_signals;

use args::Args;
use bed::Bed;
use report::Report;
use support::{is_root, pin_to_cpu, test_mode};

const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");

fn main() -> Result<()> {
    let args = Args::parse();
    if args.list {
        println!("end_to_end: benchmark");
        return Ok(());
    }
    if !is_root() {
        return Ok(());
    }
    stop_on_signals()?;
    // Before the old report is replaced, which may be this file.
    let baseline = args.baseline.as_deref().map(Report::load).transpose()?;
    let began = Instant::now();
    let beds = Bed::all(&args)?;
    // Only now: agents and labs have the whole machine.
    pin_to_cpu(args.first_cpu());
    let lines = run::all(&beds, &args)?;
    drop(beds);

    let report = Report::new(&args, lines);
    print!("{}", table::render(&report));
    println!("Took {} s.", began.elapsed().as_secs());
    if test_mode() {
        return Ok(());
    }
    report.save(&Path::new(TARGET).join("end_to_end.json"))?;
    plot::draw(&report, &Path::new(TARGET).join("end_to_end.svg"))?;
    println!("Also in target/end_to_end.json and target/end_to_end.svg.");
    judge::class(&report)?;
    if let Some(baseline) = baseline {
        judge::regressions(&report, &baseline)?;
    }
    if args.strict {
        judge::goals(&report)?;
    }
    Ok(())
}
