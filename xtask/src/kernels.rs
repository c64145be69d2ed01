//! `kernels`: the data path's tests on the oldest Linux that is supported and on a newer one, each
//! booted by QEMU. The machine's own kernel has the ordinary test run.

mod debian;
mod guest;
mod image;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{cargo, is_root, root, step};
use crate::{ebpf, packages};
use debian::Kernel;
use guest::{Accel, Report};
use image::Job;

/// Debian 12's own, which has no tcx, and its newer one.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// What a guest runs: a test target, and arguments that choose among its tests.
const JOBS: [(&str, &[&str]); 5] = [
    ("bpf_programs", &[]),
    ("kernel", &[]),
    ("two_hosts", &["xdp", "tcx", "auto", "--exact"]),
    ("mixed_hooks", &[]),
    ("lifecycle", &["kill_9"]),
];

/// Longer than all jobs take on an emulated CPU of a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the jobs on the kernels of `series`, or on all of them; `job` is one of the test targets.
///
/// # Errors
/// When something is missing. Failed tests are no error but the exit code.
pub fn run(series: Option<&str>, job: Option<&str>) -> Result<ExitCode> {
    let series: Vec<&str> = match series {
        None => SERIES.to_vec(),
        Some(asked) if SERIES.contains(&asked) => vec![asked],
        Some(asked) => bail!("no Linux {asked} here: it is one of {}", SERIES.join(", ")),
    };
    let jobs: Vec<_> = JOBS
        .into_iter()
        .filter(|(name, _)| job.is_none_or(|asked| asked == *name))
        .collect();
    let names: Vec<&str> = JOBS.iter().map(|(name, _)| *name).collect();
    ensure!(
        !jobs.is_empty(),
        "no such tests: they are {}",
        names.join(", ")
    );
    ensure!(
        is_root(),
        "packages of kernels can only be unpacked by root"
    );
    packages::ensure(&packages::LAB)?;
    packages::ensure(&packages::KERNELS)?;
    ebpf::build()?;

    step("building the tests for the guests");
    let mut ours = executables(&jobs)?;
    let jobs: Vec<Job> = jobs
        .into_iter()
        .zip(&ours)
        .map(|((name, arguments), program)| job_of(name, arguments, program))
        .collect();
    ours.push(root().join("target/debug/overlay-dp"));
    let accel = Accel::here();
    if accel == Accel::Tcg {
        step("NO KVM HERE: the guests' CPUs are emulated, so loads are small");
    }
    let mut passed = true;
    for series in series {
        passed &= on_kernel(series, &ours, &jobs, accel)?;
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn on_kernel(series: &str, ours: &[PathBuf], jobs: &[Job], accel: Accel) -> Result<bool> {
    let kernel = Kernel::fetch(series)?;
    let initramfs = root().join("target/kernels").join(format!("{series}.cpio"));
    image::write(&initramfs, &kernel, ours, jobs)?;
    step(format!("booting Linux {}", kernel.release));
    let report = guest::boot(&kernel, &initramfs, accel, LIMIT)?;
    std::fs::remove_file(initramfs)?;
    Ok(summary(&kernel.release, jobs, &report))
}

/// Prints what became of each job; whether all passed.
fn summary(release: &str, jobs: &[Job], report: &Report) -> bool {
    let mut passed = report.done;
    step(format!("on Linux {release}:"));
    for Job { name, .. } in jobs {
        let ended = report.jobs.iter().find(|(job, ..)| job == name);
        let time = ended.map_or(String::new(), |(.., time)| format!("{} s", time.as_secs()));
        let verdict = match (ended, report.passed(name)) {
            (_, true) => "passed",
            (Some(_), false) => "FAILED",
            (None, _) => "DID NOT END",
        };
        eprintln!("    {name:<14} {verdict} {time}");
        passed &= report.passed(name);
    }
    for line in &report.kernel {
        eprintln!("    THE KERNEL SAID {line}");
        passed = false;
    }
    if !report.done {
        eprintln!("    THE GUEST DID NOT COME TO ITS END");
    }
    passed
}

fn job_of(name: &str, arguments: &[&str], program: &Path) -> Job {
    let mut all = vec!["--test-threads=1".to_owned()];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Job {
        name: name.to_owned(),
        env: vec!["CI=true".to_owned()],
        program: program.to_owned(),
        arguments: all,
    }
}

/// Builds the test targets and returns where they are, in the order of `jobs`.
fn executables(jobs: &[(&str, &[&str])]) -> Result<Vec<PathBuf>> {
    let mut build = cargo();
    // The whole workspace, so that dependencies have the features that all other builds have.
    build.args(["test", "--no-run", "--workspace"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    for (name, _) in jobs {
        build.args(["--test", name]);
    }
    let built = build
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("can't start cargo")?;
    ensure!(built.status.success(), "the tests don't compile");
    let messages: Vec<Value> = String::from_utf8(built.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let executable = |name: &str| {
        messages
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str())
            .map(PathBuf::from)
            .with_context(|| format!("cargo has not built {name}"))
    };
    jobs.iter().map(|(name, _)| executable(name)).collect()
}
