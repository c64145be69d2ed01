//! Linux's own ESP as the other host: its vxlan device and `ip xfrm` take host2's place, with keys
//! that were agreed with host1's agent as host2's agent does it.
//!
//! ```text
//!   c1 ─ host1 (agent, its programs) ── router ── host2 (its agent is dead, its programs answer echoes)
//!                                          └───── host3: 192.168.1.5 on lo, vxlan, xfrm
//!                                    ESP for host2 goes to host3
//! ```
//!
//! It needs a kernel with ESP, which `cargo xtask kernels` boots.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Lab, LabSpec, Load, Ns, checksum_errors, iperf3, least, ping, test, wait_until};
use serde_json::json;

use super::agreement::ask_agent;
use super::encap::take_esp;
use super::linux_frames::nothing_was_refused;
use super::strangers::Identity;
use super::{BIN, MTU, Secret, spec};

/// What the peer is to be sent with: an SPI, a key and a salt, which are nobody's secret here.
pub const GIVEN: &str = "0badcafe\
    000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
    a0a1a2a3";

#[test]
#[ignore = "needs a kernel with ESP: `cargo xtask kernels` boots one"]
fn xdp() {
    exchanges_traffic("xdp");
}

#[test]
#[ignore = "needs a kernel with ESP: `cargo xtask kernels` boots one"]
fn tcx() {
    exchanges_traffic("tcx");
}

fn exchanges_traffic(datapath: &str) {
    let spec = LabSpec {
        hosts: 3,
        containers: 2,
        ..spec()
    };
    test(BIN, spec, |lab| {
        let mut secret = Secret::start(lab, datapath)?;
        let (c1, c2) = (secret.c(1).clone(), secret.c(2).clone());
        secret.agents.remove(1).kill();
        let _socket = be_linux(lab, secret.vni, (&c2.mac, c2.ip), &agree(lab)?)?;
        let linux = &lab.host(3).ns;

        for (from, to) in [(&c1.ns, c2.ip), (linux, c1.ip)] {
            wait_until(
                "Linux and we understand each other",
                Duration::from_secs(30),
                || ping(from, to, 1, 56, false).is_ok_and(|stats| stats.lost() == 0),
            )?;
            for size in [0, 1, 2, 3, 56, MTU - 28, 4000] {
                let stats = ping(from, to, 10, size, size < MTU)?;
                ensure!(stats.lost() == 0, "{size}: {}", stats.output);
            }
        }
        for (from, to, ip) in [(&c1.ns, linux, c2.ip), (linux, &c1.ns, c1.ip)] {
            let tcp = iperf3(from, to, ip, Load::Tcp, 2)?;
            eprintln!("{datapath}: {tcp:?}");
            ensure!(tcp.gbit > least(0.01), "{tcp:?}");
            let rate = Load::Udp {
                mbit: 20,
                payload: 1300,
            };
            let udp = iperf3(from, to, ip, rate, 2)?;
            ensure!(udp.lost * 100 <= udp.datagrams, "{udp:?}");
        }
        all_of_it_was_esp(&secret, linux)?;
        for ns in [&c1.ns, linux] {
            let errors = checksum_errors(ns)?;
            ensure!(errors.is_empty(), "{errors:?}");
        }

        // And the agent takes its place again.
        lab.router().run(&format!("ip rule del {ESP_RULE}"))?;
        secret.agents.push(lab.start_agent(2, "")?);
        super::wait_reaches(&c1, &c2)?;
        Ok(secret.agents)
    });
}

/// What host1's agent gives host2 to send with, as the hexadecimal digits of SPI, key and salt,
/// when host2 gives it [`GIVEN`].
fn agree(lab: &Lab) -> Result<String> {
    let question = json!({"keys": {"give": GIVEN, "holds": null, "renew": true}});
    let identity = Identity::of(lab.host(2))?;
    let answer = ask_agent(&lab.host(2).ns, lab.host(1).ip, &identity, &question)?;
    let given = answer["answer"]["give"].as_str();
    Ok(given
        .with_context(|| format!("no key: {answer}"))?
        .to_owned())
}

/// All that host1 sends to host2 as ESP.
const ESP_RULE: &str = "iif to-host1 ipproto udp dport 4500 lookup 100";

/// Makes host3 what host2 is to host1, and c2 as well.
pub fn be_linux(lab: &Lab, vni: u32, (mac, ip): (&str, IpAddr), theirs: &str) -> Result<UdpSocket> {
    let (us, it, at) = (lab.host(1).ip, lab.host(2).ip, lab.host(3).ip);
    let router = lab.router();
    router.run(&format!("ip route add {it} via {at} table 100"))?;
    router.run(&format!("ip rule add {ESP_RULE}"))?;
    for port in ["all", "to-host3"] {
        router.run(&format!("sysctl -qw net.ipv4.conf.{port}.rp_filter=0"))?;
    }

    let ns = &lab.host(3).ns;
    ns.run(&format!("ip addr add {it}/32 dev lo"))?;
    let sa = |from, to, digits: &str, window| -> Result<String> {
        let (spi, key) = digits.split_at(8);
        // Algorithm names have brackets, and no shell is here to mind them.
        ns.run(&format!(
            "ip xfrm state add src {from} dst {to} proto esp spi 0x{spi} mode transport \
             replay-window {window} aead rfc4106(gcm(aes)) 0x{key} 128 \
             encap espinudp 4500 4500 0.0.0.0"
        ))
    };
    sa(it, us, theirs, 0)?;
    sa(us, it, GIVEN, 32)?;
    for (from, to, direction) in [(it, us, "out"), (us, it, "in")] {
        ns.run(&format!(
            "ip xfrm policy add src {from} dst {to} proto udp dport 4789 dir {direction} \
             tmpl src {from} dst {to} proto esp mode transport"
        ))?;
    }
    let socket = ns.within(|| Ok(UdpSocket::bind((it, 4500))?))?;
    take_esp(&socket)?;

    ns.run(&format!(
        "ip link add vx0 address {mac} mtu {MTU} type vxlan id {vni} local {it} remote {us} dstport 4789"
    ))?;
    ns.run(&format!("ip addr add {ip}/24 dev vx0"))?;
    ns.run("ip link set vx0 up")?;
    Ok(socket)
}

/// Neither side has met anything that it would not take.
fn all_of_it_was_esp(secret: &Secret<'_>, linux: &Ns) -> Result<()> {
    for counted in ["sealed", "opened"] {
        let count = secret.counted(1, counted)?;
        ensure!(count > 200, "{count} {counted}");
    }
    for reason in ["bad-icv", "replay", "malformed-esp", "clear-for-encrypted"] {
        let count = secret.counted(1, reason)?;
        ensure!(count == 0, "{count} {reason}");
    }
    nothing_was_refused(linux)
}
