//! What Linux has for this, and Docker uses: on each host a vxlan device and the container's veth
//! on one bridge.

use std::net::IpAddr;

use anyhow::Result;
use overlay_lab::{Lab, ping, wait_until};

pub const VNI: u32 = 4096;

/// Connects `c1` on host1 with `c2` on host2 and returns their addresses.
pub fn build(lab: &Lab) -> Result<[IpAddr; 2]> {
    for (number, other) in [(1, 2), (2, 1)] {
        let (host, container) = (lab.host(number), lab.c(number));
        let remote = lab.host(other).ip;
        for line in [
            "ip link add br0 type bridge".to_owned(),
            format!(
                "ip link add vx0 mtu 1450 type vxlan id {VNI} local {} remote {remote} dstport 4789",
                host.ip
            ),
            format!(
                "ip link add port mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
                container.name()
            ),
            "ip link set vx0 master br0".to_owned(),
            "ip link set port master br0".to_owned(),
            "ip link set br0 up".to_owned(),
            "ip link set vx0 up".to_owned(),
            "ip link set port up".to_owned(),
        ] {
            host.ns.run(&line)?;
        }
        container.run(&format!("ip addr add 10.0.0.{}/24 dev eth0", number + 1))?;
        container.run("ip link set eth0 up")?;
    }
    let ips = [2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
    wait_until(
        "the kernel's overlay works",
        std::time::Duration::from_secs(5),
        || ping(lab.c(1), ips[1], 1, 56, false).is_ok_and(|stats| stats.lost() == 0),
    )?;
    Ok(ips)
}
