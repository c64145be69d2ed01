//! The packets that are tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use clap::ValueEnum;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IcmpEchoHeader, Icmpv4Type, Icmpv6Type,
    LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice,
};
use overlay_core::model::MacAddr;
use serde::{Deserialize, Serialize};

/// As a program in a container would have it.
const SOURCE_PORT: u16 = 40_000;
/// Time to live of what containers send.
const TTL: u8 = 64;

/// What a packet carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A ping's request
    #[default]
    Icmp,
    /// The first packet of a connection
    Tcp,
    /// A datagram
    Udp,
}

/// Both ends of a packet, and their Ethernet addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub src_mac: MacAddr,
    pub dst_mac: MacAddr,
    pub src: IpAddr,
    pub dst: IpAddr,
}

/// A frame with such a packet of `size` bytes, or a small one.
pub fn build(ends: &Ends, protocol: Protocol, port: u16, size: Option<u16>) -> Result<Vec<u8>> {
    let eth = PacketBuilder::ethernet2(ends.src_mac.0, ends.dst_mac.0);
    let (ip, headers) = match (ends.src, ends.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (eth.ipv4(src.octets(), dst.octets(), TTL), 20),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (eth.ipv6(src.octets(), dst.octets(), TTL), 40),
        _ => bail!("{} and {} are of different families", ends.src, ends.dst),
    };
    let headers = headers + if protocol == Protocol::Tcp { 20 } else { 8 };
    let payload = match size {
        Some(size) if usize::from(size) < headers => {
            bail!("--size {size} has no room for the headers: use {headers} at least")
        }
        Some(size) => usize::from(size) - headers,
        None => 32,
    };
    let payload = vec![0x2a; payload];
    let mut frame = Vec::new();
    match protocol {
        Protocol::Tcp => {
            let mut tcp = ip.tcp(SOURCE_PORT, port, 1, 64_240);
            tcp = tcp.syn();
            tcp.write(&mut frame, &payload)?;
        }
        Protocol::Udp => ip.udp(SOURCE_PORT, port).write(&mut frame, &payload)?,
        Protocol::Icmp => {
            let echo = IcmpEchoHeader { id: 1, seq: 1 };
            match ends.src {
                IpAddr::V4(_) => ip
                    .icmpv4(Icmpv4Type::EchoRequest(echo))
                    .write(&mut frame, &payload)?,
                IpAddr::V6(_) => ip
                    .icmpv6(Icmpv6Type::EchoRequest(echo))
                    .write(&mut frame, &payload)?,
            }
        }
    }
    Ok(frame)
}

/// Where a frame that a program puts out is for; and, if it is VXLAN, where the one inside is for.
pub fn destinations(frame: &[u8]) -> Option<(IpAddr, Option<IpAddr>)> {
    let outer = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let inside = match &outer.transport {
        Some(TransportSlice::Udp(udp)) => udp.payload().get(8..),
        _ => None,
    };
    let inner = inside.and_then(|frame| LaxSlicedPacket::from_ethernet(frame).ok());
    Some((destination(&outer)?, inner.as_ref().and_then(destination)))
}

fn destination(packet: &LaxSlicedPacket<'_>) -> Option<IpAddr> {
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => Some(ip.header().destination_addr().into()),
        Some(LaxNetSlice::Ipv6(ip)) => Some(ip.header().destination_addr().into()),
        _ => None,
    }
}

/// A frame that asks for the MAC of `dst`.
pub fn question(src_mac: MacAddr, src: IpAddr, dst: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => arp(&mut frame, src_mac, src, dst)?,
        (IpAddr::V6(src), IpAddr::V6(dst)) => solicitation(&mut frame, src_mac, src, dst)?,
        _ => bail!("{src} and {dst} are of different families"),
    }
    Ok(frame)
}

fn arp(frame: &mut Vec<u8>, mac: MacAddr, src: Ipv4Addr, dst: Ipv4Addr) -> Result<()> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac.0,
        &src.octets(),
        &[0; 6],
        &dst.octets(),
    )?;
    PacketBuilder::ethernet2(mac.0, [0xff; 6])
        .arp(packet)
        .write(frame)?;
    Ok(())
}

fn solicitation(frame: &mut Vec<u8>, mac: MacAddr, src: Ipv6Addr, dst: Ipv6Addr) -> Result<()> {
    let [.., a, b, c] = dst.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    // The target, and the option that tells the sender's own address (RFC 4861 section 4.3).
    let mut payload = dst.octets().to_vec();
    payload.extend([1, 1]);
    payload.extend(mac.0);
    PacketBuilder::ethernet2(mac.0, [0x33, 0x33, 0xff, a, b, c])
        .ipv6(src.octets(), group.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborSolicitation)
        .write(frame, &payload)?;
    Ok(())
}
