//! Frames, byte by byte.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
const UDP: u8 = 17;
const TCP: u8 = 6;
const IPV6_FRAGMENT: u8 = 44;

/// The UDP checksum of an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Zero,
    Valid,
    Corrupt,
}

/// What is put in front of an inner frame. The fields are what a test may want otherwise.
#[derive(Clone, Debug)]
pub struct Outer {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    pub df: bool,
    pub options: bool,
    pub sum: Sum,
    pub src_port: u16,
    pub dst_port: u16,
    /// Flags, three reserved bytes, VNI, one reserved byte.
    pub vxlan: [u8; 8],
}

impl Outer {
    /// The bytes of the whole frame.
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let packet = self.packet(self.protocol(), &self.datagram(inner), 0, false);
        self.ethernet(&packet)
    }

    /// The same in two fragments.
    pub fn fragments(&self, inner: &[u8]) -> [Vec<u8>; 2] {
        let datagram = self.datagram(inner);
        let (first, second) = datagram.split_at(datagram.len() / 16 * 8);
        let offset = (first.len() / 8) as u16;
        [(first, 0, true), (second, offset, false)].map(|(part, offset, more)| {
            let packet = match self.dst {
                IpAddr::V4(_) => self.packet(UDP, part, offset, more),
                IpAddr::V6(_) => {
                    let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
                    let header = [UDP, 0, a, b, 0, 0, 0, 7];
                    self.packet(IPV6_FRAGMENT, &[&header, part].concat(), 0, false)
                }
            };
            self.ethernet(&packet)
        })
    }

    fn protocol(&self) -> u8 {
        match (self.dst, self.options) {
            (IpAddr::V6(_), true) => 60,
            _ => UDP,
        }
    }

    fn datagram(&self, inner: &[u8]) -> Vec<u8> {
        let payload = [&self.vxlan, inner].concat();
        let mut datagram = udp(
            self.src,
            self.dst,
            self.src_port,
            self.dst_port,
            &payload,
            self.sum != Sum::Zero,
        );
        if self.sum == Sum::Corrupt {
            datagram[7] ^= 0x55;
        }
        datagram
    }

    fn packet(&self, protocol: u8, payload: &[u8], offset: u16, more: bool) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(_), _) => {
                let options: &[u8] = if self.options { &[1, 1, 1, 0] } else { &[] };
                let ip = Ip {
                    tos: self.tos,
                    ttl: self.ttl,
                    df: self.df,
                    offset,
                    more,
                    options,
                };
                ip.packet(self.src, self.dst, protocol, payload)
            }
            (IpAddr::V6(_), _) => {
                let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
                let payload = match self.options {
                    true => [&options, payload].concat(),
                    false => payload.to_vec(),
                };
                let ip = Ip {
                    tos: self.tos,
                    ttl: self.ttl,
                    ..Ip::default()
                };
                ip.packet(self.src, self.dst, protocol, &payload)
            }
        }
    }

    fn ethernet(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.dst_mac, self.src_mac, ethertype(self.dst), packet)
    }
}

/// What varies in an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    pub tos: u8,
    pub ttl: u8,
    pub df: bool,
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
    pub options: &'static [u8],
}

impl Default for Ip {
    fn default() -> Ip {
        Ip {
            tos: 0,
            ttl: 64,
            df: false,
            offset: 0,
            more: false,
            options: &[],
        }
    }
}

impl Ip {
    /// A packet of either family.
    pub fn packet(&self, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = u16::try_from(payload.len()).expect("a packet of 64 KiB at most");
                let (src, dst) = (src.octets(), dst.octets());
                let header = Ipv4Header::new(len, self.ttl, IpNumber(protocol), src, dst);
                let mut header = header.expect("a length that fits");
                header.dscp = (self.tos >> 2).try_into().expect("6 bits");
                header.ecn = (self.tos & 3).try_into().expect("2 bits");
                header.identification = 7;
                header.dont_fragment = self.df;
                header.more_fragments = self.more;
                header.fragment_offset = self.offset.try_into().expect("13 bits");
                header.options = self.options.try_into().expect("whole words");
                header.total_len += self.options.len() as u16;
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], payload].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(payload.len()).expect("64 KiB at most"),
                    next_header: IpNumber(protocol),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                [&header.to_bytes()[..], payload].concat()
            }
            _ => panic!("addresses of two families"),
        }
    }
}

pub fn ethertype(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 0x0800 } else { 0x86dd }
}

pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

/// A UDP datagram.
pub fn udp(
    src: IpAddr,
    dst: IpAddr,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
    sum: bool,
) -> Vec<u8> {
    let mut header = UdpHeader::without_ipv4_checksum(src_port, dst_port, payload.len())
        .expect("64 KiB at most");
    if sum {
        header.checksum = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
            }
            _ => panic!("addresses of two families"),
        }
        .expect("64 KiB at most");
    }
    [&header.to_bytes()[..], payload].concat()
}

/// A TCP segment, without a checksum of its own: nobody is to take it.
pub fn tcp(src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader::new(src_port, dst_port, 1, 1000);
    [&header.to_bytes()[..], payload].concat()
}

/// From whom to whom an inner frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
}

impl Ends {
    /// An Ethernet frame of so many bytes of UDP payload, which begins with `mark`.
    pub fn udp(&self, ip: Ip, ports: (u16, u16), mark: &[u8], size: usize) -> Vec<u8> {
        let mut payload = mark.to_vec();
        payload.resize(size.max(mark.len()), 0x5a);
        let datagram = udp(self.src, self.dst, ports.0, ports.1, &payload, true);
        self.frame(ip, UDP, &datagram)
    }

    /// One with a TCP segment.
    pub fn tcp(&self, ip: Ip, ports: (u16, u16), mark: &[u8]) -> Vec<u8> {
        self.frame(ip, TCP, &tcp(ports.0, ports.1, mark))
    }

    /// One with an IP packet.
    pub fn frame(&self, ip: Ip, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let packet = ip.packet(self.src, self.dst, protocol, payload);
        ethernet(self.dst_mac, self.src_mac, ethertype(self.dst), &packet)
    }

    /// Two fragments of a datagram, each with its mark.
    pub fn fragments(&self, ports: (u16, u16), marks: [&[u8]; 2]) -> [Vec<u8>; 2] {
        let payload = [marks[0], &[0x5a; 1000], marks[1]].concat();
        let datagram = udp(self.src, self.dst, ports.0, ports.1, &payload, true);
        let (first, second) = datagram.split_at(512);
        [(first, 0, true), (second, 64, false)].map(|(part, offset, more)| {
            if self.dst.is_ipv4() {
                let ip = Ip {
                    offset,
                    more,
                    ..Ip::default()
                };
                return self.frame(ip, UDP, part);
            }
            let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
            let header = [UDP, 0, a, b, 0, 0, 0, 7];
            self.frame(Ip::default(), IPV6_FRAGMENT, &[&header, part].concat())
        })
    }
}

/// Puts a tag between the addresses and the EtherType.
pub fn tagged(frame: &[u8], tpid: u16) -> Vec<u8> {
    let [a, b] = tpid.to_be_bytes();
    [&frame[..12], &[a, b, 0, 5], &frame[12..]].concat()
}

/// The ECN field of an Ethernet frame's IP packet, and where it is.
pub fn ecn(frame: &[u8]) -> u8 {
    match frame[12] {
        0x86 => frame[15] >> 4 & 3,
        _ => frame[15] & 3,
    }
}

/// The frame with another ECN field.
pub fn with_ecn(frame: &[u8], ecn: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12] == 0x86 {
        frame[15] = frame[15] & !0x30 | ecn << 4;
    } else {
        frame[15] = frame[15] & !3 | ecn;
        sum_again(&mut frame);
    }
    frame
}

/// Makes the checksum of a changed IPv4 header right.
pub fn sum_again(frame: &mut [u8]) {
    let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
    header.header_checksum = header.calc_header_checksum();
    frame[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
}
