//! Tables for people, in the manner of `ip`, `bridge` and `docker network`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use comfy_table::{Table, presets};
use ipnetwork::IpNetwork;

use crate::agent::Finding;
use crate::api::admin::{ClusterInfo, HostDetail, HostInfo};
use crate::api::{ContainerInfo, FdbRow, NetworkDetail, NetworkInfo, Status};

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// Subnets and gateways, IPv4 first.
pub fn families(n: &NetworkInfo) -> impl Iterator<Item = (IpNetwork, IpAddr)> {
    let second = n.ipv6.map(|family| (family.subnet, family.gateway));
    std::iter::once((n.subnet, n.gateway)).chain(second)
}

/// `network ls`
pub fn networks(networks: &[NetworkInfo]) -> String {
    table(
        ["NAME", "VNI", "SUBNET", "GATEWAY", "HOSTS", "ENDPOINTS", "ATTACHED"],
        networks.iter().map(|n| {
            [
                n.name.clone(),
                n.vni.to_string(),
                list(&families(n).map(|(subnet, _)| subnet).collect::<Vec<_>>()),
                list(&families(n).map(|(_, gateway)| gateway).collect::<Vec<_>>()),
                n.hosts.to_string(),
                n.endpoints.map_or("-".into(), |n| n.to_string()),
                if n.attached { "yes" } else { "no (known)" }.to_owned(),
            ]
        }),
    )
}

/// `network inspect`
pub fn network_details(details: &[NetworkDetail]) -> String {
    let one = |d: &NetworkDetail| {
        let n = &d.network;
        format!(
            "{}\n  VNI       {}\n  subnet    {}\n  gateway   {}\n  attached  {}\n\n{}",
            n.name,
            n.vni,
            list(&families(n).map(|(subnet, _)| subnet).collect::<Vec<_>>()),
            list(&families(n).map(|(_, gateway)| gateway).collect::<Vec<_>>()),
            if n.attached {
                "yes"
            } else {
                "no: no container of this host is on it"
            },
            containers(&d.containers),
        )
    };
    details.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// `container ls`
pub fn containers(containers: &[ContainerInfo]) -> String {
    table(
        [
            "NAME",
            "NETWORK",
            "IP",
            "MAC",
            "HOST",
            "INTERFACE",
            "NETNS",
            "SERVICE",
            "ALIASES",
        ],
        containers.iter().map(|c| {
            let local = |f: fn(&crate::api::LocalContainer) -> String| {
                c.local.as_ref().map_or("-".into(), f)
            };
            [
                c.name.clone(),
                c.network.clone(),
                c.ip.map_or("-".into(), |ip| ip.to_string()),
                c.mac.to_string(),
                c.host_name.clone(),
                local(|l| l.ifname.clone()),
                local(|l| l.netns.clone()),
                c.service.clone().unwrap_or_else(|| "-".into()),
                match c.aliases.is_empty() {
                    true => "-".into(),
                    false => list(&c.aliases),
                },
            ]
        }),
    )
}

/// `container add`
pub fn container_added(c: &ContainerInfo) -> String {
    let ip = c.ip.map_or("-".into(), |ip| ip.to_string());
    match &c.local {
        Some(l) => format!(
            "{}: {ip} on {}, {} in {}, MAC {}, MTU {}",
            c.name, c.network, l.ifname, l.netns, c.mac, l.mtu
        ),
        None => format!("{}: {ip} on {}", c.name, c.network),
    }
}

/// `fdb show`
pub fn fdb(rows: &[FdbRow]) -> String {
    table(
        [
            "NETWORK",
            "MAC",
            "DESTINATION",
            "ORIGIN",
            "IPS",
            "INSTALLED",
        ],
        rows.iter().map(|r| {
            let to = match (&r.port, r.vtep) {
                (Some(port), _) => format!("dev {port}"),
                (None, Some(vtep)) => format!("dst {vtep}"),
                (None, None) => "-".to_owned(),
            };
            [
                r.network.clone(),
                r.mac.to_string(),
                to,
                r.origin.clone(),
                list(&r.ips),
                if r.installed { "yes" } else { "no" }.to_owned(),
            ]
        }),
    )
}

/// `host ls`
pub fn hosts(hosts: &[HostInfo]) -> String {
    table(
        ["NAME", "ID", "ROLE", "STATE", "VTEP", "RTT"],
        hosts.iter().map(|h| {
            [
                format!("{}{}", h.name, if h.this { " *" } else { "" }),
                h.id.to_string(),
                role(h).to_owned(),
                h.state.clone(),
                h.vtep.to_string(),
                h.rtt_us
                    .map_or("-".into(), |us| format!("{:.2} ms", us as f64 / 1000.0)),
            ]
        }),
    )
}

fn role(host: &HostInfo) -> &'static str {
    match (host.manager, host.leader) {
        (true, true) => "manager (leader)",
        (true, false) => "manager",
        (false, _) => "worker",
    }
}

/// `host inspect`
pub fn host_details(details: &[HostDetail]) -> String {
    let one = |d: &HostDetail| {
        let h = &d.host;
        let addresses = d
            .addresses
            .iter()
            .map(|a| [a.network.clone(), a.count.to_string(), list(&a.leased)]);
        format!(
            "{}\n  id      {}\n  role    {}\n  state   {}\n  VTEP    {}\n  ports   data {}, control {}, gossip {} (udp)\n\n{}\n\n{}",
            h.name,
            h.id,
            role(h),
            h.state,
            h.vtep,
            d.data_port,
            d.control_port,
            d.gossip_port,
            table(["NETWORK", "LEASED", "ADDRESSES"], addresses),
            containers(&d.containers),
        )
    };
    details.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// `cluster status`
pub fn cluster(c: &ClusterInfo) -> String {
    let agree = match (c.quorum, c.may_fail) {
        (true, 0) => "yes; no manager may fail: see 'overlay-dp host promote'".to_owned(),
        (true, 1) => "yes; one manager may fail".to_owned(),
        (true, n) => format!("yes; {n} managers may fail"),
        (false, _) => "NO: too few managers can be reached; what runs goes on, networks and new addresses wait"
            .to_owned(),
    };
    let leader = c.managers.iter().find(|m| Some(m.id) == c.leader);
    format!(
        "hosts      {}\nnetworks   {}\nversion    {}\nleader     {}\ncan agree  {agree}\n\n{}",
        c.hosts,
        c.networks,
        c.version,
        leader.map_or("unknown", |m| m.name.as_str()),
        hosts(&c.managers),
    )
}

/// `verify`
pub fn findings(found: &[Finding]) -> String {
    if found.is_empty() {
        return "Everything agrees.".to_owned();
    }
    table(
        ["WHERE", "WHAT", "DIFFERENCE", "REPAIRED"],
        found.iter().map(|f| {
            [
                f.place.clone(),
                f.subject.clone(),
                f.problem.clone(),
                if f.repaired { "yes" } else { "no" }.to_owned(),
            ]
        }),
    )
}

/// `status`
pub fn status(s: &Status) -> String {
    let role = if s.manager { "manager" } else { "worker" };
    let up = &s.uplink;
    let head = format!(
        "{} ({role}, id {}), overlay-dp {}, pid {}, up {} s\n\
         uplink {} ({}): VTEP {}, port {}/udp, MTU {}, containers {}\n\
         {} containers on {} networks",
        s.host_name,
        s.host,
        s.version,
        s.pid,
        s.uptime_s,
        up.interface,
        up.driver,
        up.address,
        up.data_port,
        up.mtu,
        up.inner_mtu,
        s.ports,
        s.networks_attached,
    );
    let hooks = table(
        ["INTERFACE", "SITE", "ATTACHED", "PROGRAM", "WHY"],
        s.hooks.iter().map(|h| {
            [
                h.interface.clone(),
                h.site.clone(),
                h.attached.clone(),
                h.program.clone(),
                h.why.clone(),
            ]
        }),
    );
    let vteps = table(
        ["VTEP", "HOST", "STATE", "NEXT HOP", "MTU"],
        s.vteps.iter().map(|v| {
            [
                v.address.to_string(),
                v.host_name.clone(),
                v.state.clone(),
                v.next_hop.map_or("unresolved".into(), |m| m.to_string()),
                v.mtu.map_or("-".into(), |m| m.to_string()),
            ]
        }),
    );
    format!(
        "{head}\n\nhooks (--datapath {}):\n{hooks}\n\nVTEPs:\n{vteps}\n\ncounters:\n{}\n\ndrops:\n{}\n\nDNS:\n{}",
        s.datapath,
        counters(&s.stats),
        counters(&s.drops),
        counters(&s.names),
    )
}

/// Those that are not zero.
fn counters(all: &BTreeMap<String, u64>) -> String {
    let lines: Vec<String> = all
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(name, n)| format!("  {name:<22} {n}"))
        .collect();
    if lines.is_empty() {
        "  none".to_owned()
    } else {
        lines.join("\n")
    }
}
