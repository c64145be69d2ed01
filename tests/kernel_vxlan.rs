//! A Linux kernel vxlan device on a third host takes part by static entries, and frames that are
//! no good are counted and dropped.
//!
//! ```text
//!   c1 ─ host1 eth0 172.31.1.5/24 ─┐
//!                                  router ── 172.31.2.5/24 eth0 host3 ┄ c3: its eth0 is the
//!   c2 ─ host2 eth0 192.168.1.5/24 ┘                                    vxlan device of host3
//! ```
//!
//! A vxlan device that is moved into another namespace keeps its socket in the first one.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Container, Host, Lab, LabSpec, Load, Ns, Overlay, checksum_errors, iperf3, ping, test,
    wait_until,
};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const KERNEL_MAC: &str = "02:42:0a:00:00:c8";
const KERNEL_IP: &str = "10.0.0.200";

#[test]
fn kernel_vxlan_interoperates_with_xdp() {
    kernel_vxlan_interoperates("xdp");
}

#[test]
fn kernel_vxlan_interoperates_with_tcx() {
    kernel_vxlan_interoperates("tcx");
}

fn kernel_vxlan_interoperates(datapath: &str) {
    test(
        BIN,
        LabSpec {
            hosts: 3,
            ..LabSpec::default()
        },
        |lab| {
            let overlay = Overlay::start_on(lab, 2, &format!("--datapath {datapath}"))?;
            let c3 = kernel_vtep(lab, &overlay)?;
            let kernel: IpAddr = KERNEL_IP.parse()?;
            for container in &overlay.containers {
                let (ns, ip) = (&container.ns, container.ip);
                // The first packets may wait for the router's and the VTEPs' neighbours.
                wait_until("the kernel's VTEP answers", Duration::from_secs(5), || {
                    ping(ns, kernel, 1, 56, false).is_ok_and(|stats| stats.lost() == 0)
                })?;
                for stats in [
                    ping(ns, kernel, 50, 56, false)?,
                    ping(&c3, ip, 50, 56, false)?,
                ] {
                    ensure!(
                        stats.lost() == 0 && stats.duplicates == 0,
                        "{}",
                        stats.output
                    );
                }
                let full = ping(&c3, ip, 5, 1422, true)?;
                ensure!(full.lost() == 0, "{}", full.output);
                for tcp in [
                    iperf3(ns, &c3, kernel, Load::Tcp, 2)?,
                    iperf3(&c3, ns, ip, Load::Tcp, 2)?,
                ] {
                    ensure!(tcp.gbit > 0.1, "{}: {tcp:?}", container.name);
                }
                let load = Load::Udp {
                    mbit: 50,
                    payload: 1400,
                };
                for udp in [
                    iperf3(ns, &c3, kernel, load, 2)?,
                    iperf3(&c3, ns, ip, load, 2)?,
                ] {
                    ensure!(
                        udp.lost * 1000 <= udp.datagrams,
                        "{}: {udp:?}",
                        container.name
                    );
                }
            }
            for ns in [&c3, &overlay.c(1).ns, &overlay.c(2).ns] {
                ensure!(
                    checksum_errors(ns)?.is_empty(),
                    "{}: {:?}",
                    ns.label(),
                    checksum_errors(ns)?
                );
            }
            bad_frames_are_counted(lab, &overlay)
        },
    );
}

/// Host3's kernel as a VTEP of uber-net, known to host1 and host2 by a static entry.
fn kernel_vtep(lab: &Lab, overlay: &Overlay) -> Result<Ns> {
    let c3 = lab.add_container("c3")?;
    let host3 = lab.host(3);
    // A real wire carries no unfinished checksums or oversize segments from an inner packet.
    host3.ns.run("ethtool -K eth0 tx off tso off gso off")?;
    host3.ns.run(&format!(
        "ip link add vx3 mtu 1450 type vxlan id {} local {} dstport 4789 nolearning",
        overlay.network["vni"], host3.ip
    ))?;
    host3.ns.run(&format!(
        "ip link set dev vx3 netns {} name eth0",
        c3.name()
    ))?;
    c3.run(&format!("ip link set eth0 address {KERNEL_MAC} up"))?;
    c3.run(&format!("ip addr add {KERNEL_IP}/24 dev eth0"))?;
    for (container, host) in overlay.containers.iter().zip(lab.hosts()) {
        let Container { mac, .. } = container;
        c3.run(&format!("bridge fdb append {mac} dev eth0 dst {}", host.ip))?;
        // ARP requests and all else without an entry go to every VTEP.
        c3.run(&format!(
            "bridge fdb append 00:00:00:00:00:00 dev eth0 dst {}",
            host.ip
        ))?;
        host.overlay(&format!(
            "fdb add {KERNEL_MAC} --network uber-net --vtep {} --ip {KERNEL_IP}",
            host3.ip
        ))?;
    }
    Ok(c3)
}

fn bad_frames_are_counted(lab: &Lab, overlay: &Overlay) -> Result<()> {
    let vni = overlay.network["vni"].as_u64().context("no vni")?;
    let vni = u32::try_from(vni)?.to_be_bytes();
    let good_header = [8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    // An inner frame from the kernel's MAC to test.1, 46 bytes of nothing.
    let mut inner = vec![
        0x02, 0x42, 0x0a, 0, 0, 0x02, 0x02, 0x42, 0x0a, 0, 0, 0xc8, 0x08, 0x00,
    ];
    inner.resize(60, 0);

    let known = &lab.host(3).ns;
    let without_flag = [&[0, 0, 0, 0, vni[1], vni[2], vni[3], 0], &inner[..]].concat();
    let other_vni = [&[8, 0, 0, 0, 0xff, 0xff, 0xff, 0], &inner[..]].concat();
    let good = [&good_header, &inner[..]].concat();
    let no_inner = [&good_header, &inner[..10]].concat();
    for (what, from, frame, reason) in [
        ("a header cut short", known, &good_header[..5], None),
        ("an inner header cut short", known, &no_inner[..], None),
        ("no VNI flag", known, &without_flag[..], Some("vxlan-flags")),
        (
            "a VNI that nobody has",
            known,
            &other_vni[..],
            Some("unknown-vni"),
        ),
        ("a stranger", lab.router(), &good[..], Some("unknown-vtep")),
    ] {
        let host = lab.host(1);
        let before = drops(host)?;
        let to = (host.ip, 4789);
        from.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..10 {
                socket.send_to(frame, to)?;
            }
            Ok(())
        })?;
        let counted = || -> Result<u64> {
            let after = drops(host)?;
            Ok(match reason {
                Some(reason) => count(&after, reason) - count(&before, reason),
                None => sum(&after) - sum(&before),
            })
        };
        wait_until(
            &format!("10 times {what} counted"),
            Duration::from_secs(2),
            || counted().is_ok_and(|counted| counted >= 10),
        )
        .with_context(|| format!("{:#}", drops(host).unwrap_or_default()))?;
    }
    // They did no harm.
    let (c1, c2) = (overlay.c(1), overlay.c(2));
    let stats = ping(&c1.ns, c2.ip, 20, 56, false)?;
    ensure!(stats.lost() == 0, "{}", stats.output);
    Ok(())
}

fn drops(host: &Host) -> Result<Value> {
    Ok(host.overlay_json("status")?["drops"].take())
}

fn count(drops: &Value, reason: &str) -> u64 {
    drops[reason].as_u64().unwrap_or(0)
}

fn sum(drops: &Value) -> u64 {
    drops
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, count)| count.as_u64())
        .sum()
}
