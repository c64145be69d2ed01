//! Who may use which address.

use std::net::IpAddr;

use super::hosts::member;
use super::services::offset_of;
use crate::facts::pool::{Pool, Share};
use crate::facts::{
    Change, Facts, MAX_CLAIMS, MAX_HOST_OFFSETS, MAX_NETWORK_OFFSETS, MAX_PIECES, Range, Ranges,
    Refusal, Reply, Version, Want, Wanted,
};
use crate::model::{HostId, MacAddr, Vni};

/// A member's request in a network.
pub(super) struct Asked<'a> {
    facts: &'a Facts,
    pool: &'a Pool,
    host: HostId,
    vni: Vni,
    /// Of a grant what it makes, of a return what it was decided by.
    version: Version,
}

impl<'a> Asked<'a> {
    pub fn new(
        facts: &'a Facts,
        host: HostId,
        vni: Vni,
        version: Version,
    ) -> Result<Self, Refusal> {
        member(facts, host)?;
        let pool = facts.pools.get(&vni).ok_or(Refusal::NoVni(vni))?;
        Ok(Asked {
            facts,
            pool,
            host,
            vni,
            version,
        })
    }

    pub fn grant(&self, want: Want, changes: &mut Vec<Change>) -> Result<Reply, Refusal> {
        let (ranges, spare) = match want {
            Want::Addresses(count) => (self.addresses(count, changes)?, false),
            Want::Spare(count) => (self.spares(count), true),
            Want::Ip(ip) => (vec![self.address(ip, changes)?], false),
            Want::Mac(mac) => {
                self.mac(mac, changes)?;
                return Ok(Reply::Done);
            }
        };
        changes.extend(ranges.iter().map(|range| Change::Granted {
            vni: self.vni,
            range: *range,
            host: self.host,
            spare,
            since: self.version,
        }));
        let met = match (self.pool.wanted.get(&self.host), want) {
            (Some(Want::Addresses(_)), Want::Addresses(_)) => true,
            (Some(Want::Ip(waited)), Want::Ip(got)) => *waited == got,
            _ => false,
        };
        if met {
            self.unwant(changes);
        }
        Ok(Reply::Granted(ranges))
    }

    /// What is not this host's, or was granted anew after it decided, is passed over.
    pub fn take_back(
        &self,
        ranges: &[Range],
        macs: &[MacAddr],
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        if ranges.len() > MAX_PIECES || macs.len() > MAX_PIECES {
            return Err(Refusal::TooLong);
        }
        // Of each offset once, however often the request names it.
        let ranges: Ranges = ranges.iter().copied().collect();
        let Some(share) = self.pool.share(self.host) else {
            return Ok(());
        };
        let own = ranges.iter().flat_map(|range| share.offsets.within(range));
        for own in own {
            for grant in self.pool.grants_in(own) {
                if let Some(range) = grant
                    .range
                    .intersection(own)
                    .filter(|_| grant.since <= self.version)
                {
                    changes.push(Change::Returned {
                        vni: self.vni,
                        range,
                    });
                }
            }
        }
        for mac in macs {
            let claim = self.pool.claims.get(mac);
            if claim.is_some_and(|claim| claim.host == self.host && claim.since <= self.version) {
                changes.push(Change::MacReleased {
                    vni: self.vni,
                    mac: *mac,
                });
            }
        }
        Ok(())
    }

    pub fn unwant(&self, changes: &mut Vec<Change>) {
        if self.pool.wanted.contains_key(&self.host) {
            changes.push(Change::WantedGone {
                vni: self.vni,
                host: self.host,
            });
        }
    }

    fn addresses(&self, count: u32, changes: &mut Vec<Change>) -> Result<Vec<Range>, Refusal> {
        // What is scarce is given one by one.
        let count = if self.others_wait() { 1 } else { count.max(1) };
        let ranges = self.pool.lowest(self.room()?.min(count.into()));
        if ranges.is_empty() {
            self.want(Want::Addresses(count), changes);
            return Err(exhausted(self.facts, self.pool));
        }
        Ok(ranges)
    }

    fn spares(&self, count: u32) -> Vec<Range> {
        let room = self.room().unwrap_or(0);
        let count = u32::try_from(room).map_or(count, |room| count.min(room));
        if self.others_wait() {
            return Vec::new();
        }
        self.pool.spare_block(count).into_iter().collect()
    }

    fn address(&self, ip: IpAddr, changes: &mut Vec<Change>) -> Result<Range, Refusal> {
        let offset = offset_of(self.facts, self.pool, ip)?;
        match self.pool.grant_at(offset).map(|grant| grant.host) {
            None => {
                self.room()?;
            }
            // Granted anew, so that a return which is on its way is void.
            Some(owner) if owner == self.host => {}
            Some(owner) => {
                self.want(Want::Ip(ip), changes);
                return Err(taken(
                    self.facts,
                    self.pool,
                    "address",
                    &ip.to_string(),
                    owner,
                ));
            }
        }
        Ok(Range::one(offset))
    }

    fn mac(&self, mac: MacAddr, changes: &mut Vec<Change>) -> Result<(), Refusal> {
        let network = &self.pool.network;
        let derived = network.offset_of_mac(mac).is_some() || mac == network.gateway_mac();
        if !mac.is_unicast() || derived {
            return Err(Refusal::Mac(mac));
        }
        match self.pool.claims.get(&mac).map(|claim| claim.host) {
            Some(owner) if owner != self.host => {
                return Err(taken(
                    self.facts,
                    self.pool,
                    "MAC address",
                    &mac.to_string(),
                    owner,
                ));
            }
            Some(_) => {}
            None => {
                let held: usize = self.shares().map(|share| share.macs.len()).sum();
                if held >= MAX_CLAIMS {
                    return Err(Refusal::TooManyMacs(held));
                }
            }
        }
        changes.push(Change::MacClaimed {
            vni: self.vni,
            mac,
            host: self.host,
            since: self.version,
        });
        Ok(())
    }

    /// How many more addresses this host may have, at least one.
    fn room(&self) -> Result<u64, Refusal> {
        let here = self.pool.share(self.host);
        let here = here.map_or(0, |share| share.offsets.count());
        let all: u64 = self.shares().map(|share| share.offsets.count()).sum();
        let room =
            (MAX_NETWORK_OFFSETS.saturating_sub(here)).min(MAX_HOST_OFFSETS.saturating_sub(all));
        if room == 0 {
            let held = if here >= MAX_NETWORK_OFFSETS {
                here
            } else {
                all
            };
            return Err(Refusal::TooManyAddresses { held });
        }
        Ok(room)
    }

    fn shares(&self) -> impl Iterator<Item = &Share> {
        let pools = self.facts.pools.values();
        pools.filter_map(|pool| pool.share(self.host))
    }

    /// Whether another host waits for any address here.
    fn others_wait(&self) -> bool {
        let mut wanted = self.pool.wanted.iter();
        wanted.any(|(host, want)| *host != self.host && matches!(want, Want::Addresses(_)))
    }

    fn want(&self, want: Want, changes: &mut Vec<Change>) {
        if self.pool.wanted.get(&self.host) != Some(&want) {
            changes.push(Change::WantedSet {
                vni: self.vni,
                wanted: Wanted {
                    host: self.host,
                    want,
                },
            });
        }
    }
}

/// Another host has what somebody asks for.
pub(super) fn taken(facts: &Facts, pool: &Pool, what: &str, value: &str, owner: HostId) -> Refusal {
    let name = facts.host(owner).map(|host| host.name.clone());
    Refusal::Taken {
        what: what.to_owned(),
        value: value.to_owned(),
        network: pool.network.name.clone(),
        host: owner,
        name: name.unwrap_or_default(),
    }
}

/// Nothing is left.
pub(super) fn exhausted(facts: &Facts, pool: &Pool) -> Refusal {
    Refusal::Exhausted {
        network: pool.network.name.clone(),
        size: pool.size(),
        holders: holders(facts, pool),
    }
}

/// Who holds how many addresses in a network: the largest five.
pub(super) fn holders(facts: &Facts, pool: &Pool) -> String {
    let mut holders: Vec<(HostId, u64)> = pool.holders().collect();
    holders.sort_by_key(|(host, count)| (std::cmp::Reverse(*count), *host));
    let name = |id: HostId| {
        facts
            .host(id)
            .map_or_else(|| id.to_string(), |host| host.name.clone())
    };
    let some: Vec<String> = holders
        .iter()
        .take(5)
        .map(|(host, count)| format!("{count} by {}", name(*host)))
        .collect();
    let mut text = some.join(", ");
    if let more @ 1.. = holders.len().saturating_sub(5) {
        text += &format!(" and others by {more} more hosts");
    }
    if let vips @ 1.. = pool.vips().len() {
        let separator = if text.is_empty() { "" } else { ", " };
        text += &format!("{separator}{vips} by services");
    }
    text
}
