//! The VTEPs of other hosts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_common::layout::VtepEntry;
use overlay_common::wire::{Family, Ip16, map_v4};

use super::Error;
use super::record::{Record, is_one_hosts};
use crate::model::Vni;

#[derive(Debug)]
pub(super) struct Vtep {
    /// A host of the cluster has it.
    pub host: bool,
    /// How many static entries are behind it.
    pub statics: usize,
    pub entry: VtepEntry,
    /// What its host says it has; claims only while `host`.
    pub endpoints: BTreeMap<(Vni, Box<str>), Record>,
}

impl Vtep {
    /// One of which nothing is known, to be reached from `src_ip`.
    pub fn new(src_ip: Ip16) -> Vtep {
        Vtep {
            host: false,
            statics: 0,
            entry: unresolved(src_ip),
            endpoints: BTreeMap::new(),
        }
    }

    /// Whether it is in the map.
    pub fn is_known(&self) -> bool {
        self.host || self.statics > 0
    }
}

/// The entry of a VTEP without a next hop.
pub(super) fn unresolved(src_ip: Ip16) -> VtepEntry {
    VtepEntry {
        src_ip,
        ifindex: 0,
        mtu: 0,
        src_mac: [0; 6],
        dst_mac: [0; 6],
    }
}

/// What maps call the VTEP with this address.
pub(super) fn vtep_key(ip: IpAddr) -> Result<Ip16, Error> {
    match ip.to_canonical() {
        _ if !is_one_hosts(ip) => Err(Error::Vtep(ip)),
        IpAddr::V4(v4) => Ok(map_v4(v4.octets())),
        IpAddr::V6(v6) => {
            let key = v6.octets();
            let reserved = Family::of(&key) != Family::V6;
            if reserved || v6.is_unicast_link_local() {
                return Err(Error::Vtep(ip));
            }
            Ok(key)
        }
    }
}
