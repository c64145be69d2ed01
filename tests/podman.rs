//! podman on two hosts, with overlay-dp as its CNI plugin and as its netavark plugin.
//!
//! ```text
//!   web ─ podman ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ podman ─ db
//! ```

#[path = "podman/pod.rs"]
mod pod;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{AgentProc, Lab, LabSpec, join_args, test, wait_until};
use pod::{Backend, Podman, has, is_installed};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(10);

fn two() -> LabSpec {
    LabSpec {
        containers: 0,
        ..LabSpec::default()
    }
}

fn agents(lab: &Lab) -> Result<[AgentProc; 2]> {
    let first = lab.start_agent(1, "")?;
    let join = join_args(lab.host(1), false)?;
    Ok([first, lab.start_agent(2, &join)?])
}

#[test]
fn with_cni() {
    if !is_installed() || !has(Backend::Cni) {
        return;
    }
    test(BIN, two(), |lab| {
        let agents = agents(lab)?;
        let [one, two] = [Podman::new(lab, 1, "cni")?, Podman::new(lab, 2, "cni")?];
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/cni/10-overlay-dp.conflist");
        let shipped = fs::read_to_string(shipped)?;
        for podman in [&one, &two] {
            podman.conflist(&shipped)?;
            ensure!(podman.run("network ls")?.contains("uber-net"));
        }
        carries_and_goes(lab, &one, &two)?;
        Ok(agents)
    });
}

/// The network is there on both, by whatever means.
fn carries_and_goes(lab: &Lab, one: &Podman, two: &Podman) -> Result<()> {
    one.container("web", "--network uber-net --network-alias www")?;
    two.container(
        "db",
        "--network uber-net:ip=10.0.0.77,mac=02:42:00:00:00:77",
    )?;
    let of_db = two.networks("db")?;
    ensure!(of_db["uber-net"]["IPAddress"] == "10.0.0.77", "{of_db:#}");
    ensure!(
        of_db["uber-net"]["MacAddress"] == "02:42:00:00:00:77",
        "{of_db:#}"
    );
    let resolv_conf = one.run("exec web cat /etc/resolv.conf")?;
    ensure!(resolv_conf.contains("nameserver 10.0.0.1"), "{resolv_conf}");
    let address = one.networks("web")?;
    let address = address["uber-net"]["IPAddress"]
        .as_str()
        .context("no address")?;
    for (podman, from, to) in [
        (one, "web", "10.0.0.77"),
        (two, "db", address),
        (one, "web", "db"),
        (one, "web", "db.uber-net"),
        (two, "db", "web"),
        (two, "db", "www"),
    ] {
        wait_until(&format!("{from} pings {to}"), SOON, || {
            podman.pings(from, to)
        })?;
    }
    for (host, name) in [(1, "web"), (2, "db")] {
        let rows = lab.host(host).overlay_json("container ls --local")?;
        ensure!(rows[0]["name"] == name, "{rows:#}");
    }
    // One ends, and one is removed.
    one.run("stop -t 0 web")?;
    two.run("rm -f -t 0 db")?;
    for host in lab.hosts() {
        wait_until("both are gone", SOON, || {
            host.overlay("container ls --json")
                .is_ok_and(|list| list.trim() == "[]")
        })?;
    }
    one.run("start web")?;
    wait_until("it is back", SOON, || {
        let rows = lab.host(1).overlay_json("container ls --local");
        rows.is_ok_and(|rows| rows[0]["name"] == "web")
    })?;
    let twice = two.container("web", "--network uber-net");
    let error = twice.err().context("two of one name")?;
    ensure!(format!("{error:#}").contains("is taken on"), "{error:#}");
    // podman keeps the one that could not start.
    two.run("rm -f -t 0 web")?;
    one.run("rm -f -t 0 web")?;
    Ok(())
}

/// With a newer Debian's podman, in a mount namespace that has this one's /run:
///
/// ```text
/// debootstrap --variant=minbase --include=podman,netavark,runc,conmon,nftables,iputils-ping trixie DIR
/// mkdir DIR/old; touch FILE
/// unshare --mount=FILE --propagation unchanged sh -ec 'mount --bind DIR DIR
///     for tree in dev proc run sys; do mount --rbind /$tree DIR/$tree; done
///     cd DIR; pivot_root . old; umount -l /old'
/// OVERLAY_DP_PODMAN_MOUNTS=FILE cargo test -p overlay-dp --test podman; umount FILE
/// ```
#[test]
fn with_netavark() {
    if !is_installed() || !has(Backend::Netavark) {
        return;
    }
    test(BIN, two(), |lab| {
        let agents = agents(lab)?;
        let backend = "netavark";
        let [one, two] = [Podman::new(lab, 1, backend)?, Podman::new(lab, 2, backend)?];
        for podman in [&one, &two] {
            podman.run("network create -d overlay-dp --opt network=uber-net uber-net")?;
            let told = podman.run("network inspect uber-net")?;
            ensure!(told.contains("10.0.0.0/24"), "{told}");
        }
        carries_and_goes(lab, &one, &two)?;
        let other = one.run_any(
            "network create -d overlay-dp --subnet 10.5.0.0/24 --opt network=uber-net no",
        )?;
        ensure!(
            !other.status.success() && other.stderr.contains("has the subnet"),
            "{other:?}"
        );
        for podman in [&one, &two] {
            podman.run("network rm uber-net")?;
        }
        Ok(agents)
    });
}

/// What the backend does with a plugin, by direct calls: the podman and netavark of Debian 12
/// (4.3.1, 1.4.0) have no plugins yet.
#[test]
fn netavark_calls() {
    test(BIN, LabSpec::default(), |lab| {
        let agents = agents(lab)?;
        let network = |number: usize| -> Result<Value> {
            let asked = serde_json::json!({
                "name": "uber-net", "id": "1".repeat(64), "driver": "overlay-dp",
                "created": "2026-11-23T00:00:00Z", "ipv6_enabled": false, "internal": false,
                "dns_enabled": true, "ipam_options": {},
            });
            netavark(lab, number, &["create"], &asked)
        };
        let [first, second] = [network(1)?, network(2)?];
        ensure!(first == second, "{first:#} {second:#}");
        ensure!(first["subnets"][0]["subnet"] == "10.0.0.0/24", "{first:#}");
        ensure!(
            first["driver"] == "overlay-dp" && first["name"] == "uber-net",
            "{first:#}"
        );
        let exec = |name: &str, network: &Value| {
            serde_json::json!({
                "container_id": "c".repeat(64), "container_name": name,
                "port_mappings": null, "network": network,
                "network_options": {
                    "aliases": ["www"], "interface_name": "eth3",
                    "static_ips": null, "static_mac": null,
                },
            })
        };
        let mut told = Vec::new();
        for (number, name) in [(1, "web"), (2, "db")] {
            let path = lab.c(number).path();
            let path = path.to_str().context("a path")?;
            let status = netavark(lab, number, &["setup", path], &exec(name, &first))?;
            ensure!(
                status["dns_server_ips"] == serde_json::json!(["10.0.0.1"]),
                "{status:#}"
            );
            let subnet = &status["interfaces"]["eth3"]["subnets"][0];
            ensure!(subnet["gateway"] == "10.0.0.1", "{status:#}");
            let address = subnet["ipnet"].as_str().context("no address")?;
            told.push(address.split('/').next().unwrap_or_default().to_owned());
        }
        wait_until("web pings db", SOON, || {
            let ping = format!("ping -q -c 1 -W 1 {}", told[1]);
            lab.c(1).run(&ping).is_ok()
        })?;
        for (number, name) in [(1, "web"), (2, "db"), (2, "db")] {
            let path = lab.c(number).path();
            let path = path.to_str().context("a path")?;
            netavark(lab, number, &["teardown", path], &exec(name, &first))?;
            ensure!(lab.c(number).run("ip -o link show")?.lines().count() == 1);
        }
        let mut wrong = first.clone();
        wrong["options"] = serde_json::json!({ "nosuch": "1" });
        let error = netavark(lab, 1, &["create"], &wrong);
        ensure!(error.is_err_and(|error| error.to_string().contains("nosuch")));
        Ok(agents)
    });
}

/// One call; its `error` is an error.
fn netavark(lab: &Lab, number: usize, args: &[&str], input: &Value) -> Result<Value> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = lab.host(number).overlay_cmd(&args.join(" "));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let answer = match output.stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&output.stdout)?,
    };
    match answer.get("error") {
        Some(error) => anyhow::bail!("{error}"),
        None => {
            ensure!(output.status.success(), "{}", output.status);
            Ok(answer)
        }
    }
}
