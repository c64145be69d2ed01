//! What people see has what the JSON has.

use std::time::{SystemTime, UNIX_EPOCH};

use overlay_core::model::{HostId, MacAddr, Vni};

use super::*;
use crate::api::admin::{HostDetail, HostInfo};

fn network(internal: bool) -> NetworkInfo {
    NetworkInfo {
        name: "backend".to_owned(),
        vni: Vni::new(4096).expect("a VNI"),
        subnet: "10.0.0.0/24".parse().expect("a subnet"),
        gateway: [10, 0, 0, 1].into(),
        ipv6: None,
        internal,
        encrypted: false,
        multicast: Multicast::Snoop,
        multicast_by_size: true,
        hosts: 1,
        endpoints: Some(1),
        attached: true,
    }
}

fn container(ips: &[&str]) -> ContainerInfo {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an IP")).collect();
    ContainerInfo {
        name: "web".to_owned(),
        network: "backend".to_owned(),
        vni: Vni::new(4096).expect("a VNI"),
        ip: ips.first().copied(),
        ips,
        aliases: Vec::new(),
        service: None,
        mac: MacAddr([2, 0x42, 10, 0, 0, 2]),
        ready: true,
        host: HostId(1),
        host_name: "host1".to_owned(),
        local: None,
    }
}

#[test]
fn hosts_say_when_their_certificates_end() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let shown = |this, certificate_end| {
        let detail = HostDetail {
            host: HostInfo {
                id: HostId(1),
                name: "host1".to_owned(),
                manager: true,
                leader: true,
                state: "alive".to_owned(),
                vtep: [172, 31, 1, 5].into(),
                rtt_us: None,
                this,
            },
            data_port: 4789,
            esp_port: 4500,
            control_port: 2377,
            gossip_port: 7946,
            certificate_end,
            addresses: Vec::new(),
            containers: Vec::new(),
        };
        let text = admin::host_details(&[detail]);
        let line = text
            .lines()
            .find_map(|l| l.trim().strip_prefix("certificate"));
        line.expect("a line").trim().to_owned()
    };
    let hours = |hours: u64| Some(now + hours * 3600);
    let left = shown(true, hours(245));
    assert!(left.starts_with("ends in 10 days, on 2"), "{left}");
    assert!(!left.contains("connected"), "{left}");
    let left = shown(false, hours(245));
    assert!(
        left.ends_with(", when it connected with this host"),
        "{left}"
    );
    let past = shown(true, Some(now - 50 * 3600));
    assert!(past.starts_with("ended 2 days ago"), "{past}");
    assert!(shown(false, None).starts_with("unknown"));
    // Whatever is written there.
    shown(false, Some(u64::MAX));
}

/// The words of a table's line below those of its head.
fn row(table: &str) -> Vec<(&str, &str)> {
    let mut lines = table.lines().map(str::split_whitespace);
    let (head, row) = (lines.next().expect("a head"), lines.next().expect("a row"));
    head.zip(row).collect()
}

#[test]
fn networks_say_whether_they_are_internal() {
    for (internal, word) in [(true, "yes"), (false, "no")] {
        let network = network(internal);
        let table = networks(std::slice::from_ref(&network));
        assert!(row(&table).contains(&("INTERNAL", word)), "{table}");
        let detail = NetworkDetail {
            network,
            containers: Vec::new(),
        };
        let text = network_details(&[detail]);
        let line = text.lines().find_map(|l| l.trim().strip_prefix("internal"));
        assert!(line.is_some_and(|l| l.trim().starts_with(word)), "{text}");
    }
}

#[test]
fn containers_have_the_addresses_of_both_families() {
    for (ips, shown) in [
        (&["10.0.0.2", "fd00::2"][..], "10.0.0.2,fd00::2"),
        (&["10.0.0.2"], "10.0.0.2"),
        (&[], "-"),
    ] {
        let container = container(ips);
        let table = containers(std::slice::from_ref(&container));
        assert!(row(&table).contains(&("IP", shown)), "{table}");
        let added = container_added(&container);
        assert!(added.starts_with(&format!("web: {shown} on ")), "{added}");
    }
}
