//! Endpoints in the tables and in the programs' maps.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use overlay_common::layout::names;
use overlay_core::tables::Tables;

use crate::agent::memory;
use crate::support::*;
use crate::table::{Table, quantile};

const PART: &str = "maps";
/// Runs of a program before it is another's turn.
const BATCH: u32 = 500;

/// The programs with so many endpoints in their maps.
struct World {
    size: u32,
    programs: Programs,
    state: u32,
}

pub fn measure(table: &mut Table, small: bool) -> Result<()> {
    let sizes: &[u32] = match small {
        true => &[100, 200],
        false => &[1_000, 100_000, 1_000_000],
    };
    let mut worlds = Vec::new();
    for &size in sizes {
        worlds.push(fill(table, size)?);
    }
    pin_to_cpu(0);
    let rounds = if small { 1 } else { 30 };
    let cases = [
        ("XDP encap", names::PORT_XDP),
        ("tcx encap", names::PORT_TC),
        ("XDP decap", names::UPLINK_XDP),
        ("tcx decap", names::UPLINK_TC),
    ];
    let mut times: BTreeMap<(usize, usize), Vec<Duration>> = BTreeMap::new();
    for _ in 0..rounds {
        for (which, (_, program)) in cases.iter().enumerate() {
            for (place, world) in worlds.iter_mut().enumerate() {
                let took = world.batch(program)?;
                times.entry((which, place)).or_default().push(took);
            }
        }
    }
    for (which, (case, _)) in cases.iter().enumerate() {
        let median = |place| quantile(&times[&(which, place)], 50).as_nanos() as f64;
        for (place, size) in sizes.iter().enumerate() {
            let what = format!("{case} to one of {size} endpoints, at random");
            table.add(PART, what, median(place) / f64::from(BATCH), "ns");
        }
        let what = format!("… {} against {}", sizes[sizes.len() - 1], sizes[0]);
        table.add(PART, what, median(sizes.len() - 1) / median(0), "times");
    }
    Ok(())
}

/// As the agent does: what it is told goes to the tables, and what they say to the maps.
fn fill(table: &mut Table, size: u32) -> Result<World> {
    let maps_before = map_memory()?;
    let mut tables = tables(0)?;
    let mut programs = Programs::load(&mut tables)?;
    let empty = map_memory()? - maps_before;
    let before = memory("self")?;
    let begin = Instant::now();
    tell(&mut tables, size)?;
    let told = Instant::now();
    while let Some(update) = tables.poll_update() {
        programs.apply(update)?;
    }
    let written = told.elapsed();
    table.time(
        PART,
        format!("{size} endpoints told to the tables"),
        told - begin,
    );
    table.time(
        PART,
        format!("{size} endpoints written to the maps"),
        written,
    );
    table.bytes(
        PART,
        format!("the tables with {size} endpoints"),
        memory("self")?.saturating_sub(before),
    );
    let maps = map_memory()? - maps_before;
    table.bytes(
        PART,
        format!("the kernel's maps with {size} endpoints"),
        maps,
    );
    if size == 1_000 {
        table.bytes(PART, "the kernel's maps when empty", empty);
    }
    Ok(World {
        size,
        programs,
        state: 0x9e37_79b9,
    })
}

fn tell(tables: &mut Tables, size: u32) -> Result<()> {
    for number in 0..size {
        let ip = endpoint_ip(number);
        let endpoint = endpoint(&format!("e{number}"), ip);
        tables.endpoint_up(endpoint_vtep(number).into(), &endpoint)?;
    }
    Ok(())
}

impl World {
    /// Another endpoint each time, so that big maps are as cold in the caches as they would be.
    fn batch(&mut self, program: &str) -> Result<Duration> {
        let encap = [names::PORT_XDP, names::PORT_TC].contains(&program);
        let mut total = Duration::ZERO;
        for _ in 0..BATCH {
            let number = self.random();
            let ip = endpoint_ip(number);
            let frame = match encap {
                true => tcp_frame(ip, 128),
                false => encapsulated(endpoint_vtep(number), &tcp_between(ip, OWN, 128)),
            };
            total += self.programs.run(program, &frame, 1)?;
        }
        Ok(total)
    }

    /// In no order (xorshift; Marsaglia, "Xorshift RNGs", 2003).
    fn random(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state % self.size
    }
}

/// What the kernel says that this process's maps take, in bytes.
fn map_memory() -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // One that was open for reading the directory is gone.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse::<u64>().ok()
        };
        if let Some(id) = field("map_id:") {
            maps.insert(id, field("memlock:").context("a map without memlock")?);
        }
    }
    Ok(maps.values().sum())
}
