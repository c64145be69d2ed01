//! What a question is about.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use ipnetwork::IpNetwork;
use overlay_core::model::{Protocol, Vni};

use super::names::{Key, Names, Vips, Zone};

/// What a name stands for, if it is ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// Addresses of these.
    Endpoints(&'a [Key]),
    /// A service's own addresses.
    Vips(&'a Vips),
    /// The gateway's addresses.
    Gateway,
    /// SRV records of these, with ports that fit.
    Tasks(&'a [Key], Fit),
    /// An address that these have.
    Address(&'a [Key]),
    /// An address that this service has as its own.
    VipAddress(&'a Vips),
    /// The gateway's address.
    GatewayAddress,
    /// The network itself.
    Apex,
    /// Nothing itself, but there are names below it.
    Parent,
    /// There is no such name.
    Nothing,
}

/// Which ports a name with a protocol in it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    pub protocol: Protocol,
    /// When it is said by its number.
    pub port: Option<u16>,
}

/// What `name` is to one who asks through the network `vni`; `None` when it is not ours to say.
pub(crate) fn find<'a>(names: &'a Names, vni: Vni, name: &Name) -> Option<Found<'a>> {
    let zone = names.zone(vni)?;
    if let Ok(prefix) = name.parse_arpa_name() {
        let prefix = IpNetwork::new(prefix.addr(), prefix.prefix_len()).ok()?;
        return reverse(names, zone, prefix);
    }
    let name = text(name);
    // Whoever is called so comes first: names have dots, too.
    if let Some(found) = zone.below(&name) {
        return Some(found);
    }
    if name == zone.apex {
        return Some(Found::Apex);
    }
    let rest = name.strip_suffix(&zone.apex)?.strip_suffix('.')?;
    let found = zone.below(rest).or_else(|| match rest {
        "gateway" => Some(Found::Gateway),
        "tasks" | "_tcp" | "_udp" if zone.has_services() => Some(Found::Parent),
        _ if zone.is_parent(rest) => Some(Found::Parent),
        _ => None,
    });
    Some(found.unwrap_or(Found::Nothing))
}

impl Zone {
    /// What a name is in the network.
    fn below(&self, name: &str) -> Option<Found<'_>> {
        // Before a task of the same name: a service's name is what its clients know.
        if let Some(vips) = self.vips(name) {
            return Some(Found::Vips(vips));
        }
        if let Some(keys) = self.called(name) {
            return Some(Found::Endpoints(keys));
        }
        if let Some(keys) = name.strip_prefix("tasks.").and_then(|s| self.tasks(s)) {
            return Some(Found::Endpoints(keys));
        }
        // `_http._tcp.web`, `_80._tcp.web` or, when nothing follows, `_web._tcp`.
        let mut labels = name.splitn(3, '.');
        let first = labels.next()?.strip_prefix('_')?;
        let protocol = match labels.next()? {
            "_tcp" => Protocol::Tcp,
            "_udp" => Protocol::Udp,
            _ => return None,
        };
        let (service, port) = match labels.next() {
            None => (first, None),
            Some(of) => (of, first.parse().ok()),
        };
        let fit = Fit { protocol, port };
        self.called(service).map(|keys| Found::Tasks(keys, fit))
    }
}

/// What is behind an address, or behind all that begin alike.
fn reverse<'a>(names: &'a Names, zone: &'a Zone, prefix: IpNetwork) -> Option<Found<'a>> {
    let whole = match prefix {
        IpNetwork::V4(_) => 32,
        IpNetwork::V6(_) => 128,
    };
    if prefix.prefix() == whole {
        let ip = prefix.ip();
        if let Some(keys) = zone.at(ip) {
            return Some(Found::Address(keys));
        }
        if let Some(vips) = zone.vips_at(ip) {
            return Some(Found::VipAddress(vips));
        }
        let is_gateway = zone.gateways().any(|gateway| gateway == ip);
        if is_gateway && zone.called("gateway").is_none() {
            return Some(Found::GatewayAddress);
        }
    }
    if !names.is_inside(prefix) {
        return None;
    }
    // What has names below it is not told: only whole addresses have any.
    match prefix.prefix() < whole {
        true => Some(Found::Parent),
        false => Some(Found::Nothing),
    }
}

impl Zone {
    /// The addresses of the network's gateway.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.network.iter().flat_map(|network| network.gateways())
    }
}

/// A name in lower case, without the dot at its end. What no name of ours has becomes a `?`, which
/// none has, either.
fn text(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| {
            let ours = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            char::from(if ours {
                byte.to_ascii_lowercase()
            } else {
                b'?'
            })
        }));
    }
    text
}
