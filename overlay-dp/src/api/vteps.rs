//! The ways to the other hosts, as they are measured.

use std::net::IpAddr;

use overlay_core::model::{HostId, MacAddr};
use serde::{Deserialize, Serialize};

/// A VTEP, and the way to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VtepInfo {
    /// Its address.
    pub address: IpAddr,
    /// The host it is of; absent for a static one.
    pub host: Option<HostId>,
    /// That host's name.
    pub host_name: String,
    /// `alive`, `suspect`, `down` or `static`: what the cluster says of its agent.
    pub state: String,
    /// Whether its data path answers probes, whatever its agent does.
    pub data_path: DataPath,
    /// Round trips of the last probes, if any was answered.
    pub latency: Option<LatencyInfo>,
    /// Of the last 100 probes, in per cent; absent before the first one.
    pub loss_percent: Option<f64>,
    /// The largest IP packet that arrives there and back, in bytes, once that is known.
    pub path_mtu: Option<u32>,
    /// Whether checksums that are left to be computed are computed when they arrive there.
    #[serde(default)]
    pub checksums: Checksums,
    /// MAC of the next hop, when it is resolved.
    pub next_hop: Option<MacAddr>,
    /// The interface it is reached through.
    pub interface: Option<String>,
}

/// Whether a data path answers probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    /// The last probes were answered.
    Answers,
    /// It has answered, but does not now.
    Silent,
    /// It has never answered: it may be no host of ours.
    Unknown,
}

/// Whether checksums that are left to be computed arrive computed: not so where a hook or a driver
/// on the way loses the note that they are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksums {
    /// They do.
    Ok,
    /// They do not.
    Broken,
    /// Nobody has asked, or the VTEP does not know the question: taken for fine.
    #[default]
    Unknown,
}

/// Round trips, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LatencyInfo {
    /// The fastest one.
    pub min_us: u64,
    /// A moving average.
    pub average_us: u64,
    /// All but one in a hundred are faster.
    pub p99_us: u64,
}
