//! The metrics: what is in them, and that Prometheus and the dashboard can use them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Host, Lab, LabSpec, Ns, Overlay, ping, test, wait_until};
use serde_json::Value;

use crate::http::{ask, get};
use crate::{BIN, WEB, need};

#[test]
fn metrics_tell_what_containers_do() {
    for datapath in ["tcx", "xdp"] {
        test(BIN, LabSpec::default(), |lab| {
            a_taken_port_is_said_before_anything_is_changed(lab.host(1))?;
            let overlay = Overlay::start(lab, &format!("--metrics {WEB} --datapath {datapath}"))?;
            let host = lab.host(1);
            counts_what_is_sent(host, overlay.c(1), overlay.c(2))?;
            counts_drops(host, overlay.c(1), overlay.c(2))?;
            if datapath == "tcx" {
                the_socket_has_the_same(host)?;
                refuses_what_is_not_meant(lab)?;
                hostile_names_do_not_break_it(lab)?;
            }
            Ok(overlay)
        });
    }
}

#[test]
fn prometheus_reads_them_and_every_query_of_the_dashboard_finds_something() {
    let Some(prometheus) = need("prometheus") else {
        return;
    };
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, &format!("--metrics {WEB}"))?;
        let host = lab.host(1);
        let config = lab.dir().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: overlay-dp\n  \
                 static_configs: [{{targets: ['{WEB}']}}]\n"
            ),
        )?;
        let _prometheus = host.ns.start(&format!(
            "{} --config.file={} --storage.tsdb.path={} --web.listen-address={SERVER} --log.level=warn",
            prometheus.display(),
            config.display(),
            lab.dir().join("tsdb").display(),
        ))?;
        // Four scrapes, for rates.
        wait_until("prometheus has scraped", 30 * SECOND, || {
            let _ = ping(&overlay.c(1).ns, overlay.c(2).ip, 5, 56, false);
            let samples = query(&host.ns, "min(count_over_time(overlay_dp_build_info[1m]))");
            let first =
                |found: Vec<Value>| found.first()?["value"][1].as_str()?.parse::<f64>().ok();
            samples
                .ok()
                .and_then(first)
                .is_some_and(|samples| samples >= 4.0)
        })?;
        let up = query(&host.ns, "up{job=\"overlay-dp\"} == 1")?;
        ensure!(up.len() == 1, "{up:?}");
        for expression in dashboard_queries()? {
            let found = query(&host.ns, &expression).with_context(|| expression.clone())?;
            ensure!(!found.is_empty(), "nothing is found by {expression}");
        }
        Ok(overlay)
    });
}

const SECOND: Duration = Duration::from_secs(1);
/// Where Prometheus listens.
const SERVER: &str = "127.0.0.1:9090";

/// The samples of `/metrics`, by what stands before the value. Answers are kept for a second: these
/// are new.
fn samples(ns: &Ns) -> Result<BTreeMap<String, f64>> {
    std::thread::sleep(SECOND + SECOND / 10);
    parse(&get(ns, WEB, "/metrics")?.ok()?)
}

/// Reads OpenMetrics text strictly: each family is described once, before its samples, and they
/// stand together.
fn parse(text: &str) -> Result<BTreeMap<String, f64>> {
    let body = text.strip_suffix("# EOF\n").context("no end")?;
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').context("no help")?;
            ensure!(
                name.starts_with("overlay_dp_") && !text.is_empty(),
                "{line}"
            );
            ensure!(families.insert(name.to_owned()), "{name} comes twice");
            name.clone_into(&mut family);
        } else if let Some(of_type) = line.strip_prefix("# TYPE ") {
            let (name, type_) = of_type.split_once(' ').context("no type")?;
            ensure!(name == family, "{line}");
            type_.clone_into(&mut kind);
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').context("no unit")?;
            ensure!(name == family && name.ends_with(unit), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').context("no value")?;
            let name = series.split('{').next().unwrap_or(series);
            let expected = match kind.as_str() {
                "counter" => format!("{family}_total"),
                "gauge" => family.clone(),
                other => anyhow::bail!("{family} is a {other}"),
            };
            ensure!(name == expected, "{line} in {family}");
            let known = samples.insert(series.to_owned(), value.parse::<f64>()?);
            ensure!(known.is_none(), "{series} comes twice");
        }
    }
    Ok(samples)
}

fn series(of: &str, container: &Container) -> String {
    let Container { network, name, .. } = container;
    format!("overlay_dp_container_{of}_total{{network=\"{network}\",container=\"{name}\"}}")
}

/// What the container sent counts as sent, and what it got as received, to the packet.
fn counts_what_is_sent(host: &Host, from: &Container, to: &Container) -> Result<()> {
    let before = samples(&host.ns)?;
    let stats = ping(&from.ns, to.ip, 50, 1000, false)?;
    ensure!(stats.lost() == 0, "{}", stats.output);
    let after = samples(&host.ns)?;
    let grown = |of: &str| -> Result<f64> {
        let key = series(of, from);
        let now = after.get(&key).with_context(|| format!("no {key}"))?;
        Ok(now - before.get(&key).with_context(|| format!("no {key}"))?)
    };
    for direction in ["receive", "transmit"] {
        let (packets, bytes) = (
            grown(&format!("{direction}_packets"))?,
            grown(&format!("{direction}_bytes"))?,
        );
        // An ARP or a neighbour's probe may come between.
        ensure!(
            (50.0..60.0).contains(&packets),
            "{direction} {packets} packets"
        );
        // On a port with XDP the kernel does not count what is sent's Ethernet headers.
        let least = f64::from(50 * (20 + 8 + 1000));
        ensure!(
            (least..least + 50.0 * 14.0 + 2000.0).contains(&bytes),
            "{direction} {bytes} bytes"
        );
    }
    let encapsulated = "overlay_dp_datapath_frames_total{event=\"encapsulated\"}";
    ensure!(after[encapsulated] - before[encapsulated] >= 50.0);
    let host2 = after
        .iter()
        .find(|(key, _)| key.starts_with("overlay_dp_vtep_up{peer=\"host2\""));
    ensure!(host2.is_some_and(|(_, up)| *up == 1.0), "{host2:?}");
    ensure!(after["overlay_dp_cluster_hosts{state=\"alive\"}"] == 2.0);
    // 90 days, less what the clocks of two hosts may differ by, which are one here.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let left = after["overlay_dp_certificate_end_timestamp_seconds"] - now.as_secs_f64();
    ensure!((89.0..=90.0).contains(&(left / 86_400.0)), "{left}");
    ensure!(after["overlay_dp_network_endpoints{network=\"uber-net\"}"] == 2.0);
    ensure!(after["overlay_dp_agent_memory_bytes{kind=\"resident\"}"] > 1e6);
    Ok(())
}

fn counts_drops(host: &Host, from: &Container, to: &Container) -> Result<()> {
    let spoofed = "overlay_dp_drops_total{reason=\"spoofed-ip\"}";
    let before = samples(&host.ns)?[spoofed];
    from.ns.run("ip addr add 10.9.9.9/32 dev eth0")?;
    from.ns
        .run_any(&format!("ping -n -c 3 -i 0.1 -W 1 -I 10.9.9.9 {}", to.ip))?;
    from.ns.run("ip addr del 10.9.9.9/32 dev eth0")?;
    let after = samples(&host.ns)?[spoofed];
    ensure!(after - before >= 3.0, "{before} {after}");
    Ok(())
}

/// Without a TCP port the metrics can be had, too.
fn the_socket_has_the_same(host: &Host) -> Result<()> {
    let socket = format!("/run/overlay-dp/{}/api.sock", host.instance);
    let text = {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
        stream.write_all(b"GET /v1/metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        text
    };
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.contains("application/openmetrics-text"), "{head}");
    let names = |samples: BTreeMap<String, f64>| samples.into_keys().collect::<BTreeSet<_>>();
    ensure!(names(parse(body)?) == names(samples(&host.ns)?));
    Ok(())
}

fn a_taken_port_is_said_before_anything_is_changed(host: &Host) -> Result<()> {
    let taken = host.ns.within(|| Ok(TcpListener::bind(WEB)?))?;
    host.overlay_fails(
        &format!("attach --iface eth0 --metrics {WEB}"),
        &["9478/tcp", "--metrics", "in use"],
    )?;
    drop(taken);
    ensure!(
        !host.ns.run("ip link")?.contains("ovl-"),
        "something is left"
    );
    Ok(())
}

fn refuses_what_is_not_meant(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let status = |request: &str| Ok::<_, anyhow::Error>(ask(&host.ns, WEB, request)?.status);
    let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    ensure!(status(post)? == 405);
    ensure!(get(&host.ns, WEB, "/v1/status")?.status == 404);
    ensure!(get(&host.ns, WEB, "/../../etc/passwd")?.status == 404);
    // Another site's page, whose name leads here.
    let rebound = "GET /api/overview HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    ensure!(status(rebound)? == 421);
    ensure!(ask(&host.ns, WEB, "nonsense\r\n\r\n")?.status == 400);
    for path in ["/", "/api/overview", "/metrics", "/none"] {
        let head = get(&host.ns, WEB, path)?.head;
        ensure!(
            head.contains("content-security-policy: default-src 'none'"),
            "{path}: {head}"
        );
    }
    // Those who connect and are silent do not keep others out.
    host.ns.within(|| {
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(TcpStream::connect(WEB)?);
        }
        Ok(silent)
    })?;
    get(&host.ns, WEB, "/metrics")?.ok().map(drop)?;
    Ok(())
}

/// No name that a user can give breaks the text.
fn hostile_names_do_not_break_it(lab: &Lab) -> Result<()> {
    let name = "a-b_c.d";
    let ns = lab.add_container("odd")?;
    let odd = Container::attach(lab.host(1), &ns, name, "--network uber-net")?;
    let found = samples(&lab.host(1).ns)?;
    ensure!(
        found.contains_key(&series("receive_bytes", &odd)),
        "{found:#?}"
    );
    odd.detach(lab.host(1))?;
    let found = samples(&lab.host(1).ns)?;
    ensure!(!found.contains_key(&series("receive_bytes", &odd)));
    Ok(())
}

/// What Prometheus finds now.
fn query(ns: &Ns, expression: &str) -> Result<Vec<Value>> {
    let encoded: String = expression
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let answer = get(ns, SERVER, &format!("/api/v1/query?query={encoded}"))?;
    let json: Value = serde_json::from_str(&answer.body).with_context(|| answer.head.clone())?;
    ensure!(json["status"] == "success", "{json}");
    let found = json["data"]["result"].as_array();
    Ok(found.with_context(|| format!("no result: {json}"))?.clone())
}

/// All that the dashboard asks, with its variables filled in as Grafana does for "All".
fn dashboard_queries() -> Result<Vec<String>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/grafana/overlay-dp.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut queries = Vec::new();
    for target in panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
    {
        let expression = target["expr"].as_str().context("no query")?;
        let mut filled = expression.replace("$__rate_interval", "20s");
        for variable in ["$job", "$instance", "$network"] {
            filled = filled.replace(variable, ".*");
        }
        ensure!(!filled.contains('$'), "{filled}");
        queries.push(filled);
    }
    ensure!(queries.len() > 20, "only {} queries", queries.len());
    // What the variables' values come from.
    queries.extend([
        "overlay_dp_build_info".to_owned(),
        "overlay_dp_container_receive_bytes_total".to_owned(),
    ]);
    Ok(queries)
}
