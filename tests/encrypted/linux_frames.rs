//! Linux's own ESP and ours, frame by frame: what the crypt workers call to seal and open, without
//! an agent around it, so that an emulated CPU can do it.
//!
//! ```text
//!   host1: this test, on a packet socket ── router ── host3: 192.168.1.5 on lo, vxlan, xfrm
//! ```

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use overlay_common::wire::ip16;
use overlay_esp::frame::{Ports, open, seal};
use overlay_esp::sa::{Inbound, Outbound, Sas};
use overlay_esp::secret::Secret;
use overlay_lab::{Lab, LabSpec, Ns, PacketSocket, test};

use super::linux::{GIVEN, be_linux};
use super::{BIN, MTU, at};

const VNI: u32 = 4096;
const OURS: (&str, [u8; 6], [u8; 4]) = ("02:42:0a:00:00:02", [2, 0x42, 10, 0, 0, 2], [10, 0, 0, 2]);
const LINUX: (&str, [u8; 6], [u8; 4]) =
    ("02:42:0a:00:00:03", [2, 0x42, 10, 0, 0, 3], [10, 0, 0, 3]);
/// What Linux sends with.
const THEIRS: &str = "00c0ffee\
    f0e1d2c3b4a5968778695a4b3c2d1e0fffeeddccbbaa99887766554433221100\
    5a5b5c5d";
const PORTS: Ports = Ports {
    data: 4789,
    esp: 4500,
};

#[test]
#[ignore = "needs a kernel with ESP: `cargo xtask kernels` boots one"]
fn linux_opens_what_we_seal_and_we_what_it_seals() {
    let spec = LabSpec {
        hosts: 3,
        containers: 0,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let _held = lab
            .host(1)
            .ns
            .within(|| Ok(UdpSocket::bind(at(lab.host(1).ip, PORTS.esp))?))?;
        let linux = (LINUX.0, IpAddr::from(LINUX.2));
        let _socket = be_linux(lab, VNI, linux, THEIRS)?;
        let ns = &lab.host(3).ns;
        ns.run(&format!(
            "ip neigh add {} lladdr {} dev vx0 nud permanent",
            Ipv4Addr::from(OURS.2),
            OURS.0
        ))?;
        let wire = Wire::open(lab)?;
        // All lengths of padding, and the longest packet.
        let longest = MTU - 28;
        for len in (0..8).chain([100, longest - 1, longest]) {
            let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
            pinged(&wire, &payload).with_context(|| format!("ping of {len} bytes"))?;
        }
        let inbox = ns.within(|| Ok(UdpSocket::bind(at(Ipv4Addr::from(LINUX.2), 7000))?))?;
        inbox.set_read_timeout(Some(Duration::from_secs(30)))?;
        for len in [1, 500, usize::from(longest)] {
            datagrams(&wire, &inbox, &vec![len as u8; len])?;
        }
        nothing_was_refused(ns)
    });
}

/// The underlay, as host1 is on it.
struct Wire {
    socket: PacketSocket,
    sas: Sas,
    /// Addresses of the frames' Ethernet header, and of the outer IP header.
    macs: [u8; 12],
    ends: ([u8; 4], [u8; 4]),
}

impl Wire {
    fn open(lab: &Lab) -> Result<Wire> {
        let (us, it) = (lab.host(1).ip, lab.host(2).ip);
        let [out, inward] = [GIVEN, THEIRS].map(secret);
        let mut sas = Sas::default();
        let vtep = ip16(IpAddr::V4(it));
        let outbound = Outbound::new(&out?).context("no outbound")?;
        let inbound = Inbound::new(&inward?, vtep).context("no inbound")?;
        sas.outbound.insert(vtep, Arc::new(outbound));
        sas.inbound.insert(inbound.spi(), Arc::new(inbound));
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&mac(lab.router(), "to-host1")?);
        macs[6..].copy_from_slice(&mac(&lab.host(1).ns, "eth0")?);
        Ok(Wire {
            socket: PacketSocket::open(&lab.host(1).ns, "eth0")?,
            sas,
            macs,
            ends: (us.octets(), it.octets()),
        })
    }

    /// Seals and sends a container's frame.
    fn send(&self, inner: &[u8]) -> Result<()> {
        let mut vxlan = vec![8, 0, 0, 0];
        vxlan.extend((VNI << 8).to_be_bytes());
        vxlan.extend(inner);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([0; 6], [0; 6])
            .ipv4(self.ends.0, self.ends.1, 64)
            .udp(50_000, PORTS.data)
            .write(&mut frame, &vxlan)?;
        let mut out = vec![0; 2048];
        let len = seal(&self.sas, PORTS, &frame, &mut out);
        let len = len.map_err(|reason| anyhow::anyhow!("not sealed: {reason:?}"))?;
        out[..12].copy_from_slice(&self.macs);
        self.socket.send(&out[..len])?;
        Ok(())
    }

    /// The next frame that Linux has sealed for a container here and that has `proto` inside.
    fn receive(&self, proto: u8) -> Result<Vec<u8>> {
        const INNER: usize = 14 + 20 + 8 + 8;
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Some(frame) = self.socket.receive(deadline)? {
            // Of an IPv4 header without options: from Linux, to the port of ESP.
            let is_esp = frame.get(26..30) == Some(&self.ends.1[..])
                && frame.get(36..38) == Some(&PORTS.esp.to_be_bytes()[..]);
            if !is_esp {
                continue;
            }
            let mut out = vec![0; 2048];
            let len = open(&self.sas, PORTS, &frame, &mut out);
            let len = len.map_err(|reason| anyhow::anyhow!("not opened: {reason:?}"))?;
            ensure!(out[42..50] == [8, 0, 0, 0, 0, 16, 0, 0], "no VXLAN header");
            let inner = &out[INNER..len];
            if inner.get(..6) == Some(&OURS.1[..]) && inner.get(23) == Some(&proto) {
                return Ok(inner.to_vec());
            }
        }
        bail!("Linux says nothing")
    }
}

/// Linux answers an echo, byte by byte.
fn pinged(wire: &Wire, payload: &[u8]) -> Result<()> {
    let mut inner = Vec::new();
    PacketBuilder::ethernet2(OURS.1, LINUX.1)
        .ipv4(OURS.2, LINUX.2, 64)
        .icmpv4_echo_request(7, payload.len() as u16)
        .write(&mut inner, payload)?;
    wire.send(&inner)?;
    let answer = wire.receive(1)?;
    let total = usize::from(u16::from_be_bytes([answer[16], answer[17]]));
    ensure!(answer[34] == 0, "no echo reply");
    ensure!(
        answer.get(42..14 + total) == Some(payload),
        "another payload"
    );
    Ok(())
}

/// UDP there and back.
fn datagrams(wire: &Wire, inbox: &UdpSocket, payload: &[u8]) -> Result<()> {
    let mut inner = Vec::new();
    PacketBuilder::ethernet2(OURS.1, LINUX.1)
        .ipv4(OURS.2, LINUX.2, 64)
        .udp(7001, 7000)
        .write(&mut inner, payload)?;
    wire.send(&inner)?;
    let mut got = [0; 2048];
    let (len, from) = inbox.recv_from(&mut got)?;
    ensure!(got[..len] == *payload, "another datagram");
    inbox.send_to(payload, from)?;
    let answer = wire.receive(17)?;
    let sliced = SlicedPacket::from_ethernet(&answer)?;
    let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) =
        (&sliced.net, &sliced.transport)
    else {
        bail!("no datagram");
    };
    ensure!(udp.payload() == payload, "another answer");
    Ok(())
}

/// Linux has met nothing that it would not take.
pub fn nothing_was_refused(linux: &Ns) -> Result<()> {
    let errors = linux.run("cat /proc/self/net/xfrm_stat")?;
    for line in errors.lines() {
        ensure!(line.split_whitespace().last() == Some("0"), "{errors}");
    }
    let states = linux.run("ip -s xfrm state")?;
    eprintln!("{states}");
    ensure!(!states.contains(" 0(packets)"), "{states}");
    Ok(())
}

/// Of the digits of SPI, key and salt.
fn secret(digits: &str) -> Result<Secret> {
    Ok(serde_json::from_value(digits.into())?)
}

fn mac(ns: &Ns, link: &str) -> Result<[u8; 6]> {
    let text = ns.run(&format!("ip -o link show dev {link}"))?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether");
    let mut bytes = words.next().context("no MAC")?.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = u8::from_str_radix(bytes.next().context("a short MAC")?, 16)?;
    }
    Ok(mac)
}
