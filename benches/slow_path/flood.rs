//! How many frames the slow path takes per second.
//!
//! ```text
//!    CPU 0: injector ─► uplink program ─► punt link ─► AF_XDP ring
//!    CPU 1:               slow-path thread ─► punt link ─► program ─► port ─► container: counted
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{AgentProc, Lab, LabSpec, Overlay, check_signals};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::BIN;
use crate::inject::Injector;
use crate::sink::Sink;
use crate::support::{pin_to_cpu, test_mode};

const CPU: usize = 1;
/// Enough for several million frames.
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 5;
/// Frames injected with one call, after which the kernel pauses for tens of milliseconds.
const BURST: u32 = 1 << 21;

pub fn measure() -> Result<()> {
    let lab = Lab::new(&LabSpec::default(), BIN.as_ref())?;
    let overlay = Overlay::start(&lab, "--datapath xdp").with_context(|| lab.logs())?;
    let vni = overlay.network["vni"].as_u64().context("no VNI")?;
    let host = lab.host(1);
    let mut injector = Injector::new(host, lab.host(2).ip, u32::try_from(vni)?, overlay.c(2))?;
    let sink = Sink::new(&overlay.c(1).ns, "eth0")?;
    let slow = slow_thread(&overlay.agents[0])?;
    let mut only = CpuSet::new();
    only.set(CPU);
    sched_setaffinity(Some(slow), &only)?;

    let (run, runs, burst) = if test_mode() {
        (Duration::from_millis(200), 1, BURST / 64)
    } else {
        (RUN, RUNS, BURST)
    };
    let mut rates = Vec::new();
    for _ in 0..runs {
        check_signals()?;
        let before = (sink.frames()?, cpu_time(slow)?, Instant::now());
        let injected = host.ns.within(|| {
            pin_to_cpu(0);
            let mut injected = 0;
            while before.2.elapsed() < run {
                injector.run(burst)?;
                injected += u64::from(burst);
            }
            Ok(injected)
        })?;
        let took = before.2.elapsed().as_secs_f64();
        let frames = (sink.frames()? - before.0) as f64;
        let busy = (cpu_time(slow)? - before.1).as_secs_f64() / took;
        ensure!(frames > 0.0, "no frame came out of the slow path");
        println!(
            "rate: {:.3} M frames/s of {:.1} M injected, the thread busy {:.0} %",
            frames / took / 1e6,
            injected as f64 / took / 1e6,
            busy * 100.0
        );
        rates.push(frames / took / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "rate: median {:.3}, from {:.3} to {:.3} M frames/s on one core\n",
        rates[rates.len() / 2],
        rates[0],
        rates[rates.len() - 1]
    );
    Ok(())
}

/// The slow path's thread of an agent.
fn slow_thread(agent: &AgentProc) -> Result<Pid> {
    for task in std::fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let task = task?;
        let name = std::fs::read_to_string(task.path().join("comm"))?;
        if name.trim() == "slow-path" {
            let tid = task.file_name().to_string_lossy().parse()?;
            return Pid::from_raw(tid).context("thread 0");
        }
    }
    anyhow::bail!("the agent has no thread slow-path")
}

/// CPU time of a thread.
fn cpu_time(thread: Pid) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{}/schedstat", thread.as_raw_nonzero()))?;
    let nanos = text.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
