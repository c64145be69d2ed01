//! Frames on the crypt link: VXLAN frames become ESP packets and the other way round, from one
//! buffer into another, without allocating.

use overlay_common::checksum;
use overlay_common::counters::DropReason;
use overlay_common::esp::{ALIGN, FRONT_LEN, HEADER_LEN, ICV_LEN, IV_LEN, TRAILER_LEN};
use overlay_common::punt::{self, Kind};
use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, PROTO_UDP, UDP_LEN, VXLAN_LEN, be16,
    map_v4,
};

use crate::sa::Sas;

/// UDP ports of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// VXLAN's.
    pub data: u16,
    /// ESP's.
    pub esp: u16,
}

/// An outer IP header: where it ends, and who is at its ends.
struct Outer {
    udp_at: usize,
    ethertype: u16,
    src: Ip16,
    dst: Ip16,
}

impl Outer {
    /// Reads the header of a UDP datagram without options, extensions or fragments.
    fn read(frame: &[u8]) -> Option<Outer> {
        let eth: &[u8; ETH_LEN] = frame.first_chunk()?;
        let ethertype = punt::ethertype(eth);
        match ethertype {
            ETH_P_IP => {
                let ip: &[u8; IPV4_LEN] = frame.get(ETH_LEN..)?.first_chunk()?;
                let whole = be16(ip[6], ip[7]) & 0x3fff == 0;
                let address = |at: usize| Some(map_v4(*ip.get(at..)?.first_chunk()?));
                (ip[0] == 0x45 && ip[9] == PROTO_UDP && whole).then_some(Outer {
                    udp_at: ETH_LEN + IPV4_LEN,
                    ethertype,
                    src: address(12)?,
                    dst: address(16)?,
                })
            }
            ETH_P_IPV6 => {
                let ip: &[u8; IPV6_LEN] = frame.get(ETH_LEN..)?.first_chunk()?;
                (ip[0] >> 4 == 6 && ip[6] == PROTO_UDP).then_some(Outer {
                    udp_at: ETH_LEN + IPV6_LEN,
                    ethertype,
                    src: *ip.get(8..)?.first_chunk()?,
                    dst: *ip.get(24..)?.first_chunk()?,
                })
            }
            _ => None,
        }
    }

    /// Writes the marker, and the header of `frame` as that of a packet that ends with `out`.
    fn write(&self, kind: Kind, frame: &[u8], out: &mut [u8]) -> Option<()> {
        let len = u16::try_from(out.len().checked_sub(ETH_LEN)?).ok()?;
        let head = out.get_mut(..self.udp_at)?;
        head.copy_from_slice(frame.get(..self.udp_at)?);
        let (eth, ip) = head.split_first_chunk_mut::<ETH_LEN>()?;
        *eth = punt::encode(kind, None, 0, self.ethertype);
        if self.ethertype == ETH_P_IP {
            let ip: &mut [u8; IPV4_LEN] = ip.first_chunk_mut()?;
            ip[2..4].copy_from_slice(&len.to_be_bytes());
            ip[10..12].fill(0);
            let sum = !checksum::fold(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let len = len.checked_sub(IPV6_LEN as u16)?;
            ip.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
        }
        Some(())
    }
}

/// Seals a VXLAN frame for the VTEP of its outer destination address, for the punt link's way to
/// it. Its own length counts, not its headers'. Returns how much of `out` it takes.
///
/// # Errors
/// Why it can't be sealed.
pub fn seal(sas: &Sas, ports: Ports, frame: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
    let outer = Outer::read(frame).ok_or(DropReason::NotPunted)?;
    let sa = sas.outbound.get(&outer.dst).ok_or(DropReason::NoKey)?;
    let inside = frame.get(outer.udp_at..).ok_or(DropReason::Truncated)?;
    let udp: &[u8; UDP_LEN] = inside.first_chunk().ok_or(DropReason::Truncated)?;
    // Only VXLAN ever comes here.
    if be16(udp[2], udp[3]) != ports.data || inside.len() < UDP_LEN + VXLAN_LEN + ETH_LEN {
        return Err(DropReason::NotPunted);
    }

    let sealed_len = (inside.len() + TRAILER_LEN).next_multiple_of(ALIGN);
    let text_at = outer.udp_at + FRONT_LEN;
    let len = text_at + sealed_len + ICV_LEN;
    let out = out.get_mut(..len).ok_or(DropReason::PuntTooBig)?;
    outer
        .write(Kind::ToVtep, frame, out)
        .ok_or(DropReason::PuntTooBig)?;
    let (front, rest) = out.split_at_mut(text_at);
    let (text, icv) = rest.split_at_mut(sealed_len);

    let (payload, trailer) = text.split_at_mut(inside.len());
    payload.copy_from_slice(inside);
    // What segmentation left in them, or a peer without checksums would trip over.
    let inside_len = u16::try_from(inside.len()).map_err(|_| DropReason::PuntTooBig)?;
    payload[4..6].copy_from_slice(&inside_len.to_be_bytes());
    payload[6..8].fill(0);
    write_trailer(trailer);

    let header = sa.next_header()?;
    let (iv, tag) = sa.seal(&header, text)?;
    icv.copy_from_slice(&tag);
    let datagram = front.get_mut(outer.udp_at..).unwrap_or_default();
    let udp_len = u16::try_from(FRONT_LEN + sealed_len + ICV_LEN);
    let udp_len = udp_len.map_err(|_| DropReason::PuntTooBig)?;
    let fields: [&[u8]; 6] = [
        &udp[..2],
        &ports.esp.to_be_bytes(),
        &udp_len.to_be_bytes(),
        // ESP checks more than a checksum could (RFC 3948 section 2.1, RFC 6935).
        &[0; 2],
        &header,
        &iv,
    ];
    let mut at = 0;
    for field in fields {
        let place = datagram.get_mut(at..at + field.len());
        place.ok_or(DropReason::PuntTooBig)?.copy_from_slice(field);
        at += field.len();
    }
    Ok(len)
}

/// Padding 1, 2, 3 …, its length, and what is inside: UDP (RFC 4303 section 2.4).
fn write_trailer(trailer: &mut [u8]) {
    let padding = trailer.len().saturating_sub(TRAILER_LEN);
    for (index, byte) in trailer.iter_mut().enumerate() {
        // Never more than three and the two behind them.
        *byte = match index {
            _ if index < padding => index as u8 + 1,
            _ if index == padding => padding as u8,
            _ => PROTO_UDP,
        };
    }
}

/// Opens an ESP packet from the VTEP of its outer source address. What `out` has then is the VXLAN
/// frame, with the outer IP header that the packet had. Returns how much of `out` it takes.
///
/// # Errors
/// Why it is not taken.
pub fn open(sas: &Sas, ports: Ports, frame: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
    const MALFORMED: DropReason = DropReason::MalformedEsp;
    let outer = Outer::read(frame).ok_or(MALFORMED)?;
    let datagram = frame.get(outer.udp_at..).ok_or(MALFORMED)?;
    let (udp, _) = datagram.split_first_chunk::<UDP_LEN>().ok_or(MALFORMED)?;
    let udp_len = usize::from(be16(udp[4], udp[5]));
    // A driver may have made the frame longer.
    let datagram = datagram.get(..udp_len).ok_or(MALFORMED)?;
    let esp = datagram.get(UDP_LEN..).ok_or(MALFORMED)?;
    let (header, rest) = esp.split_first_chunk::<HEADER_LEN>().ok_or(MALFORMED)?;
    let (iv, rest) = rest.split_first_chunk::<IV_LEN>().ok_or(MALFORMED)?;
    let (sealed, icv) = rest.split_last_chunk::<ICV_LEN>().ok_or(MALFORMED)?;
    if !sealed.len().is_multiple_of(ALIGN) {
        return Err(MALFORMED);
    }

    let [s0, s1, s2, s3, ..] = *header;
    let sa = sas.inbound.get(&u32::from_be_bytes([s0, s1, s2, s3]));
    let sa = sa.filter(|sa| *sa.peer() == outer.src);
    let sa = sa.ok_or(DropReason::UnknownSpi)?;
    let room = out.get_mut(outer.udp_at..outer.udp_at + sealed.len());
    let text = room.ok_or(DropReason::PuntTooBig)?;
    sa.open(header, *iv, (sealed, icv), text)?;

    let inside = payload(text).filter(|inside| be16(inside[2], inside[3]) == ports.data);
    let len = outer.udp_at + inside.ok_or(MALFORMED)?.len();
    let out = out.get_mut(..len).ok_or(MALFORMED)?;
    outer.write(Kind::Opened, frame, out).ok_or(MALFORMED)?;
    Ok(len)
}

/// The UDP datagram of a VXLAN frame that was sealed, its trailer taken off.
fn payload(text: &[u8]) -> Option<&[u8]> {
    let (text, [padding, next]) = text.split_last_chunk::<TRAILER_LEN>()?;
    let end = text.len().checked_sub(usize::from(*padding))?;
    let (inside, padding) = text.split_at_checked(end)?;
    let counted = padding.iter().zip(1..=u8::MAX).all(|(byte, n)| *byte == n);
    let udp: &[u8; UDP_LEN] = inside.first_chunk()?;
    let len = usize::from(be16(udp[4], udp[5]));
    let long_enough = len >= UDP_LEN + VXLAN_LEN + ETH_LEN;
    if *next != PROTO_UDP || !counted || !long_enough {
        return None;
    }
    // What is behind it hides how long it was (RFC 4303 section 2.7).
    inside.get(..len)
}
