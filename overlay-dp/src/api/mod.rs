//! The local API: HTTP and JSON on a unix socket. The command line is its first user.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/networks` | | list of [`NetworkInfo`] |
//! | `POST /v1/networks` | [`NetworkCreate`] | [`NetworkInfo`] |
//! | `GET /v1/networks/{name}` | | [`NetworkDetail`] |
//! | `DELETE /v1/networks/{name}` | | [`NetworkInfo`] |
//! | `GET /v1/containers` | | list of [`ContainerInfo`] |
//! | `POST /v1/containers` | [`ContainerAdd`] | [`ContainerInfo`] |
//! | `DELETE /v1/containers` | [`ContainerRemove`] | list of [`ContainerInfo`] |
//! | `GET /v1/fdb` | | list of [`FdbRow`] |
//! | `POST /v1/fdb` | [`FdbAdd`] | [`FdbRow`] |
//! | `DELETE /v1/fdb` | [`FdbRemove`] | [`FdbRow`] |
//! | `GET /v1/vteps` | | list of [`VtepInfo`] |
//! | `POST /v1/detach` | [`Detach`] | [`Detached`] |
//! | `GET /v1/metrics` | | OpenMetrics text |
//!
//! The rest is in [`admin`], [`attachments`], [`mdb`], [`overview`], [`policies`], [`services`] and [`trace`]. An error is a 4xx or 5xx status with an [`ErrorBody`].

pub mod admin;
pub mod attachments;
pub mod client;
pub mod docker;
pub mod keys;
pub mod mdb;
mod metrics;
mod names;
pub mod overview;
mod peers;
pub mod policies;
mod publish;
pub mod server;
pub mod services;
pub mod trace;
mod vteps;
pub mod web;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use overlay_core::model::{HostId, MacAddr, Multicast, Subnet, Vni};
use overlay_core::policy::RateLimit;
use serde::{Deserialize, Serialize};

pub use attachments::{Attachment, AttachmentRef};
pub use publish::{Protocol, Publish};
pub use vteps::{Checksums, DataPath, LatencyInfo, VtepInfo};

use crate::bpf::Hook;

/// What went wrong, and what to do about it, in one line.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The line.
    pub error: String,
}

/// A network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its VNI.
    pub vni: Vni,
    /// Its addresses.
    pub subnet: IpNetwork,
    /// Answered for by every agent.
    pub gateway: IpAddr,
    /// The second family of a dual-stack network.
    pub ipv6: Option<Subnet>,
    /// Nothing leads out of it or into it.
    #[serde(default)]
    pub internal: bool,
    /// Between hosts its frames are encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// What becomes of its broadcast and multicast.
    pub multicast: Multicast,
    /// Whether nobody chose that: then it is by the network's size.
    pub multicast_by_size: bool,
    /// Hosts that have addresses of it.
    pub hosts: usize,
    /// Endpoints on all hosts. Where no container is attached to it, only `network inspect` knows:
    /// the others don't tell this host of a network that it has no use for.
    pub endpoints: Option<usize>,
    /// Whether this host has an endpoint in it.
    pub attached: bool,
}

/// A network with its endpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkDetail {
    /// The network.
    #[serde(flatten)]
    pub network: NetworkInfo,
    /// Its endpoints.
    pub containers: Vec<ContainerInfo>,
}

/// Asks for a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its addresses, one of each family; the next free IPv4 /24 when empty.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Its gateways, one for each subnet; their first addresses when empty.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Where addresses that nobody asks for come from; the whole subnet when absent.
    pub ip_range: Option<IpNetwork>,
    /// IPv6 besides IPv4.
    #[serde(default)]
    pub ipv6: bool,
    /// Its VNI; the next free one when absent.
    pub vni: Option<Vni>,
    /// Nothing is to lead out of it or into it.
    #[serde(default)]
    pub internal: bool,
    /// Between hosts its frames are encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// What is to become of broadcast and multicast; by the network's size when absent.
    #[serde(default)]
    pub multicast: Option<Multicast>,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Its network's VNI.
    pub vni: Vni,
    /// Its first address.
    pub ip: Option<IpAddr>,
    /// All its addresses.
    pub ips: Vec<IpAddr>,
    /// More names of it.
    pub aliases: Vec<String>,
    /// The service that it is a task of.
    pub service: Option<String>,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Whether it passes its service's check; without one it does.
    pub ready: bool,
    /// The host it is on.
    pub host: HostId,
    /// That host's name.
    pub host_name: String,
    /// What only the host that it is on knows.
    pub local: Option<LocalContainer>,
}

/// What only the host that an endpoint is on knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalContainer {
    /// The interface inside.
    pub ifname: String,
    /// The namespace, as it was given.
    pub netns: String,
    /// The port's interface.
    pub port: String,
    /// The port's ifindex.
    pub port_ifindex: u32,
    /// MTU of the interface inside.
    pub mtu: u32,
    /// What the runtime that it was attached for calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Ports of this host that lead into it: in answers, see [`Port::shown`].
    ///
    /// [`Port::shown`]: crate::agent::Port::shown
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// How much it may send; anything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<RateLimit>,
}

/// A network namespace, named in one of three ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Netns {
    /// As `ip netns` names it.
    Name(String),
    /// That of a process.
    Pid(u32),
    /// A file.
    Path(PathBuf),
}

/// Asks to attach a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerAdd {
    /// Its name; made from its service when absent.
    pub name: Option<String>,
    /// The network's name.
    pub network: String,
    /// Its network namespace.
    pub netns: Netns,
    /// More names of it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The service that it is a task of.
    #[serde(default)]
    pub service: Option<String>,
    /// Whether programs that `ip netns exec` runs there are to ask the network's gateway for names.
    #[serde(default)]
    pub resolv_conf: bool,
    /// The address it wants; the next free one when absent.
    pub ip: Option<IpAddr>,
    /// The MAC it wants; 02:42 and the IPv4 address when absent.
    pub mac: Option<MacAddr>,
    /// The interface inside.
    pub ifname: String,
    /// What the runtime calls it that asks.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// Ports of it that this host publishes.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// How much it may send.
    #[serde(default)]
    pub limit: Option<RateLimit>,
}

/// Asks to detach containers of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRemove {
    /// Its name.
    pub name: String,
    /// From this network alone; from all when absent.
    pub network: Option<String>,
}

/// A line of the forwarding table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FdbRow {
    /// The network's name.
    pub network: String,
    /// Its VNI.
    pub vni: Vni,
    /// The Ethernet address.
    pub mac: MacAddr,
    /// The addresses it answers for.
    pub ips: Vec<IpAddr>,
    /// The VTEP it is behind; absent for a local port.
    pub vtep: Option<IpAddr>,
    /// The local port; absent for a VTEP.
    pub port: Option<String>,
    /// `port`, `host` (told by the cluster) or `static`.
    pub origin: String,
    /// Whether the BPF maps have it: this host has an endpoint in the network.
    pub installed: bool,
}

/// Asks for a static entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FdbAdd {
    /// The network's name.
    pub network: String,
    /// The Ethernet address.
    pub mac: MacAddr,
    /// The VTEP it is behind.
    pub vtep: IpAddr,
    /// The addresses it answers for.
    pub ips: Vec<IpAddr>,
}

/// Asks to remove a static entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FdbRemove {
    /// The network's name.
    pub network: String,
    /// The Ethernet address.
    pub mac: MacAddr,
}

/// How to join this cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    /// The token.
    pub token: String,
    /// The address to join at.
    pub address: String,
    /// The whole command.
    pub join_command: String,
}

/// Asks the agent to leave and undo everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detach {
    /// Also when this host is the cluster's only manager and others are left.
    pub force: bool,
}

/// What was undone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detached {
    /// One line each.
    pub undone: Vec<String>,
}

/// The state of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its instance.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Who this host is.
    pub host: HostId,
    /// Its name.
    pub host_name: String,
    /// Whether it is a manager.
    pub manager: bool,
    /// The underlay interface.
    pub uplink: UplinkStatus,
    /// `--datapath`, as it was given.
    pub datapath: String,
    /// Where the status page and the metrics are served (`attach --metrics`).
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// What is attached, and why.
    pub hooks: Vec<Hook>,
    /// Whether containers leave checksums to be computed on the way, and why.
    pub checksum_offload: ChecksumOffload,
    /// Every VTEP this host sends to or takes frames from.
    pub vteps: Vec<VtepStatus>,
    /// Answers to the probes of VTEPs: good ones, late ones, and what was none.
    pub probes: ProbeCounters,
    /// Networks with an endpoint here.
    pub networks_attached: usize,
    /// Endpoints here.
    pub ports: usize,
    /// Events since the data path was made, by name.
    pub stats: BTreeMap<String, u64>,
    /// Drops since the data path was made, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What became of questions for names since the agent started.
    #[serde(default)]
    pub names: BTreeMap<String, u64>,
}

/// The underlay interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// Its name.
    pub interface: String,
    /// Its driver.
    pub driver: String,
    /// What is wrong with it, if anything.
    pub problem: Option<String>,
    /// This host's VTEP address.
    pub address: IpAddr,
    /// Its MTU.
    pub mtu: u32,
    /// MTU of containers.
    pub inner_mtu: u32,
    /// UDP port of VXLAN.
    pub data_port: u16,
}

/// Whether containers leave checksums to be computed by what is on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChecksumOffload {
    /// Whether they do.
    pub on: bool,
    /// Why, or why not.
    pub why: String,
}

/// What has come in answer to probes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ProbeCounters {
    /// In time.
    pub answers: u64,
    /// After the probe was counted as lost.
    pub late: u64,
    /// To no probe of this host's.
    pub unknown: u64,
}

/// A VTEP.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VtepStatus {
    /// Its address.
    pub address: IpAddr,
    /// The host it is of; absent for a static one.
    pub host: Option<HostId>,
    /// That host's name.
    pub host_name: String,
    /// `alive`, `suspect`, `down` or `static`.
    pub state: String,
    /// MAC of the next hop, when it is resolved.
    pub next_hop: Option<MacAddr>,
    /// The interface it is reached through.
    pub ifindex: Option<u32>,
    /// The largest inner packet on the way.
    pub mtu: Option<u32>,
}
