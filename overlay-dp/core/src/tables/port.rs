//! The ports of this host.

use std::collections::BTreeMap;

use overlay_common::layout::{PORT_BACKEND, PORT_POLICED, PortEntry};
use overlay_common::policy::PolicyEntry;
use overlay_common::rate::burst_ns;
use overlay_common::wire::{UNSPECIFIED, map_v4, unmap_v4};

use super::policies::NetPolicies;
use super::record::Record;
use crate::model::Vni;
use crate::policy::RateLimit;

#[derive(Debug)]
pub(super) struct Port {
    pub vni: Vni,
    pub record: Record,
    pub entry: PortEntry,
    /// Who may reach it; `None` for everybody.
    pub policy: Option<Box<PolicyEntry>>,
}

/// What a port is besides its endpoint's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortOptions {
    /// Flags of a [`PortEntry`], as [`PORT_INTERCEPT_DNS`](overlay_common::layout::PORT_INTERCEPT_DNS).
    pub flags: u32,
    /// How much its container may send.
    pub limit: Option<RateLimit>,
}

impl Port {
    pub fn new(vni: Vni, record: Record, mtu: u32, options: PortOptions) -> Port {
        let PortOptions { flags, limit } = options;
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
            rate: limit.map_or(0, |limit| limit.rate),
            burst_ns: limit.map_or(0, |limit| burst_ns(limit.burst, limit.rate)),
        };
        Port {
            vni,
            record,
            entry,
            policy: None,
        }
    }

    /// Gives it what its network's policies say of it.
    pub fn set_policy(&mut self, policies: &NetPolicies) {
        self.policy = policies.entry(&self.record);
        self.entry.flags &= !PORT_POLICED;
        if self.policy.is_some() {
            self.entry.flags |= PORT_POLICED;
        }
    }
}

/// By ifindex.
pub(super) type Ports = BTreeMap<u32, Port>;
