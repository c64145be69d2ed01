//! What hosts say to each other. Every message is postcard, behind a 32-bit big-endian length,
//! on a QUIC stream; see [`crate::transport`] for the framing and its limits.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_core::ipam::{Lease, LeaseSpec, NetworkSpec};
use overlay_core::model::{Endpoint, Host, HostId, Network, Vni};
use serde::{Deserialize, Serialize};

use crate::swim;
use crate::token::Secret;

/// What a host says of itself; its id and role are not its own to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    pub name: String,
    pub vtep: IpAddr,
    pub data_port: u16,
    pub control_port: u16,
    pub gossip_port: u16,
}

impl HostInfo {
    pub fn host(&self, id: HostId, manager: bool) -> Host {
        Host {
            id,
            name: self.name.clone(),
            vtep: self.vtep,
            data_port: self.data_port,
            control_port: self.control_port,
            gossip_port: self.gossip_port,
            manager,
        }
    }
}

/// The facts that all agree on, because only the manager changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Rises with every change.
    pub version: u64,
    /// Who may change them.
    pub manager: HostId,
    pub hosts: Vec<Host>,
    pub networks: Vec<Network>,
}

impl Facts {
    pub fn host(&self, id: HostId) -> Option<&Host> {
        self.hosts.iter().find(|host| host.id == id)
    }
}

/// Asked of the manager over the control port, one on each stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The only one that needs no certificate.
    Join {
        secret: Secret,
        csr: Vec<u8>,
        info: HostInfo,
    },
    /// The sender's addresses have changed.
    Update(HostInfo),
    NetworkCreate {
        spec: NetworkSpec,
        avoid: Vec<IpNetwork>,
    },
    NetworkRemove {
        name: String,
    },
    Lease(LeaseSpec),
    Release {
        vni: Vni,
        ip: IpAddr,
        endpoint: String,
    },
    /// The sender's own leases.
    Leases,
    /// The facts, if they are newer than the sender's.
    Facts {
        have: u64,
    },
    Leave,
}

/// The manager's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Joined {
        id: HostId,
        cert: Vec<u8>,
        facts: Facts,
    },
    /// With the facts, so that the sender sees its own change at once.
    Network {
        network: Network,
        facts: Facts,
    },
    Lease(Lease),
    Leases(Vec<Lease>),
    Facts(Option<Facts>),
    Done,
    /// Why not, in one line.
    Refused(String),
}

/// How far a host's log is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Rises with every start of the owner.
    pub incarnation: u64,
    /// Rises with every change.
    pub seq: u64,
}

/// Opens a gossip stream: what the sender knows of the receiver's log and facts, to be told the
/// rest and all that follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subscribe {
    pub swim: swim::Id,
    pub have: Position,
    pub facts: u64,
}

/// What then comes back, until the connection ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Comes first.
    Hello(swim::Id),
    /// A part of the whole log as of `at`.
    Snapshot {
        at: Position,
        settled: bool,
        endpoints: Vec<Endpoint>,
        last: bool,
    },
    /// Changes `first`, `first` + 1 … of an incarnation.
    Changes {
        incarnation: u64,
        first: u64,
        changes: Vec<Change>,
    },
    /// Sent every few seconds: where the receiver should be by now.
    Digest(Position),
    /// From the manager only.
    Facts(Facts),
}

/// One change of a host's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Up(Endpoint),
    Down {
        vni: Vni,
        name: String,
    },
    /// All endpoints that outlived a restart are published again; the others are gone.
    Settled,
    /// The host leaves the cluster.
    Left,
}
