//! The ports of this host.

use std::collections::BTreeMap;

use overlay_common::layout::{PORT_BACKEND, PortEntry};
use overlay_common::wire::{UNSPECIFIED, map_v4, unmap_v4};

use super::record::Record;
use crate::model::Vni;

#[derive(Debug)]
pub(super) struct Port {
    pub vni: Vni,
    pub record: Record,
    pub entry: PortEntry,
}

impl Port {
    pub fn new(vni: Vni, record: Record, mtu: u32, flags: u32) -> Port {
        let is_v4 = |ip: &[u8; 16]| *ip == map_v4(unmap_v4(ip));
        let ips = || record.ips.iter().map(|(ip, _)| *ip);
        let mut v6 = ips().filter(|ip| !is_v4(ip));
        let entry = PortEntry {
            vni: vni.get(),
            mtu,
            mac: record.mac.0,
            _zero: [0; 2],
            ip4: ips().find(is_v4).map_or([0; 4], |ip| unmap_v4(&ip)),
            ip6: [(); 2].map(|()| v6.next().unwrap_or(UNSPECIFIED)),
            flags: flags | record.service.as_ref().map_or(0, |_| PORT_BACKEND),
        };
        Port { vni, record, entry }
    }
}

/// By ifindex.
pub(super) type Ports = BTreeMap<u32, Port>;
