//! What `attach` is told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use overlay_core::slowpath::FloodLimit;
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// Which hooks carry the data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// What measured fastest: XDP on an uplink that runs it natively on real frames, else tcx;
    /// tcx on ports
    #[default]
    Auto,
    /// Native XDP on ports and uplink
    Xdp,
    /// tcx on ports and uplink (clsact before kernel 6.6)
    Tcx,
}

/// What becomes of the data path when the agent is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Detach the containers and remove everything from the host
    #[default]
    Undo,
    /// Leave the data path running for the next agent, as a crash does
    Keep,
}

/// Everything that `attach` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which agent on this machine.
    pub instance: Instance,
    /// The uplink.
    pub iface: String,
    /// The host to join.
    pub join: Option<String>,
    /// The token to join with.
    pub token: Option<overlay_cluster::Token>,
    /// Which hooks.
    pub datapath: Datapath,
    /// Upper bound of the containers' MTU.
    pub mtu: Option<u32>,
    /// The VTEP address, when the uplink has several.
    pub advertise: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub data_port: u16,
    /// UDP port of ESP.
    pub esp_port: u16,
    /// How much broadcast and multicast each container may send.
    pub flood: FloodLimit,
    /// How long a key of encrypted networks is used.
    pub key_lifetime: Duration,
    /// UDP port for joining.
    pub control_port: u16,
    /// UDP port for gossip.
    pub gossip_port: u16,
    /// The host's name in the cluster.
    pub host_name: String,
    /// The host's resolvers, for names that are not the overlay's.
    pub resolv_conf: PathBuf,
    /// Where the status page and the metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Whether the BPF programs log.
    pub bpf_log: bool,
    /// What becomes of the data path at exit.
    pub on_exit: OnExit,
    /// Docker's plugin.
    pub docker: crate::docker::Options,
    /// The group that may use the API, besides root.
    pub group: Option<u32>,
}
