//! Header lengths, offsets and numbers of the protocols on the wire, and plain field readers.

/// Ethernet header: destination 6, source 6, EtherType 2.
pub const ETH_LEN: usize = 14;
/// IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// IPv6 fixed header.
pub const IPV6_LEN: usize = 40;
/// UDP header.
pub const UDP_LEN: usize = 8;
/// VXLAN header (RFC 7348 section 5): flags 1, reserved 3, VNI 3, reserved 1.
pub const VXLAN_LEN: usize = 8;
/// All that encapsulation over IPv4 puts in front of an inner Ethernet frame.
pub const OUTER_V4_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;
/// What encapsulation over IPv4 takes off the uplink's MTU: the outer headers without the outer
/// Ethernet header, plus the inner Ethernet header.
pub const OVERHEAD_V4: u32 = (IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN) as u32;
/// All that encapsulation over IPv6 puts in front of an inner Ethernet frame.
pub const OUTER_V6_LEN: usize = ETH_LEN + IPV6_LEN + UDP_LEN + VXLAN_LEN;
/// What encapsulation over IPv6 takes off the uplink's MTU.
pub const OVERHEAD_V6: u32 = (IPV6_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN) as u32;

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of ARP.
pub const ETH_P_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const ETH_P_8021AD: u16 = 0x88a8;

/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const PROTO_SCTP: u8 = 132;
/// Next-header number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// The address family of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// IPv4 outside.
    V4,
    /// IPv6 outside.
    V6,
}

impl Family {
    /// That of a VTEP's address. An IPv6 host's never begins with 32 zero bits: `::/32` is the
    /// unspecified, the loopback and IPv4 addresses in IPv6 form (RFC 4291 section 2.5).
    #[inline(always)]
    pub const fn of(vtep: &Ip16) -> Family {
        if words(vtep)[0] == 0 {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// Bytes in front of an inner frame.
    #[inline(always)]
    pub const fn outer_len(self) -> usize {
        match self {
            Family::V4 => OUTER_V4_LEN,
            Family::V6 => OUTER_V6_LEN,
        }
    }

    /// What encapsulation takes off the uplink's MTU.
    pub const fn overhead(self) -> u32 {
        match self {
            Family::V4 => OVERHEAD_V4,
            Family::V6 => OVERHEAD_V6,
        }
    }
}

/// The VXLAN "I" flag: the VNI field is valid.
pub const VXLAN_FLAG_VNI: u8 = 0x08;
/// VXLAN's registered UDP port.
pub const VXLAN_PORT: u16 = 4789;

/// ARP for IPv4 over Ethernet (RFC 826): htype 2, ptype 2, hlen 1, plen 1, op 2, sender MAC 6,
/// sender IP 4, target MAC 6, target IP 4.
pub const ARP_LEN: usize = 28;
/// ARP operation: request.
pub const ARP_REQUEST: u16 = 1;
/// ARP operation: reply.
pub const ARP_REPLY: u16 = 2;

/// ICMPv6 type of a neighbour solicitation (RFC 4861 section 4.3): type 1, code 1, checksum 2,
/// reserved 4, target 16, options.
pub const ICMPV6_NS: u8 = 135;
/// ICMPv6 type of a neighbour advertisement (RFC 4861 section 4.4): type 1, code 1, checksum 2,
/// flags 4, target 16, options.
pub const ICMPV6_NA: u8 = 136;
/// A solicitation or advertisement with one link-layer address option: 24 + 8 bytes.
pub const ND_LEN: usize = 32;

/// An IPv6 address, or an IPv4 one in its IPv4-mapped form (RFC 4291 section 2.5.5.2).
pub type Ip16 = [u8; 16];
/// An Ethernet address in wire order.
pub type Mac = [u8; 6];

/// The unspecified address, `::`.
pub const UNSPECIFIED: Ip16 = [0; 16];

/// The IPv4-mapped form of `ip`. As one number, because BPF fills an array's zeros in a loop.
#[inline(always)]
pub const fn map_v4(ip: [u8; 4]) -> Ip16 {
    (0xffff_0000_0000 | u32::from_be_bytes(ip) as u128).to_be_bytes()
}

/// The form that maps have of an address.
pub const fn ip16(ip: core::net::IpAddr) -> Ip16 {
    match ip {
        core::net::IpAddr::V4(ip) => map_v4(ip.octets()),
        core::net::IpAddr::V6(ip) => ip.octets(),
    }
}

/// The last four bytes: the IPv4 address of an IPv4-mapped one.
#[inline(always)]
pub const fn unmap_v4(ip: &Ip16) -> [u8; 4] {
    [ip[12], ip[13], ip[14], ip[15]]
}

/// The big-endian number in two bytes.
#[inline(always)]
pub const fn be16(hi: u8, lo: u8) -> u16 {
    u16::from_be_bytes([hi, lo])
}

/// True for a group address: multicast or broadcast.
#[inline(always)]
pub const fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// The four bytes at `at`, where there must be so many, as they lie in memory. Read at once wherever
/// the compiler knows that they are aligned; put together from single bytes, as in
/// `[a[0], a[1], …]`, they often are not.
#[inline(always)]
pub const fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    match bytes.split_at(at).1.first_chunk() {
        Some(word) => u32::from_ne_bytes(*word),
        None => 0,
    }
}

/// Two bytes; see [`word`].
#[inline(always)]
pub const fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    match bytes.split_at(at).1.first_chunk() {
        Some(half) => u16::from_ne_bytes(*half),
        None => 0,
    }
}

/// A [`Mac`] in halves: as what programs compare and look up, because they would move its bytes one
/// by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MacHalves([u16; 3]);

impl MacHalves {
    /// That of a MAC.
    #[inline(always)]
    pub const fn of(mac: &Mac) -> MacHalves {
        MacHalves::at(mac, 0)
    }

    /// The one that begins at `at`.
    #[inline(always)]
    pub const fn at<const N: usize>(bytes: &[u8; N], at: usize) -> MacHalves {
        MacHalves([half(bytes, at), half(bytes, at + 2), half(bytes, at + 4)])
    }

    /// As bytes in wire order.
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        let [x, y, z] = self.0;
        let ([a, b], [c, d], [e, f]) = (x.to_ne_bytes(), y.to_ne_bytes(), z.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// True for a group address: multicast or broadcast.
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        u16::from_be(self.0[0]) & 0x100 != 0
    }

    /// True when it is this one. Written out, as with [`ip_eq`].
    #[inline(always)]
    pub const fn is(&self, mac: &Mac) -> bool {
        let other = MacHalves::of(mac).0;
        self.0[0] == other[0] && self.0[1] == other[1] && self.0[2] == other[2]
    }
}

/// True when the two addresses are the same. Written out so that it stays a few instructions in
/// BPF, where `==` on arrays becomes a call.
#[inline(always)]
pub const fn mac_eq(a: &Mac, b: &Mac) -> bool {
    MacHalves::of(a).is(b)
}

/// True when the two addresses are the same; see [`mac_eq`].
#[inline(always)]
pub const fn ip_eq(a: &Ip16, b: &Ip16) -> bool {
    let (x, y) = (words(a), words(b));
    x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3]
}

/// The four words of an address, as they lie in memory.
#[inline(always)]
pub const fn words(ip: &Ip16) -> [u32; 4] {
    [word(ip, 0), word(ip, 4), word(ip, 8), word(ip, 12)]
}
