//! What Docker sends to a network and IPAM plugin, and what it is answered (libnetwork's remote
//! API). Fields that nobody here reads are left out; those that Docker leaves out are empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The media type of requests and answers.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The key of what `-o` has set, in the options of `CreateNetwork`.
pub const GENERIC: &str = "com.docker.network.generic";
/// `-p`: ports that are to be published, in the options of `ProgramExternalConnectivity`.
pub const PORT_MAP: &str = "com.docker.network.portmap";
/// `--internal`.
pub const INTERNAL: &str = "com.docker.network.internal";
/// What an address is requested for.
pub const ADDRESS_TYPE: &str = "RequestAddressType";
/// A network's gateway, as the type of an address and in a pool's data.
pub const GATEWAY: &str = "com.docker.network.gateway";

/// `/IpamDriver.RequestPool`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RequestPool {
    /// `--subnet`, or empty.
    pub pool: String,
    /// `--ip-range`, or empty.
    pub sub_pool: String,
    /// `--ipam-opt`
    pub options: Option<BTreeMap<String, String>>,
    pub v6: bool,
}

/// Its answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PoolGiven {
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// In CIDR notation.
    pub pool: String,
    pub data: BTreeMap<String, String>,
}

/// `/IpamDriver.ReleasePool`, `RequestAddress`, `ReleaseAddress`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OfPool {
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// Empty when any will do.
    pub address: String,
    pub options: Option<BTreeMap<String, String>>,
}

/// `/NetworkDriver.CreateNetwork`, `DeleteNetwork`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    pub options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data")]
    pub ipv4: Option<Vec<PoolData>>,
    #[serde(rename = "IPv6Data")]
    pub ipv6: Option<Vec<PoolData>>,
}

/// What its IPAM driver has given to a network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PoolData {
    /// In CIDR notation.
    pub pool: String,
    /// In CIDR notation, or empty.
    pub gateway: String,
}

/// The other `/NetworkDriver` requests.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OfEndpoint {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// The file of the container's network namespace.
    pub sandbox_key: String,
    pub interface: Option<Interface>,
    pub options: Option<BTreeMap<String, Value>>,
}

/// An endpoint's addresses: what is asked for, and in the answer what that left empty.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Interface {
    /// In CIDR notation.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// In CIDR notation.
    #[serde(rename = "AddressIPv6", skip_serializing_if = "String::is_empty")]
    pub address_ipv6: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
}

/// The answer to `Join`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    pub interface_name: InterfaceName,
    pub gateway: String,
    #[serde(rename = "GatewayIPv6")]
    pub gateway_ipv6: String,
    pub static_routes: Vec<StaticRoute>,
    pub disable_gateway_service: bool,
}

/// Which interface Docker is to move, and what it is to be called inside, less its number.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    pub src_name: String,
    pub dst_prefix: String,
}

/// A route besides the default one.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    /// In CIDR notation.
    pub destination: String,
    /// 0: by a next hop.
    pub route_type: u8,
    pub next_hop: String,
}
