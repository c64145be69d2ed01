//! The facts that hosts tell each other: networks, endpoints, hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::facts::Range;
use crate::health::HealthCheck;

/// A VXLAN network identifier: 24 bits, 0 excluded (RFC 7348 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest VNI, 2^24 - 1.
    pub const MAX: Vni = Vni((1 << 24) - 1);

    /// `None` when `raw` is 0 or does not fit 24 bits.
    pub const fn new(raw: u32) -> Option<Vni> {
        if raw == 0 || raw > Self::MAX.0 {
            None
        } else {
            Some(Vni(raw))
        }
    }

    /// The number, in host order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = ModelError;

    fn try_from(raw: u32) -> Result<Self, ModelError> {
        Vni::new(raw).ok_or(ModelError::Vni(raw))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vni({})", self.0)
    }
}

/// A 48-bit Ethernet address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Docker's overlay scheme: `02:42` followed by the IPv4 address.
    pub const fn from_ipv4(ip: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = ip.octets();
        MacAddr([0x02, 0x42, a, b, c, d])
    }

    /// True for one host's address: neither group (bit 0 of the first octet) nor all zero.
    pub const fn is_unicast(self) -> bool {
        let m = self.0;
        m[0] & 1 == 0 && (m[0] | m[1] | m[2] | m[3] | m[4] | m[5]) != 0
    }

    /// The EUI-64 link-local address the kernel forms from this MAC (RFC 4291 appendix A).
    pub const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 0x02,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = || ModelError::Mac(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && is_hex(p))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(MacAddr(mac))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

/// A host's identity in the cluster: random, 64 bits, shown as 16 hex digits. It is the DNS name
/// `<id>.hosts.overlay-dp` in the host's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        if text.len() != 16 || !is_hex(text) {
            return Err(ModelError::HostId(text.to_owned()));
        }
        u64::from_str_radix(text, 16)
            .map(HostId)
            .map_err(|_| ModelError::HostId(text.to_owned()))
    }
}

impl TryFrom<String> for HostId {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> String {
        id.to_string()
    }
}

/// Only digits: `from_str_radix` would take a sign, too.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One L2 segment. Every host of the cluster knows every network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What the user calls it, unique in the cluster: see [`check_name`].
    pub name: String,
    /// Unique in the cluster.
    pub vni: Vni,
    /// The addresses its endpoints get theirs from.
    pub subnet: IpNetwork,
    /// Answered for by every host's agent; never given to an endpoint.
    pub gateway: IpAddr,
    /// The second family of a dual-stack network, IPv6: see [`Network::subnet_of`].
    pub ipv6: Option<Subnet>,
    /// Nothing leads out of it or into it.
    pub internal: bool,
    /// Between hosts its frames are encrypted.
    pub encrypted: bool,
    /// What becomes of broadcast and multicast, if somebody chose it: see
    /// [`Network::multicast_mode`].
    pub multicast: Option<Multicast>,
}

/// What becomes of the broadcast and multicast of a network. ARP and neighbour discovery always work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Multicast {
    /// Multicast goes to the members of its group, by IGMP and MLD snooping (RFC 4541); broadcast
    /// and what has no members to know goes to all.
    Snoop,
    /// All of it goes to all.
    Flood,
    /// None of it goes anywhere.
    Off,
}

impl Multicast {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Multicast::Snoop => "snoop",
            Multicast::Flood => "flood",
            Multicast::Off => "off",
        }
    }
}

/// A range of addresses and the gateway in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The range, its host bits zero.
    pub subnet: IpNetwork,
    /// Answered for by every host's agent; never given to an endpoint.
    pub gateway: IpAddr,
}

impl Subnet {
    /// How far `ip` is from its beginning; `None` outside and beyond what 32 bits can count.
    pub fn offset_of(&self, ip: IpAddr) -> Option<u32> {
        if !self.subnet.contains(ip) {
            return None;
        }
        match (self.subnet.network(), ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => Some(ip.to_bits() - base.to_bits()),
            (IpAddr::V6(base), IpAddr::V6(ip)) => u32::try_from(ip.to_bits() - base.to_bits()).ok(),
            _ => None,
        }
    }

    /// The offsets of hosts: neither the subnet's own address nor its last one, and no more than
    /// 32 bits can count.
    pub fn usable(&self) -> Range {
        let bits = match self.subnet {
            IpNetwork::V4(subnet) => 32 - subnet.prefix(),
            IpNetwork::V6(subnet) => (128 - subnet.prefix()).min(32),
        };
        // All ones is the last address; of one or two addresses none is a host's.
        let last = (u32::MAX.checked_shr(32 - u32::from(bits))).unwrap_or(0);
        Range {
            first: 1,
            last: last.saturating_sub(1),
        }
    }
}

impl Network {
    /// Its address families: one or two, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> {
        let first = Subnet {
            subnet: self.subnet,
            gateway: self.gateway,
        };
        std::iter::once(first).chain(self.ipv6)
    }

    /// The family that `ip` is of, whether or not it is inside.
    pub fn subnet_of(&self, ip: IpAddr) -> Option<Subnet> {
        self.subnets()
            .find(|family| family.gateway.is_ipv4() == ip.is_ipv4())
    }

    /// A network that can have more endpoints than this carries no broadcast and multicast unless
    /// somebody says so: each of them could cost all the others.
    pub const MULTICAST_ENDPOINTS: u64 = 4096;

    /// What becomes of its broadcast and multicast: what was chosen, else by how many endpoints it
    /// can have.
    pub fn multicast_mode(&self) -> Multicast {
        self.multicast.unwrap_or_else(|| {
            match self.usable().count() <= Network::MULTICAST_ENDPOINTS {
                true => Multicast::Snoop,
                false => Multicast::Off,
            }
        })
    }

    /// The addresses that every agent answers for.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.subnets().map(|family| family.gateway)
    }

    /// How far `ip` is from the beginning of its family's subnet; `None` outside of both and
    /// beyond what 32 bits can count.
    pub fn offset_of(&self, ip: IpAddr) -> Option<u32> {
        self.subnet_of(ip)?.offset_of(ip)
    }

    /// The addresses at `offset`, one for each family whose subnet reaches so far, IPv4 first.
    pub fn address_at(&self, offset: u32) -> Vec<IpAddr> {
        self.subnets()
            .filter_map(|family| {
                let ip = match family.subnet.network() {
                    IpAddr::V4(base) => {
                        IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().checked_add(offset)?))
                    }
                    IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(
                        base.to_bits().checked_add(offset.into())?,
                    )),
                };
                family.subnet.contains(ip).then_some(ip)
            })
            .collect()
    }

    /// The MAC address that goes with the addresses at `offset`: `02:42` followed by the IPv4
    /// address, in a network without IPv4 by the low 32 bits of the IPv6 address.
    pub fn mac_at(&self, offset: u32) -> MacAddr {
        let base = match self.subnet.network() {
            IpAddr::V4(base) => base.to_bits(),
            // Only the low bits are wanted.
            IpAddr::V6(base) => base.to_bits() as u32,
        };
        MacAddr::from_ipv4(Ipv4Addr::from_bits(base.wrapping_add(offset)))
    }

    /// The offset whose derived MAC address `mac` is: the inverse of [`Network::mac_at`].
    pub fn offset_of_mac(&self, mac: MacAddr) -> Option<u32> {
        let [0x02, 0x42, a, b, c, d] = mac.0 else {
            return None;
        };
        let base = u32::from_be_bytes(self.mac_at(0).0[2..].try_into().ok()?);
        let offset = u32::from_be_bytes([a, b, c, d]).wrapping_sub(base);
        self.usable().contains(offset).then_some(offset)
    }

    /// The offsets that endpoints may have, the gateways' among them: those that are a host's in
    /// every family.
    pub fn usable(&self) -> Range {
        let last = self.subnets().map(|family| family.usable().last).min();
        Range {
            first: 1,
            last: last.unwrap_or(0),
        }
    }

    /// The gateway's MAC, the same on every host.
    pub fn gateway_mac(&self) -> MacAddr {
        match self.gateway {
            IpAddr::V4(ip) => MacAddr::from_ipv4(ip),
            IpAddr::V6(ip) => {
                let o = ip.octets();
                MacAddr([0x02, 0x42, o[12], o[13], o[14], o[15]])
            }
        }
    }
}

/// One container's attachment to one network. Owned by the host that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unique in its network: see [`check_name`].
    pub name: String,
    /// The network it is attached to.
    pub vni: Vni,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses, the IPv4 one first, link-local IPv6 last.
    pub ips: Vec<IpAddr>,
    /// More names of this one endpoint, see [`check_name`].
    pub aliases: Vec<String>,
    /// The service that it is one of the tasks of.
    pub service: Option<String>,
    /// It is the host itself: its way into the network, and the containers' way out.
    pub router: bool,
    /// A task that does not pass its service's check: who has a choice takes others.
    #[serde(default)]
    pub unready: bool,
}

/// A transport protocol whose ports can be published.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Tasks that are one service: the endpoints of its network that name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What the endpoints call it, unique in the cluster: see [`check_name`].
    pub name: String,
    /// Its network.
    pub vni: Vni,
    /// What every host publishes of it.
    pub publish: Vec<ServicePort>,
    /// Its own address (VIP), as an offset in its network; `None` when its name stands for all of
    /// its tasks.
    pub vip: Option<u32>,
    /// What tells whether its tasks are ready; without it they always are.
    pub check: Option<HealthCheck>,
}

/// What a service's name stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// An address of its own (VIP): each connection with it is one of the tasks'.
    #[default]
    Vip,
    /// The addresses of all of its tasks, in turn.
    Dnsrr,
}

impl EndpointMode {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            EndpointMode::Vip => "vip",
            EndpointMode::Dnsrr => "dnsrr",
        }
    }
}

impl Service {
    /// What its name stands for.
    pub const fn mode(&self) -> EndpointMode {
        match self.vip {
            Some(_) => EndpointMode::Vip,
            None => EndpointMode::Dnsrr,
        }
    }
}

/// A port of every host that leads to a port of a service's tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The hosts' port, unique in the cluster.
    pub host_port: u16,
    /// The tasks' port.
    pub port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A host of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Who it is.
    pub id: HostId,
    /// Its hostname, for people.
    pub name: String,
    /// Its tunnel address: the outer source address of every frame it sends.
    pub vtep: IpAddr,
    /// UDP port its VTEP listens on, 4789 by default.
    pub data_port: u16,
    /// UDP port of ESP, for encrypted networks, 4500 by default.
    pub esp_port: u16,
    /// UDP port for joining and agreed facts, 2377 by default.
    pub control_port: u16,
    /// UDP port for gossip, 7946 by default.
    pub gossip_port: u16,
    /// Whether it holds the cluster's CA and the agreed facts.
    pub manager: bool,
}

/// A value that does not follow the rules of its type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ModelError {
    /// Not a VNI.
    #[error("{0} is no VNI: it must be from 1 to 16777215")]
    Vni(u32),
    /// Not a MAC address.
    #[error("'{0}' is no MAC address: write six hex octets, as in 02:42:0a:00:00:02")]
    Mac(String),
    /// Not a host id.
    #[error("'{0}' is no host id: it has 16 hex digits")]
    HostId(String),
    /// Not a name.
    #[error(
        "'{0}' can't be a name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )]
    Name(String),
}

/// Checks a network's, endpoint's or host's name: 1 to 63 of `[A-Za-z0-9._-]`, the first of them
/// a letter or digit (Docker's rule, with DNS's length).
///
/// # Errors
/// [`ModelError::Name`] when it is not one.
pub fn check_name(name: &str) -> Result<(), ModelError> {
    let ok = (1..=63).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if ok {
        Ok(())
    } else {
        Err(ModelError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vni_bounds() {
        assert_eq!(Vni::new(0), None);
        assert_eq!(Vni::new(1 << 24), None);
        assert_eq!(Vni::new(4096).map(Vni::get), Some(4096));
    }

    #[test]
    fn mac_text_round_trips_and_rejects() {
        let mac = MacAddr::from_ipv4(Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(mac.to_string(), "02:42:0a:00:00:02");
        assert_eq!("02:42:0a:00:00:02".parse(), Ok(mac));
        for bad in [
            "",
            "02:42:0a:00:00",
            "02:42:0a:00:00:02:03",
            "2:42:0a:00:00:02",
            "zz:42:0a:00:00:02",
            "+2:42:0a:00:00:02",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        assert_eq!(mac.link_local().to_string(), "fe80::42:aff:fe00:2");
    }

    #[test]
    fn names() {
        for good in ["a", "test.1", "uber-net", "0_x"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", ".a", "-a", "a b", "ü", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
