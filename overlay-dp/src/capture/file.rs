//! Writing pcapng: an interface for each port and each uplink, nanoseconds, directions, and what
//! became of packets that did not go on as a comment.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::{Result, anyhow};
use overlay_common::capture::{Decision, Place};
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use super::Interface;
use super::tap::Copy;

/// Units of 10^-9 s.
const NANOSECONDS: u8 = 9;
/// `epb_flags`: which way a packet went, as the interface sees it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A file that is being written.
pub struct File<W: Write> {
    writer: PcapNgWriter<BufWriter<W>>,
    snap: u32,
    /// The numbers of the interfaces, by ifindex and whether it is inside the tunnel.
    numbers: HashMap<(u32, bool), u32>,
}

impl<W: Write> File<W> {
    /// Begins it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn begin(to: W, snap: u32, host: &str) -> Result<File<W>> {
        let application = concat!("overlay-dp ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![
                SectionHeaderOption::Comment(Cow::Owned(format!("captured on {host}"))),
                SectionHeaderOption::UserApplication(Cow::Borrowed(application)),
            ],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(BufWriter::new(to), section);
        Ok(File {
            writer: writer.map_err(plain)?,
            snap,
            numbers: HashMap::new(),
        })
    }

    /// Adds a packet. `to_wall`: what its clock lacks of the time of day.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(
        &mut self,
        copy: &Copy,
        interface: Option<&Interface>,
        to_wall: Duration,
    ) -> Result<()> {
        let header = &copy.header;
        let inside = copy.is(Place::Sent) || copy.is(Place::Delivered);
        let interface_id = self.number(header.ifindex, inside, interface)?;
        let way = match copy.is(Place::Delivered) || copy.is(Place::Arrived) {
            true => INBOUND,
            false => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(way)];
        let comment = comment(copy);
        options.extend(comment.map(|comment| EnhancedPacketOption::Comment(Cow::Owned(comment))));
        let kept = copy.bytes.len().min(usize::try_from(self.snap)?);
        let packet = EnhancedPacketBlock {
            interface_id,
            timestamp: to_wall.saturating_add(Duration::from_nanos(header.time_ns)),
            original_len: header.len,
            data: Cow::Borrowed(&copy.bytes[..kept]),
            options,
        };
        self.writer.write_pcapng_block(packet).map_err(plain)?;
        Ok(())
    }

    /// Has what was written be in the file.
    ///
    /// # Errors
    /// When it can't be.
    pub fn flush(&mut self) -> Result<()> {
        Ok(self.writer.get_mut().flush()?)
    }

    /// An interface is described when its first packet comes.
    fn number(&mut self, ifindex: u32, inside: bool, known: Option<&Interface>) -> Result<u32> {
        if let Some(number) = self.numbers.get(&(ifindex, inside)) {
            return Ok(*number);
        }
        let number = u32::try_from(self.numbers.len())?;
        let name = known.map_or_else(|| format!("ifindex-{ifindex}"), |i| i.name.clone());
        let mut options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name)),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        if let Some(known) = known {
            let description = Cow::Owned(known.description.clone());
            options.push(InterfaceDescriptionOption::IfDescription(description));
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap,
            options,
        };
        self.writer.write_pcapng_block(block).map_err(plain)?;
        self.numbers.insert((ifindex, inside), number);
        Ok(number)
    }
}

/// What is to be said of a packet, if anything.
fn comment(copy: &Copy) -> Option<String> {
    let header = &copy.header;
    let mut said = Vec::new();
    match Decision::decode(header.detail) {
        Decision::Goes => {}
        Decision::Dropped(reason) => {
            let reason = DropReason::ALL.get(reason as usize);
            said.push(format!("dropped: {}", reason.map_or("?", |r| r.name())));
        }
        Decision::ToAgent(reason) => {
            let reason = Reason::ALL.iter().find(|r| **r as u32 == reason);
            said.push(format!(
                "to the agent: {}",
                reason.map_or("?", |r| r.name())
            ));
        }
    }
    if header.gso_size > 0 {
        said.push(format!(
            "super-packet, segments of {} bytes",
            header.gso_size
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

fn plain(error: PcapError) -> anyhow::Error {
    match error {
        PcapError::IoError(error) => anyhow!(error),
        other => anyhow!("can't write the capture: {other}"),
    }
}
