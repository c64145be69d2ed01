//! Which endpoint of which network is called what.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use overlay_core::model::{Endpoint, HostId, Network, Service, ServicePort, Vni};

/// Every name of every network that this host knows the endpoints of.
///
/// Facts are told as they come, in any order: endpoints of a network that is not known yet are
/// kept until it is.
#[derive(Debug, Default)]
pub struct Names {
    zones: BTreeMap<Vni, Zone>,
    /// What services publish, by network and name in lower case; those that publish nothing are
    /// missing.
    published: BTreeMap<(Vni, String), Vec<ServicePort>>,
    /// The SOA's: how many changes there were.
    serial: u32,
}

/// An endpoint, by its owner and name. Two hosts may claim one name until they have agreed.
pub(crate) type Key = (HostId, Arc<str>);

/// One network's names.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    pub network: Option<Network>,
    /// The network's name in lower case.
    pub apex: String,
    endpoints: BTreeMap<Key, Endpoint>,
    /// By [`inverted`] name, alias or service. Sorted, each key once.
    called: BTreeMap<String, Vec<Key>>,
    /// By service, in lower case. Sorted, each key once.
    services: BTreeMap<String, Vec<Key>>,
    addresses: BTreeMap<IpAddr, Vec<Key>>,
    /// Services with addresses of their own, by [`inverted`] name.
    vips: BTreeMap<String, Vips>,
}

/// A service's own addresses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Vips {
    /// Its name, as it was given.
    pub name: String,
    pub ips: Vec<IpAddr>,
}

impl Names {
    /// None.
    pub fn new() -> Names {
        Names::default()
    }

    /// A network exists, or has changed.
    pub fn network_set(&mut self, network: Network) {
        self.changed();
        let zone = self.zones.entry(network.vni).or_default();
        zone.apex = network.name.to_ascii_lowercase();
        zone.network = Some(network);
    }

    /// A network exists no more.
    pub fn network_gone(&mut self, vni: Vni) {
        self.changed();
        if let Some(zone) = self.zones.get_mut(&vni) {
            zone.network = None;
            self.forget_if_empty(vni);
        }
    }

    /// A host has an endpoint. The one it has by that name on that network is changed.
    pub fn endpoint_up(&mut self, host: HostId, endpoint: &Endpoint) {
        self.changed();
        let zone = self.zones.entry(endpoint.vni).or_default();
        let key = (host, Arc::from(endpoint.name.as_str()));
        zone.remove(&key);
        zone.insert(key, endpoint.clone());
    }

    /// A host has that endpoint no more. When it has another one by that name by now, nothing
    /// happens.
    pub fn endpoint_down(&mut self, host: HostId, endpoint: &Endpoint) {
        let Some(zone) = self.zones.get_mut(&endpoint.vni) else {
            return;
        };
        let key = (host, Arc::from(endpoint.name.as_str()));
        if zone.endpoints.get(&key) == Some(endpoint) {
            zone.remove(&key);
            self.forget_if_empty(endpoint.vni);
            self.changed();
        }
    }

    /// A host has left, with all its endpoints.
    pub fn host_gone(&mut self, host: HostId) {
        self.changed();
        let mut vnis = Vec::new();
        for (vni, zone) in &mut self.zones {
            let its = |key: &&Key| key.0 == host;
            let keys: Vec<Key> = zone.endpoints.keys().filter(its).cloned().collect();
            for key in keys {
                zone.remove(&key);
            }
            vnis.push(*vni);
        }
        for vni in vnis {
            self.forget_if_empty(vni);
        }
    }

    /// A service of a network has these addresses of its own: its name stands for them, and not
    /// for its tasks. Without any it is gone, or has none any more.
    pub fn service_set(&mut self, vni: Vni, name: &str, ips: &[IpAddr]) {
        self.changed();
        let zone = self.zones.entry(vni).or_default();
        if ips.is_empty() {
            zone.vips.remove(&inverted(name));
            return self.forget_if_empty(vni);
        }
        let vips = Vips {
            name: name.to_owned(),
            ips: ips.to_vec(),
        };
        zone.vips.insert(inverted(name), vips);
    }

    /// These are all services that there are: what they publish is what is known of their tasks'
    /// ports.
    pub fn services_set(&mut self, services: &[Service]) {
        let publish = |service: &Service| {
            let key = (service.vni, service.name.to_ascii_lowercase());
            (!service.publish.is_empty()).then(|| (key, service.publish.clone()))
        };
        let published: BTreeMap<_, _> = services.iter().filter_map(publish).collect();
        if published != self.published {
            self.published = published;
            self.changed();
        }
    }

    /// How many endpoints have names here.
    pub fn len(&self) -> usize {
        self.zones.values().map(|zone| zone.endpoints.len()).sum()
    }

    /// Whether no endpoint has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an address is a gateway's, and so answered by ourselves.
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        let networks = self.zones.values().filter_map(|zone| zone.network.as_ref());
        networks
            .flat_map(Network::gateways)
            .any(|gateway| gateway == ip)
    }

    /// What the service of an endpoint publishes.
    pub(crate) fn published_of(&self, endpoint: &Endpoint) -> &[ServicePort] {
        let service = endpoint.service.as_ref();
        let key = service.map(|name| (endpoint.vni, name.to_ascii_lowercase()));
        let ports = key.and_then(|key| self.published.get(&key));
        ports.map_or(&[], Vec::as_slice)
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// The names that one who asks through this network sees.
    pub(crate) fn zone(&self, vni: Vni) -> Option<&Zone> {
        let zone = self.zones.get(&vni)?;
        zone.network.as_ref().map(|_| zone)
    }

    /// Whether all these addresses are of the overlay, or of one link: nobody else can name them.
    pub(crate) fn is_inside(&self, prefix: IpNetwork) -> bool {
        let within = |outer: IpNetwork| {
            outer.prefix() <= prefix.prefix() && outer.contains(prefix.network())
        };
        let networks = self.zones.values().filter_map(|zone| zone.network.as_ref());
        networks
            .flat_map(Network::subnets)
            .any(|family| within(family.subnet))
            || matches!(prefix, IpNetwork::V6(ip) if ip.prefix() >= 10 && ip.network().is_unicast_link_local())
    }

    fn changed(&mut self) {
        self.serial = self.serial.wrapping_add(1);
    }

    fn forget_if_empty(&mut self, vni: Vni) {
        let empty = |zone: &Zone| {
            zone.network.is_none() && zone.endpoints.is_empty() && zone.vips.is_empty()
        };
        if self.zones.get(&vni).is_some_and(empty) {
            self.zones.remove(&vni);
        }
    }
}

impl Zone {
    /// Those who are called so, by name, alias or service.
    pub fn called(&self, name: &str) -> Option<&[Key]> {
        self.called.get(&inverted(name)).map(Vec::as_slice)
    }

    /// The service with addresses of its own that is called so.
    pub fn vips(&self, name: &str) -> Option<&Vips> {
        self.vips.get(&inverted(name))
    }

    /// The service that has this address as its own.
    pub fn vips_at(&self, ip: IpAddr) -> Option<&Vips> {
        self.vips.values().find(|vips| vips.ips.contains(&ip))
    }

    /// Whether somebody's name ends with a dot and this one.
    pub fn is_parent(&self, name: &str) -> bool {
        let begin = inverted(name) + ".";
        begins(&self.called, &begin) || begins(&self.vips, &begin)
    }

    /// The tasks of a service.
    pub fn tasks(&self, service: &str) -> Option<&[Key]> {
        self.services.get(service).map(Vec::as_slice)
    }

    pub fn has_services(&self) -> bool {
        !self.services.is_empty()
    }

    /// Those who have this address.
    pub fn at(&self, ip: IpAddr) -> Option<&[Key]> {
        self.addresses.get(&ip).map(Vec::as_slice)
    }

    pub fn endpoint(&self, key: &Key) -> Option<&Endpoint> {
        self.endpoints.get(key)
    }

    fn insert(&mut self, key: Key, endpoint: Endpoint) {
        for name in names_of(&endpoint) {
            add(&mut self.called, inverted(name), &key);
        }
        if let Some(service) = &endpoint.service {
            add(&mut self.services, service.to_ascii_lowercase(), &key);
        }
        for ip in &endpoint.ips {
            add(&mut self.addresses, *ip, &key);
        }
        self.endpoints.insert(key, endpoint);
    }

    fn remove(&mut self, key: &Key) {
        let Some(endpoint) = self.endpoints.remove(key) else {
            return;
        };
        for name in names_of(&endpoint) {
            take(&mut self.called, inverted(name), key);
        }
        if let Some(service) = &endpoint.service {
            take(&mut self.services, service.to_ascii_lowercase(), key);
        }
        for ip in &endpoint.ips {
            take(&mut self.addresses, *ip, key);
        }
    }
}

fn names_of(endpoint: &Endpoint) -> impl Iterator<Item = &String> {
    std::iter::once(&endpoint.name)
        .chain(&endpoint.aliases)
        .chain(&endpoint.service)
}

/// A name in lower case, its labels turned round: what ends alike lies next to each other.
fn inverted(name: &str) -> String {
    let labels: Vec<&str> = name.rsplit('.').collect();
    labels.join(".").to_ascii_lowercase()
}

/// Whether one of the names begins so.
fn begins<V>(names: &BTreeMap<String, V>, begin: &str) -> bool {
    let mut from = names.range(begin.to_owned()..);
    from.next().is_some_and(|(name, _)| name.starts_with(begin))
}

fn add<K: Ord>(index: &mut BTreeMap<K, Vec<Key>>, at: K, key: &Key) {
    let keys = index.entry(at).or_default();
    if let Err(place) = keys.binary_search(key) {
        keys.insert(place, key.clone());
    }
}

fn take<K: Ord>(index: &mut BTreeMap<K, Vec<Key>>, at: K, key: &Key) {
    if let Some(keys) = index.get_mut(&at) {
        if let Ok(place) = keys.binary_search(key) {
            keys.remove(place);
        }
        if keys.is_empty() {
            index.remove(&at);
        }
    }
}
