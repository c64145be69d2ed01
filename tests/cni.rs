//! The binary as a CNI plugin, called as runtimes call it.
//!
//! ```text
//!   c1, c3 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!         uber-net: made by the first ADD that needs it
//! ```

#[path = "cni/runtime.rs"]
mod runtime;

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Lab, LabSpec, Ns, join_args, ping, test, wait_until};
use runtime::{Runtime, code, conf};
use serde_json::{Value, json};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(10);

fn three() -> LabSpec {
    LabSpec {
        containers: 3,
        ..LabSpec::default()
    }
}

#[test]
fn containers_of_two_hosts_come_are_checked_and_go() {
    test(BIN, three(), |lab| {
        let mut agents = vec![lab.start_agent(1, "")?];
        let join = join_args(lab.host(1), false)?;
        agents.push(lab.start_agent(2, &join)?);
        let [one, two] = [1, 2].map(|number| Runtime::new(lab.host(number)));
        let create = json!({ "create": true, "subnet": "10.9.0.0/24" });

        let config = conf("1.1.0", "pods", &create);
        ensure!(one.call("STATUS", None, &config)?.ok()? == "");
        let c1 = one.add(
            lab.c(1),
            "id-1",
            "K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
            &config,
        )?;
        // Another host, an older protocol, and a name that the pod has not said.
        let old = conf("0.4.0", "pods", &create);
        let c2 = two.add(
            lab.c(2),
            "0123456789abcdef",
            "IP=10.9.0.77;IgnoreUnknown=1",
            &old,
        )?;

        shape_is_of(&c1, "1.1.0", lab.c(1))?;
        shape_is_of(&c2, "0.4.0", lab.c(2))?;
        ensure!(c1["interfaces"][1]["mtu"] == 1450, "{c1:#}");
        ensure!(
            c1["routes"] == json!([{ "dst": "0.0.0.0/0", "gw": "10.9.0.1" }]),
            "{c1:#}"
        );
        ensure!(c2["ips"][0]["version"] == "4", "{c2:#}");
        ensure!(c1["ips"][0]["version"].is_null(), "{c1:#}");
        ensure!(c2["ips"][0]["address"] == "10.9.0.77/24", "{c2:#}");
        ensure!(c1["dns"]["nameservers"] == json!(["10.9.0.1"]), "{c1:#}");
        for (from, name, to) in [(1, "0123456789ab", &c2), (2, "web.shop", &c1)] {
            wait_until("they know each other's names", SOON, || {
                resolve(lab.c(from), name).is_ok_and(|ip| address(to).is_ok_and(|to| to == ip))
            })?;
            let stats = ping(lab.c(from), address(to)?, 3, 56, false)?;
            ensure!(stats.lost() == 0, "{}", stats.output);
        }

        // The interface is there: an error, and what is there stays.
        let twice = one.call_in("ADD", lab.c(1), "id-2", &config)?;
        code(&twice, 100)?;
        one.check(lab.c(1), "id-1", &config, &c1)?.ok()?;

        // Both again, from another agent.
        agents.remove(0).kill();
        agents.insert(0, lab.start_agent(1, "")?);
        one.check(lab.c(1), "id-1", &config, &c1)?.ok()?;
        changes_are_found(lab, &one, &config, &c1)?;

        one.call_in("DEL", lab.c(1), "id-1", &config)?.ok()?;
        one.call_in("DEL", lab.c(1), "id-1", &config)?.ok()?;
        two.call("DEL", Some(("0123456789abcdef", "eth0")), &old)?
            .ok()?;
        for number in [1, 2] {
            let left = lab.c(number).run("ip -o link show")?;
            ensure!(left.lines().count() == 1, "{left}");
        }
        two.call("STATUS", None, &conf("1.1.0", "none", &json!({})))
            .and_then(|done| code(&done, 50))?;
        Ok(agents)
    });
}

/// What CHECK compares: with the result of ADD, and with the kernel.
fn changes_are_found(lab: &Lab, one: &Runtime, config: &Value, added: &Value) -> Result<()> {
    let c1 = lab.c(1);
    let mut told = added.clone();
    told["ips"][0]["address"] = "10.9.0.99/24".into();
    code(&one.check(c1, "id-1", config, &told)?, 101)?;
    let mut told = added.clone();
    told["interfaces"][1]["mac"] = "02:00:00:00:00:99".into();
    code(&one.check(c1, "id-1", config, &told)?, 101)?;
    code(&one.check(c1, "other", config, added)?, 101)?;
    let address = added["ips"][0]["address"].as_str().context("no address")?;
    for (damage, repair) in [
        ("link set eth0 down", "link set eth0 up"),
        (
            &*format!("addr del {address} dev eth0"),
            &*format!("addr add {address} dev eth0"),
        ),
        ("link set eth0 name eth7", "link set eth7 name eth0"),
    ] {
        c1.run(&format!("ip {damage}"))?;
        code(&one.check(c1, "id-1", config, added)?, 101).context(damage.to_owned())?;
        for down in ["ip link set eth0 down", "ip link set eth7 down"] {
            // A name can be changed on one that is down alone.
            c1.run_any(down)?;
        }
        c1.run(&format!("ip {repair}"))?;
        c1.run("ip link set eth0 up")?;
    }
    let mac = added["interfaces"][1]["mac"].as_str().context("no MAC")?;
    let kept = link_local(mac)?;
    // The kernel took it away while the interface was down.
    c1.run_any(&format!("ip addr add {kept}/64 dev eth0 nodad"))?;
    one.check(c1, "id-1", config, added)?.ok().map(drop)
}

/// RFC 4291, appendix A.
fn link_local(mac: &str) -> Result<std::net::Ipv6Addr> {
    let mac: overlay_core::model::MacAddr = mac.parse()?;
    Ok(mac.link_local())
}

/// And no way out leads from an internal network.
#[test]
fn a_port_of_the_host_leads_into_the_container() {
    test(BIN, three(), |lab| {
        let agent = lab.start_agent(1, "")?;
        let one = Runtime::new(lab.host(1));
        let ports = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        let extra = json!({ "create": true, "runtimeConfig": { "portMappings": ports } });
        one.add(lab.c(1), "a", "", &conf("1.1.0", "uber-net", &extra))?;
        let listener = lab.c(1).within(|| Ok(TcpListener::bind("0.0.0.0:80")?))?;
        let to = (lab.host(1).ip, 8080);
        let client = lab.router().within(|| Ok(TcpStream::connect(to)?))?;
        let (_, from) = listener.accept()?;
        ensure!(from == client.local_addr()?, "{from} is not the client");
        let inner = json!({ "create": true, "internal": true });
        let added = one.add(lab.c(2), "b", "", &conf("1.1.0", "inner", &inner))?;
        ensure!(added["routes"] == json!([]), "{added:#}");
        let bad = json!([{ "hostPort": 8080, "containerPort": 0 }]);
        let bad = json!({ "create": true, "runtimeConfig": { "portMappings": bad } });
        code(
            &one.call_in("ADD", lab.c(3), "c", &conf("1.1.0", "uber-net", &bad))?,
            7,
        )?;
        Ok(agent)
    });
}

#[test]
fn garbage_is_collected_and_nothing_else() {
    test(BIN, three(), |lab| {
        let agents = [lab.start_agent(1, "")?];
        let one = Runtime::new(lab.host(1));
        let pods = conf(
            "1.1.0",
            "pods",
            &json!({ "network": "uber-net", "create": true }),
        );
        let other = conf("1.1.0", "other", &json!({ "network": "uber-net" }));
        one.add(lab.c(1), "a", "", &pods)?;
        one.add(lab.c(2), "b", "", &pods)?;
        one.add(lab.c(3), "c", "", &other)?;
        let valid = json!([{ "containerID": "a", "ifname": "eth0" }, { "containerID": "z", "ifname": "eth0" }]);
        let mut collect = pods.clone();
        collect["cni.dev/valid-attachments"] = valid;
        // One that can't be looked at any more is garbage all the same.
        lab.c(2).delete()?;
        one.call("GC", None, &collect)?.ok()?;
        let left = lab.host(1).overlay_json("container ls --local")?;
        let left = left.as_array().context("no list")?.iter();
        let left: Vec<&Value> = left.map(|row| &row["local"]["attachment"]["id"]).collect();
        ensure!(left == [&json!("a"), &json!("c")], "{left:?}");
        code(&one.call("GC", None, &pods)?, 7)?;
        Ok(agents)
    });
}

#[test]
fn without_its_agent() {
    test(BIN, three(), |lab| {
        let one = Runtime::new(lab.host(1));
        let pods = conf("1.1.0", "uber-net", &json!({ "create": true }));
        code(&one.call("STATUS", None, &pods)?, 51)?;
        code(&one.call_in("ADD", lab.c(1), "a", &pods)?, 11)?;
        one.call_in("DEL", lab.c(1), "a", &pods)?.ok()?;

        let agent = lab.start_agent(1, "")?;
        let added = one.add(lab.c(1), "a", "", &pods)?;
        agent.kill();
        code(&one.check(lab.c(1), "a", &pods, &added)?, 11)?;
        code(&one.call("STATUS", None, &pods)?, 51)?;
        // Not ours: it stays.
        lab.c(2).run("ip link add eth0 type veth peer name other")?;
        for number in [1, 2] {
            one.call_in("DEL", lab.c(number), "a", &pods)?.ok()?;
        }
        ensure!(lab.c(1).run("ip -o link show")?.lines().count() == 1);
        ensure!(lab.c(2).run("ip -o link show")?.contains("eth0"));
        let agent = lab.start_agent(1, "")?;
        let left = lab.host(1).overlay_json("container ls --local")?;
        ensure!(left == json!([]), "{left:#}");
        Ok(agent)
    });
}

#[test]
fn what_can_not_be_done_says_so() {
    test(BIN, three(), |lab| {
        let agent = lab.start_agent(1, "")?;
        let one = Runtime::new(lab.host(1));
        let version = one.call("VERSION", None, &json!({ "cniVersion": "1.0.0" }))?;
        let version: Value = serde_json::from_str(&version.ok()?)?;
        ensure!(version["cniVersion"] == "1.0.0", "{version}");
        ensure!(version["supportedVersions"] == json!(["0.4.0", "1.0.0", "1.1.0"]));

        let missing = conf("1.1.0", "nosuch", &json!({}));
        let no_network = one.call_in("ADD", lab.c(1), "a", &missing)?;
        code(&no_network, 7)?;
        ensure!(
            no_network.stdout.contains("network create nosuch"),
            "{}",
            no_network.stdout
        );
        for (extra, expected) in [
            (json!({ "cniVersion": "0.2.0" }), 1),
            (json!({ "ipam": { "type": "host-local" } }), 2),
            (json!({ "subnet": 5 }), 6),
            (json!({ "create": true, "prevResult": {} }), 7),
            (
                json!({ "create": true, "runtimeConfig": { "ips": ["192.0.2.1/24"] } }),
                100,
            ),
            (
                json!({ "create": true, "runtimeConfig": { "mac": "no" } }),
                7,
            ),
        ] {
            let bad = conf("1.1.0", "uber-net", &extra);
            let done = one.call_in("ADD", lab.c(1), "a", &bad)?;
            code(&done, expected).with_context(|| extra.to_string())?;
        }
        let good = conf("1.1.0", "uber-net", &json!({ "create": true }));
        code(&one.call("ADD", Some(("a", "eth0")), &good)?, 4)?;
        code(&one.call("ADD", None, &good)?, 4)?;
        code(&one.call("FROB", None, &good)?, 4)?;
        code(&one.call_in("ADD", lab.c(1), "../a", &good)?, 4)?;
        code(&one.call_in("CHECK", lab.c(1), "a", &good)?, 7)?;
        code(&one.call_at("ADD", "/run/netns/nosuch", "a", &good)?, 3)?;
        code(&one.call("ADD", None, &json!("no object"))?, 1)?;
        let left = lab.c(1).run("ip -o link show")?;
        ensure!(left.lines().count() == 1, "{left}");
        Ok(agent)
    });
}

fn shape_is_of(result: &Value, version: &str, ns: &Ns) -> Result<()> {
    ensure!(result["cniVersion"] == version, "{result:#}");
    let interface = &result["interfaces"][1];
    ensure!(interface["name"] == "eth0", "{result:#}");
    let sandbox = interface["sandbox"].as_str().context("no sandbox")?;
    ensure!(sandbox == ns.path().to_string_lossy(), "{result:#}");
    ensure!(result["ips"][0]["interface"] == 1, "{result:#}");
    ensure!(result["ips"][0]["gateway"] == "10.9.0.1", "{result:#}");
    let inside = ns.run("ip -j link show eth0")?;
    let inside: Value = serde_json::from_str(&inside)?;
    ensure!(inside[0]["address"] == interface["mac"], "{inside}");
    Ok(())
}

fn address(result: &Value) -> Result<IpAddr> {
    let address = result["ips"][0]["address"].as_str().context("no address")?;
    let ip = address.split('/').next().context("an empty address")?;
    Ok(ip.parse()?)
}

/// As the result's `dns` says: the gateway is asked.
fn resolve(ns: &Ns, name: &str) -> Result<IpAddr> {
    let answer = ns.run(&format!("dig +short +time=2 +tries=1 @10.9.0.1 {name}"))?;
    let first = answer.lines().next().context("no answer")?;
    Ok(first.parse()?)
}
