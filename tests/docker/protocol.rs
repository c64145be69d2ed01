//! The plugin, called as Docker calls it, and as nobody should.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{AgentProc, Dockerd, LabSpec, test, wait_until};
use serde_json::{Value, json};

use super::BIN;

/// A plugin's socket.
struct Plugin(PathBuf);

impl Plugin {
    /// Sends a request with an empty Host header and a body as it is.
    fn raw(&self, path: &str, body: &str) -> Result<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.0)?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
        ensure!(
            head.to_lowercase()
                .contains("application/vnd.docker.plugins.v1.2+json"),
            "{head}"
        );
        let status = head
            .split_whitespace()
            .nth(1)
            .context("no status")?
            .parse()?;
        Ok((
            status,
            serde_json::from_str(body).with_context(|| text.clone())?,
        ))
    }

    fn call(&self, method: &str, body: Value) -> Result<Value> {
        let (status, answer) = self.raw(&format!("/{method}"), &body.to_string())?;
        ensure!(status == 200, "{method}: {status} {answer}");
        Ok(answer)
    }

    /// A call that succeeds.
    fn good(&self, method: &str, body: Value) -> Result<Value> {
        let answer = self.call(method, body)?;
        let failed = answer.get("Err").or(answer.get("Error"));
        ensure!(failed.is_none(), "{method}: {answer}");
        Ok(answer)
    }

    /// A call that fails, in the form of its driver, with these words.
    fn bad(&self, method: &str, body: Value, words: &[&str]) -> Result<()> {
        let answer = self.call(method, body)?;
        let key = if method.starts_with("Ipam") {
            "Error"
        } else {
            "Err"
        };
        let error = answer[key]
            .as_str()
            .with_context(|| format!("{method}: {answer}"))?;
        for word in words {
            ensure!(error.contains(word), "{method}: no '{word}' in: {error}");
        }
        Ok(())
    }

    fn address(&self, pool: &str, address: &str) -> Result<String> {
        let ask = json!({"PoolID": pool, "Address": address, "Options": {}});
        let given = self.good("IpamDriver.RequestAddress", ask)?;
        Ok(given["Address"].as_str().context("no address")?.to_owned())
    }

    fn release(&self, pool: &str, cidr: &str) -> Result<()> {
        let ip = cidr.split('/').next().unwrap_or(cidr);
        let ask = json!({"PoolID": pool, "Address": ip});
        self.good("IpamDriver.ReleaseAddress", ask).map(drop)
    }

    /// What `docker network create` calls, with `-o overlay-dp.network=NAME`.
    fn create(&self, id: &str, name: &str, pool: &Value) -> Result<()> {
        self.good("NetworkDriver.CreateNetwork", network(id, name, &[pool]))
            .map(drop)
    }
}

fn network(id: &str, name: &str, pools: &[&Value]) -> Value {
    let data = |v6: bool| -> Vec<Value> {
        let is_it = |pool: &&&Value| pool["Pool"].as_str().is_some_and(|p| p.contains(':') == v6);
        let of = pools.iter().filter(is_it);
        of.map(|pool| {
            let gateway = &pool["Data"]["com.docker.network.gateway"];
            json!({"AddressSpace": "overlay-dp", "Pool": pool["Pool"], "Gateway": gateway.as_str().unwrap_or("")})
        })
        .collect()
    };
    json!({
        "NetworkID": id,
        "Options": {"com.docker.network.generic": {"overlay-dp.network": name},
                    "com.docker.network.enable_ipv6": pools.len() > 1},
        "IPv4Data": data(false), "IPv6Data": data(true),
    })
}

fn endpoint(network: &str, id: &str, addresses: &[&str]) -> Value {
    let v6 = addresses.get(1).copied().unwrap_or_default();
    json!({"NetworkID": network, "EndpointID": id, "Options": {},
           "Interface": {"Address": addresses[0], "AddressIPv6": v6, "MacAddress": ""}})
}

fn start(lab: &overlay_lab::Lab) -> Result<(AgentProc, Plugin)> {
    std::fs::create_dir_all(Dockerd::dir(lab, 1))?;
    let args = Dockerd::agent_args(lab, 1);
    let agent = lab.start_agent(1, &args)?;
    Ok((agent, Plugin(Dockerd::dir(lab, 1).join("overlay-dp.sock"))))
}

fn one_host() -> LabSpec {
    LabSpec {
        hosts: 1,
        containers: 0,
        ..LabSpec::default()
    }
}

#[test]
fn what_is_malformed_or_unknown_is_refused_and_harms_nothing() {
    test(BIN, one_host(), |lab| {
        let (agent, plugin) = start(lab)?;
        let (status, answer) = plugin.raw("/Plugin.Activate", "")?;
        ensure!(
            (status, &answer["Implements"]) == (200, &json!(["NetworkDriver", "IpamDriver"])),
            "{answer}"
        );
        for path in [
            "/",
            "/Plugin.Deactivate",
            "/NetworkDriver.",
            "/VolumeDriver.Create",
            "/x.y.z",
        ] {
            let (status, answer) = plugin.raw(path, "{}")?;
            ensure!(status == 404, "{path}: {status} {answer}");
        }
        for driver in ["NetworkDriver", "IpamDriver"] {
            plugin.raw(&format!("/{driver}.GetCapabilities"), "")?;
        }
        for method in [
            "IpamDriver.RequestPool",
            "IpamDriver.RequestAddress",
            "NetworkDriver.CreateNetwork",
            "NetworkDriver.CreateEndpoint",
            "NetworkDriver.Join",
        ] {
            for body in [
                "{",
                "[]",
                "7",
                "{\"Options\": 7}",
                "\u{fffd}",
                "{\"Pool\": {}, \"NetworkID\": [1]}",
            ] {
                let (status, answer) = plugin.raw(&format!("/{method}"), body)?;
                let told = answer.get("Err").or(answer.get("Error"));
                ensure!(status == 200 && told.is_some(), "{method} {body}: {answer}");
            }
        }
        plugin.bad(
            "IpamDriver.RequestPool",
            json!({"Pool": "10.0.0.0/99"}),
            &["no subnet"],
        )?;
        plugin.bad(
            "IpamDriver.RequestPool",
            json!({"Options": {"overlay-dp.net": "x"}}),
            &["overlay-dp.network"],
        )?;
        plugin.bad(
            "IpamDriver.RequestPool",
            json!({"Pool": "172.31.1.0/24"}),
            &["overlaps", "route"],
        )?;
        plugin.bad(
            "IpamDriver.RequestAddress",
            json!({"PoolID": "x"}),
            &["no pool"],
        )?;
        plugin.bad(
            "NetworkDriver.CreateEndpoint",
            endpoint("n", "e", &["10.0.0.2/24"]),
            &["not known"],
        )?;
        plugin.bad(
            "NetworkDriver.Join",
            json!({"NetworkID": "n", "EndpointID": "e"}),
            &["not known"],
        )?;
        // What is gone already is fine.
        let none = || json!({"NetworkID": "n", "EndpointID": "e", "PoolID": "overlay-dp/10.9.0.0/24", "Address": "10.9.0.2"});
        for method in [
            "NetworkDriver.DeleteEndpoint",
            "NetworkDriver.Leave",
            "NetworkDriver.DeleteNetwork",
            "NetworkDriver.EndpointOperInfo",
            "NetworkDriver.DiscoverNew",
            "NetworkDriver.ProgramExternalConnectivity",
            "IpamDriver.ReleaseAddress",
            "IpamDriver.ReleasePool",
        ] {
            plugin.good(method, none())?;
        }
        for (options, words) in [
            (json!({"com.docker.network.portmap": 7}), "-p"),
            (
                json!({"com.docker.network.portmap": [{"Proto": 132, "Port": 80, "HostPort": 80}]}),
                "sctp",
            ),
            (
                json!({"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 8080}]}),
                "no endpoint",
            ),
        ] {
            let mut publish = none();
            publish["Options"] = options;
            let method = "NetworkDriver.ProgramExternalConnectivity";
            plugin.bad(method, publish, &[words])?;
        }
        plugin.good("NetworkDriver.RevokeExternalConnectivity", none())?;
        // Another IPAM driver's pool, and no name at all.
        let foreign = json!({"Pool": "10.5.0.0/24"});
        plugin.bad(
            "NetworkDriver.CreateNetwork",
            network("n", "blue", &[&foreign]),
            &["--ipam-driver"],
        )?;
        let pool = plugin.good("IpamDriver.RequestPool", json!({}))?;
        let mut nameless = network("n", "", &[&pool]);
        nameless["Options"] = json!({});
        plugin.bad(
            "NetworkDriver.CreateNetwork",
            nameless,
            &["-o overlay-dp.network"],
        )?;
        plugin.good("IpamDriver.ReleasePool", pool)?;
        ensure!(
            lab.host(1).overlay_json("network ls")? == json!([]),
            "a network was left"
        );
        Ok(agent)
    });
}

#[test]
fn a_network_its_endpoints_and_their_ports_survive_the_agent() {
    test(BIN, one_host(), |lab| {
        let (agent, plugin) = start(lab)?;
        let host = lab.host(1);
        let pool = plugin.good("IpamDriver.RequestPool", json!({}))?;
        ensure!(pool["Pool"] == "10.0.0.0/24", "{pool}");
        let id = pool["PoolID"].as_str().context("no id")?.to_owned();
        let gateway =
            json!({"PoolID": id, "Options": {"RequestAddressType": "com.docker.network.gateway"}});
        let given = plugin.good("IpamDriver.RequestAddress", gateway)?;
        ensure!(given["Address"] == "10.0.0.1/24", "{given}");
        plugin.create("n1", "uber-net", &pool)?;
        plugin.create("n1", "uber-net", &pool)?;
        ensure!(
            host.overlay_json("network ls")?[0]["name"] == "uber-net",
            "no network"
        );

        let first = plugin.address(&id, "")?;
        let second = plugin.address(&id, "10.0.0.77")?;
        ensure!(
            first.ends_with("/24") && second == "10.0.0.77/24",
            "{first} {second}"
        );
        let again = json!({"PoolID": id, "Address": "10.0.0.77"});
        plugin.bad("IpamDriver.RequestAddress", again, &["10.0.0.77"])?;
        let gateway = json!({"PoolID": id, "Address": "10.0.0.1"});
        plugin.bad("IpamDriver.RequestAddress", gateway, &["gateway"])?;

        let made = plugin.good(
            "NetworkDriver.CreateEndpoint",
            endpoint("n1", "e1aaaaaaaaaaaa", &[&first]),
        )?;
        let mac = made["Interface"]["MacAddress"].as_str().context("no MAC")?;
        ensure!(mac.starts_with("02:42:0a:00:00:"), "{made}");
        let repeated = plugin.good(
            "NetworkDriver.CreateEndpoint",
            endpoint("n1", "e1aaaaaaaaaaaa", &[&first]),
        )?;
        ensure!(repeated == made, "{repeated}");
        plugin.bad(
            "NetworkDriver.CreateEndpoint",
            endpoint("n1", "e2", &[&first]),
            &["already"],
        )?;
        plugin.bad(
            "NetworkDriver.CreateEndpoint",
            endpoint("n1", "e2", &["10.0.0.9/24"]),
            &["IPAM"],
        )?;
        let mut own_mac = endpoint("n1", "e2bbbbbbbbbbbb", &[&second]);
        own_mac["Interface"]["MacAddress"] = json!("02:00:00:00:00:77");
        let made = plugin.good("NetworkDriver.CreateEndpoint", own_mac)?;
        ensure!(made["Interface"] == json!({}), "{made}");

        for id in ["e1aaaaaaaaaaaa", "e2bbbbbbbbbbbb"] {
            let join = json!({"NetworkID": "n1", "EndpointID": id, "SandboxKey": "/var/run/docker/netns/x"});
            let joined = plugin.good("NetworkDriver.Join", join.clone())?;
            // Docker may ask again.
            let again = plugin.good("NetworkDriver.Join", join)?;
            ensure!(joined == again, "{joined} {again}");
            ensure!(
                joined["Gateway"] == "10.0.0.1" && joined["InterfaceName"]["DstPrefix"] == "eth",
                "{joined}"
            );
            let link = joined["InterfaceName"]["SrcName"]
                .as_str()
                .context("no interface")?;
            let shown = host.ns.run(&format!("ip link show {link}"))?;
            ensure!(shown.contains("mtu 1450"), "{shown}");
        }
        ensure!(
            host.overlay_json("container ls --local")?
                .as_array()
                .is_some_and(|all| all.len() == 2),
            "no ports"
        );
        host.overlay_fails("container rm e1aaaaaaaaaa", &["docker"])?;

        agent.kill();
        let agent = lab.start_agent(1, &Dockerd::agent_args(lab, 1))?;
        let local = host.overlay_json("container ls --local")?;
        ensure!(
            local.as_array().is_some_and(|all| all.len() == 2),
            "{local}"
        );
        let third = plugin.address(&id, "")?;
        ensure!(third != first && third != second, "{third} was given twice");
        for (id, pool_address) in [("e1aaaaaaaaaaaa", &first), ("e2bbbbbbbbbbbb", &second)] {
            let which = json!({"NetworkID": "n1", "EndpointID": id});
            plugin.good("NetworkDriver.Leave", which.clone())?;
            plugin.good("NetworkDriver.DeleteEndpoint", which)?;
            plugin.release("overlay-dp/10.0.0.0/24", pool_address)?;
        }
        plugin.release(&id, &third)?;
        plugin.good("NetworkDriver.DeleteNetwork", json!({"NetworkID": "n1"}))?;
        plugin.good("IpamDriver.ReleasePool", json!({"PoolID": id}))?;
        ensure!(
            host.overlay_json("network ls")? == json!([]),
            "the network stays"
        );
        let links = host.ns.run("ip -br link")?;
        ensure!(!links.contains("ovc-"), "{links}");
        Ok(agent)
    });
}

#[test]
fn a_pool_that_was_guessed_wrong_is_right_the_next_time() {
    test(BIN, one_host(), |lab| {
        let (agent, plugin) = start(lab)?;
        for name in ["red", "green"] {
            lab.host(1).overlay(&format!("network create {name}"))?;
        }
        let ask = || plugin.good("IpamDriver.RequestPool", json!({}));
        let wrong = ask()?;
        ensure!(wrong["Pool"] == "10.0.1.0/24", "not the newest: {wrong}");
        ensure!(
            wrong["Data"]["com.docker.network.gateway"] == "10.0.1.1/24",
            "{wrong}"
        );
        let red = network("n1", "red", &[&wrong]);
        plugin.bad(
            "NetworkDriver.CreateNetwork",
            red,
            &["10.0.0.0/24", "repeat", "--ipam-opt overlay-dp.network=red"],
        )?;
        plugin.good("IpamDriver.ReleasePool", wrong)?;
        let right = ask()?;
        ensure!(right["Pool"] == "10.0.0.0/24", "{right}");
        plugin.create("n1", "red", &right)?;
        // A name says it at once; and so does a subnet.
        let named = json!({"Options": {"overlay-dp.network": "green"}});
        let named = plugin.good("IpamDriver.RequestPool", named)?;
        let given = plugin.good("IpamDriver.RequestPool", json!({"Pool": "10.0.1.0/24"}))?;
        ensure!(named == given, "{named} {given}");
        let overlapping = json!({"Pool": "10.0.0.0/16"});
        plugin.bad("IpamDriver.RequestPool", overlapping, &["overlaps"])?;
        // What is to be new.
        let pool = ask()?;
        let new = network("n2", "blue", &[&pool]);
        plugin.bad("NetworkDriver.CreateNetwork", new, &["repeat", "--subnet"])?;
        plugin.good("IpamDriver.ReleasePool", pool)?;
        let pool = ask()?;
        ensure!(pool["Pool"] == "10.0.2.0/24", "{pool}");
        plugin.create("n2", "blue", &pool)?;
        Ok(agent)
    });
}

#[test]
fn both_families_have_one_number() {
    test(BIN, one_host(), |lab| {
        let (agent, plugin) = start(lab)?;
        let pool = |subnet: &str, v6: bool| {
            plugin.good("IpamDriver.RequestPool", json!({"Pool": subnet, "V6": v6}))
        };
        let (four, six) = (pool("10.7.0.0/24", false)?, pool("fd07::/64", true)?);
        let create = network("n1", "dual", &[&four, &six]);
        plugin.good("NetworkDriver.CreateNetwork", create)?;
        let (four, six) = ("overlay-dp/10.7.0.0/24", "overlay-dp/fd07::/64");
        let first = [plugin.address(four, "")?, plugin.address(six, "")?];
        let second = [plugin.address(four, "10.7.0.32")?, plugin.address(six, "")?];
        ensure!(second == ["10.7.0.32/24", "fd07::20/64"], "{second:?}");
        let mixed = endpoint("n1", "e", &[&first[0], &second[1]]);
        plugin.bad("NetworkDriver.CreateEndpoint", mixed, &["same number"])?;
        for (id, given) in [("e1", &first), ("e2", &second)] {
            let ask = endpoint("n1", id, &[&given[0], &given[1]]);
            plugin.good("NetworkDriver.CreateEndpoint", ask)?;
        }
        let join = json!({"NetworkID": "n1", "EndpointID": "e1", "SandboxKey": "/x"});
        let joined = plugin.good("NetworkDriver.Join", join)?;
        ensure!(joined["GatewayIPv6"] == "fd07::1", "{joined}");
        for (id, given) in [("e1", &first), ("e2", &second)] {
            plugin.good(
                "NetworkDriver.DeleteEndpoint",
                json!({"NetworkID": "n1", "EndpointID": id}),
            )?;
            plugin.release(four, &given[0])?;
            plugin.release(six, &given[1])?;
        }
        plugin.good("NetworkDriver.DeleteNetwork", json!({"NetworkID": "n1"}))?;
        ensure!(
            lab.host(1).overlay_json("network ls")? == json!([]),
            "the network stays"
        );
        Ok(agent)
    });
}

#[test]
fn the_socket_goes_with_the_agent() {
    test(BIN, one_host(), |lab| {
        let (agent, plugin) = start(lab)?;
        ensure!(plugin.0.exists(), "no socket");
        agent.kill();
        ensure!(plugin.0.exists(), "a killed agent can't tidy up");
        lab.host(1).overlay("detach")?;
        ensure!(!plugin.0.exists(), "detach leaves the socket");
        let (agent, plugin) = start(lab)?;
        agent.stop()?;
        ensure!(!plugin.0.exists(), "a stopped agent leaves the socket");
        ensure!(Path::new("/run").exists(), "too much is gone");
        let (agent, _) = start(lab)?;
        Ok(agent)
    });
}

/// What a daemon knows, as it answers: the body by path, without the API's version.
type Known = Arc<Mutex<Vec<(&'static str, Value)>>>;

/// A daemon that knows no more than it is told, and never has events.
fn daemon(socket: &Path, known: &Known) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    let known = Arc::clone(known);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split_whitespace().nth(1).unwrap_or_default();
            let path = path.trim_start_matches("/v1.40");
            if path.starts_with("/events") {
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                open.push(stream);
                continue;
            }
            let known = known.lock().unwrap_or_else(|broken| broken.into_inner());
            let found = known.iter().find(|(of, _)| *of == path);
            let (status, body) = match found {
                Some((_, body)) => ("200 OK", body.to_string()),
                None => ("404 Not Found", "{}".to_owned()),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
            let _ = write!(stream, "{head}{body}");
        }
    });
    Ok(())
}

#[test]
fn what_docker_knows_is_taken_and_what_it_has_forgotten_given_back() {
    test(BIN, one_host(), |lab| {
        std::fs::create_dir_all(Dockerd::dir(lab, 1))?;
        let known = Known::default();
        daemon(&Dockerd::dir(lab, 1).join("docker.sock"), &known)?;
        let set = |all: Vec<(&'static str, Value)>| {
            *known.lock().unwrap_or_else(|broken| broken.into_inner()) = all;
        };
        let (agent, plugin) = start(lab)?;
        let host = lab.host(1);
        let pool = plugin.good("IpamDriver.RequestPool", json!({"Pool": "10.8.0.0/24"}))?;
        plugin.create("n1", "uber-net", &pool)?;
        let service = "service create web --network uber-net --check tcp:80";
        host.overlay(service)?;
        let address = plugin.address("overlay-dp/10.8.0.0/24", "")?;
        let id = "e1aaaaaaaaaaaa";
        plugin.good(
            "NetworkDriver.CreateEndpoint",
            endpoint("n1", id, &[&address]),
        )?;
        let attached = json!({"c1": {"Name": "web.1", "EndpointID": id}});
        let container = json!({
            "Name": "/web.1", "State": {"Pid": 0}, "Config": {"Labels": {"overlay-dp.service": "web"}},
            "NetworkSettings": {"Networks": {"x": {"EndpointID": id, "Aliases": ["a", "web.1", "no name"]}}},
        });
        set(vec![
            ("/networks/n1", json!({"Containers": attached})),
            ("/containers/c1/json", container),
        ]);
        let join = json!({"NetworkID": "n1", "EndpointID": id, "SandboxKey": "/nowhere"});
        plugin.good("NetworkDriver.Join", join)?;
        let mut shown = Value::Null;
        wait_until(
            "the container has its names",
            Duration::from_secs(10),
            || {
                shown = host.overlay_json("container ls").unwrap_or_default();
                let row = &shown[0];
                row["name"] == "web.1" && row["service"] == "web" && row["aliases"] == json!(["a"])
            },
        )
        .with_context(|| shown.to_string())?;
        // What Docker calls a task has passed no check yet.
        let service = host.overlay_json("service inspect web")?;
        ensure!(service[0]["tasks"][0]["ready"] == false, "{service}");
        host.overlay("service rm web")?;
        // First the container, and then its network, without a word to the plugin.
        set(vec![("/networks/n1", json!({"Containers": {}}))]);
        wait_until("the endpoint is forgotten", Duration::from_secs(75), || {
            host.overlay_json("container ls")
                .is_ok_and(|all| all == json!([]))
        })?;
        let wanted = address.trim_end_matches("/24");
        let again = || plugin.address("overlay-dp/10.8.0.0/24", wanted);
        wait_until("its address is free", Duration::from_secs(10), || {
            again().is_ok()
        })?;
        plugin.release("overlay-dp/10.8.0.0/24", &address)?;
        plugin.good("NetworkDriver.DeleteNetwork", json!({"NetworkID": "n1"}))?;
        Ok(agent)
    });
}
