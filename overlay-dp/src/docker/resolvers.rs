//! Whom Docker's resolver asks for names that are not its own.
//!
//! Those of resolv.conf, or of the daemon's own configuration. It asks from inside the container,
//! where the agent answers, but for an address of the host's loopback in resolv.conf: that one it
//! asks on the host itself, past us. (It looks behind systemd-resolved for its default bridge
//! alone.)

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use serde::Deserialize;

/// Whom users are told to name where there is no other: nobody has it (RFC 5737).
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));
/// Whom systemd-resolved asks.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Where Docker asks when it finds nobody.
const DOCKERS_OWN: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
];
/// Where a daemon is told of other resolvers.
const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// Those that it asks from inside containers, or may be told to ask.
pub fn asked_inside(resolv_conf: &Path) -> Vec<IpAddr> {
    let mut all = read(resolv_conf);
    all.extend(of_daemon(Path::new(DAEMON_JSON)));
    all.retain(|ip| !ip.is_loopback());
    if all.is_empty() {
        all.extend(DOCKERS_OWN);
    }
    if !all.contains(&NOBODY) {
        all.push(NOBODY);
    }
    all
}

/// Why containers that are given no resolver don't know the names of other hosts'.
pub fn problem(resolv_conf: &Path) -> Option<String> {
    if !of_daemon(Path::new(DAEMON_JSON)).is_empty() {
        return None;
    }
    trouble(&read(resolv_conf), &read(Path::new(BEHIND_RESOLVED)))
}

/// With the resolvers of the host, and those that these ask.
fn trouble(servers: &[IpAddr], behind: &[IpAddr]) -> Option<String> {
    let why = match servers.iter().find(|ip| ip.is_ipv4()) {
        Some(ip) if ip.is_loopback() => {
            format!("Docker asks {ip}, this host's first resolver, on the host itself")
        }
        None if !servers.is_empty() => {
            "Docker asks no resolver by IPv6, and this host has no other".to_owned()
        }
        _ => return None,
    };
    let mut known = behind.iter().filter(|ip| ip.is_ipv4() && !ip.is_loopback());
    let wanted = known.next().map_or_else(
        || "[a resolver's address, not 127.*]".to_owned(),
        |ip| format!("[\"{ip}\"]"),
    );
    Some(format!(
        "{why}, where names of containers are not known: add \"dns\": {wanted} to {DAEMON_JSON}, or start containers \
         with --dns {NOBODY}, and the agent answers in its name"
    ))
}

fn read(path: &Path) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next().filter(|word| *word == "nameserver");
        keyword.and(words.next())?.parse().ok()
    });
    servers.collect()
}

fn of_daemon(path: &Path) -> Vec<IpAddr> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Daemon {
        dns: Vec<IpAddr>,
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let daemon: Daemon = serde_json::from_str(&text).unwrap_or_default();
    daemon.dns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        let words = text.split_whitespace();
        words.map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn files_are_read_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!((read(&path), of_daemon(&path)), (ips(""), ips("")));
        let text = "# nameserver 192.0.2.9\nnameserver 127.0.0.53\n nameserver ::1 x\nnameserver";
        std::fs::write(&path, text).unwrap();
        assert_eq!(read(&path), ips("127.0.0.53 ::1"));
        for (text, has) in [
            ("{}", ""),
            ("x", ""),
            (r#"{"dns": ["192.0.2.1"], "mtu": 1400}"#, "192.0.2.1"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(of_daemon(&path), ips(has), "{text}");
        }
    }

    #[test]
    fn who_asks_past_us_is_said() {
        for (servers, behind, words) in [
            ("127.0.0.1", "", "asks 127.0.0.1"),
            ("127.0.0.1 192.0.2.1", "", "not 127.*"),
            (
                "::1 127.0.0.53",
                "2001:db8::1 192.0.2.7",
                "\"dns\": [\"192.0.2.7\"]",
            ),
            ("2001:db8::1", "", "no resolver by IPv6"),
        ] {
            let said = trouble(&ips(servers), &ips(behind)).unwrap_or_default();
            assert!(said.contains(words), "{servers}: {said}");
        }
        for fine in [
            "",
            "192.0.2.1",
            "192.0.2.1 127.0.0.1",
            "2001:db8::1 192.0.2.1",
        ] {
            assert_eq!(trouble(&ips(fine), &[]), None, "{fine}");
        }
    }
}
