//! What an attacker on the underlay sends: CVE-2023-28840, -28841 and -28842 were about networks
//! that let such frames in, or their own out.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{LabSpec, Ns, ping, test, wait_until};

use super::wire::Tap;
use super::{BIN, Secret, at, counted, spec};

#[test]
fn xdp() {
    only_sealed_frames_are_taken("xdp");
}

#[test]
fn tcx() {
    only_sealed_frames_are_taken("tcx");
}

fn only_sealed_frames_are_taken(datapath: &str) {
    let spec = LabSpec { hosts: 3, ..spec() };
    test(BIN, spec, |lab| {
        let secret = Secret::start(lab, datapath)?;
        let plain = lab.host(1).overlay_json("network create plain")?;
        let plain = u32::try_from(plain["vni"].as_u64().context("no VNI")?)?;
        let (c1, c2) = (secret.c(1), secret.c(2));
        let spy = c1.ns.within(|| {
            let spy = UdpSocket::bind((c1.ip, 9999))?;
            spy.set_nonblocking(true)?;
            Ok(spy)
        })?;
        let vtep = &lab.host(2).ns;
        let stranger = &lab.host(3).ns;
        // As c2 would send it, by its MAC, to c1; to all; and by a MAC that nobody has.
        let good = frame(&c1.mac, &c2.mac)?;
        let broadcast = frame("ff:ff:ff:ff:ff:ff", &c2.mac)?;
        let nobodys = frame(&c1.mac, "02:42:0a:00:00:63")?;
        for (what, from, vni, inner, reason) in [
            ("a VTEP's", vtep, secret.vni, &good, "clear-for-encrypted"),
            (
                "a VTEP's to all",
                vtep,
                secret.vni,
                &broadcast,
                "clear-for-encrypted",
            ),
            (
                "a VTEP's of nobody",
                vtep,
                secret.vni,
                &nobodys,
                "clear-for-encrypted",
            ),
            ("a stranger's", stranger, secret.vni, &good, "unknown-vtep"),
            (
                "a network's without a container",
                vtep,
                plain,
                &good,
                "unknown-vni",
            ),
        ] {
            let before = secret.counted(1, reason)?;
            send(from, at(lab.host(1).ip, 4789), &vxlan(vni, inner), 10)?;
            wait_counted(lab.host(1), reason, before + 10).with_context(|| what.to_owned())?;
        }

        // ESP that nobody has sealed, and ESP that comes twice.
        let tap = Tap::start(lab)?;
        let stats = ping(&c1.ns, c2.ip, 20, 56, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
        let seen = tap.stop()?;
        let esp: Vec<_> = seen
            .all
            .iter()
            .filter(|datagram| datagram.port == 4500 && datagram.to == lab.host(1).ip.octets())
            .collect();
        ensure!(esp.len() >= 10, "{} ESP packets to host1", esp.len());
        let to = at(lab.host(1).ip, 4500);
        let opened = secret.counted(1, "opened")?;
        let before = secret.counted(1, "replay")?;
        for datagram in &esp {
            send(vtep, to, &datagram.payload, 1)?;
        }
        wait_counted(lab.host(1), "replay", before + esp.len() as u64)?;
        ensure!(
            secret.counted(1, "opened")? == opened,
            "a replayed packet was opened"
        );
        for (reason, change) in [
            // A number that was not seen yet, and a bit of the text.
            ("bad-icv", &[(4, 0x40)][..]),
            ("unknown-spi", &[(0, 0xff), (1, 0xff)][..]),
        ] {
            let mut packet = esp[0].payload.clone();
            for (at, bits) in change {
                packet[*at] ^= bits;
            }
            let before = secret.counted(1, reason)?;
            send(vtep, to, &packet, 10)?;
            wait_counted(lab.host(1), reason, before + 10)?;
        }
        // A key is good for one VTEP: what host2 has sealed for host1 is nothing to host2.
        let before = secret.counted(2, "unknown-spi")?;
        send(
            &lab.host(1).ns,
            at(lab.host(2).ip, 4500),
            &esp[0].payload,
            10,
        )?;
        wait_counted(lab.host(2), "unknown-spi", before + 10)?;
        let before = secret.counted(1, "malformed-esp")?;
        for len in 0..40 {
            send(vtep, to, &esp[0].payload[..len], 1)?;
        }
        wait_counted(lab.host(1), "malformed-esp", before + 32)?;

        let mut buffer = [0; 100];
        ensure!(
            spy.recv(&mut buffer).is_err(),
            "an attacker's frame arrived"
        );
        let stats = ping(&c1.ns, c2.ip, 20, 56, false)?;
        ensure!(stats.lost() == 0, "{}", stats.output);
        Ok(secret.agents)
    });
}

fn wait_counted(host: &overlay_lab::Host, reason: &str, least: u64) -> Result<()> {
    let what = format!("{least} times {reason}");
    wait_until(&what, Duration::from_secs(30), || {
        counted(host, reason).is_ok_and(|count| count >= least)
    })
    .with_context(|| format!("{:?}", counted(host, reason)))
}

/// From a socket of the host's own: the VTEP's address is the host's.
fn send(from: &Ns, to: (std::net::IpAddr, u16), payload: &[u8], times: usize) -> Result<()> {
    from.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..times {
            socket.send_to(payload, to)?;
        }
        Ok(())
    })
}

fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    [&[8, 0, 0, 0, v0, v1, v2, 0], inner].concat()
}

/// UDP from 10.0.0.3 to port 9999 of 10.0.0.2.
fn frame(dst: &str, src: &str) -> Result<Vec<u8>> {
    let mac = |text: &str| -> Result<Vec<u8>> {
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        Ok(bytes.collect::<Result<_, _>>()?)
    };
    let mut ip = [
        0x45, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2,
    ];
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [0x30, 0x39, 0x27, 0x0f, 0, 13, 0, 0];
    let parts: [&[u8]; 6] = [&mac(dst)?, &mac(src)?, &[8, 0], &ip, &udp, b"hello"];
    Ok(parts.concat())
}
