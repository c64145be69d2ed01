//! Hosts with different hooks: tcx leaves checksums to be computed to whatever comes next, and XDP
//! on a veth loses the note that they are to be. Ping does not show that.
//!
//! ```text
//!   c1, c3 ─ host1 (tcx) eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 (xdp) host2 ─ c2
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Container, Host, LabSpec, Load, Ns, Overlay, all_reach_each_other, checksum_errors, iperf3,
    join_args, least, ping, test, wait_checksums, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
/// From the first contact on; a host whose agent was killed has to be found again first.
const NOTICED: Duration = Duration::from_secs(10);

#[test]
fn tcx_and_xdp_carry_everything_and_offload_comes_back() {
    let spec = LabSpec {
        containers: 3,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let (host1, host2) = (lab.host(1), lab.host(2));
        let first = lab.start_agent(1, "--datapath tcx")?;
        host1.overlay("network create uber-net")?;
        let c1 = Container::add(lab, 1, lab.c(1), "test.1")?;
        ensure!(leaves_checksums(&c1.ns)?, "nothing is known yet");
        let join = join_args(host1, false)?;
        let second = lab.start_agent(2, &format!("--datapath xdp {join}"))?;
        let c2 = Container::add(lab, 2, lab.c(2), "test.2")?;

        // Found by itself, before anybody has sent anything.
        let begin = Instant::now();
        wait_checksums(host1, "broken")?;
        wait_offload(host1, false)?;
        ensure!(
            begin.elapsed() < Duration::from_secs(3),
            "{:?}",
            begin.elapsed()
        );
        ensure!(!leaves_checksums(&c1.ns)?);
        let status = host1.overlay_json("status")?;
        let why = status["checksum_offload"]["why"].as_str().unwrap_or("-");
        for word in ["192.168.1.5", "host2", "--datapath"] {
            ensure!(why.contains(word), "{why}");
        }
        let shown = host1.overlay("status")?;
        ensure!(
            shown.contains("checksum offload of containers: off"),
            "{shown}"
        );
        ensure!(warnings(&first.log()) == 1, "{}", first.log());
        // XDP on ports has it off anyway, and asks nobody.
        wait_checksums(host2, "unknown")?;
        ensure!(warnings(&second.log()) == 0, "{}", second.log());
        ensure!(!leaves_checksums(&c2.ns)?);

        // One that comes later.
        let c3 = Container::add(lab, 1, lab.c(3), "test.3")?;
        ensure!(!leaves_checksums(&c3.ns)?);
        all_reach_each_other([&c1, &c2, &c3], NOTICED)?;
        for (from, to) in [(&c1, &c2), (&c2, &c1), (&c3, &c2), (&c2, &c3), (&c1, &c3)] {
            carries(from, to)?;
        }

        // The next agent keeps it so until it has asked by itself.
        first.kill();
        let first = lab.start_agent(1, "--datapath tcx")?;
        for container in [&c1, &c3] {
            ensure!(!leaves_checksums(&container.ns)?, "{}", container.name);
        }
        carries(&c1, &c2)?;
        wait_checksums(host1, "broken")?;
        ensure!(!leaves_checksums(&c1.ns)?);
        ensure_no_errors(&[&c1, &c2, &c3])?;

        // The same hook on both: what was turned off comes back, TCP's super-packets with it.
        second.kill();
        let second = lab.start_agent(2, "--datapath tcx")?;
        wait_checksums(host1, "ok")?;
        wait_offload(host1, true)?;
        wait_checksums(host2, "ok")?;
        wait_until("host2 leaves checksums, too", 3 * NOTICED, || {
            offload(host2).is_ok_and(|on| on)
        })?;
        for container in [&c1, &c2, &c3] {
            ensure!(leaves_checksums(&container.ns)?, "{}", container.name);
            let features = container.ns.run("ethtool -k eth0")?;
            let tso = features.contains("tcp-segmentation-offload: on");
            ensure!(tso, "{}: {features}", container.name);
        }
        for (from, to) in [(&c1, &c2), (&c2, &c1)] {
            carries(from, to)?;
        }
        ensure_no_errors(&[&c1, &c2, &c3])?;
        Ok((first, second))
    });
}

/// The fault that this is about, in the same lab: what a container leaves to be computed arrives as
/// it was, and only ping does not mind.
#[test]
fn what_is_left_to_be_computed_would_be_lost() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start_each(lab, &["--datapath tcx", "--datapath xdp"])?;
        let (c1, c2) = (overlay.c(1), overlay.c(2));
        wait_offload(lab.host(1), false)?;
        c1.ns.run("ethtool -K eth0 tx on")?;
        ensure!(c1.reaches(c2));
        let tcp = iperf3(&c1.ns, &c2.ns, c2.ip, Load::Tcp, 1);
        ensure!(tcp.is_err(), "{tcp:?}");
        ensure!(!checksum_errors(&c2.ns)?.is_empty());
        Ok(overlay)
    });
}

/// What does not pass when checksums are wrong, and what does.
fn carries(from: &Container, to: &Container) -> Result<()> {
    for size in [56, 4000] {
        let stats = ping(&from.ns, to.ip, 20, size, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
    }
    let tcp = iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 1)?;
    ensure!(tcp.gbit > least(0.1), "{tcp:?}");
    // The last one in fragments.
    for (mbit, payload) in [(50, 1400), (10, 64), (20, 8000)] {
        let udp = iperf3(&from.ns, &to.ns, to.ip, Load::Udp { mbit, payload }, 1)?;
        ensure!(
            udp.datagrams > 0 && udp.lost * 1000 <= udp.datagrams,
            "{payload}: {udp:?}"
        );
    }
    Ok(())
}

fn ensure_no_errors(containers: &[&Container]) -> Result<()> {
    for container in containers {
        let errors = checksum_errors(&container.ns)?;
        ensure!(errors.is_empty(), "{}: {errors:?}", container.name);
    }
    Ok(())
}

fn leaves_checksums(container: &Ns) -> Result<bool> {
    let features = container.run("ethtool -k eth0")?;
    Ok(features.contains("tx-checksumming: on"))
}

fn offload(host: &Host) -> Result<bool> {
    let status = host.overlay_json("status")?;
    status["checksum_offload"]["on"]
        .as_bool()
        .with_context(|| format!("{status:#}"))
}

fn wait_offload(host: &Host, on: bool) -> Result<()> {
    wait_until(&format!("the offload is on: {on}"), NOTICED, || {
        offload(host).is_ok_and(|now| now == on)
    })
}

fn warnings(log: &str) -> usize {
    log.lines()
        .filter(|line| line.contains("WARN") && line.contains("without the checksums"))
        .count()
}
