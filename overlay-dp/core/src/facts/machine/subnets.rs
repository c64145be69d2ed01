//! Which subnets a network can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::facts::{Facts, Refusal};

/// "This" network, loopback, link-local, and multicast up to the end: no container can use them.
const RESERVED_V4: [Ipv4Network; 4] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 3),
];

/// Loopback, mapped and compatible addresses; link-local; multicast.
const RESERVED_V6: [Ipv6Network; 3] = [v6(0, 8), v6(0xfe80, 10), v6(0xff00, 8)];

/// Where subnets are chosen from.
const POOL_V4: Ipv4Network = v4([10, 0, 0, 0], 8);

/// What is in the way of new subnets.
pub(super) struct Subnets<'a> {
    facts: &'a Facts,
    /// Without default routes, which are in nobody's way.
    avoid: Vec<IpNetwork>,
    ula: [u8; 6],
}

impl<'a> Subnets<'a> {
    pub fn new(facts: &'a Facts, avoid: &[IpNetwork], ula: [u8; 6]) -> Self {
        let routes = avoid.iter().copied().filter(|route| route.prefix() > 0);
        let vteps = facts.hosts().map(|host| IpNetwork::from(host.vtep));
        Subnets {
            facts,
            avoid: routes.chain(vteps).collect(),
            ula,
        }
    }

    /// Whether a network can have this one.
    pub fn check(&self, subnet: IpNetwork) -> Result<(), Refusal> {
        if subnet.ip() != subnet.network() {
            return Err(Refusal::HostBits {
                subnet,
                network: subnet.network(),
                prefix: subnet.prefix(),
            });
        }
        let (sizes, reserved) = match subnet {
            IpNetwork::V4(subnet) => (
                8..=30,
                RESERVED_V4.iter().any(|other| other.overlaps(subnet)),
            ),
            IpNetwork::V6(subnet) => (
                64..=126,
                RESERVED_V6.iter().any(|other| other.overlaps(subnet)),
            ),
        };
        if !sizes.contains(&subnet.prefix()) {
            return Err(Refusal::Size(subnet));
        }
        if reserved {
            return Err(Refusal::Reserved(subnet));
        }
        for network in self.facts.networks() {
            if let Some(family) = network
                .subnets()
                .find(|family| overlap(family.subnet, subnet))
            {
                return Err(Refusal::Overlap {
                    subnet,
                    other: family.subnet,
                    network: network.name.clone(),
                });
            }
        }
        match self.avoid.iter().find(|other| overlap(**other, subnet)) {
            Some(other) => Err(Refusal::Route {
                subnet,
                other: *other,
            }),
            None => Ok(()),
        }
    }

    /// The first /24 of 10.0.0.0/8 that overlaps nothing.
    pub fn free_v4(&self) -> Result<IpNetwork, Refusal> {
        let numbers = |subnet: IpNetwork| match subnet {
            IpNetwork::V4(subnet) if subnet.overlaps(POOL_V4) => {
                let number = |ip: Ipv4Addr| {
                    let inside = ip.clamp(POOL_V4.network(), POOL_V4.broadcast());
                    (inside.to_bits() >> 8) & 0xffff
                };
                Some((number(subnet.network()), number(subnet.broadcast())))
            }
            _ => None,
        };
        let free = self.first_free(numbers).ok_or(Refusal::NoSubnet)?;
        let [b, c] = free.to_be_bytes();
        IpNetwork::new(Ipv4Addr::new(10, b, c, 0).into(), 24).map_err(|_| Refusal::NoSubnet)
    }

    /// The first /64 of the cluster's prefix that overlaps nothing.
    pub fn free_v6(&self) -> Result<IpNetwork, Refusal> {
        let base = {
            let mut octets = [0; 16];
            octets[..6].copy_from_slice(&self.ula);
            u128::from_be_bytes(octets)
        };
        let end = base | (u128::MAX >> 48);
        let numbers = |subnet: IpNetwork| match subnet {
            IpNetwork::V6(subnet) => {
                let first = subnet.network().to_bits().max(base);
                let last = subnet.broadcast().to_bits().min(end);
                // 16 bits are left of each.
                let number = |bits: u128| (bits >> 64) as u32 & 0xffff;
                (first <= last).then(|| (number(first), number(last)))
            }
            IpNetwork::V4(_) => None,
        };
        let none = || {
            let prefix = IpNetwork::new(IpAddr::V6(base.into()), 48);
            prefix.map_or(Refusal::NoSubnet, Refusal::NoSubnet6)
        };
        let free = self.first_free(numbers).ok_or_else(none)?;
        let network = Ipv6Addr::from_bits(base | (u128::from(free) << 64));
        IpNetwork::new(network.into(), 64).map_err(|_| none())
    }

    /// The lowest of 65,536 numbers that is in none of the spans which `numbers` tells for what is
    /// in the way.
    fn first_free(&self, numbers: impl Fn(IpNetwork) -> Option<(u32, u32)>) -> Option<u16> {
        let networks = self.facts.networks().flat_map(|network| network.subnets());
        let all = networks
            .map(|family| family.subnet)
            .chain(self.avoid.iter().copied());
        let mut taken: Vec<(u32, u32)> = all.filter_map(numbers).collect();
        taken.sort_unstable();
        let mut free = 0;
        for (first, last) in taken {
            if first > free {
                break;
            }
            free = free.max(last + 1);
        }
        u16::try_from(free).ok()
    }
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    match (one, other) {
        (IpNetwork::V4(one), IpNetwork::V4(other)) => one.overlaps(other),
        (IpNetwork::V6(one), IpNetwork::V6(other)) => one.overlaps(other),
        _ => false,
    }
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Network {
    match Ipv4Network::new_checked(Ipv4Addr::new(a, b, c, d), prefix) {
        Some(network) => network,
        None => panic!("a prefix is at most 32"),
    }
}

const fn v6(first: u16, prefix: u8) -> Ipv6Network {
    match Ipv6Network::new_checked(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), prefix) {
        Some(network) => network,
        None => panic!("a prefix is at most 128"),
    }
}
