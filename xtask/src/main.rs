//! `cargo xtask`: builds the eBPF programs, runs the demo lab and the tests. No product logic.

mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod kernels;
mod packages;
mod previous;
mod process;
mod test;

use std::process::ExitCode;

use clap::{Args, Parser};

/// Build, lab and test tasks of overlay-dp.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Compile overlay-ebpf into target/ebpf/overlay-ebpf.o, installing the toolchain if it is missing
    BuildEbpf,
    /// Compile the agent of the commit before the last change, which upgrades are tested from
    BuildPrevious,
    /// Build all, run two hosts with an overlay network on this machine, check it, remove it
    Demo(DemoArgs),
    /// All that a change must pass: format, lints, docs, tests; end-to-end tests when root
    Test(TestArgs),
    /// Feed everything that reads foreign input with what a fuzzer makes up
    Fuzz(FuzzArgs),
    /// The data path's tests on Linux 6.1 and 6.12, booted by QEMU
    Kernels(KernelsArgs),
    /// Write the manual pages to target/man
    Man,
    /// Make a Debian package in target/debian
    Deb(DebArgs),
    /// As `test`, with a failure when something would be skipped (as CI=true does)
    Ci,
}

#[derive(Args)]
struct DemoArgs {
    /// Leave the lab running, and say how to enter it
    #[arg(long)]
    keep: bool,
    /// Remove the labs that --keep has left
    #[arg(long, conflicts_with_all = ["keep", "datapath"])]
    remove: bool,
    /// Which hooks to use: auto, xdp or tcx
    #[arg(long)]
    datapath: Option<String>,
}

#[derive(Args)]
struct FuzzArgs {
    /// One target only [default: all of them, one after the other]
    target: Option<String>,
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
}

#[derive(Args)]
struct KernelsArgs {
    /// One kernel only: 6.1 or 6.12 [default: both, one after the other]
    kernel: Option<String>,
    /// One of the guests' test targets only, such as two_hosts
    #[arg(long)]
    only: Option<String>,
}

#[derive(Args)]
struct DebArgs {
    /// Of a build that is not optimized: for looking at the package
    #[arg(long)]
    debug: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Unit tests alone: no lints, docs or end-to-end tests
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::BuildEbpf => ebpf::build().map(|_| ExitCode::SUCCESS),
        Task::BuildPrevious => ebpf::build().and_then(|_| {
            if let Some(binary) = previous::build()? {
                println!("export {}={}", previous::VARIABLE, binary.display());
            }
            Ok(ExitCode::SUCCESS)
        }),
        Task::Demo(args) if args.remove => {
            demo::remove();
            Ok(ExitCode::SUCCESS)
        }
        Task::Demo(args) => demo::run(args.datapath.as_deref(), args.keep),
        Task::Test(args) if args.quick => test::quick(),
        Task::Test(_) => test::all(std::env::var("CI").is_ok_and(|ci| ci == "true")),
        Task::Fuzz(args) => fuzz::fuzz(args.target.as_deref(), args.seconds),
        Task::Kernels(args) => kernels::run(args.kernel.as_deref(), args.only.as_deref())
            .map(|passed| ExitCode::from(u8::from(!passed))),
        Task::Man => dist::man().map(|()| ExitCode::SUCCESS),
        Task::Deb(args) => dist::deb(args.debug).map(|_| ExitCode::SUCCESS),
        Task::Ci => test::all(true),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
