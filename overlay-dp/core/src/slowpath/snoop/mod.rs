//! Which ports have joined which multicast groups: listening to IGMP and MLD (RFC 4541), and asking,
//! as the gateway, the ports of this host.
//!
//! Reports go no further than here, so that no host is kept from saying what another one has said
//! (RFC 4541 section 2.1.1), except to VTEPs that are no hosts of the cluster: these may be told by
//! no other means. A container can't ask: its queries are dropped.

mod members;
mod message;
mod query;

use core::time::Duration;
use std::collections::BTreeMap;

use overlay_common::counters::DropReason;
use overlay_common::layout::PortEntry;
use overlay_common::wire::{ETH_P_IPV6, Ip16, UNSPECIFIED, map_v4};

use super::Output;
use super::emit::Sink;
use super::message::Link;
use super::port::{FromPort, gateway4};
use crate::model::Network;
use crate::multicast::Group;
use crate::tables::Tables;

pub use members::Member;
use members::{LIFE, Members, QUERY_INTERVAL};
use message::Verb;
pub(super) use message::{Message, Said, parse};

/// A slow path that has just begun knows no members: so long it floods, and asks.
pub const LEARNING: Duration = Duration::from_secs(5);
/// The second query to a port, for a first one that came before its container was there.
const SECOND_QUERY: Duration = Duration::from_secs(31);
/// Queries sent at a time.
const BATCH: usize = 64;
/// How soon ports are noticed in the beginning, which an earlier agent may have had.
const LOOK: Duration = Duration::from_millis(100);

/// A port that is asked about its groups.
#[derive(Debug)]
struct Asked {
    vni: u32,
    next: Duration,
    before: bool,
}

/// What is known of the groups of this host's ports.
#[derive(Debug, Default)]
pub(super) struct Snooper {
    members: Members,
    ports: BTreeMap<u32, Asked>,
    /// Of the tables when `ports` was made after them.
    version: Option<u64>,
    looked: Duration,
    /// When there is something to do, or before.
    due: Option<Duration>,
}

impl Snooper {
    pub fn members(&self) -> &[Member] {
        self.members.all()
    }

    pub fn revision(&self) -> u64 {
        self.members.revision()
    }

    /// The ports of a network that have joined a group.
    pub fn of_group(&self, vni: u32, group: Group) -> impl Iterator<Item = u32> {
        let members = self.members.of_group(vni, group).iter();
        members.map(|member| member.ifindex)
    }

    /// Takes what a container says of its groups.
    pub fn hear(
        &mut self,
        from: &FromPort<'_>,
        message: Message<'_>,
        now: Duration,
    ) -> Result<(), DropReason> {
        if !is_own(from.port, from.ethertype, &message.src) {
            return Err(DropReason::BadMembership);
        }
        let (vni, ifindex) = (from.port.vni, from.ifindex);
        let mut take = |group, verb| match verb {
            Verb::Join => {
                self.due = Some(self.due.map_or(now + LIFE, |due| due.min(now + LIFE)));
                self.members.join(vni, group, ifindex, now)
            }
            Verb::Leave => {
                if self.members.leave(vni, group, ifindex, now) {
                    self.due = Some(now);
                }
                Ok(())
            }
        };
        let taken = match message.said {
            Said::Query => return Err(DropReason::BadMembership),
            Said::One(None, _) => Ok(()),
            Said::One(Some(group), verb) => take(group, verb),
            Said::Many(records) => {
                let mut all = Ok(());
                // Those behind one for which there is no room may be leaving.
                for (group, verb) in records {
                    all = all.and(take(group, verb));
                }
                all
            }
        };
        taken.map_err(|members::Full| DropReason::TooManyGroups)
    }

    /// When [`Snooper::tick`] has something to do; at once in the beginning.
    pub fn due(&self) -> Option<Duration> {
        match self.version {
            Some(_) => self.due,
            None => Some(Duration::ZERO),
        }
    }

    /// Whether it has something to do now, or ports may be others than when it was last looked.
    pub fn is_due(&self, tables: &Tables, now: Duration) -> bool {
        let outdated = self.version != Some(tables.version()) && now >= self.looked + LOOK;
        outdated || self.due().is_some_and(|due| due <= now)
    }

    /// Asks who has not been asked for long, and forgets who has not answered.
    pub fn tick(&mut self, now: Duration, sink: &mut Sink<'_, impl Output>) {
        let tables = sink.tables;
        self.looked = now;
        if self.version != Some(tables.version()) {
            self.version = Some(tables.version());
            self.fit_ports(tables, now);
        }
        let ports = &self.ports;
        self.members.expire(now, |ifindex, vni| {
            ports.get(&ifindex).is_none_or(|port| port.vni != vni)
        });
        let due = self.ports.iter_mut().filter(|(_, port)| port.next <= now);
        for (ifindex, port) in due.take(BATCH) {
            let pause = match std::mem::replace(&mut port.before, true) {
                false => SECOND_QUERY,
                true => QUERY_INTERVAL,
            };
            port.next = now + pause;
            ask(*ifindex, None, sink);
        }
        for _ in 0..BATCH {
            let Some(member) = self.members.next_to_ask(now) else {
                break;
            };
            ask(member.ifindex, Some(member.group), sink);
        }
        let ports = self.ports.values().map(|port| port.next).min();
        let learning = (now < LEARNING).then_some((now + LOOK).min(LEARNING));
        let all = [ports, self.members.due(), learning];
        self.due = all.into_iter().flatten().min();
    }

    fn fit_ports(&mut self, tables: &Tables, now: Duration) {
        let mut before = std::mem::take(&mut self.ports);
        let now_there = tables.snooped_ports().map(|(ifindex, network)| {
            let vni = network.vni.get();
            let same = before.remove(&ifindex).filter(|port| port.vni == vni);
            let port = same.unwrap_or(Asked {
                vni,
                next: now,
                before: false,
            });
            (ifindex, port)
        });
        self.ports = now_there.collect();
    }
}

/// Whether a container may say something from this address. MLD knows hosts that have none yet
/// (RFC 3590).
fn is_own(port: &PortEntry, ethertype: u16, src: &Ip16) -> bool {
    match ethertype {
        ETH_P_IPV6 => *src == UNSPECIFIED || port.ip6.contains(src),
        _ => *src == map_v4(port.ip4),
    }
}

fn ask(ifindex: u32, group: Option<Group>, sink: &mut Sink<'_, impl Output>) {
    let tables = sink.tables;
    let Some(port) = tables.port_entry(ifindex) else {
        return;
    };
    let Some(network) = tables.active_network(port.vni) else {
        return;
    };
    query::send(link(ifindex, port, network), gateway4(network), group, sink);
}

/// From the gateway to the port.
fn link(ifindex: u32, port: &PortEntry, network: &Network) -> Link {
    Link {
        ifindex,
        vni: port.vni,
        dst: port.mac,
        src: network.gateway_mac().0,
    }
}
