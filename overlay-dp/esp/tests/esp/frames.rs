//! Frames through sealing and opening.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::esp;
use overlay_common::outer::{OuterV4, OuterV6};
use overlay_common::punt::{self, Kind};
use overlay_common::wire::{Family, Ip16, map_v4};
use overlay_esp::frame::{Ports, open, seal};
use overlay_esp::sa::{Inbound, Outbound, Sas};
use overlay_esp::secret::Secret;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use proptest::prelude::*;

const PORTS: Ports = Ports {
    data: 4789,
    esp: 4500,
};
const SPI: u32 = 0x1234_5678;
const A: [u8; 4] = [172, 31, 1, 5];
const B: [u8; 4] = [192, 168, 1, 5];
const A6: Ip16 = [0xfd; 16];
const B6: Ip16 = [0xfe; 16];

fn secret() -> Secret {
    Secret::new(SPI, [0x42; 32], *b"salt").unwrap()
}

/// What A sends to B with, and what B takes it with.
fn sas(family: Family) -> (Sas, Sas) {
    let (from, to) = match family {
        Family::V4 => (map_v4(A), map_v4(B)),
        Family::V6 => (A6, B6),
    };
    let (mut out, mut inward) = (Sas::default(), Sas::default());
    out.outbound
        .insert(to, Arc::new(Outbound::new(&secret()).unwrap()));
    inward
        .inbound
        .insert(SPI, Arc::new(Inbound::new(&secret(), from).unwrap()));
    (out, inward)
}

/// A frame from A to B, as the programs hand it over.
fn vxlan(family: Family, inner: &[u8]) -> Vec<u8> {
    let ethertype = match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    };
    let marker = punt::encode(Kind::ToSeal, None, 9, ethertype);
    let (dst_mac, src_mac) = marker[..12].split_at(6);
    let (dst_mac, src_mac) = (dst_mac.try_into().unwrap(), src_mac.try_into().unwrap());
    let (tos, src_port, dst_port, vni) = (0xb9, 0xc123, 4789, 4096);
    let len = inner.len() as u32;
    let headers = match family {
        Family::V4 => OuterV4 {
            dst_mac,
            src_mac,
            src: A,
            dst: B,
            tos,
            src_port,
            dst_port,
            vni,
        }
        .to_bytes(len)
        .to_vec(),
        Family::V6 => OuterV6 {
            dst_mac,
            src_mac,
            src: &A6,
            dst: &B6,
            tos,
            flow_label: 0x12345,
            src_port,
            dst_port,
            vni,
        }
        .to_bytes(len)
        .to_vec(),
    };
    [&headers[..], inner].concat()
}

fn sealed(sas: &Sas, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4096];
    let len = seal(sas, PORTS, frame, &mut out).unwrap();
    out.truncate(len);
    out
}

fn opened(sas: &Sas, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![0; 4096];
    let len = open(sas, PORTS, frame, &mut out)?;
    out.truncate(len);
    Ok(out)
}

#[test]
fn there_and_back() {
    for family in [Family::V4, Family::V6] {
        let (out, inward) = sas(family);
        for len in (14..200).chain([1400, 1422, 3000]) {
            let inner: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let frame = vxlan(family, &inner);
            let esp = sealed(&out, &frame);
            let marker = punt::decode(esp.first_chunk().unwrap()).unwrap();
            assert_eq!(marker.kind, Kind::ToVtep);
            let udp_at = family.outer_len() - 16;
            assert_eq!(esp[udp_at..udp_at + 4], [0xc1, 0x23, 0x11, 0x94]);
            assert_eq!(esp[udp_at + 6..udp_at + 12], [0, 0, 0x12, 0x34, 0x56, 0x78]);
            // The IP header's own is that of the clear frame, but for lengths and checksum.
            assert_eq!(esp[15], frame[15]);
            assert_eq!(esp[26..udp_at], frame[26..udp_at]);
            let back = opened(&inward, &esp).unwrap();
            let marker = punt::decode(back.first_chunk().unwrap()).unwrap();
            assert_eq!(marker.kind, Kind::Opened);
            assert_eq!(back[12..], frame[12..], "{family:?} {len}");
            assert_eq!(opened(&inward, &esp), Err(DropReason::Replay));
        }
    }
}

/// As large as `inner_mtu` says, and no byte larger.
#[test]
fn the_largest_packet_fills_the_link() {
    for (family, link) in [(Family::V4, 1500), (Family::V6, 1500), (Family::V4, 1501)] {
        let (out, _) = sas(family);
        let mtu = esp::inner_mtu(link - family.overhead());
        let on_the_wire = |packet: u32| {
            let frame = vxlan(family, &vec![0; packet as usize + 14]);
            sealed(&out, &frame).len() as u32 - 14
        };
        assert!(on_the_wire(mtu) <= link && on_the_wire(mtu + 1) > link);
    }
}

#[test]
fn what_was_changed_is_refused() {
    for family in [Family::V4, Family::V6] {
        let (out, inward) = sas(family);
        let esp = sealed(&out, &vxlan(family, &[7; 60]));
        let udp_at = family.outer_len() - 16;
        for at in udp_at + 8..esp.len() {
            for bit in [1, 0x80] {
                let mut changed = esp.clone();
                changed[at] ^= bit;
                let refused = opened(&inward, &changed).unwrap_err();
                let expected = if at == udp_at + 15 && bit == 1 {
                    // Number 0 instead of 1.
                    DropReason::Replay
                } else if at < udp_at + 12 {
                    DropReason::UnknownSpi
                } else {
                    DropReason::BadIcv
                };
                assert_eq!(refused, expected, "{at}");
            }
        }
        for len in 0..esp.len() {
            assert!(opened(&inward, &esp[..len]).is_err(), "{len}");
        }
        // From another VTEP than the one that it was given to.
        let source = match family {
            Family::V4 => 29,
            Family::V6 => 37,
        };
        let mut other_source = esp.clone();
        other_source[source] ^= 1;
        assert_eq!(opened(&inward, &other_source), Err(DropReason::UnknownSpi));
        // None of all that has used the number up.
        assert!(opened(&inward, &esp).is_ok());
    }
}

/// What a host of the cluster seals, but should not.
#[test]
fn only_vxlan_comes_out() {
    let (out, inward) = sas(Family::V4);
    let sa = &out.outbound[&map_v4(B)];
    let packet = |text: &[u8]| {
        let header = sa.next_header().unwrap();
        let mut text = text.to_vec();
        let (iv, icv) = sa.seal(&header, &mut text).unwrap();
        let udp_len = 8 + 8 + 8 + text.len() + 16;
        let mut frame = vxlan(Family::V4, &[0; 14])[..34].to_vec();
        frame.extend([0xc1, 0x23, 0x11, 0x94]);
        frame.extend((udp_len as u16).to_be_bytes());
        frame.extend([0; 2]);
        for part in [&header[..], &iv, &text, &icv] {
            frame.extend(part);
        }
        frame
    };
    let udp = |port: u16, len: u16, rest: &[u8]| {
        let mut text = [&[0xc1, 0x23][..], &port.to_be_bytes()].concat();
        text.extend(len.to_be_bytes());
        text.extend([0; 2]);
        text.extend(rest);
        text
    };
    let body = [0; 22];
    let good = udp(4789, 30, &[&body[..], &[0, 17]].concat());
    assert!(opened(&inward, &packet(&good)).is_ok());
    // A longer text than the datagram: it hides how long that is.
    let hidden = udp(
        4789,
        30,
        &[&body[..], &[9, 9, 9, 9], &[1, 2, 2, 17], &[0; 0]].concat(),
    );
    let hidden = &hidden[..hidden.len() - hidden.len() % 4];
    let _ = opened(&inward, &packet(hidden));
    for bad in [
        udp(53, 30, &[&body[..], &[0, 17]].concat()),
        udp(4789, 30, &[&body[..], &[0, 6]].concat()),
        udp(4789, 30, &[&body[..], &[0, 59]].concat()),
        udp(4789, 30, &[&body[..], &[200, 17]].concat()),
        udp(4789, 30, &[&body[..], &[5, 5, 5, 5, 4, 17]].concat()),
        udp(4789, 32, &[&body[..], &[0, 17]].concat()),
        udp(4789, 29, &[&body[..], &[0, 17]].concat()),
        vec![0, 0, 0, 17],
        vec![],
    ] {
        let refused = opened(&inward, &packet(&bad));
        assert_eq!(refused, Err(DropReason::MalformedEsp), "{bad:?}");
    }
}

#[test]
fn without_a_key_nothing_is_sealed() {
    let mut out = [0; 2000];
    let frame = vxlan(Family::V4, &[1; 60]);
    let none = Sas::default();
    assert_eq!(seal(&none, PORTS, &frame, &mut out), Err(DropReason::NoKey));
    assert_eq!(out, [0; 2000]);
    // Nor what is no VXLAN.
    let (sas, _) = sas(Family::V4);
    let mut other = frame.clone();
    other[36] ^= 1;
    assert_eq!(
        seal(&sas, PORTS, &other, &mut out),
        Err(DropReason::NotPunted)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_are_too_strange(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        family in any::<bool>(),
    ) {
        let family = if family { Family::V4 } else { Family::V6 };
        let (out, inward) = sas(family);
        // Past the first looks, too.
        for (byte, known) in frame.iter_mut().zip(vxlan(family, &[]).into_iter().take(42)) {
            *byte = known;
        }
        let mut room = [0; 300];
        let _ = seal(&out, PORTS, &frame, &mut room);
        let _ = open(&inward, PORTS, &frame, &mut room);
    }
}

/// Wireshark, given the key, sees what was sent.
#[test]
fn tshark_decrypts_it() {
    if Command::new("tshark").arg("--version").output().is_err() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "tshark is not there, and CI=true forbids to skip its test"
        );
        eprintln!("SKIPPED: tshark is not there");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let marker = b"a line in the clear that nobody but the two hosts may see";
    for family in [Family::V4, Family::V6] {
        let (out, _) = sas(family);
        // An IPv4 packet with UDP to port 40000.
        let udp_len = 8 + marker.len() as u16;
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3]);
        ip.extend([0x30, 0x39, 0x9c, 0x40]);
        ip.extend(udp_len.to_be_bytes());
        ip.extend([0, 0]);
        ip.extend(marker);
        let inner = [&[2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip].concat();
        let esp = sealed(&out, &vxlan(family, &inner));
        assert!(!esp.windows(16).any(|part| part == &marker[..16]));

        let path = dir.path().join("esp.pcap");
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ..PcapHeader::default()
        };
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = PcapWriter::with_header(file, header).unwrap();
        let packet = PcapPacket::new(Duration::from_secs(1), esp.len() as u32, &esp);
        writer.write_packet(&packet).unwrap();
        drop(writer);
        let version = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let key = format!("0x{}{}", "42".repeat(32), "73616c74");
        let sa = format!(
            "uat:esp_sa:\"{version}\",\"*\",\"*\",\"0x12345678\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"{key}\",\
             \"NULL\",\"\""
        );
        let done = Command::new("tshark")
            .env("HOME", dir.path())
            .args(["-r", path.to_str().unwrap(), "-o", &sa])
            .args(["-o", "esp.enable_encryption_decode:TRUE", "-T", "fields"])
            .args([
                "-e",
                "esp.spi",
                "-e",
                "vxlan.vni",
                "-e",
                "udp.dstport",
                "-e",
                "data.data",
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let hex: String = marker.iter().map(|byte| format!("{byte:02x}")).collect();
        for part in ["0x12345678", "4096", "4500,4789,40000"] {
            assert!(text.contains(part), "{family:?}, no {part}: {text}{said}");
        }
        assert!(text.contains(&hex), "{family:?}: {text}{said}");
    }
}
