//! `kernels`: the data path's tests on the oldest Linux that is supported and on a newer one, each
//! booted by QEMU. The machine's own kernel has the ordinary test run.

mod debian;
mod guest;
mod image;

use std::path::{Path, PathBuf};
use std::process::Stdio;
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

/// What a guest runs.
struct Tests {
    /// A test target.
    target: &'static str,
    /// Arguments that choose among its tests.
    chosen: &'static [&'static str],
    /// The same on an emulated CPU, where loading a program takes seconds; none if there are none.
    emulated: &'static [&'static str],
}

const TESTS: [Tests; 6] = [
    Tests {
        target: "bpf_programs",
        chosen: &[],
        emulated: &[
            "the_verifier",
            "agree_over_ipv6",
            "agree_about_policies",
            "only_marked",
        ],
    },
    Tests {
        target: "kernel",
        chosen: &[],
        emulated: &["errors", "limits", "echoes", "native", "longest"],
    },
    Tests {
        target: "two_hosts",
        chosen: &["xdp", "tcx", "auto", "--exact"],
        emulated: &[],
    },
    Tests {
        target: "encrypted",
        chosen: &["linux", "--ignored"],
        emulated: &["linux_frames", "--ignored"],
    },
    Tests {
        target: "mixed_hooks",
        chosen: &[],
        emulated: &[],
    },
    Tests {
        target: "lifecycle",
        chosen: &["kill_9"],
        emulated: &[],
    },
];

/// Longer than all jobs take on an emulated CPU of a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the tests on the kernels of `series`, or on all of them; `job` is one of the test targets.
/// Returns whether all passed.
///
/// # Errors
/// When something is missing.
pub fn run(series: Option<&str>, job: Option<&str>) -> Result<bool> {
    let series: Vec<&str> = match series {
        None => SERIES.to_vec(),
        Some(asked) if SERIES.contains(&asked) => vec![asked],
        Some(asked) => bail!(
            "there is no test on Linux {asked}: name one of {}",
            SERIES.join(", ")
        ),
    };
    let accel = Accel::here();
    let tests: Vec<&Tests> = TESTS
        .iter()
        .filter(|tests| job.is_none_or(|asked| asked == tests.target))
        .filter(|tests| accel == Accel::Kvm || !tests.emulated.is_empty())
        .collect();
    let names: Vec<&str> = TESTS.iter().map(|tests| tests.target).collect();
    ensure!(
        !tests.is_empty(),
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
    let mut ours = executables(&tests)?;
    let jobs: Vec<Job> = tests
        .iter()
        .zip(&ours)
        .map(|(tests, program)| tests.job(program, accel))
        .collect();
    ours.push(root().join("target/debug/overlay-dp"));
    if accel == Accel::Tcg {
        step(
            "NO KVM HERE: the guests' CPUs are emulated. LOADS ARE SMALL, AND ONLY THESE TESTS RUN:",
        );
        for tests in &TESTS {
            let chosen = match tests.emulated {
                [] => "LEFT OUT".to_owned(),
                chosen => chosen.join(" "),
            };
            eprintln!("    {:<14} {chosen}", tests.target);
        }
    }
    let mut passed = true;
    for series in series {
        passed &= on_kernel(series, &ours, &jobs, accel)?;
    }
    Ok(passed)
}

fn on_kernel(series: &str, ours: &[PathBuf], jobs: &[Job], accel: Accel) -> Result<bool> {
    let kernel = Kernel::fetch(series)?;
    let name = format!("{series}-{}.cpio", std::process::id());
    let initramfs = root().join("target/kernels").join(name);
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

impl Tests {
    fn job(&self, program: &Path, accel: Accel) -> Job {
        let emulated = accel == Accel::Tcg;
        let mut env = vec!["CI=true".to_owned()];
        if emulated {
            env.extend(["OVERLAY_LAB_EMULATED=1", "OVERLAY_DP_FRAMES=50"].map(str::to_owned));
        }
        let chosen = if emulated { self.emulated } else { self.chosen };
        // What failed is told at once: the guest may not live to the end.
        let arguments = ["--test-threads=1", "--nocapture"].iter().chain(chosen);
        Job {
            name: self.target.to_owned(),
            env,
            program: program.to_owned(),
            arguments: arguments.map(|&argument| argument.to_owned()).collect(),
        }
    }
}

/// Builds the test targets and returns where they are, in their order.
fn executables(tests: &[&Tests]) -> Result<Vec<PathBuf>> {
    let mut build = cargo();
    // The whole workspace, so that dependencies have the features that all other builds have.
    build.args(["test", "--no-run", "--workspace"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    for Tests { target, .. } in tests {
        build.args(["--test", target]);
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
    tests.iter().map(|tests| executable(tests.target)).collect()
}
