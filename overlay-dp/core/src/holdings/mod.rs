//! This host's part of address management: which of the addresses granted to it are in use.
//!
//! An attach goes like this. [`Holdings::take`]; on [`Need::Ask`] a manager is asked, and when the
//! facts here show the grant, `take` again. No manager can be asked, or has nothing left:
//! [`Holdings::take_spare`]. Nothing there either: wait for the others to give back and `take`
//! again, or [`Holdings::gave_up`]. A lost reply is harmless, the facts tell what was granted.
//!
//! In the background, after each change of the facts and while a manager can be asked:
//! [`Holdings::returns`] and [`Holdings::wants`], with one request at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::facts::{Command, Facts, Grant, Range, Ranges, Refusal, Version, Want};
use crate::model::{HostId, MacAddr, Vni};

mod background;

/// At most so many addresses are asked for at once.
const MAX_GROWTH: u64 = 64;

/// What stands in the way of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// The managers have to be asked; then, with the facts that grant it, try again.
    #[error("a manager has to grant it")]
    Ask(Want),
    /// It can't be had.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An endpoint of this host has it.
    #[error("{0} is in use on this host: choose another")]
    InUse(String),
}

/// What to give back in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBack {
    /// The network.
    pub vni: Vni,
    /// Offsets.
    pub ranges: Vec<Range>,
    /// Claimed MAC addresses.
    pub macs: Vec<MacAddr>,
    /// The version of the facts by which it was decided.
    pub seen: Version,
}

/// What of one network is leased to this host for nothing: what would be given back now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// The network.
    pub vni: Vni,
    /// How many offsets.
    pub offsets: usize,
    /// How many claimed MAC addresses.
    pub macs: usize,
}

impl GiveBack {
    /// The command that does it.
    pub fn command(self, host: HostId) -> Command {
        Command::Return {
            host,
            vni: self.vni,
            ranges: self.ranges,
            macs: self.macs,
            seen: self.seen,
        }
    }
}

/// The addresses in use on this host, and those that it is giving back.
///
/// A return that was sent may take effect at any later time, so what is being returned is used no
/// more until the facts show it gone, or granted anew. A restart must not forget it: save this
/// before sending what [`Holdings::returns`] says. As `serde` state it is what is being returned
/// alone; endpoints that outlive a restart are told by [`Holdings::keep`]. Save the facts before
/// it: after a restart with older ones nothing can be taken until a manager was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    networks: BTreeMap<Vni, Held>,
    /// The facts that returns were last looked at by: what they showed gone is forgotten here, so
    /// older ones, which a restart may begin with, would let it be used again.
    #[serde(default)]
    looked: Version,
}

/// What of one network is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    #[serde(skip)]
    used: Ranges,
    #[serde(skip)]
    used_macs: BTreeSet<MacAddr>,
    /// What an attach waits for: an offset, or any. It is not given back when it comes.
    #[serde(skip)]
    asked: BTreeSet<Option<u32>>,
    #[serde(skip)]
    asked_macs: BTreeSet<MacAddr>,
    /// The offset tried next, so that a freed one rests before it is used again.
    #[serde(skip)]
    next: u32,
    returning: BTreeMap<u32, Returning>,
    returning_macs: BTreeMap<MacAddr, Returning>,
}

/// A return that was, or is about to be, sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Returning {
    /// It takes what was granted up to this version.
    seen: Version,
    /// It was sent more than once: no single answer tells what becomes of it.
    again: bool,
}

impl Holdings {
    /// Nothing in use.
    pub fn new() -> Holdings {
        Holdings::default()
    }

    /// Takes an offset for an endpoint of this host, `me`: that of `ip`, or any that is granted,
    /// unused and no spare.
    ///
    /// # Errors
    /// [`Need::Ask`] when a manager has to grant one first; the attach must end in success or in
    /// [`Holdings::gave_up`] then.
    pub fn take(
        &mut self,
        facts: &Facts,
        me: HostId,
        vni: Vni,
        ip: Option<IpAddr>,
    ) -> Result<u32, Need> {
        let network = facts.network(vni).ok_or(Refusal::NoVni(vni))?;
        let outdated = self.outdated(facts);
        let held = self.networks.entry(vni).or_default();
        let Some(ip) = ip else {
            if !outdated && let Some(offset) = held.pick(facts, me, vni, false) {
                held.asked.remove(&None);
                return Ok(offset);
            }
            held.asked.insert(None);
            return Err(Need::Ask(Want::Addresses(growth(facts, me, vni))));
        };
        if network.gateways().any(|gateway| gateway == ip) {
            return Err(Refusal::GatewayWanted(ip).into());
        }
        let offset = network.offset_of(ip);
        let offset = offset.filter(|offset| facts.is_usable(vni, *offset));
        let offset = offset.ok_or_else(|| Refusal::address(ip, network))?;
        if held.used.contains(offset) {
            return Err(Need::InUse(ip.to_string()));
        }
        let grant = facts.grant(vni, offset);
        if !outdated && grant.is_some_and(|grant| held.is_free(facts, me, grant, offset)) {
            held.asked.remove(&Some(offset));
            held.used.insert(Range::one(offset));
            return Ok(offset);
        }
        held.asked.insert(Some(offset));
        Err(Need::Ask(Want::Ip(ip)))
    }

    /// Takes any offset that is granted and unused, also a spare: for when no manager can be
    /// asked, or has nothing left to give.
    pub fn take_spare(&mut self, facts: &Facts, me: HostId, vni: Vni) -> Option<u32> {
        if self.outdated(facts) {
            return None;
        }
        let held = self.networks.entry(vni).or_default();
        let found = held.pick(facts, me, vni, false);
        let offset = found.or_else(|| held.pick(facts, me, vni, true))?;
        held.asked.remove(&None);
        Some(offset)
    }

    /// As [`Holdings::take`], an offset from the end of the range, where there is one: those at its
    /// beginning are for containers.
    ///
    /// # Errors
    /// As [`Holdings::take`].
    pub fn take_last(&mut self, facts: &Facts, me: HostId, vni: Vni) -> Result<u32, Need> {
        let outdated = self.outdated(facts);
        let held = self.networks.entry(vni).or_default();
        let next = held.next;
        if !outdated && let Some(offset) = held.pick(facts, me, vni, true) {
            held.next = next;
            held.asked.remove(&None);
            return Ok(offset);
        }
        if outdated || facts.spares_left(vni, 1) == 0 || background::others_wait(facts, me, vni) {
            return self.take(facts, me, vni, None);
        }
        held.asked.insert(None);
        Err(Need::Ask(Want::Spare(background::KEPT as u32)))
    }

    /// Takes a MAC address for an endpoint, other than the one of its own offset.
    ///
    /// # Errors
    /// See [`Holdings::take`]; it is [`Holdings::gave_up_mac`] here.
    pub fn take_mac(
        &mut self,
        facts: &Facts,
        me: HostId,
        vni: Vni,
        mac: MacAddr,
    ) -> Result<(), Need> {
        let outdated = self.outdated(facts);
        let held = self.networks.entry(vni).or_default();
        if held.used_macs.contains(&mac) {
            return Err(Need::InUse(mac.to_string()));
        }
        let claim = facts.claim(vni, mac).filter(|claim| claim.host == me);
        let current = claim.is_some_and(|claim| {
            claim.since.epoch == facts.version().epoch
                && !is_going(held.returning_macs.get(&mac), claim.since)
        });
        if outdated || !current {
            held.asked_macs.insert(mac);
            return Err(Need::Ask(Want::Mac(mac)));
        }
        held.asked_macs.remove(&mac);
        held.used_macs.insert(mac);
        Ok(())
    }

    /// An attach that was told to ask ends without an address: what comes yet goes back. Whoever
    /// is waited for is told with an [`Command::Unwant`].
    pub fn gave_up(&mut self, facts: &Facts, vni: Vni, ip: Option<IpAddr>) {
        let network = facts.network(vni);
        let offset = ip.map(|ip| network.and_then(|network| network.offset_of(ip)));
        if let Some(held) = self.networks.get_mut(&vni) {
            match offset {
                // The network is gone, and so is all that was asked for in it.
                Some(None) => held.asked.clear(),
                Some(offset) => drop(held.asked.remove(&offset)),
                None => drop(held.asked.remove(&None)),
            }
        }
    }

    /// An attach that was told to ask ends without its MAC address.
    pub fn gave_up_mac(&mut self, vni: Vni, mac: MacAddr) {
        if let Some(held) = self.networks.get_mut(&vni) {
            held.asked_macs.remove(&mac);
        }
    }

    /// Takes over an endpoint's offset after a restart, granted or not.
    pub fn keep(&mut self, vni: Vni, offset: u32) {
        let held = self.networks.entry(vni).or_default();
        held.used.insert(Range::one(offset));
    }

    /// Takes over an endpoint's MAC address, not the one of its offset, after a restart.
    pub fn keep_mac(&mut self, vni: Vni, mac: MacAddr) {
        self.networks.entry(vni).or_default().used_macs.insert(mac);
    }

    /// An endpoint is gone.
    pub fn free(&mut self, vni: Vni, offset: u32) {
        if let Some(held) = self.networks.get_mut(&vni) {
            held.used.remove(Range::one(offset));
        }
    }

    /// An endpoint with a MAC address of its own is gone.
    pub fn free_mac(&mut self, vni: Vni, mac: MacAddr) {
        if let Some(held) = self.networks.get_mut(&vni) {
            held.used_macs.remove(&mac);
        }
    }

    /// The offsets in use in a network.
    pub fn used(&self, vni: Vni) -> impl Iterator<Item = Range> {
        let held = self.networks.get(&vni).into_iter();
        held.flat_map(|held| held.used.iter())
    }

    /// Whether these facts may show as granted what is known to be gone.
    fn outdated(&self, facts: &Facts) -> bool {
        facts.version() < self.looked
    }
}

impl Held {
    /// Takes the next unused offset that nobody asked for by its address.
    fn pick(&mut self, facts: &Facts, me: HostId, vni: Vni, spare: bool) -> Option<u32> {
        let of_kind = |(grant, _): &(&Grant, u32)| grant.spare == spare;
        let mut unused = self
            .unused(facts, me, vni)
            .filter(of_kind)
            .map(|(_, offset)| offset)
            .filter(|offset| !self.asked.contains(&Some(*offset)))
            .peekable();
        let lowest = *unused.peek()?;
        let offset = unused.find(|offset| *offset >= self.next).unwrap_or(lowest);
        drop(unused);
        self.next = offset.saturating_add(1);
        self.used.insert(Range::one(offset));
        Some(offset)
    }

    /// The offsets that can be taken, ascending, each with its grant.
    fn unused<'a>(
        &'a self,
        facts: &'a Facts,
        me: HostId,
        vni: Vni,
    ) -> impl Iterator<Item = (&'a Grant, u32)> {
        let offsets = self.not_in_use(facts, me, vni);
        offsets.filter(move |(grant, offset)| self.is_free(facts, me, grant, *offset))
    }

    /// The offsets that are granted but have no endpoint.
    fn not_in_use<'a>(
        &'a self,
        facts: &'a Facts,
        me: HostId,
        vni: Vni,
    ) -> impl Iterator<Item = (&'a Grant, u32)> {
        facts.grants(me, vni).flat_map(move |grant| {
            let gaps = self.used.gaps(grant.range);
            gaps.flat_map(move |gap| (gap.first..=gap.last).map(move |offset| (grant, offset)))
        })
    }

    /// Whether an offset without an endpoint can get one. What was granted before a backup was
    /// restored may be another's since: nobody knows, so it has to be granted anew.
    fn is_free(&self, facts: &Facts, me: HostId, grant: &Grant, offset: u32) -> bool {
        grant.host == me
            && grant.since.epoch == facts.version().epoch
            && !is_going(self.returning.get(&offset), grant.since)
    }
}

/// Whether a return on its way can still take what was granted at `since`.
fn is_going(returning: Option<&Returning>, since: Version) -> bool {
    returning.is_some_and(|returning| since <= returning.seen)
}

/// How many addresses to ask for: one, then as many as there are, so that few requests make many.
fn growth(facts: &Facts, me: HostId, vni: Vni) -> u32 {
    let ordinary = facts.grants(me, vni).filter(|grant| !grant.spare);
    let held: u64 = ordinary.map(|grant| grant.range.count()).sum();
    u32::try_from(held.clamp(1, MAX_GROWTH)).unwrap_or(1)
}
