//! `cargo xtask`: builds the eBPF programs, runs the demo lab and the tests. No product logic.

mod ebpf;
mod packages;
mod process;

use std::process::ExitCode;

use clap::Parser;

/// Build, lab and test tasks of overlay-dp.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Compile overlay-ebpf into target/ebpf/overlay-ebpf.o, installing the toolchain if it is missing
    BuildEbpf,
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::BuildEbpf => ebpf::build().map(|_| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
