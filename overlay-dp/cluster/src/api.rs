//! What the agent gives to the cluster and gets from it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_core::facts::Version;
use overlay_core::model::{Host, HostId};
pub use overlay_gossip::Event;

use crate::control;
use crate::error::Error;
use crate::state::{self, Stored};
use crate::token::{Fingerprint, Token, fingerprint};
use crate::wire::HostInfo;

/// What this host is and where it keeps its state.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds `state.json`, and `raft` on managers; made if absent.
    pub state_dir: PathBuf,
    /// For people.
    pub host_name: String,
    /// The advertised tunnel address. The control and gossip sockets are bound to it, too.
    pub vtep: IpAddr,
    /// UDP port of the tunnels, for others to know.
    pub data_port: u16,
    /// UDP port of ESP, for others to know.
    pub esp_port: u16,
    /// UDP port for joining and agreed facts. Only managers listen on it.
    pub control_port: u16,
    /// UDP port for gossip.
    pub gossip_port: u16,
    /// For how long the endpoints of a host that is down stay.
    pub retention: Duration,
}

impl Config {
    /// Docker Swarm's ports, and ten minutes of retention.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        host_name: impl Into<String>,
        vtep: IpAddr,
    ) -> Config {
        Config {
            state_dir: state_dir.into(),
            host_name: host_name.into(),
            vtep,
            data_port: 4789,
            esp_port: 4500,
            control_port: control::DEFAULT_PORT,
            gossip_port: 7946,
            retention: Duration::from_secs(600),
        }
    }

    pub(crate) fn info(&self) -> HostInfo {
        HostInfo {
            name: self.host_name.clone(),
            vtep: self.vtep,
            data_port: self.data_port,
            esp_port: self.esp_port,
            control_port: self.control_port,
            gossip_port: self.gossip_port,
        }
    }
}

/// How this host comes into its cluster.
#[derive(Clone, Debug)]
pub enum Start {
    /// Makes a cluster, with this host as its manager.
    New,
    /// Becomes a member of an existing one.
    Join {
        /// A manager's IP address, `ip:port` or host name.
        addr: String,
        /// From a manager: it also says whether this host becomes one.
        token: Token,
    },
    /// Goes on with the cluster in the state directory.
    Resume,
    /// Makes a cluster again of what [`Cluster::backup`](crate::Cluster::backup) gave, with this
    /// host as its only manager. The other hosts find it by themselves and go on as its workers.
    Restore(Vec<u8>),
}

/// What [`stored`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSummary {
    /// This host.
    pub id: HostId,
    /// Whether it is a manager.
    pub manager: bool,
    /// Where the managers were last.
    pub managers: Vec<SocketAddr>,
    /// How many hosts the cluster had.
    pub hosts: usize,
    ca: Fingerprint,
}

impl StoredSummary {
    /// Whether the token is for the stored cluster.
    pub fn is_of(&self, token: &Token) -> bool {
        self.ca == token.ca
    }
}

/// Looks for a cluster to resume.
///
/// # Errors
/// When there is a state file that can't be used.
pub fn stored(state_dir: &Path) -> Result<Option<StoredSummary>, Error> {
    let summary = |stored: Stored| StoredSummary {
        id: stored.id,
        manager: state::has_raft(state_dir),
        managers: stored
            .facts
            .managers()
            .map(|host| SocketAddr::new(host.vtep, host.control_port))
            .collect(),
        hosts: stored.facts.hosts().count(),
        ca: fingerprint(&stored.identity.ca),
    };
    Ok(state::load(state_dir)?.map(summary))
}

/// What this host knows of those who agree on the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// The manager that leads, as far as this host knows.
    pub leader: Option<HostId>,
    /// All managers.
    pub managers: Vec<HostId>,
    /// Whether they can agree at present: a manager knows, another host counts those alive.
    pub quorum: bool,
    /// Of the facts here.
    pub version: Version,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer just now.
    Suspect,
    /// It does not answer, or was not heard of since this host started.
    Down,
}

/// A host of the cluster, as seen from this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The host.
    pub host: Host,
    /// How it is.
    pub state: MemberState,
    /// Round trip of the connection with it, if there is one.
    pub rtt: Option<Duration>,
    /// Whether it is this host.
    pub me: bool,
}

/// What was turned away, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Joins with a wrong secret or impossible wishes.
    pub joins_refused: u64,
    /// Membership packets that were malformed or in somebody else's name.
    pub packets_refused: u64,
    /// Messages that were malformed, too large or against the protocol.
    pub messages_refused: u64,
    /// Connections of hosts that are not members, or of too many at once.
    pub strangers_refused: u64,
    /// Endpoints of other hosts that break the rules.
    pub records_refused: u64,
}
