//! How each VTEP is reached: what the kernel's routes and neighbours say, kept in the tables.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use overlay_common::wire::OVERHEAD_V4;
use overlay_core::tables::NextHop;
use overlay_host::Host;

/// The gateways through which VTEPs are reached.
#[derive(Default)]
pub struct NextHops {
    /// VTEP → (gateway or itself, ifindex).
    via: HashMap<IpAddr, (IpAddr, u32)>,
    /// VTEPs that can't be reached, and of which that has been said.
    lost: HashSet<IpAddr>,
}

impl NextHops {
    /// Asks the kernel how to reach `vtep` from `src`. `None` while it can't be reached or the
    /// gateway's MAC is not known; the kernel is asked to find it out.
    pub async fn resolve(&mut self, host: &Host, vtep: IpAddr, src: IpAddr) -> Option<NextHop> {
        let hop = match host.resolve(vtep, src).await {
            Ok(hop) => hop,
            Err(error) => {
                // Said once, not each time that it is tried again.
                if self.via.remove(&vtep).is_some() || self.lost.insert(vtep) {
                    tracing::warn!(%vtep, %error, "no way to the VTEP");
                }
                return None;
            }
        };
        self.lost.remove(&vtep);
        self.via.insert(vtep, (hop.gateway_or_dst, hop.ifindex));
        let mtu = hop.route_mtu.unwrap_or(hop.link_mtu).min(hop.link_mtu);
        Some(NextHop {
            ifindex: hop.ifindex,
            src_mac: hop.src_mac.0,
            dst_mac: hop.dst_mac?.0,
            mtu: mtu.saturating_sub(OVERHEAD_V4),
        })
    }

    /// Forgets a VTEP.
    pub fn forget(&mut self, vtep: &IpAddr) {
        self.via.remove(vtep);
    }

    /// The VTEPs that are reached through this neighbour.
    pub fn through(&self, neighbour: IpAddr, ifindex: u32) -> Vec<IpAddr> {
        let through = self
            .via
            .iter()
            .filter(|(_, via)| **via == (neighbour, ifindex));
        through.map(|(vtep, _)| *vtep).collect()
    }

    /// Has the kernel confirm every gateway, so that none ages out while only BPF uses it.
    pub async fn keep_fresh(&self, host: &Host) {
        let mut gateways: Vec<_> = self.via.values().copied().collect();
        gateways.sort_unstable();
        gateways.dedup();
        for (ip, ifindex) in gateways {
            if let Err(error) = host.keep_fresh(ip, ifindex).await {
                tracing::debug!(%ip, %error, "can't have the neighbour confirmed");
            }
        }
    }
}
