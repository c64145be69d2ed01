//! The slow path: what the programs can't decide and the agent does.
//!
//! - `decide/…`: the decision alone, by criterion: one frame in, its answers written to memory.
//! - Frames per second: a real agent's, its slow-path thread alone on one CPU, frames injected from
//!   the other one as fast as the kernel takes them ([`flood`]).
//! - The time one pass adds: a question between containers over the slow path and past it, all on
//!   one CPU, and the same question through a TUN device's loop ([`pass`]).

#[path = "slow_path/decide.rs"]
mod decide;
#[path = "slow_path/flood.rs"]
mod flood;
#[path = "slow_path/inject.rs"]
mod inject;
#[path = "slow_path/pass.rs"]
mod pass;
#[path = "slow_path/sink.rs"]
mod sink;
mod support;

use anyhow::Result;
use overlay_lab::stop_on_signals;
use support::{criterion, is_root};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

fn main() -> Result<()> {
    let only: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| name.contains(only));
    let mut criterion = criterion();
    decide::all(&mut criterion)?;
    criterion.final_summary();
    if std::env::args().any(|arg| arg == "--list") {
        println!("rate: benchmark\npass: benchmark");
        return Ok(());
    }
    if !is_root() {
        return Ok(());
    }
    stop_on_signals()?;
    if wanted("rate") {
        flood::measure()?;
    }
    if wanted("pass") {
        pass::measure()?;
    }
    Ok(())
}
