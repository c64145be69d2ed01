//! Who has which address: networks, their subnets and VNIs, and the addresses leased in them.
//!
//! Sans-IO: the cluster's manager owns the one [`Ipam`], keeps it on disk (it is `serde` state)
//! and asks it for every change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use crate::model::{HostId, MacAddr, Network, Vni, check_name};

mod error;

pub use error::Error;

/// The first VNI given to a network that does not ask for one.
pub const FIRST_VNI: u32 = 4096;
/// More networks than this are refused: every host keeps them all.
pub const MAX_NETWORKS: usize = 4096;
/// More leases than this are refused to one host: no host alone can fill the manager's memory.
pub const MAX_HOST_LEASES: usize = 65_536;

/// "This" network, loopback, link-local, and multicast up to the end: no container can use them.
const RESERVED: [Ipv4Network; 4] = [
    reserved(0, 0, 8),
    reserved(127, 0, 8),
    reserved(169, 254, 16),
    reserved(224, 0, 3),
];

const fn reserved(a: u8, b: u8, prefix: u8) -> Ipv4Network {
    match Ipv4Network::new_checked(Ipv4Addr::new(a, b, 0, 0), prefix) {
        Some(network) => network,
        None => panic!("a prefix is at most 32"),
    }
}

/// What a user asks for; the rest is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Chosen from 10.0.0.0/8 when absent.
    pub subnet: Option<IpNetwork>,
    /// The subnet's first address when absent.
    pub gateway: Option<IpAddr>,
    /// Chosen from 4096 up when absent.
    pub vni: Option<Vni>,
}

/// An address that one endpoint of one host may use until it is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The network.
    pub vni: Vni,
    /// The address, unique in the network.
    pub ip: IpAddr,
    /// The Ethernet address that goes with it, unique in the network.
    pub mac: MacAddr,
    /// The host that has it.
    pub host: HostId,
    /// The endpoint it is for; its name is unique in the network.
    pub endpoint: String,
}

/// What an endpoint asks for; the rest is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// The network.
    pub vni: Vni,
    /// The endpoint's name, unique in the network.
    pub endpoint: String,
    /// The next free address when absent.
    pub ip: Option<IpAddr>,
    /// `02:42` and the address when absent.
    pub mac: Option<MacAddr>,
}

impl LeaseSpec {
    /// Any free address and the MAC that goes with it.
    pub fn any(vni: Vni, endpoint: impl Into<String>) -> LeaseSpec {
        LeaseSpec {
            vni,
            endpoint: endpoint.into(),
            ip: None,
            mac: None,
        }
    }
}

/// All networks and leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pools: BTreeMap<Vni, Pool>,
    /// The VNI tried next; it never goes back, so that a new network doesn't inherit stray frames.
    next_vni: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pool {
    network: Network,
    subnet: Ipv4Network,
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// The address tried next, so that a released one rests before it is used again.
    next: Ipv4Addr,
}

impl Ipam {
    /// The networks, by VNI.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.pools.values().map(|pool| &pool.network)
    }

    /// The leases of one network, or of all.
    pub fn leases(&self, vni: Option<Vni>) -> impl Iterator<Item = &Lease> {
        let wanted = move |pool: &&Pool| vni.is_none_or(|vni| pool.network.vni == vni);
        self.pools
            .values()
            .filter(wanted)
            .flat_map(|pool| pool.leases.values())
    }

    /// Makes a network. `avoid` are subnets it must not overlap: the creating host's routes and
    /// the underlay. A default route among them is ignored.
    ///
    /// # Errors
    /// When the request can't be met; nothing has changed then.
    pub fn create(&mut self, spec: &NetworkSpec, avoid: &[IpNetwork]) -> Result<Network, Error> {
        check_name(&spec.name)?;
        if self.networks().any(|network| network.name == spec.name) {
            return Err(Error::NetworkExists(spec.name.clone()));
        }
        if self.pools.len() >= MAX_NETWORKS {
            return Err(Error::TooManyNetworks);
        }
        let avoid = avoid.iter().filter_map(|net| match net {
            IpNetwork::V4(net) if net.prefix() > 0 => Some(*net),
            _ => None,
        });
        let avoid: Vec<Ipv4Network> = avoid.collect();
        let subnet = match spec.subnet {
            Some(subnet) => self.check_subnet(subnet, &avoid)?,
            None => self.free_subnet(&avoid)?,
        };
        let gateway = match spec.gateway {
            None => Ipv4Addr::from_bits(subnet.network().to_bits() + 1),
            Some(IpAddr::V4(ip)) if is_host_address(subnet, ip) => ip,
            Some(ip) => return Err(Error::Gateway { ip, subnet }),
        };
        let vni = self.free_vni(spec.vni)?;
        let network = Network {
            name: spec.name.clone(),
            vni,
            subnet: subnet.into(),
            gateway: gateway.into(),
            ipv6: None,
        };
        if spec.vni.is_none() {
            self.next_vni = vni.get() + 1;
        }
        let pool = Pool {
            network: network.clone(),
            subnet,
            leases: BTreeMap::new(),
            next: subnet.network(),
        };
        self.pools.insert(vni, pool);
        Ok(network)
    }

    /// Removes a network that nothing uses.
    ///
    /// # Errors
    /// When it does not exist or has leases.
    pub fn remove(&mut self, name: &str) -> Result<Network, Error> {
        let pool = self.pools.values().find(|pool| pool.network.name == name);
        let pool = pool.ok_or_else(|| Error::NoNetwork(name.to_owned()))?;
        if !pool.leases.is_empty() {
            let some = pool
                .leases
                .values()
                .take(5)
                .map(|lease| lease.endpoint.as_str());
            let mut endpoints = some.collect::<Vec<_>>().join(", ");
            if let more @ 1.. = pool.leases.len().saturating_sub(5) {
                endpoints += &format!(" and {more} more");
            }
            return Err(Error::InUse {
                network: name.to_owned(),
                endpoints,
            });
        }
        let network = pool.network.clone();
        self.pools.remove(&network.vni);
        Ok(network)
    }

    /// Leases an address to an endpoint of `host`. Asked again for an endpoint that the host has
    /// already, with nothing else wanted, it gives the same lease: a host whose reply was lost
    /// simply repeats its request.
    ///
    /// # Errors
    /// When the request can't be met; nothing has changed then.
    pub fn lease(&mut self, host: HostId, spec: &LeaseSpec) -> Result<Lease, Error> {
        check_name(&spec.endpoint)?;
        if self.leases(None).filter(|lease| lease.host == host).count() >= MAX_HOST_LEASES {
            return Err(Error::TooManyLeases);
        }
        let pool = self
            .pools
            .get_mut(&spec.vni)
            .ok_or(Error::NoVni(spec.vni))?;
        pool.lease(host, spec)
    }

    /// Gives an address back.
    ///
    /// # Errors
    /// When `host` has no such lease.
    pub fn release(
        &mut self,
        host: HostId,
        vni: Vni,
        ip: IpAddr,
        endpoint: &str,
    ) -> Result<Lease, Error> {
        let none = || Error::NoLease {
            ip,
            endpoint: endpoint.to_owned(),
        };
        let pool = self.pools.get_mut(&vni).ok_or(Error::NoVni(vni))?;
        let IpAddr::V4(key) = ip else {
            return Err(none());
        };
        let held = pool.leases.get(&key);
        if !held.is_some_and(|lease| lease.host == host && lease.endpoint == endpoint) {
            return Err(none());
        }
        pool.leases.remove(&key).ok_or_else(none)
    }

    /// Takes back all that a host has leased, because it has left.
    pub fn release_host(&mut self, host: HostId) {
        for pool in self.pools.values_mut() {
            pool.leases.retain(|_, lease| lease.host != host);
        }
    }

    fn check_subnet(&self, subnet: IpNetwork, avoid: &[Ipv4Network]) -> Result<Ipv4Network, Error> {
        let IpNetwork::V4(subnet) = subnet else {
            return Err(Error::Ipv6(subnet));
        };
        if subnet.ip() != subnet.network() {
            let network = subnet.network();
            return Err(Error::HostBits {
                subnet,
                network,
                prefix: subnet.prefix(),
            });
        }
        if !(8..=30).contains(&subnet.prefix()) {
            return Err(Error::Size(subnet));
        }
        if RESERVED.iter().any(|other| other.overlaps(subnet)) {
            return Err(Error::Reserved(subnet));
        }
        if let Some(pool) = self
            .pools
            .values()
            .find(|pool| pool.subnet.overlaps(subnet))
        {
            let other = pool.subnet;
            return Err(Error::Overlap {
                subnet,
                other,
                network: pool.network.name.clone(),
            });
        }
        match avoid.iter().find(|other| other.overlaps(subnet)) {
            Some(other) => Err(Error::Route {
                subnet,
                other: *other,
            }),
            None => Ok(subnet),
        }
    }

    /// The first /24 of 10.0.0.0/8 that overlaps nothing.
    fn free_subnet(&self, avoid: &[Ipv4Network]) -> Result<Ipv4Network, Error> {
        let free = |subnet: &Ipv4Network| {
            !avoid.iter().any(|other| other.overlaps(*subnet))
                && !self
                    .pools
                    .values()
                    .any(|pool| pool.subnet.overlaps(*subnet))
        };
        let candidates = (0..=u16::MAX).filter_map(|middle| {
            let [b, c] = middle.to_be_bytes();
            Ipv4Network::new(Ipv4Addr::new(10, b, c, 0), 24).ok()
        });
        candidates.into_iter().find(free).ok_or(Error::NoSubnet)
    }

    fn free_vni(&self, wanted: Option<Vni>) -> Result<Vni, Error> {
        if let Some(vni) = wanted {
            return match self.pools.get(&vni) {
                Some(pool) => Err(Error::VniTaken {
                    vni,
                    network: pool.network.name.clone(),
                }),
                None => Ok(vni),
            };
        }
        let start = self.next_vni.clamp(FIRST_VNI, Vni::MAX.get() + 1);
        let candidates = (start..=Vni::MAX.get()).chain(FIRST_VNI..start);
        let free = |vni: &Vni| !self.pools.contains_key(vni);
        candidates
            .filter_map(Vni::new)
            .find(free)
            .ok_or(Error::NoVniLeft)
    }
}

impl Pool {
    fn lease(&mut self, host: HostId, spec: &LeaseSpec) -> Result<Lease, Error> {
        let named = self
            .leases
            .values()
            .find(|lease| lease.endpoint == spec.endpoint);
        if let Some(held) = named {
            let same = held.host == host
                && spec.ip.is_none_or(|ip| ip == held.ip)
                && spec.mac.is_none_or(|mac| mac == held.mac);
            return if same {
                Ok(held.clone())
            } else {
                Err(self.taken("endpoint name", &spec.endpoint, held))
            };
        }
        let ip = match spec.ip {
            None => self.free_address(spec.mac.is_some())?,
            Some(IpAddr::V4(ip)) if is_host_address(self.subnet, ip) && !self.is_gateway(ip) => {
                if let Some(held) = self.leases.get(&ip) {
                    return Err(self.taken("address", &ip.to_string(), held));
                }
                ip
            }
            Some(ip) if ip == self.network.gateway => return Err(Error::GatewayLeased(ip)),
            Some(ip) => {
                return Err(Error::Address {
                    ip,
                    subnet: self.subnet,
                });
            }
        };
        let mac = spec.mac.unwrap_or_else(|| MacAddr::from_ipv4(ip));
        if !mac.is_unicast() || mac == self.network.gateway_mac() {
            return Err(Error::Mac(mac));
        }
        if let Some(held) = self.leases.values().find(|lease| lease.mac == mac) {
            return Err(self.taken("MAC address", &mac.to_string(), held));
        }
        let endpoint = spec.endpoint.clone();
        let lease = Lease {
            vni: self.network.vni,
            ip: ip.into(),
            mac,
            host,
            endpoint,
        };
        if spec.ip.is_none() {
            self.next = Ipv4Addr::from_bits(ip.to_bits() + 1);
        }
        self.leases.insert(ip, lease.clone());
        Ok(lease)
    }

    /// The next address, round the subnet, that nobody has; its derived MAC is free too unless
    /// another is brought along.
    fn free_address(&self, own_mac: bool) -> Result<Ipv4Addr, Error> {
        let first = self.subnet.network().to_bits() + 1;
        let last = self.subnet.broadcast().to_bits() - 1;
        let start = self.next.to_bits().clamp(first, last + 1);
        // Addresses whose MAC somebody else chose are passed over like leased ones. Only so many
        // can be in the way, which bounds the walk in a /8.
        let chosen = |lease: &&Lease| match lease.ip {
            IpAddr::V4(ip) => lease.mac != MacAddr::from_ipv4(ip),
            IpAddr::V6(_) => false,
        };
        let macs: Vec<MacAddr> = self
            .leases
            .values()
            .filter(chosen)
            .map(|lease| lease.mac)
            .collect();
        let free = |ip: &Ipv4Addr| {
            !self.is_gateway(*ip)
                && !self.leases.contains_key(ip)
                && (own_mac || !macs.contains(&MacAddr::from_ipv4(*ip)))
        };
        let mut candidates = (start..=last).chain(first..start).map(Ipv4Addr::from_bits);
        candidates.find(free).ok_or_else(|| Error::Exhausted {
            network: self.network.name.clone(),
            subnet: self.subnet,
        })
    }

    fn is_gateway(&self, ip: Ipv4Addr) -> bool {
        self.network.gateway == IpAddr::V4(ip)
    }

    fn taken(&self, what: &'static str, value: &str, held: &Lease) -> Error {
        Error::Taken {
            what,
            value: value.to_owned(),
            network: self.network.name.clone(),
            endpoint: held.endpoint.clone(),
            ip: held.ip,
            host: held.host,
        }
    }
}

fn is_host_address(subnet: Ipv4Network, ip: Ipv4Addr) -> bool {
    subnet.contains(ip) && ip != subnet.network() && ip != subnet.broadcast()
}

#[cfg(test)]
mod tests;
