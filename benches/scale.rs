//! What numbers cost: endpoints in the maps, ports on a host, VTEPs, networks; and what a start, an
//! attach and a restart take.
//!
//! - `maps`: 1,000 to 1,000,000 endpoints told to the tables, and by them to the programs' maps:
//!   time, memory, and what a look-up among them costs (`BPF_PROG_TEST_RUN`, alternating).
//! - `ports`: up to 1,000 containers' ports on one host, asked for through the agent's socket.
//! - `vteps`: 1,000 VTEPs (static entries), and what routes that come and go cost the agent then.
//! - `networks`: 100 networks, each attached.
//! - `start`: agents that start, with and without something to go on with.
//!
//! `--only ports,start` takes these alone, `--ports 300` fewer ports, and `OVERLAY_DP_BIN` another
//! binary than the one just built, for a comparison. The rows go to target/scale.json as well, or
//! to `--json FILE`.

#[path = "scale/agent.rs"]
mod agent;
#[path = "scale/fdb.rs"]
mod fdb;
#[path = "scale/maps.rs"]
mod maps;
#[path = "scale/ports.rs"]
mod ports;
#[path = "scale/start.rs"]
mod start;
mod support;
#[path = "scale/table.rs"]
mod table;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use overlay_lab::stop_on_signals;

use support::{is_root, test_mode};
use table::Table;

/// Measures what numbers cost.
#[derive(Parser)]
#[command(bin_name = "cargo bench -p overlay-dp --bench scale --")]
struct Args {
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_parser = PARTS, default_values = PARTS)]
    only: Vec<String>,
    /// So many ports and VTEPs
    #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u32).range(100..=4000))]
    ports: u32,
    /// Where the rows go
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/scale.json"))]
    json: PathBuf,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    /// Everything once, with small numbers
    #[arg(long)]
    test: bool,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    format: Option<String>,
}

const PARTS: [&str; 5] = ["maps", "ports", "vteps", "networks", "start"];

fn main() -> Result<()> {
    let args = Args::parse();
    if args.list {
        println!("scale: benchmark");
        return Ok(());
    }
    if !is_root() {
        return Ok(());
    }
    stop_on_signals()?;
    let small = test_mode();
    let count = if small { 20 } else { args.ports as usize };
    let mut table = Table::new();
    for part in &args.only {
        match part.as_str() {
            "maps" => maps::measure(&mut table, small)?,
            "ports" => ports::measure(&mut table, count)?,
            "vteps" => fdb::measure(&mut table, count)?,
            "networks" => ports::measure_networks(&mut table, if small { 5 } else { 100 })?,
            _ => start::measure(&mut table, if small { 2 } else { 10 })?,
        }
    }
    table.print();
    match small {
        true => Ok(()),
        false => table.save(&args.json),
    }
}
