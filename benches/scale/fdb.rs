//! Many VTEPs: static entries, each behind another one, all by way of the router.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::Method;
use overlay_core::model::MacAddr;
use overlay_dp::api::FdbAdd;
use overlay_lab::check_signals;

use crate::agent::Bench;
use crate::table::{Table, quantile};

const PART: &str = "vteps";
/// What routes do is done by then.
const WHILE: Duration = Duration::from_secs(3);
/// So many routes come and go in that time.
const CHANGES: u32 = 20;

pub fn measure(table: &mut Table, count: usize) -> Result<()> {
    let mut bench = Bench::build()?;
    let spaces = bench.spaces(1)?;
    bench.start("")?;
    bench.network("scale", Some("10.128.0.0/12"))?;
    bench.attach(&spaces, "scale", 0)?;
    let without = bench.memory()?;
    let mut times = Vec::new();
    for number in 0..count as u32 {
        check_signals()?;
        let body = FdbAdd {
            network: "scale".to_owned(),
            mac: MacAddr::from_ipv4(Ipv4Addr::from_bits(0x0ac0_0001 + number)),
            vtep: Ipv4Addr::from_bits(0xc612_0001 + number).into(),
            ips: vec![Ipv4Addr::from_bits(0x0a80_1000 + number).into()],
        };
        times.push(bench.timed(Method::POST, "/v1/fdb", Some(&body))?);
    }
    table.time(PART, "fdb add, the first", times[0]);
    let last = &times[count.saturating_sub(25)..];
    table.time(
        PART,
        format!("fdb add, the last of {count}"),
        quantile(last, 50),
    );
    table.time(PART, "fdb add, all", times.iter().sum());
    let memory = bench.memory()?.saturating_sub(without);
    table.bytes(
        PART,
        format!("the agent's memory for {count} VTEPs"),
        memory,
    );
    for (what, path) in [
        ("status", "/v1/status"),
        ("vtep ls", "/v1/vteps"),
        ("fdb show", "/v1/fdb"),
    ] {
        let took = bench.timed(Method::GET, path, None::<&()>)?;
        table.time(PART, format!("{what} with {count} VTEPs"), took);
    }
    let idle = spent(&bench, || Ok(()))?;
    table.time(
        PART,
        format!("CPU in {WHILE:?} with {count} silent VTEPs"),
        idle,
    );
    let gateway = gateway(&bench);
    for (what, prefix) in [
        ("that is about none", "203.0.113.0/24"),
        ("that is about one in four", "198.18.0.0/24"),
        ("that is about all", "198.18.0.0/15"),
    ] {
        let busy = spent(&bench, || {
            for _ in 0..CHANGES / 2 {
                for verb in ["add", "del"] {
                    bench
                        .host()
                        .ns
                        .run(&format!("ip route {verb} {prefix} via {gateway}"))?;
                }
                sleep(Duration::from_millis(60));
            }
            Ok(())
        })?;
        let each = busy.saturating_sub(idle) / CHANGES;
        table.time(
            PART,
            format!("CPU for a route {what} of {count} VTEPs"),
            each,
        );
    }
    // They are all still reached.
    let vteps: Vec<serde_json::Value> = bench.ask(Method::GET, "/v1/vteps", None::<&()>)?;
    let reached = vteps.iter().filter(|vtep| !vtep["next_hop"].is_null());
    anyhow::ensure!(reached.count() == count, "a VTEP has no next hop");
    let took = bench.agent.take().context("the agent")?;
    took.kill();
    let restart = bench.start("")?;
    table.time(
        PART,
        format!("restart with {count} VTEPs after kill -9"),
        restart,
    );
    Ok(())
}

/// The CPU time of the agent while something is done.
fn spent(bench: &Bench, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begin = std::time::Instant::now();
    let before = bench.cpu()?;
    work()?;
    sleep(WHILE.saturating_sub(begin.elapsed()));
    Ok(bench.cpu()? - before)
}

fn gateway(bench: &Bench) -> Ipv4Addr {
    let [a, b, c, _] = bench.host().ip.octets();
    Ipv4Addr::new(a, b, c, 1)
}
