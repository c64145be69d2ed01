//! Tables of `host`, `cluster` and `verify`.

use std::time::SystemTime;

use time::OffsetDateTime;

use super::{containers, list, table};
use crate::agent::Finding;
use crate::api::admin::{ClusterInfo, HostDetail, HostInfo};

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
            "{}\n  id           {}\n  role         {}\n  state        {}\n  VTEP         {}\n  \
             certificate  {}\n  ports        data {}, ESP {}, control {}, gossip {} (udp)\n\n{}\n\n{}",
            h.name,
            h.id,
            role(h),
            h.state,
            h.vtep,
            certificate(d, SystemTime::now()),
            d.data_port,
            d.esp_port,
            d.control_port,
            d.gossip_port,
            table(["NETWORK", "LEASED", "ADDRESSES"], addresses),
            containers(&d.containers),
        )
    };
    details.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// When it ends, and how far that is.
fn certificate(d: &HostDetail, now: SystemTime) -> String {
    let end = d.certificate_end.and_then(|end| i64::try_from(end).ok());
    let date = end.and_then(|end| OffsetDateTime::from_unix_timestamp(end).ok());
    let Some(end) = date else {
        return "unknown: this host has no connection with it".to_owned();
    };
    let left = end - OffsetDateTime::from(now);
    let when = match left.is_negative() {
        false => format!("ends in {} days", left.whole_days()),
        true => format!("ended {} days ago", -left.whole_days()),
    };
    let date = end.date();
    match d.host.this {
        true => format!("{when}, on {date}"),
        // Hosts renew their own, and connections stand for long.
        false => format!("{when}, on {date}, when it connected with this host"),
    }
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
