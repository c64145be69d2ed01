//! What goes over the underlay, as the router between the hosts sees it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlay_lab::{Background, Lab, wait_until};
use pcap_file::pcap::PcapReader;
use rustix::process::Signal;

use super::MARKER;

/// tcpdump on the router.
pub struct Tap {
    process: Background,
    file: PathBuf,
}

impl Tap {
    pub fn start(lab: &Lab) -> Result<Tap> {
        let file = lab.dir().join("router.pcap");
        let _ = std::fs::remove_file(&file);
        let line = format!(
            "tcpdump -i to-host1 -s 0 -B 65536 -U -Z root -w {} udp port 4500 or udp port 4789",
            file.display()
        );
        let process = lab.router().start(&line)?;
        // The file's header is written when it listens.
        wait_until("tcpdump listens", Duration::from_secs(30), || {
            std::fs::metadata(&file).is_ok_and(|file| file.len() >= 24)
        })?;
        Ok(Tap { process, file })
    }

    pub fn stop(mut self) -> Result<Seen> {
        // What the kernel still has for it.
        std::thread::sleep(Duration::from_millis(500));
        self.process.signal(Signal::INT);
        self.process.finish(Duration::from_secs(30))?;
        Seen::read(&self.file)
    }
}

/// A datagram between the hosts.
pub struct Datagram {
    pub to: [u8; 4],
    pub port: u16,
    pub payload: Vec<u8>,
}

/// All of them.
#[derive(Default)]
pub struct Seen {
    pub all: Vec<Datagram>,
    pub esp: usize,
}

impl Seen {
    fn read(file: &PathBuf) -> Result<Seen> {
        let mut reader = PcapReader::new(File::open(file)?)?;
        let mut seen = Seen::default();
        while let Some(packet) = reader.next_packet() {
            // The last one may be cut short.
            let Ok(packet) = packet else { break };
            let sliced = SlicedPacket::from_ethernet(&packet.data)?;
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
                (&sliced.net, &sliced.transport)
            else {
                bail!("no UDP over IPv4 in the capture");
            };
            let port = udp.destination_port();
            seen.esp += usize::from(port == 4500);
            seen.all.push(Datagram {
                to: ip.header().destination(),
                port,
                payload: udp.payload().to_vec(),
            });
        }
        Ok(seen)
    }

    /// Nothing of the network `vni` in the clear, and nothing that containers said.
    pub fn check(&self, vni: u32) -> Result<()> {
        ensure!(!self.all.is_empty(), "nothing was seen");
        for datagram in &self.all {
            let payload = &datagram.payload;
            let clear = payload.windows(24).any(|part| part == &MARKER[..24]);
            ensure!(!clear, "a container's line in the clear");
            if datagram.port == 4789 {
                let header = payload.get(4..7).context("a short VXLAN header")?;
                let seen = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                ensure!(seen != vni, "a frame of VNI {vni} in the clear");
            }
        }
        Ok(())
    }
}
