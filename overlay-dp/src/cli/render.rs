//! Tables for people, in the manner of `ip`, `bridge` and `docker network`.

pub mod admin;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use comfy_table::{Table, presets};
use ipnetwork::IpNetwork;
use overlay_core::model::{Multicast, Network};

use crate::api::{
    Checksums, ContainerInfo, DataPath, FdbRow, NetworkDetail, NetworkInfo, Status, VtepInfo,
};

/// Columns under their names.
pub fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
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

pub fn list<T: ToString>(items: &[T]) -> String {
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
        [
            "NAME",
            "VNI",
            "SUBNET",
            "GATEWAY",
            "HOSTS",
            "ENDPOINTS",
            "ATTACHED",
            "INTERNAL",
            "ENCRYPTED",
            "MULTICAST",
        ],
        networks.iter().map(|n| {
            [
                n.name.clone(),
                n.vni.to_string(),
                list(&families(n).map(|(subnet, _)| subnet).collect::<Vec<_>>()),
                list(&families(n).map(|(_, gateway)| gateway).collect::<Vec<_>>()),
                n.hosts.to_string(),
                n.endpoints.map_or("-".into(), |n| n.to_string()),
                if n.attached { "yes" } else { "no (known)" }.to_owned(),
                if n.internal { "yes" } else { "no" }.to_owned(),
                if n.encrypted { "yes" } else { "no" }.to_owned(),
                match (n.multicast, n.multicast_by_size) {
                    (Multicast::Off, true) => "off (by size)".to_owned(),
                    (mode, _) => mode.name().to_owned(),
                },
            ]
        }),
    )
}

/// `network inspect`
pub fn network_details(details: &[NetworkDetail]) -> String {
    let one = |d: &NetworkDetail| {
        let n = &d.network;
        format!(
            "{}\n  VNI       {}\n  subnet    {}\n  gateway   {}\n  attached  {}\n  internal  {}\n  encrypted {}\n  multicast {}\n\n{}",
            n.name,
            n.vni,
            list(&families(n).map(|(subnet, _)| subnet).collect::<Vec<_>>()),
            list(&families(n).map(|(_, gateway)| gateway).collect::<Vec<_>>()),
            if n.attached {
                "yes"
            } else {
                "no: no container of this host is on it"
            },
            if n.internal {
                "yes: nothing leads out of it or into it"
            } else {
                "no"
            },
            if n.encrypted {
                "yes: ESP, AES-256-GCM, between hosts"
            } else {
                "no"
            },
            multicast(n),
            containers(&d.containers),
        )
    };
    details.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// What becomes of broadcast and multicast, and why.
fn multicast(n: &NetworkInfo) -> String {
    let what = match n.multicast {
        Multicast::Snoop => "snoop: multicast goes to the members of its group, broadcast to all",
        Multicast::Flood => "flood: broadcast and multicast go to all",
        Multicast::Off => "off: of broadcast and multicast only ARP and neighbour discovery go",
    };
    let most = Network::MULTICAST_ENDPOINTS;
    match (n.multicast_by_size, n.multicast) {
        (false, _) => format!("{what} (chosen)"),
        (true, Multicast::Off) => format!("{what} (by default, having room for more than {most})"),
        (true, _) => format!("{what} (by default)"),
    }
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
            "PUBLISHED",
        ],
        containers.iter().map(|c| {
            let local = |f: fn(&crate::api::LocalContainer) -> String| {
                c.local.as_ref().map_or("-".into(), f)
            };
            [
                c.name.clone(),
                c.network.clone(),
                addresses(c),
                c.mac.to_string(),
                c.host_name.clone(),
                local(|l| l.ifname.clone()),
                local(|l| l.netns.clone()),
                c.service.clone().unwrap_or_else(|| "-".into()),
                match c.aliases.is_empty() {
                    true => "-".into(),
                    false => list(&c.aliases),
                },
                local(|l| match l.publish.is_empty() {
                    true => "-".into(),
                    false => list(&l.publish),
                }),
            ]
        }),
    )
}

/// Of both families.
fn addresses(c: &ContainerInfo) -> String {
    match c.ips.is_empty() {
        true => "-".into(),
        false => list(&c.ips),
    }
}

/// `container add`
pub fn container_added(c: &ContainerInfo) -> String {
    let ip = addresses(c);
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

/// `vtep ls`
pub fn vteps(vteps: &[VtepInfo]) -> String {
    table(
        [
            "ADDRESS",
            "HOST",
            "STATE",
            "DATA PATH",
            "LATENCY",
            "LOSS",
            "PATH MTU",
            "CHECKSUMS",
            "NEXT HOP",
            "INTERFACE",
        ],
        vteps.iter().map(|v| {
            let path = match v.data_path {
                DataPath::Answers => "answers",
                DataPath::Silent => "silent",
                DataPath::Unknown => "unknown",
            };
            let latency = v.latency.map(|l| {
                let (min, p99) = (duration(l.min_us), duration(l.p99_us));
                format!("{} (min {min}, p99 {p99})", duration(l.average_us))
            });
            let dash = || "-".to_owned();
            [
                v.address.to_string(),
                v.host_name.clone(),
                v.state.clone(),
                path.to_owned(),
                latency.unwrap_or_else(dash),
                v.loss_percent.map_or_else(dash, |p| format!("{p:.0}%")),
                v.path_mtu.map_or_else(dash, |mtu| mtu.to_string()),
                match v.checksums {
                    Checksums::Ok => "ok".to_owned(),
                    Checksums::Broken => "broken".to_owned(),
                    Checksums::Unknown => "unknown".to_owned(),
                },
                v.next_hop.map_or("unresolved".into(), |m| m.to_string()),
                v.interface.clone().unwrap_or_else(dash),
            ]
        }),
    )
}

/// Three digits say enough.
pub fn duration(us: u64) -> String {
    match us as f64 / 1000.0 {
        ms if us < 1000 => format!("{ms:.2} ms"),
        ms if us < 100_000 => format!("{ms:.1} ms"),
        ms if us < 1_000_000 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// `status`
pub fn status(s: &Status) -> String {
    let role = if s.manager { "manager" } else { "worker" };
    let up = &s.uplink;
    let problem = up.problem.as_ref();
    let problem = problem.map_or(String::new(), |what| format!("\n  PROBLEM: {what}"));
    let page = s
        .metrics
        .map_or(String::new(), |at| format!("\nstatus page http://{at}/"));
    let head = format!(
        "{} ({role}, id {}), overlay-dp {}, pid {}, up {} s\n\
         uplink {} ({}): VTEP {}, port {}/udp, MTU {}, containers {}{problem}\n\
         {} containers on {} networks{page}",
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
    let offload = &s.checksum_offload;
    let on = if offload.on { "on" } else { "off" };
    let offload = format!("checksum offload of containers: {on} ({})", offload.why);
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
        "{head}\n\nhooks (--datapath {}):\n{hooks}\n{offload}\n\nVTEPs:\n{vteps}\n\ncounters:\n{}\n\ndrops:\n{}\n\nDNS:\n{}",
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
