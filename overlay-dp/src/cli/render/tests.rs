//! What people see has what the JSON has.

use overlay_core::model::{HostId, MacAddr, Vni};

use super::*;

fn network(internal: bool) -> NetworkInfo {
    NetworkInfo {
        name: "backend".to_owned(),
        vni: Vni::new(4096).expect("a VNI"),
        subnet: "10.0.0.0/24".parse().expect("a subnet"),
        gateway: [10, 0, 0, 1].into(),
        ipv6: None,
        internal,
        encrypted: false,
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
