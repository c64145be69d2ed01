//! The systemd unit: it is sound, and what it leaves the agent is enough, and needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{Background, Container, Host, LabSpec, join_args, program, test, wait_until};
use rustix::process::Signal;

use super::BIN;

const SOON: Duration = Duration::from_secs(20);

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/overlay-dp.service")
}

/// The unit's LimitMEMLOCK and capabilities, save the one that `without` says.
fn privileges(without: Option<&str>) -> Result<String> {
    let text = fs::read_to_string(unit())?;
    let mut lines = text.lines();
    let set = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = set
        .context("the unit has no capabilities")?
        .split_whitespace();
    let names = names.filter(|name| Some(*name) != without);
    let kept: String = names
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    // Root may be somebody's who may not: a container's.
    let limit = "prlimit --memlock=unlimited";
    let may = Command::new("prlimit")
        .args(["--memlock=unlimited", "true"])
        .output()?;
    let (limit, kept) = match may.status.success() {
        true => (limit, kept),
        false => ("", kept + ",+ipc_lock"),
    };
    Ok(format!(
        "{limit} setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all{kept}"
    ))
}

/// An agent with those capabilities and no others.
fn start(host: &Host, privileges: &str, args: &str) -> Result<Background> {
    let line = format!("attach --iface eth0 {args}");
    let mut agent = Background::start(host.overlay_cmd_under(privileges, &line))?;
    let answered = wait_until("the agent answers", SOON, || {
        !agent.is_running() || host.has_agent()
    });
    if answered.is_ok() && agent.is_running() {
        return Ok(agent);
    }
    agent.signal(Signal::TERM);
    agent.finish(SOON)?.ok()?;
    bail!("the agent has ended, or did not answer")
}

#[test]
fn the_agent_needs_no_more_than_the_unit_leaves_it() {
    test(BIN, LabSpec::default(), |lab| {
        let only = privileges(None)?;
        for datapath in ["tcx", "xdp"] {
            let args = format!("--datapath {datapath} --on-exit keep");
            let first = start(lab.host(1), &only, &args)?;
            let join = format!("{args} {}", join_args(lab.host(1), false)?);
            let second = start(lab.host(2), &only, &join)?;
            lab.host(1).overlay("network create uber-net")?;
            let c1 = Container::attach(
                lab.host(1),
                lab.c(1),
                "test.1",
                "--network uber-net --resolv-conf --publish 80:80",
            )?;
            let mut process = lab.c(2).start("sleep 1000")?;
            wait_until("it runs", SOON, || {
                fs::read_to_string(format!("/proc/{}/comm", process.pid()))
                    .is_ok_and(|name| name == "sleep\n")
            })?;
            let added = lab.host(2).overlay_json(&format!(
                "container add test.2 --network uber-net --pid {}",
                process.pid()
            ))?;
            let c2 = Container::from_json(&added, lab.c(2))?;
            c1.wait_reaches(&c2, SOON)?;
            lab.c(1).run("dig +short +time=2 @10.0.0.1 test.2")?;

            // As `systemctl restart` does it.
            let first = stop_and_start(lab.host(1), first, &only, &args)?;
            c2.wait_reaches(&c1, SOON)?;
            lab.verify_clean(SOON)?;
            for (host, agent) in [(2, second), (1, first)] {
                lab.host(host).overlay("detach --force")?;
                agent.finish(SOON)?.ok()?;
                let left = lab.host(host).leftovers()?;
                ensure!(left.is_empty(), "{left:#?}");
            }
            process.signal(Signal::KILL);
        }
        Ok(())
    });
}

fn stop_and_start(
    host: &Host,
    mut agent: Background,
    only: &str,
    args: &str,
) -> Result<Background> {
    agent.signal(Signal::TERM);
    agent.finish(SOON)?.ok()?;
    start(host, only, args)
}

#[test]
fn the_agent_needs_each_of_them() {
    let spec = LabSpec {
        hosts: 1,
        containers: 1,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let host = lab.host(1);
        for name in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"] {
            let line = "attach --iface eth0";
            let without = host.overlay_cmd_under(&privileges(Some(name))?, line);
            let ended = Background::start(without)?.finish(SOON)?;
            ended.fails_with(&[name])?;
        }
        let without = privileges(Some("CAP_SYS_PTRACE"))?;
        let agent = start(host, &without, "")?;
        host.overlay("network create uber-net")?;
        let mut process = lab.c(1).start("sleep 1000")?;
        wait_until("it runs", SOON, || {
            fs::read_to_string(format!("/proc/{}/comm", process.pid()))
                .is_ok_and(|name| name == "sleep\n")
        })?;
        let by_pid = format!("container add a --network uber-net --pid {}", process.pid());
        host.overlay_fails(&by_pid, &["permi"])?;
        process.signal(Signal::KILL);
        host.overlay("detach --force")?;
        agent.finish(SOON)?.ok()?;

        let without = privileges(Some("CAP_NET_BIND_SERVICE"))?;
        let agent = start(host, &without, "")?;
        host.overlay("network create uber-net")?;
        let web = format!(
            "container add a --network uber-net --netns {}",
            lab.c(1).name()
        );
        host.overlay_fails(
            &format!("{web} --publish 80:80"),
            &["80", "CAP_NET_BIND_SERVICE"],
        )?;
        Ok(agent)
    });
}

/// systemd must not have it join again, nor make a cluster of its own.
#[test]
fn an_agent_that_is_not_to_come_back_says_so() {
    let spec = LabSpec {
        containers: 0,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let text = fs::read_to_string(unit())?;
        ensure!(text.lines().any(|line| line == "Restart=on-failure"));
        ensure!(
            text.lines()
                .any(|line| line == "RestartPreventExitStatus=3")
        );
        let mut first = lab.start_agent(1, "")?;
        let mut second = lab.start_agent(2, &join_args(lab.host(1), false)?)?;
        lab.host(1).overlay("host rm --force host2")?;
        let status = second.ended()?;
        ensure!(status.code() == Some(3), "removed: {status}");
        lab.host(1).overlay("detach")?;
        let status = first.ended()?;
        ensure!(status.success(), "detached: {status}");
        lab.ends_without_agents();
        Ok(())
    });
}

#[test]
fn the_unit_is_sound() -> Result<()> {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    if program("systemd-analyze").is_none() {
        ensure!(!ci, "no systemd-analyze, and CI=true forbids to skip this");
        eprintln!("SKIPPED: no systemd-analyze here");
        return Ok(());
    }
    // With a program that is there, and a manual that is not asked for.
    let dir = std::env::temp_dir().join(format!("overlay-dp-unit-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let copy = dir.join("overlay-dp.service");
    let text = fs::read_to_string(unit())?.replace("/usr/bin/overlay-dp", BIN);
    fs::write(&copy, text)?;
    let analyze = |args: &[&str]| {
        Command::new("systemd-analyze")
            .args(args)
            .arg(&copy)
            .output()
    };
    let verified = analyze(&["verify", "--man=no"]);
    // Of 10, which is no hardening at all; root with all capabilities has 9.6.
    let secure = analyze(&["security", "--offline=true", "--threshold=55"]);
    fs::remove_dir_all(&dir)?;
    for output in [verified?, secure?] {
        let shown = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(output.status.success(), "{shown}");
        ensure!(!shown.contains("Unknown"), "{shown}");
    }
    Ok(())
}
