//! What a host gives back and asks for by itself.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use super::{GiveBack, Held, Holdings, MAX_GROWTH, Returning, Surplus, is_going};
use crate::facts::{Facts, MAX_PIECES, Range, Ranges, Version, Want};
use crate::model::{HostId, MacAddr, Vni};

/// So many unused addresses are kept in a network with endpoints, and as many spares are aimed
/// at.
pub(super) const KEPT: usize = 8;

impl Holdings {
    /// What to give back now: everything of a network without endpoints, what is more than needed
    /// soon, everything unused while another host waits for an address there, and claimed MAC
    /// addresses without endpoint. None of it is usable until the facts show it gone or granted
    /// anew; it is said again until then.
    ///
    /// Only for when a manager can be asked: without one, what is unused is needed.
    pub fn returns(&mut self, facts: &Facts, me: HostId) -> Vec<GiveBack> {
        if self.outdated(facts) {
            return Vec::new();
        }
        self.looked = facts.version();
        for vni in facts.networks_of(me) {
            self.networks.entry(vni).or_default();
        }
        let mut all = Vec::new();
        for (vni, held) in &mut self.networks {
            held.settle(facts, me, *vni);
            let offsets = held.to_return(facts, me, *vni);
            let macs = held.macs_to_return(facts, me, *vni);
            let seen = facts.version();
            for offset in &offsets {
                mark(held.returning.entry(*offset), seen);
            }
            for mac in &macs {
                mark(held.returning_macs.entry(*mac), seen);
            }
            let ranges: Ranges = offsets.into_iter().map(Range::one).collect();
            let ranges: Vec<Range> = ranges.iter().collect();
            let count = ranges.len().max(macs.len()).div_ceil(MAX_PIECES);
            let part = |number: usize| number * MAX_PIECES;
            all.extend((0..count).map(|number| GiveBack {
                vni: *vni,
                ranges: slice(&ranges, part(number)),
                macs: slice(&macs, part(number)),
                seen,
            }));
        }
        self.networks.retain(|_, held| !held.is_idle());
        all
    }

    /// What [`Holdings::returns`] would give back, which stays usable.
    pub fn surplus(&self, facts: &Facts, me: HostId) -> Vec<Surplus> {
        if self.outdated(facts) {
            return Vec::new();
        }
        let unknown = Held::default();
        let granted = facts.networks_of(me).into_iter();
        let vnis: BTreeSet<Vni> = granted.chain(self.networks.keys().copied()).collect();
        let of = |vni| {
            let held = self.networks.get(&vni).unwrap_or(&unknown);
            Surplus {
                vni,
                offsets: held.to_return(facts, me, vni).len(),
                macs: held.macs_to_return(facts, me, vni).len(),
            }
        };
        let all = vnis.into_iter().map(of);
        all.filter(|surplus| surplus.offsets + surplus.macs > 0)
            .collect()
    }

    /// A return was refused, or certainly never sent: what it named is usable again, unless it was
    /// sent before. Not for one whose outcome is unknown: it is repeated instead.
    pub fn return_failed(&mut self, back: &GiveBack) {
        let Some(held) = self.networks.get_mut(&back.vni) else {
            return;
        };
        let stays = |returning: &Returning| returning.again || returning.seen != back.seen;
        let ranges: Ranges = back.ranges.iter().copied().collect();
        held.returning
            .retain(|offset, returning| stays(returning) || !ranges.contains(*offset));
        held.returning_macs
            .retain(|mac, returning| stays(returning) || !back.macs.contains(mac));
    }

    /// What to ask for in advance: offsets in use that the facts do not, or no longer, grant to
    /// this host for good (after a restore, or taken as spares), and then spares. Answered with less than
    /// wanted it is not said again before there is more.
    pub fn wants(&self, facts: &Facts, me: HostId) -> Vec<(Vni, Want)> {
        let mut all = Vec::new();
        if self.outdated(facts) {
            return all;
        }
        for (vni, held) in &self.networks {
            let Some(network) = facts.network(*vni) else {
                continue;
            };
            let ordinary = held.lasting(facts, me, *vni);
            let lacking = held.used.iter().flat_map(|range| ordinary.gaps(range));
            let again = lacking
                .flat_map(|range| range.first..=range.last)
                .filter_map(|offset| network.address_at(offset).first().copied());
            all.extend(again.map(|ip| (*vni, Want::Ip(ip))));

            let unclaimed = held.used_macs.iter().filter(|mac| {
                let claim = facts.claim(*vni, **mac);
                claim.is_none_or(|claim| claim.host != me)
            });
            all.extend(unclaimed.map(|mac| (*vni, Want::Mac(*mac))));

            let spares = held.unused(facts, me, *vni);
            let spares = spares.filter(|(grant, _)| grant.spare).count();
            if !held.used.is_empty() && spares <= KEPT / 2 && !others_wait(facts, me, *vni) {
                let lacking = (KEPT - spares) as u32;
                if facts.spares_left(*vni, lacking) > 0 {
                    all.push((*vni, Want::Spare(lacking)));
                }
            }
        }
        all
    }

    /// Offsets in use which are another's by the facts: when that host uses them too, their
    /// endpoints here must go.
    pub fn lost(&self, facts: &Facts, me: HostId) -> Vec<(Vni, u32)> {
        let mut all = Vec::new();
        for (vni, held) in &self.networks {
            let in_use = held.used.iter().flat_map(|range| range.first..=range.last);
            let other = |offset: &u32| facts.owner(*vni, *offset).is_some_and(|host| host != me);
            all.extend(in_use.filter(other).map(|offset| (*vni, offset)));
        }
        all
    }
}

impl Held {
    fn is_idle(&self) -> bool {
        self.used.is_empty()
            && self.used_macs.is_empty()
            && self.asked.is_empty()
            && self.asked_macs.is_empty()
            && self.returning.is_empty()
            && self.returning_macs.is_empty()
    }

    /// Forgets returns that took effect or came too late. Of facts older than a return nothing
    /// can be told.
    fn settle(&mut self, facts: &Facts, me: HostId, vni: Vni) {
        let now = facts.version();
        self.returning.retain(|offset, returning| {
            let grant = facts.grant(vni, *offset).filter(|grant| grant.host == me);
            now < returning.seen || grant.is_some_and(|grant| grant.since <= returning.seen)
        });
        self.returning_macs.retain(|mac, returning| {
            let claim = facts.claim(vni, *mac).filter(|claim| claim.host == me);
            now < returning.seen || claim.is_some_and(|claim| claim.since <= returning.seen)
        });
    }

    /// The offsets that are granted for good: no spares, and nothing that a return can still take.
    fn lasting(&self, facts: &Facts, me: HostId, vni: Vni) -> Ranges {
        let grants = facts.grants(me, vni).filter(|grant| !grant.spare);
        let mut offsets: Ranges = grants.map(|grant| grant.range).collect();
        for (offset, returning) in &self.returning {
            let grant = facts.grant(vni, *offset);
            if grant.is_some_and(|grant| is_going(Some(returning), grant.since)) {
                offsets.remove(Range::one(*offset));
            }
        }
        offsets
    }

    fn to_return(&self, facts: &Facts, me: HostId, vni: Vni) -> BTreeSet<u32> {
        let mut going = BTreeSet::new();
        let mut ordinary = Vec::new();
        let mut spares = Vec::new();
        for (grant, offset) in self.not_in_use(facts, me, vni) {
            if !self.is_free(facts, me, grant, offset) {
                // On its way already, or from before a restore.
                if !self.asked.contains(&Some(offset)) {
                    going.insert(offset);
                }
            } else if grant.spare {
                spares.push(offset);
            } else if !self.asked.contains(&Some(offset)) {
                ordinary.push(offset);
            }
        }
        // What comes for an attach that waits is its own.
        let waiting = self.asked.contains(&None);
        if self.used.is_empty() || others_wait(facts, me, vni) {
            going.extend(spares);
            if !waiting {
                going.extend(ordinary);
            }
            return going;
        }
        for wanted in facts.wanted(vni) {
            if let Want::Ip(ip) = wanted.want
                && wanted.host != me
                && let Some(offset) = facts.network(vni).and_then(|network| network.offset_of(ip))
                && (ordinary.contains(&offset) || spares.contains(&offset))
            {
                going.insert(offset);
            }
        }
        // As many as one request brings are no surplus, else they would come and go.
        let kept = self.used.count().clamp(KEPT as u64, MAX_GROWTH) as usize;
        if !waiting && ordinary.len() > 2 * kept {
            going.extend(&ordinary[kept..]);
        }
        going.extend(spares.iter().skip(2 * KEPT));
        going
    }

    fn macs_to_return(&self, facts: &Facts, me: HostId, vni: Vni) -> Vec<MacAddr> {
        let claimed = facts.claimed_macs(me, vni).into_iter();
        claimed
            .filter(|mac| !self.used_macs.contains(mac) && !self.asked_macs.contains(mac))
            .collect()
    }
}

/// Whether another host waits for any address.
pub(super) fn others_wait(facts: &Facts, me: HostId, vni: Vni) -> bool {
    let wanted = facts.wanted(vni).into_iter();
    wanted
        .filter(|wanted| wanted.host != me)
        .any(|wanted| matches!(wanted.want, Want::Addresses(_)))
}

/// Notes that a return of what was granted up to `seen` is about to be sent.
fn mark<K: Ord>(entry: Entry<'_, K, Returning>, seen: Version) {
    entry
        .and_modify(|returning| {
            returning.seen = returning.seen.max(seen);
            returning.again = true;
        })
        .or_insert(Returning { seen, again: false });
}

/// The items from `start`, as many as one request may have.
fn slice<T: Copy>(items: &[T], start: usize) -> Vec<T> {
    items.iter().skip(start).take(MAX_PIECES).copied().collect()
}
