//! No overlay at all: the hosts and the router route between the containers' subnets.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use overlay_lab::{Lab, ping, wait_until};

/// Connects `c1` on host1 with `c2` on host2 and returns their addresses.
pub fn build(lab: &Lab) -> Result<[IpAddr; 2]> {
    for number in [1, 2] {
        let (host, container) = (lab.host(number), lab.c(number));
        for line in [
            "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
            format!(
                "ip link add port type veth peer name eth0 netns {}",
                container.name()
            ),
            format!("ip addr add 10.0.{number}.1/24 dev port"),
            "ip link set port up".to_owned(),
        ] {
            host.ns.run(&line)?;
        }
        container.run(&format!("ip addr add 10.0.{number}.2/24 dev eth0"))?;
        container.run("ip link set eth0 up")?;
        container.run(&format!("ip route add default via 10.0.{number}.1"))?;
        lab.router()
            .run(&format!("ip route add 10.0.{number}.0/24 via {}", host.ip))?;
    }
    let ips = [1, 2].map(|number| IpAddr::from([10, 0, number, 2]));
    wait_until("routing works", Duration::from_secs(5), || {
        ping(lab.c(1), ips[1], 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
    })?;
    Ok(ips)
}
