//! What hosts ask managers over the control port. Every message is postcard, behind a 32-bit
//! big-endian length, on a QUIC stream; see [`crate::transport`] for the framing and its limits.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use overlay_core::facts::{
    self, FactsNews, NetworkSpec, PolicySpec, Range, Refusal, ServiceSpec, Version, Want,
};
use overlay_core::model::{Host, HostId, MacAddr, Vni};
use serde::{Deserialize, Serialize};

use crate::token::Secret;

/// What a host says of itself; its id and role are not its own to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    pub name: String,
    pub vtep: IpAddr,
    pub data_port: u16,
    pub esp_port: u16,
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
            esp_port: self.esp_port,
            control_port: self.control_port,
            gossip_port: self.gossip_port,
            manager,
        }
    }
}

/// One request on each stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The facts that the asking host has: it gets the news with the answer.
    pub have: Version,
    pub request: Request,
}

/// Who asks is in the certificate, never in the request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The only one that needs no certificate.
    Join {
        secret: Secret,
        csr: Vec<u8>,
        info: HostInfo,
    },
    /// A new certificate, of the role that the facts say.
    Renew {
        csr: Vec<u8>,
    },
    /// The sender's name or addresses have changed.
    Update(HostInfo),
    NetworkCreate {
        spec: NetworkSpec,
        avoid: Vec<IpNetwork>,
    },
    NetworkRemove {
        name: String,
    },
    NetworkEverywhere {
        name: String,
    },
    Grant {
        vni: Vni,
        want: Want,
    },
    Return {
        vni: Vni,
        ranges: Vec<Range>,
        macs: Vec<MacAddr>,
        seen: Version,
    },
    Unwant {
        vni: Vni,
    },
    /// Of managers only.
    SetRole {
        id: HostId,
        manager: bool,
    },
    /// Of managers only.
    HostRemove {
        id: HostId,
    },
    /// Of managers only.
    TokenRotate {
        manager: bool,
    },
    /// Nothing but the news.
    Facts,
    /// Who takes part in agreeing.
    Voters,
    /// Who leads.
    Leader,
    Leave,
    /// Between managers.
    Raft(Vec<u8>),
    ServiceCreate {
        spec: ServiceSpec,
        /// The asker leaves the spec's address to it.
        leave: bool,
    },
    ServiceRemove {
        name: String,
    },
    PolicyAdd {
        spec: PolicySpec,
    },
    PolicyRemove {
        name: String,
    },
    PolicyDefault {
        network: String,
        deny: bool,
    },
}

/// The manager's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    Joined {
        id: HostId,
        cert: Vec<u8>,
        news: FactsNews,
    },
    Renewed {
        cert: Vec<u8>,
    },
    /// With the news, so that the sender sees its own change at once.
    Done {
        reply: facts::Reply,
        news: FactsNews,
    },
    Voters(Vec<HostId>),
    Leader(HostId),
    Raft(Vec<u8>),
    /// Ask that one, if it is known.
    NotLeader(Option<Leader>),
    /// The managers can't agree at present. Nothing has happened.
    NoQuorum,
    /// As [`Answer::NoQuorum`], but it may still happen.
    Unknown,
    /// Something is wrong with this manager: another one may lead soon.
    Broken(String),
    /// The sender is not in the facts of this version, as the managers agree.
    NotAMember(Version),
    Refused(Refusal),
    /// Why not, in one line.
    Denied(String),
}

/// Where the leader is, also for those that do not know the hosts yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub id: HostId,
    pub addr: SocketAddr,
}
