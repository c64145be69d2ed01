//! The facts that all hosts agree on: hosts, networks, and who may use which address.
//!
//! The managers keep a [`StateMachine`], which a replicated log of [`Command`]s drives; every host
//! keeps a copy of its public part, [`Facts`], which [`FactsNews`] bring up to date. Single writer:
//! the state machine alone decides, copies only repeat its [`Change`]s.
//!
//! Addresses are offsets in a network's subnets, so that one grant serves both families: see
//! [`Network::address_at`]. Everything is deterministic: no clock, no random numbers, ordered maps.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{Host, HostId, MacAddr, Network, Service, Vni};
use crate::policy::Policy;

mod change;
mod check;
mod command;
mod machine;
mod pool;
mod ranges;
mod refusal;

pub use change::{Change, FactsNews, Gap};
pub use check::{MAX_ALIASES, RecordFault};
pub use command::{Command, NetworkSpec, PolicySpec, Reply, ServiceSpec, Want, Wanted};
pub use machine::{Secrets, StateMachine};
pub use overlay_common::policy::MAX_RULES;
pub use pool::{Claim, Grant};
pub use ranges::{Range, Ranges};
pub use refusal::Refusal;

use pool::{Pool, Share};

/// The first VNI given to a network that does not ask for one.
pub const FIRST_VNI: u32 = 4096;
/// More hosts than this are refused: every host knows them all.
pub const MAX_HOSTS: usize = 1000;
/// More networks than this are refused: every host knows them all.
pub const MAX_NETWORKS: usize = 4096;
/// More services than this are refused: every host knows them all.
pub const MAX_SERVICES: usize = 4096;
/// More policies than this are refused: every host knows them all. About one endpoint there may be
/// [`MAX_RULES`].
pub const MAX_POLICIES: usize = 4096;
/// More published ports than this are refused to one service.
pub const MAX_PUBLISHED: usize = 64;
/// More addresses than this are refused to one host in one network.
pub const MAX_NETWORK_OFFSETS: u64 = 65_536;
/// More addresses than this are refused to one host in all networks: no host alone can fill the
/// others' memory.
pub const MAX_HOST_OFFSETS: u64 = 262_144;
/// More claimed MAC addresses than this are refused to one host in one network.
pub const MAX_CLAIMS: usize = 4096;
/// More ranges or MAC addresses than this in one request are refused.
pub const MAX_PIECES: usize = 4096;

/// A version of the facts. It rises with each change, and only then.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Version {
    /// Rises when a backup is restored: what came after the backup is void then. At least 1 in a
    /// cluster; 0 is a host's that knows nothing yet.
    pub epoch: u64,
    /// The index in the managers' log of the latest command that changed something.
    pub index: u64,
}

/// What all hosts agree on, of one [`Version`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    version: Version,
    hosts: BTreeMap<HostId, Host>,
    pools: BTreeMap<Vni, Pool>,
    /// Networks that every host's container engine is to have.
    #[serde(default)]
    everywhere: BTreeSet<Vni>,
    services: BTreeMap<String, Service>,
    policies: BTreeMap<String, Policy>,
    /// Networks in which nothing is reached that no policy allows.
    denying: BTreeSet<Vni>,
}

impl Facts {
    /// How current it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// One host.
    pub fn host(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    /// All hosts, by id.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// The hosts that agree on the facts.
    pub fn managers(&self) -> impl Iterator<Item = &Host> {
        self.hosts().filter(|host| host.manager)
    }

    /// All networks, by VNI.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.pools.values().map(|pool| &pool.network)
    }

    /// One network.
    pub fn network(&self, vni: Vni) -> Option<&Network> {
        self.pools.get(&vni).map(|pool| &pool.network)
    }

    /// One network, by its name.
    pub fn network_named(&self, name: &str) -> Option<&Network> {
        self.networks().find(|network| network.name == name)
    }

    /// Whether every host's container engine is to have a network.
    pub fn is_everywhere(&self, vni: Vni) -> bool {
        self.everywhere.contains(&vni)
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// One service.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// All policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// One policy.
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Whether nothing is reached in a network that no policy allows.
    pub fn denies(&self, vni: Vni) -> bool {
        self.denying.contains(&vni)
    }

    /// The service that has an offset of a network as its own.
    pub fn vip_at(&self, vni: Vni, offset: u32) -> Option<&Service> {
        let pool = self.pools.get(&vni)?;
        pool.vips().get(&offset)?;
        let mut services = self.services();
        services.find(|service| service.vni == vni && service.vip == Some(offset))
    }

    /// What addresses of a network are chosen from; others must be asked for one by one.
    pub fn chosen_from(&self, vni: Vni) -> Option<Range> {
        self.pools.get(&vni).map(|pool| pool.chosen)
    }

    /// Who may use an offset.
    pub fn owner(&self, vni: Vni, offset: u32) -> Option<HostId> {
        self.grant(vni, offset).map(|grant| grant.host)
    }

    /// By which grant somebody may use an offset.
    pub fn grant(&self, vni: Vni, offset: u32) -> Option<&Grant> {
        self.pools.get(&vni)?.grant_at(offset)
    }

    /// The grants of a host in a network, ascending.
    pub fn grants(&self, host: HostId, vni: Vni) -> impl Iterator<Item = &Grant> {
        let pool = self.pools.get(&vni).into_iter();
        pool.flat_map(move |pool| pool.grants_of(host))
    }

    /// The offsets that a host may use, ascending.
    pub fn granted(&self, host: HostId, vni: Vni) -> Vec<Range> {
        let share = self.share(host, vni);
        share.map_or_else(Vec::new, |share| share.offsets.iter().collect())
    }

    /// By which claim somebody may use a MAC address.
    pub fn claim(&self, vni: Vni, mac: MacAddr) -> Option<&Claim> {
        self.pools.get(&vni)?.claims.get(&mac)
    }

    /// The MAC addresses that a host has claimed, ascending.
    pub fn claimed_macs(&self, host: HostId, vni: Vni) -> Vec<MacAddr> {
        let share = self.share(host, vni);
        share.map_or_else(Vec::new, |share| share.macs.iter().copied().collect())
    }

    /// The hosts with a grant in a network: exactly those that may have endpoints there.
    pub fn participants(&self, vni: Vni) -> BTreeSet<HostId> {
        let pool = self.pools.get(&vni).into_iter();
        pool.flat_map(|pool| pool.holders().map(|(host, _)| host))
            .collect()
    }

    /// The networks in which a host has a grant.
    pub fn networks_of(&self, host: HostId) -> Vec<Vni> {
        let pools = self.pools.iter();
        let holds = |pool: &Pool| {
            pool.share(host)
                .is_some_and(|share| !share.offsets.is_empty())
        };
        pools
            .filter(|(_, pool)| holds(pool))
            .map(|(vni, _)| *vni)
            .collect()
    }

    /// What hosts could not get in a network.
    pub fn wanted(&self, vni: Vni) -> Vec<Wanted> {
        let pool = self.pools.get(&vni).into_iter();
        pool.flat_map(|pool| &pool.wanted)
            .map(|(host, want)| Wanted {
                host: *host,
                want: *want,
            })
            .collect()
    }

    /// How many spares of so many wanted the managers would give in a network.
    pub fn spares_left(&self, vni: Vni, count: u32) -> u64 {
        let pool = self.pools.get(&vni);
        let block = pool.and_then(|pool| pool.spare_block(count));
        block.map_or(0, Range::count)
    }

    /// Whether an endpoint could have this offset of a network, if nobody had it.
    pub fn is_usable(&self, vni: Vni, offset: u32) -> bool {
        let pool = self.pools.get(&vni);
        pool.is_some_and(|pool| pool.is_usable(offset))
    }

    fn share(&self, host: HostId, vni: Vni) -> Option<&Share> {
        self.pools.get(&vni)?.share(host)
    }
}
