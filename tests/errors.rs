//! Bad input: one line that says what to do, an exit code that is not 0, and nothing left behind.
//!
//! ```text
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//! ```

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Background, Done, Host, LabSpec, Overlay, test};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

#[test]
fn attach_that_can_not_work() {
    test(
        BIN,
        LabSpec {
            containers: 0,
            ..LabSpec::default()
        },
        |lab| {
            let host = lab.host(1);
            attach_fails(host, "attach --iface nosuch", &["nosuch"])?;
            attach_fails(host, "attach --iface lo", &["lo"])?;
            attach_fails(host, "attach --iface eth0 --mtu 9000", &["9000", "1450"])?;
            attach_fails(host, "attach --iface eth0 --mtu 100", &["100"])?;

            host.ns.run("ip link set eth0 mtu 500")?;
            attach_fails(host, "attach --iface eth0", &["MTU", "500"])?;
            host.ns.run("ip link set eth0 mtu 1500")?;

            host.ns.run("ip link set eth0 down")?;
            attach_fails(host, "attach --iface eth0", &["eth0", "down"])?;
            host.ns.run("ip link set eth0 up")?;
            host.ns.run("ip addr flush dev eth0")?;
            attach_fails(host, "attach --iface eth0", &["eth0", "address"])?;
            host.ns
                .run(&format!("ip addr add {}/24 dev eth0", host.ip))?;
            host.ns.run("ip route add default via 172.31.1.1")?;

            // As a kernel vxlan device has it.
            let socket = host.ns.within(|| Ok(UdpSocket::bind("0.0.0.0:4789")?))?;
            let done = run(host.overlay_cmd("attach --iface eth0"))?;
            // Else it would count as left behind.
            drop(socket);
            fails(host, done, &["4789"])?;

            let attach = |wrapper: &str| host.overlay_cmd_under(wrapper, "attach --iface eth0");
            let weak = "setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all";
            fails(host, run(attach(weak))?, &["root"])?;
            // uname tells of a 2.6 kernel.
            fails(
                host,
                run(attach("setarch --uname-2.6"))?,
                &["kernel", "2.6"],
            )?;

            // After all that, it works.
            let agent = lab.start_agent(1, "")?;
            ensure!(agent.stop()?.success());
            lab.ends_without_agents();
            Ok(())
        },
    );
}

#[test]
fn join_that_can_not_work() {
    test(
        BIN,
        LabSpec {
            containers: 0,
            ..LabSpec::default()
        },
        |lab| {
            let agent = lab.start_agent(1, "")?;
            let shown = lab.host(1).overlay_json("token show")?;
            let token = shown["token"].as_str().context("no token")?;
            let (ca, secret) = token
                .strip_prefix("OVTKN-1-")
                .and_then(|rest| rest.split_once('-'))
                .context("token")?;
            let other = |text: &str| -> String {
                text.chars()
                    .rev()
                    .map(|c| if c == 'a' { 'b' } else { c })
                    .collect()
            };
            let host2 = lab.host(2);
            let join = |address: &str, token: &str| {
                format!("attach --iface eth0 --join {address} --token {token}")
            };
            let first = &lab.host(1).ip.to_string();
            attach_fails(host2, &join(first, "nonsense"), &["token"])?;
            attach_fails(
                host2,
                &join(first, &format!("OVTKN-1-{}-{secret}", other(ca))),
                &["token"],
            )?;
            attach_fails(
                host2,
                &join(first, &format!("OVTKN-1-{ca}-{}", other(secret))),
                &["token"],
            )?;
            attach_fails(host2, &join("nonsense..", token), &["nonsense.."])?;
            // A host that is there but has no agent, and an address that nobody has.
            attach_fails(host2, &join("192.168.1.1", token), &["192.168.1.1"])?;
            attach_fails(host2, &join("192.168.1.99", token), &["192.168.1.99"])?;

            // One instance runs one agent.
            let again = lab.host(1).overlay_any("attach --iface eth0")?;
            again.fails_with(&["running"])?;

            let second = lab.start_agent(2, &format!("--join {first} --token {token}"))?;
            Ok((agent, second))
        },
    );
}

#[test]
fn commands_without_an_agent() {
    test(
        BIN,
        LabSpec {
            hosts: 1,
            containers: 1,
            ..LabSpec::default()
        },
        |lab| {
            let host = lab.host(1);
            let add = format!(
                "container add test.1 --network uber-net --netns {}",
                lab.c(1).name()
            );
            for line in [
                "status",
                "network ls",
                "network create uber-net",
                "token show",
                &add,
            ] {
                let done = host.overlay_any(line)?;
                fails(host, done, &["attach"]).context(line.to_owned())?;
            }
            // There is nothing to detach: that is no error.
            host.overlay("detach")?;
            Ok(())
        },
    );
}

/// Whoever reads JSON reads it of a command line that can't be understood, too.
#[test]
fn wrong_arguments_are_json_errors_when_json_is_asked_for() -> Result<()> {
    let run = |line: &str| -> Result<Done> {
        let mut command = Command::new(BIN);
        command.args(line.split(' '));
        run(command)
    };
    for line in [
        "network rm --json",
        "--json nosuch",
        "--json network create n --vni x",
    ] {
        let done = run(line)?;
        ensure!(done.status.code() == Some(2), "{done:?}");
        ensure!(done.stdout.is_empty(), "{done:?}");
        let said: serde_json::Value = serde_json::from_str(&done.stderr)?;
        let error = said["error"].as_str().context("no error")?;
        ensure!(error.contains("--help"), "{error}");
    }
    let plain = run("network rm")?;
    ensure!(plain.status.code() == Some(2), "{plain:?}");
    ensure!(plain.stderr.starts_with("error: "), "{plain:?}");
    // What is asked for is no error.
    let help = run("network rm --help --json")?;
    ensure!(help.status.success() && help.stdout.contains("Examples"));
    Ok(())
}

#[test]
fn networks_and_containers_that_can_not_be() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        let before = everything(host)?;
        let taken = overlay.c(1).ip.to_string();
        let long = "x".repeat(64);
        let spare = lab.add_container("spare")?;
        let spare = spare.name();
        let add = |rest: &str| format!("container add {rest}");
        let onto = |rest: &str| add(&format!("new --network uber-net --netns {rest}"));
        for (line, words) in [
            ("network create uber-net".to_owned(), ["uber-net", ""]),
            (
                "network create bad/name".to_owned(),
                ["bad/name", "letters"],
            ),
            (format!("network create {long}"), ["63", ""]),
            // The underlay's own subnet, another network's, and one without room.
            (
                "network create n --subnet 172.31.1.0/24".to_owned(),
                ["172.31.1.0/24", ""],
            ),
            (
                "network create n --subnet 172.31.0.0/16".to_owned(),
                ["172.31.1.0/24", ""],
            ),
            (
                "network create n --subnet 10.0.0.0/24".to_owned(),
                ["uber-net", ""],
            ),
            (
                "network create n --subnet 10.9.0.0/32".to_owned(),
                ["10.9.0.0/32", ""],
            ),
            (
                "network create n --subnet 10.9.0.0/24 --gateway 10.8.0.1".to_owned(),
                ["10.8.0.1", ""],
            ),
            (
                format!("network create n --vni {}", overlay.network["vni"]),
                ["uber-net", ""],
            ),
            ("network rm nosuch".to_owned(), ["nosuch", ""]),
            ("network inspect nosuch".to_owned(), ["nosuch", ""]),
            // A name that is mistyped is no network without containers.
            (
                "container ls --network nosuch".to_owned(),
                ["nosuch", "network ls"],
            ),
            (
                "fdb show --network nosuch".to_owned(),
                ["nosuch", "network ls"],
            ),
            ("network rm uber-net".to_owned(), ["uber-net", "container"]),
            (
                add(&format!("new --network nosuch --netns {spare}")),
                ["nosuch", ""],
            ),
            (onto("nosuch"), ["nosuch", ""]),
            (onto("/run/nosuch"), ["/run/nosuch", ""]),
            // A file, but no namespace.
            (onto("/etc/passwd"), ["/etc/passwd", ""]),
            // Above any kernel.pid_max.
            (add("new --network uber-net --pid 4194305"), ["4194305", ""]),
            (
                add(&format!("test.1 --network uber-net --netns {spare}")),
                ["test.1", ""],
            ),
            (
                add(&format!("test.2 --network uber-net --netns {spare}")),
                ["test.2", ""],
            ),
            (onto(&format!("{spare} --ip {taken}")), [&taken, ""]),
            (
                onto(&format!("{spare} --ip 10.0.0.1")),
                ["10.0.0.1", "gateway"],
            ),
            (
                onto(&format!("{spare} --ip 10.9.0.7")),
                ["10.9.0.7", "10.0.0.0/24"],
            ),
            (
                onto(&format!("{spare} --ifname a-name-too-long-for-linux")),
                ["15", ""],
            ),
            // test.1 has made an eth0 there.
            (onto(lab.c(1).name()), ["eth0", "--ifname"]),
            ("container rm nosuch".to_owned(), ["nosuch", ""]),
            ("container rm test.2".to_owned(), ["test.2", "host2"]),
            (
                "fdb add 01:00:5e:00:00:01 --network uber-net --vtep 172.31.2.5".to_owned(),
                ["01:00:5e:00:00:01", ""],
            ),
            (
                "fdb add 02:42:0a:00:00:63 --network nosuch --vtep 172.31.2.5".to_owned(),
                ["nosuch", ""],
            ),
            (
                "fdb del 02:42:0a:00:00:63 --network uber-net".to_owned(),
                ["02:42:0a:00:00:63", ""],
            ),
        ] {
            let done = host.overlay_any(&line)?;
            done.fails_with(&words)?;
            ensure!(
                done.stderr.trim_end().lines().count() == 1,
                "{line}:\n{}",
                done.stderr
            );
            let after = everything(host)?;
            ensure!(after == before, "{line}:\n{before}\nhas become\n{after}");
        }
        Ok(overlay)
    });
}

/// As Docker has it: what can be done is done and printed, what can't is said, each on its line.
#[test]
fn one_of_several_names_that_fails_keeps_none_from_being_done() {
    let spec = LabSpec {
        hosts: 1,
        containers: 1,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let agent = lab.start_agent(1, "")?;
        let host = lab.host(1);
        let add = |name: &str, ifname: &str| {
            let netns = lab.c(1).name();
            host.overlay(&format!(
                "container add {name} --network keep --netns {netns} --ifname {ifname}"
            ))
        };
        for network in ["a", "b", "c", "keep"] {
            host.overlay(&format!("network create {network}"))?;
        }
        add("one", "eth1")?;
        add("two", "eth2")?;

        let done = partly(host, "container rm one nosuch two never")?;
        ensure!(done.stdout == "one (keep)\ntwo (keep)\n", "{done:?}");
        says(&done, &["nosuch", "never"])?;
        let done = partly(host, "network rm a nosuch b never")?;
        ensure!(done.stdout == "a\nb\n", "{done:?}");
        says(&done, &["nosuch", "never"])?;
        let done = partly(host, "network rm nosuch c --json")?;
        let gone: serde_json::Value = serde_json::from_str(&done.stdout)?;
        ensure!(gone[0]["name"] == "c" && gone[1].is_null(), "{done:?}");
        let error: serde_json::Value = serde_json::from_str(done.stderr.trim_end())?;
        let error = error["error"].as_str().context("no error")?;
        ensure!(error.contains("nosuch"), "{error}");
        let done = partly(host, "host promote nosuch never")?;
        ensure!(done.stdout.is_empty(), "{done:?}");
        says(&done, &["nosuch", "never"])?;
        let done = partly(host, "network inspect keep nosuch")?;
        ensure!(done.stdout.starts_with("keep\n"), "{done:?}");
        says(&done, &["nosuch"])?;

        host.overlay("network rm keep")?;
        ensure!(host.overlay_json("network ls")? == serde_json::json!([]));
        ensure!(agent.stop()?.success());
        lab.ends_without_agents();
        // Without an agent it is said once.
        says(&partly(host, "network rm a b c")?, &["attach"])
    });
}

fn partly(host: &Host, line: &str) -> Result<Done> {
    let done = host.overlay_any(line)?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    Ok(done)
}

/// One line for each of the words, with that word.
fn says(done: &Done, words: &[&str]) -> Result<()> {
    let lines: Vec<&str> = done.stderr.lines().collect();
    let each = lines.len() == words.len()
        && lines
            .iter()
            .zip(words)
            .all(|(line, word)| line.contains(word));
    ensure!(each, "{done:?}");
    Ok(())
}

/// Networks, containers, table entries and interfaces of a host.
fn everything(host: &Host) -> Result<String> {
    let mut text = String::new();
    for table in ["network ls", "container ls", "fdb show"] {
        text += &host.overlay(table)?;
    }
    let links: serde_json::Value = serde_json::from_str(&host.ns.run("ip -j link show")?)?;
    for link in links.as_array().context("not a list")? {
        text += &format!("{} ", link["ifname"]);
    }
    Ok(text)
}

fn attach_fails(host: &Host, line: &str, words: &[&str]) -> Result<()> {
    fails(host, host.overlay_any(line)?, words)
}

/// It must have failed, said why in one line that has all `words`, and left nothing behind.
fn fails(host: &Host, done: Done, words: &[&str]) -> Result<()> {
    done.fails_with(words)?;
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "{} left {left:#?}", done.command);
    Ok(())
}

fn run(command: Command) -> Result<Done> {
    Background::start(command)?.finish(Duration::from_secs(30))
}
