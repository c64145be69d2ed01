//! Which other hosts have members of which multicast groups.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_common::layout::VtepEntry;
use overlay_common::wire::Ip16;

use super::vtep::vtep_key;
use super::{Tables, net_or_new};
use crate::model::{Multicast, Network, Vni};
use crate::multicast::Group;

/// A group that a host has members of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupRow {
    /// The network.
    pub vni: Vni,
    /// The group.
    pub group: Group,
    /// The host's VTEP.
    pub vtep: IpAddr,
}

impl Tables {
    /// The host with this VTEP says that these groups of the network have members there, and no
    /// others.
    pub fn groups_set(&mut self, vtep: IpAddr, vni: Vni, groups: &BTreeSet<Group>) {
        let Ok(key) = vtep_key(vtep) else { return };
        if groups.is_empty() && !self.nets.contains_key(&vni.get()) {
            return;
        }
        let net = net_or_new(&mut self.nets, vni, self.local.mtu);
        let gone = |(group, of): &(Group, Ip16)| *of == key && !groups.contains(group);
        net.groups.retain(|pair| !gone(pair));
        net.groups.extend(groups.iter().map(|group| (*group, key)));
        self.forget_net_if_empty(vni);
    }

    /// All that hosts have said.
    pub fn groups(&self) -> impl Iterator<Item = GroupRow> {
        self.nets.values().flat_map(|net| {
            net.groups.iter().map(|(group, vtep)| GroupRow {
                vni: net.vni,
                group: *group,
                vtep: IpAddr::from(*vtep).to_canonical(),
            })
        })
    }

    pub(super) fn forget_groups(&mut self, vtep: Ip16) {
        let of_it = |net: &&mut super::Net| net.groups.iter().any(|(_, of)| *of == vtep);
        let mut touched = Vec::new();
        for net in self.nets.values_mut().filter(of_it) {
            net.groups.retain(|(_, of)| *of != vtep);
            touched.push(net.vni);
        }
        for vni in touched {
            self.forget_net_if_empty(vni);
        }
    }

    /// The VTEPs with members of a group, and those that can't tell what they have.
    pub(crate) fn group_vteps(
        &self,
        vni: u32,
        group: Group,
    ) -> impl Iterator<Item = (&Ip16, &VtepEntry)> {
        let nets = self.active(vni).into_iter();
        let vteps = nets.flat_map(move |net| {
            let of_group = net.groups.range((group, [0; 16])..=(group, [0xff; 16]));
            of_group.map(|(_, vtep)| vtep)
        });
        let vteps = vteps.filter_map(|ip| Some((ip, self.vtep_entry(ip)?)));
        vteps.chain(self.static_vteps(vni))
    }

    /// The VTEPs of a network that are no hosts of the cluster.
    pub(crate) fn static_vteps(&self, vni: u32) -> impl Iterator<Item = (&Ip16, &VtepEntry)> {
        let nets = self.active(vni).into_iter();
        let vteps = nets.flat_map(|net| net.statics.keys());
        vteps.filter_map(|ip| {
            let vtep = self.vteps.get(ip).filter(|vtep| !vtep.host)?;
            Some((ip, &vtep.entry))
        })
    }

    /// The ports whose groups are to be known, each with its network.
    pub(crate) fn snooped_ports(&self) -> impl Iterator<Item = (u32, &Network)> {
        let nets = self.nets.values().filter(|net| net.active);
        let snooped = nets.filter_map(|net| {
            let network = net.network.as_ref()?;
            (network.multicast_mode() == Multicast::Snoop).then_some((net, network))
        });
        snooped.flat_map(|(net, network)| net.ports.iter().map(move |port| (*port, network)))
    }
}
