//! Policies: which endpoints of a network may be reached by whom, as all hosts agree on it; and how
//! much a container may send, which its own host decides.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use overlay_common::policy::{ALLOW, DENY, PROTO_ICMP, Rule};
use overlay_common::wire::{PROTO_TCP, PROTO_UDP, UNSPECIFIED, ip16};
use serde::{Deserialize, Serialize};

use crate::model::{Vni, check_name};

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Unique in the cluster.
    pub name: String,
    /// The network whose endpoints it is about.
    pub vni: Vni,
    /// The rule itself.
    pub rule: PolicyRule,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Which endpoints are reached.
    pub to: Selector,
    /// By whom.
    pub from: Selector,
    /// By which protocol; any when absent.
    pub protocol: Option<PolicyProtocol>,
    /// At which ports; any when absent.
    pub ports: Option<PortRange>,
    /// Whether they may.
    pub action: Action,
}

/// Which endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Selector {
    /// All of them, and whoever else.
    #[default]
    Any,
    /// The tasks of a service.
    Service(String),
    /// Who has one of these addresses.
    Addresses(IpNetwork),
    /// Hosts themselves, and whoever comes through them from outside.
    Outside,
}

/// What rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// Destination ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// What becomes of what a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It comes in, unless another rule denies it.
    #[default]
    Allow,
    /// It does not.
    Deny,
}

impl Action {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
        }
    }
}

impl PolicyProtocol {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            PolicyProtocol::Tcp => "tcp",
            PolicyProtocol::Udp => "udp",
            PolicyProtocol::Icmp => "icmp",
        }
    }
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PolicyError {
    /// No selector.
    #[error("'{0}' says not who: write any, service:NAME, outside, or an address as 10.0.0.0/24")]
    Selector(String),
    /// No ports.
    #[error("'{0}' is no port: write one from 1 to 65535, or a range as 8000-8010")]
    Ports(String),
    /// A port of what has none.
    #[error("only tcp and udp have ports: say --proto tcp or --proto udp, or leave out --port")]
    NoPorts,
    /// Nothing is judged there.
    #[error(
        "--to outside can't be: policies are about who reaches the containers of a network; 'network create --internal' closes its ways out"
    )]
    ToOutside,
    /// An address with host bits.
    #[error("{0} has bits set behind its prefix: write {1}")]
    HostBits(IpNetwork, IpNetwork),
}

impl PolicyRule {
    /// Whether it can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), PolicyError> {
        for selector in [&self.from, &self.to] {
            match selector {
                Selector::Service(name) if check_name(name).is_err() => {
                    return Err(PolicyError::Selector(selector.to_string()));
                }
                Selector::Addresses(net) if net.ip() != net.network() => {
                    let right = IpNetwork::new(net.network(), net.prefix()).unwrap_or(*net);
                    return Err(PolicyError::HostBits(*net, right));
                }
                _ => {}
            }
        }
        if self.to == Selector::Outside {
            return Err(PolicyError::ToOutside);
        }
        match (self.protocol, self.ports) {
            (_, Some(range)) if range.first == 0 || range.first > range.last => {
                Err(PolicyError::Ports(range.to_string()))
            }
            (None | Some(PolicyProtocol::Icmp), Some(_)) => Err(PolicyError::NoPorts),
            _ => Ok(()),
        }
    }

    /// Whether it is about an endpoint that is a task of `service` and has these addresses.
    pub fn is_about(&self, service: Option<&str>, ips: impl Iterator<Item = IpAddr>) -> bool {
        match &self.to {
            Selector::Any => true,
            Selector::Service(name) => service == Some(name),
            Selector::Addresses(net) => { ips }.any(|ip| net.contains(ip)),
            Selector::Outside => false,
        }
    }

    /// As the programs have it.
    pub fn compiled(&self) -> Rule {
        let range = self.ports.unwrap_or(PortRange {
            first: 0,
            last: u16::MAX,
        });
        let (ip, mask) = match &self.from {
            Selector::Addresses(net) => (ip16(net.network()), mask(net)),
            _ => (UNSPECIFIED, UNSPECIFIED),
        };
        Rule {
            ip,
            mask,
            identity: match &self.from {
                Selector::Service(name) => identity(name),
                _ => 0,
            },
            first_port: range.first,
            last_port: range.last,
            protocol: match self.protocol {
                None => 0,
                Some(PolicyProtocol::Tcp) => PROTO_TCP,
                Some(PolicyProtocol::Udp) => PROTO_UDP,
                Some(PolicyProtocol::Icmp) => PROTO_ICMP,
            },
            action: match self.action {
                Action::Allow => ALLOW,
                Action::Deny => DENY,
            },
            outside: self.from == Selector::Outside,
        }
    }
}

/// What tells a service's tasks in the programs' tables: of all hosts the same, and never 0. Whoever
/// may call a service so that another one's number comes out may as well call it as that one.
pub fn identity(service: &str) -> u32 {
    // FNV-1a.
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    service.bytes().fold(0x811c_9dc5, step).max(1)
}

/// The bits of an IPv4-mapped or IPv6 address that a network's addresses have in common.
fn mask(net: &IpNetwork) -> [u8; 16] {
    let bits = match net {
        IpNetwork::V4(net) => 96 + u32::from(net.prefix()),
        IpNetwork::V6(net) => u32::from(net.prefix()),
    };
    u128::MAX.checked_shl(128 - bits).unwrap_or(0).to_be_bytes()
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Any => f.write_str("any"),
            Selector::Service(name) => write!(f, "service:{name}"),
            Selector::Addresses(net) if is_one(net) => write!(f, "{}", net.ip()),
            Selector::Addresses(net) => write!(f, "{net}"),
            Selector::Outside => f.write_str("outside"),
        }
    }
}

fn is_one(net: &IpNetwork) -> bool {
    net.prefix() == if net.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Selector {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Selector, PolicyError> {
        match text {
            "any" => Ok(Selector::Any),
            "outside" => Ok(Selector::Outside),
            _ => match text.strip_prefix("service:") {
                Some(name) if check_name(name).is_ok() => Ok(Selector::Service(name.to_owned())),
                Some(_) => Err(PolicyError::Selector(text.to_owned())),
                None => {
                    let net = text.parse().map(Selector::Addresses);
                    net.map_err(|_| PolicyError::Selector(text.to_owned()))
                }
            },
        }
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl TryFrom<String> for Selector {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Selector, PolicyError> {
        text.parse()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<PortRange, PolicyError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = first.parse().ok().zip(last.parse().ok());
        let range = range.map(|(first, last)| PortRange { first, last });
        let range = range.filter(|range| range.first > 0 && range.first <= range.last);
        range.ok_or_else(|| PolicyError::Ports(text.to_owned()))
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

impl TryFrom<String> for PortRange {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<PortRange, PolicyError> {
        text.parse()
    }
}

/// How much a container may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// In bytes a second, not 0.
    pub rate: u64,
    /// In bytes: what it may send at once after it was silent.
    pub burst: u64,
}

/// The smallest burst: two of the largest super-packets.
const LEAST_BURST: u64 = 128 * 1024;

impl RateLimit {
    /// Without a burst it is what the rate allows in a quarter of a second: TCP that has lost its
    /// last packets waits almost as long, and catches up then.
    pub fn new(rate: u64, burst: Option<u64>) -> Option<RateLimit> {
        let burst = burst.unwrap_or(rate / 4).max(LEAST_BURST);
        (rate != 0).then_some(RateLimit { rate, burst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(to: &str, from: &str, ports: Option<&str>) -> Result<PolicyRule, PolicyError> {
        let rule = PolicyRule {
            to: to.parse()?,
            from: from.parse()?,
            protocol: ports.map(|_| PolicyProtocol::Tcp),
            ports: ports.map(str::parse).transpose()?,
            action: Action::Allow,
        };
        rule.check().map(|()| rule)
    }

    #[test]
    fn selectors_and_ports_are_read_as_they_are_written() {
        for text in [
            "any",
            "outside",
            "service:web",
            "10.0.0.0/24",
            "10.0.0.9",
            "fd00::/64",
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            let bytes = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<Selector>(&bytes).unwrap(), selector);
        }
        for text in ["", "web", "service:", "service:a b", "10.0.0.0/33"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        assert_eq!(
            "80".parse(),
            Ok(PortRange {
                first: 80,
                last: 80
            })
        );
        assert_eq!(
            "8000-8010".parse::<PortRange>().unwrap().to_string(),
            "8000-8010"
        );
        for text in ["0", "90-80", "65536", "-", "80-", "a"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_that_can_not_be_are_refused() {
        assert!(rule("service:web", "10.0.0.0/24", Some("80")).is_ok());
        assert_eq!(rule("outside", "any", None), Err(PolicyError::ToOutside));
        assert!(matches!(
            rule("any", "10.0.0.1/24", None),
            Err(PolicyError::HostBits(..))
        ));
        let mut without = rule("any", "any", Some("80")).unwrap();
        without.protocol = None;
        assert_eq!(without.check(), Err(PolicyError::NoPorts));
    }

    #[test]
    fn masks_are_those_of_mapped_addresses() {
        let compiled = rule("any", "10.1.0.0/16", None).unwrap().compiled();
        assert_eq!(compiled.mask[10..], [0xff, 0xff, 0xff, 0xff, 0, 0]);
        assert_eq!(compiled.ip[10..], [0xff, 0xff, 10, 1, 0, 0]);
        assert_eq!(rule("any", "::/0", None).unwrap().compiled().mask, [0; 16]);
        assert_eq!(identity("web"), identity("web"));
        assert_ne!(identity("web"), identity("api"));
    }
}
