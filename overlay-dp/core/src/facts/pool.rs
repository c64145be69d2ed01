//! One network's addresses: who has which, and which are free.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Range, Ranges, Version, Want};
use crate::model::{HostId, MacAddr, Network};

/// Offsets that a host may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which.
    pub range: Range,
    /// Who may use them.
    pub host: HostId,
    /// For times when no manager can be asked.
    pub spare: bool,
    /// The version that granted them; a return decided before it is void.
    pub since: Version,
}

/// A MAC address that a host may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who may use it.
    pub host: HostId,
    /// The version that granted it; a return decided before it is void.
    pub since: Version,
}

/// A network and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub(super) struct Pool {
    pub network: Network,
    /// What addresses are chosen from.
    pub chosen: Range,
    /// By first offset, never overlapping; neighbours that differ in nothing else are one.
    grants: BTreeMap<u32, Grant>,
    pub claims: BTreeMap<MacAddr, Claim>,
    pub wanted: BTreeMap<HostId, Want>,
    /// The offsets that are services' own; none of them is granted.
    vips: BTreeSet<u32>,
    /// The usable offsets that nobody has: what the grants and services leave.
    #[serde(skip_serializing)]
    free: Ranges,
    /// The grants and claims by host; hosts without any are not in it.
    #[serde(skip_serializing)]
    shares: BTreeMap<HostId, Share>,
    /// How many offsets are granted as spares.
    #[serde(skip_serializing)]
    spares: u64,
}

/// What of a [`Pool`] is written down; the rest follows from it.
#[derive(Deserialize)]
struct Stored {
    network: Network,
    chosen: Range,
    grants: BTreeMap<u32, Grant>,
    claims: BTreeMap<MacAddr, Claim>,
    wanted: BTreeMap<HostId, Want>,
    vips: BTreeSet<u32>,
}

impl From<Stored> for Pool {
    fn from(stored: Stored) -> Pool {
        let mut pool = Pool::new(stored.network, stored.chosen);
        for grant in stored.grants.into_values() {
            pool.assign(grant);
        }
        for (mac, claim) in stored.claims {
            pool.claim(mac, claim);
        }
        pool.wanted = stored.wanted;
        for offset in stored.vips {
            pool.take_vip(offset);
        }
        pool
    }
}

/// What one host has in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub offsets: Ranges,
    pub macs: BTreeSet<MacAddr>,
}

impl Pool {
    pub fn new(network: Network, chosen: Range) -> Pool {
        let mut free = Ranges::default();
        free.insert(network.usable());
        for gateway in network.gateways() {
            if let Some(offset) = network.offset_of(gateway) {
                free.remove(Range::one(offset));
            }
        }
        Pool {
            network,
            chosen,
            grants: BTreeMap::new(),
            claims: BTreeMap::new(),
            wanted: BTreeMap::new(),
            vips: BTreeSet::new(),
            free,
            shares: BTreeMap::new(),
            spares: 0,
        }
    }

    /// The grant around `offset`.
    pub fn grant_at(&self, offset: u32) -> Option<&Grant> {
        let (_, grant) = self.grants.range(..=offset).next_back()?;
        grant.range.contains(offset).then_some(grant)
    }

    /// The grants that reach into `bounds`, each whole.
    pub fn grants_in(&self, bounds: Range) -> impl Iterator<Item = &Grant> {
        let before = self.grant_at(bounds.first);
        let before = before.filter(|grant| grant.range.first < bounds.first);
        let upper = bounds.last.max(bounds.first);
        let inside = self.grants.range(bounds.first..=upper);
        before.into_iter().chain(inside.map(|(_, grant)| grant))
    }

    /// The grants of one host.
    pub fn grants_of(&self, host: HostId) -> impl Iterator<Item = &Grant> {
        let pieces = self.shares.get(&host).into_iter();
        pieces
            .flat_map(|share| share.offsets.iter())
            .flat_map(|range| self.grants_in(range))
    }

    /// Whether an endpoint could have `offset`.
    pub fn is_usable(&self, offset: u32) -> bool {
        self.free.contains(offset) || self.vips.contains(&offset) || self.grant_at(offset).is_some()
    }

    /// What a host has, if anything.
    pub fn share(&self, host: HostId) -> Option<&Share> {
        self.shares.get(&host)
    }

    /// The hosts that have offsets, and how many.
    pub fn holders(&self) -> impl Iterator<Item = (HostId, u64)> {
        let counts = self.shares.iter();
        counts
            .map(|(host, share)| (*host, share.offsets.count()))
            .filter(|(_, count)| *count > 0)
    }

    /// How many offsets can be chosen at all.
    pub fn size(&self) -> u64 {
        let gateways: BTreeSet<u32> = self
            .network
            .gateways()
            .filter_map(|gateway| self.network.offset_of(gateway))
            .filter(|offset| self.chosen.contains(*offset))
            .collect();
        self.chosen.count() - gateways.len() as u64
    }

    /// The lowest free offsets, at most `count`.
    pub fn lowest(&self, count: u64) -> Vec<Range> {
        let mut left = count;
        let mut found = Vec::new();
        for range in self.free.within(self.chosen) {
            if left == 0 {
                break;
            }
            let take = range.count().min(left);
            left -= take;
            // At most the range's own size, so that it fits.
            let last = range.first + (take - 1) as u32;
            found.push(Range {
                first: range.first,
                last,
            });
        }
        found
    }

    /// A free block near the end for spares, of at most `count`: a power of two, aligned, so that
    /// spares do not break up what is left.
    pub fn spare_block(&self, count: u32) -> Option<Range> {
        // Below a quarter of the network, so that ordinary requests come first.
        let room = (self.size().saturating_sub(1) / 4).saturating_sub(self.spares);
        let count = u64::from(count).min(room).min(MAX_SPARE_BLOCK);
        let mut size = 1_u32.checked_shl(count.checked_ilog2()?)?;
        while size > 0 {
            let fits = |range: Range| {
                let end = u64::from(range.last) + 1;
                let first = (end - end % u64::from(size)).checked_sub(size.into())?;
                let first = u32::try_from(first).ok()?;
                (first >= range.first).then(|| Range {
                    first,
                    last: first + (size - 1),
                })
            };
            if let Some(block) = self.free.within(self.chosen).rev().find_map(fits) {
                return Some(block);
            }
            size /= 2;
        }
        None
    }

    /// Gives offsets to a host, whoever had them before.
    pub fn assign(&mut self, grant: Grant) {
        self.release(grant.range);
        let vips = self.vips.range(grant.range.first..=grant.range.last);
        for offset in vips.copied().collect::<Vec<_>>() {
            self.free_vip(offset);
        }
        self.free.remove(grant.range);
        let share = self.shares.entry(grant.host).or_default();
        share.offsets.insert(grant.range);
        if grant.spare {
            self.spares += grant.range.count();
        }
        let mut merged = grant;
        let same = |other: &&Grant| {
            Grant {
                range: grant.range,
                ..**other
            } == grant
        };
        let before = grant.range.first.checked_sub(1);
        if let Some(before) = before.and_then(|at| self.grant_at(at)).filter(same) {
            merged.range.first = before.range.first;
        }
        let behind = grant.range.last.checked_add(1);
        if let Some(behind) = behind.and_then(|at| self.grant_at(at)).filter(same) {
            merged.range.last = behind.range.last;
            let first = behind.range.first;
            self.grants.remove(&first);
        }
        self.grants.insert(merged.range.first, merged);
    }

    /// Frees offsets, whoever has them.
    pub fn release(&mut self, range: Range) {
        let hit: Vec<Grant> = self.grants_in(range).copied().collect();
        for grant in hit {
            let Some(cut) = grant.range.intersection(range) else {
                continue;
            };
            self.grants.remove(&grant.range.first);
            for rest in grant.range.around(cut) {
                let rest = Grant {
                    range: rest,
                    ..grant
                };
                self.grants.insert(rest.range.first, rest);
            }
            if grant.spare {
                self.spares -= cut.count();
            }
            self.free.insert(cut);
            if let Some(share) = self.shares.get_mut(&grant.host) {
                share.offsets.remove(cut);
            }
            self.forget_empty(grant.host);
        }
    }

    /// The offsets that services have.
    pub fn vips(&self) -> &BTreeSet<u32> {
        &self.vips
    }

    /// Gives an offset to a service, whoever had it before.
    pub fn take_vip(&mut self, offset: u32) {
        self.release(Range::one(offset));
        if self.free.contains(offset) {
            self.free.remove(Range::one(offset));
            self.vips.insert(offset);
        }
    }

    /// A service has an offset no more.
    pub fn free_vip(&mut self, offset: u32) {
        if self.vips.remove(&offset) {
            self.free.insert(Range::one(offset));
        }
    }

    /// Gives a MAC address to a host, whoever had it before.
    pub fn claim(&mut self, mac: MacAddr, claim: Claim) {
        self.release_mac(mac);
        self.claims.insert(mac, claim);
        self.shares.entry(claim.host).or_default().macs.insert(mac);
    }

    /// Frees a MAC address, whoever has it.
    pub fn release_mac(&mut self, mac: MacAddr) {
        if let Some(claim) = self.claims.remove(&mac) {
            if let Some(share) = self.shares.get_mut(&claim.host) {
                share.macs.remove(&mac);
            }
            self.forget_empty(claim.host);
        }
    }

    /// Frees all that a host has and wants.
    pub fn release_host(&mut self, host: HostId) {
        if let Some(share) = self.shares.remove(&host) {
            share.offsets.iter().for_each(|range| self.release(range));
            share.macs.iter().for_each(|mac| self.release_mac(*mac));
        }
        self.wanted.remove(&host);
    }

    fn forget_empty(&mut self, host: HostId) {
        let empty = |share: &Share| share.offsets.is_empty() && share.macs.is_empty();
        if self.shares.get(&host).is_some_and(empty) {
            self.shares.remove(&host);
        }
    }
}

/// The most spares that one request gives.
const MAX_SPARE_BLOCK: u64 = 64;
