//! A host without a container runtime: `overlay-dp run`, and the agent as systemd runs it.
//!
//! ```text
//!   run … -- CMD ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!                                                │
//!                                      203.0.113.9 outside
//! ```

#[path = "plain/privileges.rs"]
mod privileges;
#[path = "plain/unit.rs"]
mod unit;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Background, Done, Host, LabSpec, Outside, Overlay, Teller, Told, ask_udp, test, wait_until,
};
use rustix::process::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(30);

/// `overlay-dp run --network uber-net <options> -- sh -c <script>`
fn run(host: &Host, options: &str, script: &str) -> Command {
    let mut command = host.overlay_cmd(&format!("run --network uber-net {options} -- sh -c"));
    command.arg(script);
    command
}

fn done(command: Command) -> Result<Done> {
    Background::start(command)?.finish(LONG)
}

#[test]
fn a_command_is_on_the_network_while_it_runs() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        let before = fs::read("/etc/resolv.conf")?;
        let script = "ping -q -c 3 -W 2 test.2 && ping -q -c 1 127.0.0.1 && \
                      cat /etc/resolv.conf && ip -o addr show eth0 && sleep 2 && exit 7";
        let options = "--name web --ip 10.0.0.80 --alias www --service shop";
        let mut running = Background::start(run(host, options, script))?;
        for name in ["web", "www", "shop", "tasks.shop"] {
            let question = format!("dig +short +time=1 +tries=1 @10.0.0.1 {name}");
            wait_until(&format!("host2's container knows {name}"), SOON, || {
                lab.c(2)
                    .run(&question)
                    .is_ok_and(|answer| answer == "10.0.0.80\n")
            })?;
        }
        ensure!(running.is_running(), "it has ended");
        let ended = running.finish(LONG)?;
        ensure!(ended.status.code() == Some(7), "{ended:?}");
        for part in [
            "nameserver 10.0.0.1\nsearch uber-net\n",
            "10.0.0.80/24",
            " 0% packet loss",
        ] {
            ensure!(ended.stdout.contains(part), "no '{part}': {ended:?}");
        }
        ensure!(
            fs::read("/etc/resolv.conf")? == before,
            "the host's resolv.conf was changed"
        );
        gone(host, "web")?;
        Ok(overlay)
    });
}

#[test]
fn signals_are_passed_on_and_exit_codes_back() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        let trap =
            "trap 'exit 9' TERM; trap 'exit 10' INT; echo ready; while :; do sleep 0.1; done";
        for (signal, script, code) in [
            (Signal::TERM, trap, 9),
            (Signal::INT, trap, 10),
            (Signal::TERM, "exec sleep 1000", 128 + 15),
            (Signal::USR1, "exec sleep 1000", 128 + 10),
        ] {
            let mut running = Background::start(run(host, "--name web", script))?;
            // What comes earlier waits for the command, and finds it before its trap is set.
            wait_until("the command runs", SOON, || sees(host, "web"))?;
            std::thread::sleep(Duration::from_millis(500));
            running.signal(signal);
            let ended = running.finish(LONG)?;
            ensure!(ended.status.code() == Some(code), "not {code}: {ended:?}");
            gone(host, "web")?;
        }
        let missing =
            done(host.overlay_cmd("run --network uber-net --name web -- /nosuch/program"))?;
        ensure!(missing.status.code() == Some(127), "{missing:?}");
        missing.fails_with(&["/nosuch/program"])?;
        let denied = done(host.overlay_cmd("run --network uber-net --name web -- /etc/passwd"))?;
        ensure!(denied.status.code() == Some(126), "{denied:?}");
        gone(host, "web")?;
        host.overlay_fails("run --network nosuch --name web -- true", &["nosuch"])?;
        host.overlay_fails("run --network uber-net --name test.2 -- true", &["taken"])?;
        Ok(overlay)
    });
}

#[test]
fn nothing_is_left_of_one_whose_runner_was_killed() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        let pid_file = lab.dir().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
        let mut running = Background::start(run(host, "--name web", &script))?;
        let mut pid = String::new();
        wait_until("the command runs", SOON, || {
            pid = fs::read_to_string(&pid_file).unwrap_or_default();
            pid.ends_with('\n')
        })?;
        running.signal(Signal::KILL);
        let ended = running.finish(LONG)?;
        ensure!(ended.status.signal() == Some(9), "{ended:?}");
        let program = format!("/proc/{}/comm", pid.trim());
        wait_until("the command is killed as well", SOON, || {
            fs::read_to_string(&program).map_or(true, |name| name != "sleep\n")
        })?;
        for host in lab.hosts() {
            gone(host, "web")?;
        }
        let again = done(run(host, "--name web", "true"))?;
        again.ok()?;
        Ok(overlay)
    });
}

#[test]
fn a_command_publishes_its_ports() {
    test(BIN, LabSpec::default(), |lab| {
        let outside = Outside::connect(lab)?;
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        let published = SocketAddr::from((host.ip, 8080));
        let free = || {
            host.ns
                .within(|| Ok(TcpListener::bind(("0.0.0.0", 8080)).is_ok()))
        };
        let pid_file = lab.dir().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
        let start = |options: &str| -> Result<(Background, u32)> {
            fs::write(&pid_file, "")?;
            let running = Background::start(run(host, options, &script))?;
            let mut pid = String::new();
            wait_until("the command runs", SOON, || {
                pid = fs::read_to_string(&pid_file).unwrap_or_default();
                pid.ends_with('\n')
            })?;
            Ok((running, pid.trim().parse()?))
        };
        let options = "--name web --publish 8080:80 --publish 8080:80/udp";
        let (mut running, pid) = start(options)?;
        Teller::serve(&lab.adopt("web", pid)?, 80, "web")?;
        let told = Told::connect(&outside.ns, published)?;
        ensure!(
            (told.server.as_str(), told.client) == ("web", outside.ip),
            "{told:?}"
        );
        let (_, client) = ask_udp(&outside.ns, published)?;
        ensure!(client == outside.ip, "{client}");
        ensure!(!free()?, "nobody holds the port");
        let again = "run --network uber-net --name tmp --publish 8080:81 -- true";
        host.overlay_fails(again, &["8080/tcp", "'web'"])?;
        gone(host, "tmp")?;
        // However it ends, the port is free again.
        running.signal(Signal::TERM);
        running.finish(LONG)?;
        gone(host, "web")?;
        ensure!(Told::connect(&outside.ns, published).is_err());
        ensure!(free()?, "the port is held");
        let (mut running, _) = start(options)?;
        ensure!(!free()?, "nobody holds the port");
        running.signal(Signal::KILL);
        running.finish(LONG)?;
        wait_until("the port is free", SOON, || free().is_ok_and(|is| is))?;
        gone(host, "web")?;
        Ok(overlay)
    });
}

#[test]
fn completion_and_manual_are_complete() -> Result<()> {
    let of = |args: &[&str]| -> Result<String> {
        let output = Command::new(BIN).args(args).output()?;
        ensure!(output.status.success(), "{args:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    for shell in ["bash", "zsh", "fish"] {
        let script = of(&["completion", shell])?;
        for word in ["container", "promote", "resolv-conf"] {
            ensure!(script.contains(word), "{shell}: no {word}");
        }
    }
    let dir = std::env::temp_dir().join(format!("overlay-dp-man-{}", std::process::id()));
    let made = of(&["man", &dir.to_string_lossy()]);
    let pages = fs::read_dir(&dir).map(|pages| pages.flatten().map(|page| page.path()));
    let outcome = made.and_then(|_| {
        let mut found = 0;
        for page in pages? {
            let text = fs::read_to_string(&page)?;
            ensure!(text.contains(".TH"), "{} is no manual page", page.display());
            found += 1;
        }
        ensure!(found > 20, "{found} pages");
        fs::metadata(dir.join("overlay-dp-container-add.1")).context("no page of container add")
    });
    fs::remove_dir_all(&dir)?;
    outcome.map(drop)
}

fn sees(host: &Host, name: &str) -> bool {
    let list = host.overlay_json("container ls");
    list.is_ok_and(|list| {
        let mut rows = list.as_array().into_iter().flatten();
        rows.any(|row| row["name"] == name)
    })
}

fn gone(host: &Host, name: &str) -> Result<()> {
    let what = format!("{name} is gone from {}", host.ns.label());
    wait_until(&what, SOON, || {
        host.overlay("container ls --json")
            .is_ok_and(|list| !list.contains(&format!("\"name\": \"{name}\"")))
    })
}
