//! The services of one network: their own addresses (VIPs), and which backend has which slot of
//! their tables.

use std::collections::BTreeMap;

use overlay_common::service::{Peer, SLOTS, SlotKey};
use overlay_common::wire::{Family, Ip16, UNSPECIFIED};

use super::claims::Owner;
use super::record::Record;
use super::updates::MapUpdate;
use crate::maglev;
use crate::model::{MacAddr, Vni};

#[derive(Debug)]
pub(super) struct Services {
    vni: u32,
    all: BTreeMap<Box<str>, Service>,
}

#[derive(Debug, Default)]
struct Service {
    /// Its claims; `None` while only backends are known.
    vips: Option<Record>,
    /// The addresses of each, by its MAC and the VTEP it is behind: an endpoint that moves may be
    /// known at both ends for a while.
    backends: Backends,
    /// Who has which slot of which VIP; empty without a backend.
    tables: BTreeMap<Ip16, Vec<Peer>>,
}

type Backends = BTreeMap<(MacAddr, Ip16), Backend>;

#[derive(Debug)]
struct Backend {
    ips: Box<[Ip16]>,
    /// Others are preferred to it.
    unready: bool,
}

impl Services {
    pub fn new(vni: Vni) -> Services {
        Services {
            vni: vni.get(),
            all: BTreeMap::new(),
        }
    }

    /// True when nothing is known of any.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A service's claims.
    pub fn vips_of(&self, name: &str) -> Option<&Record> {
        self.all.get(name)?.vips.as_ref()
    }

    /// The services that have claims, and these.
    pub fn with_vips(&self) -> impl Iterator<Item = (&str, &Record)> {
        let all = self.all.iter();
        all.filter_map(|(name, service)| Some((&**name, service.vips.as_ref()?)))
    }

    /// The addresses of the service with this MAC.
    pub fn vips(&self, mac: MacAddr) -> impl Iterator<Item = &Ip16> {
        let vips = self.all.values().filter_map(|s| s.vips.as_ref());
        let vips = vips.filter(move |record| record.mac == mac);
        vips.flat_map(|record| record.ips.iter().map(|(ip, _)| ip))
    }

    /// Gives a service other claims. Returns those it had, and what follows.
    pub fn set_vips(
        &mut self,
        name: &str,
        new: Option<Record>,
    ) -> (Option<Record>, Vec<MapUpdate>) {
        let service = self.all.entry(name.into()).or_default();
        let old = std::mem::replace(&mut service.vips, new);
        (old, self.renew(name))
    }

    /// An endpoint's claims take the place of others of the same owner.
    pub fn replace(
        &mut self,
        owner: Owner,
        old: Option<&Record>,
        new: Option<&Record>,
    ) -> Vec<MapUpdate> {
        let of = |record: Option<&Record>| record.and_then(|record| record.service.clone());
        let (before, after) = (of(old), of(new));
        let behind = owner.vtep().unwrap_or(UNSPECIFIED);
        if let (Some(old), Some(name)) = (old, &before)
            && let Some(service) = self.all.get_mut(name)
        {
            service.backends.remove(&(old.mac, behind));
        }
        if let (Some(new), Some(name)) = (new, &after) {
            let service = self.all.entry(name.clone()).or_default();
            let ips = new.ips.iter().map(|(ip, _)| *ip).collect();
            let backend = Backend {
                ips,
                unready: new.unready,
            };
            service.backends.insert((new.mac, behind), backend);
        }
        let mut updates = Vec::new();
        for name in before
            .iter()
            .chain(after.iter().filter(|_| before != after))
        {
            updates.extend(self.renew(name));
        }
        updates
    }

    /// Every slot that a backend has.
    pub fn slots(&self) -> impl Iterator<Item = (SlotKey, Peer)> {
        let tables = self.all.values().flat_map(|service| &service.tables);
        tables.flat_map(|(vip, table)| {
            let slots = (0..).zip(table);
            slots.map(|(slot, peer)| (SlotKey::new(self.vni, *vip, slot), *peer))
        })
    }

    /// Who has a slot.
    pub fn slot(&self, key: &SlotKey) -> Option<&Peer> {
        let mut tables = self.all.values().filter_map(|s| s.tables.get(&key.vip()));
        tables.next()?.get(key.slot() as usize)
    }

    /// Works out a service's tables anew. Returns what has changed.
    fn renew(&mut self, name: &str) -> Vec<MapUpdate> {
        let vni = self.vni;
        let Some(service) = self.all.get_mut(name) else {
            return Vec::new();
        };
        let vips = service.vips.iter().flat_map(|record| record.ips.iter());
        let now = vips.map(|(vip, _)| (*vip, table(*vip, &service.backends)));
        let now: BTreeMap<Ip16, Vec<Peer>> = now.filter(|(_, table)| !table.is_empty()).collect();
        let mut updates = Vec::new();
        for (vip, table) in &now {
            let before = service.tables.get(vip);
            for (slot, peer) in (0..).zip(table) {
                if before.and_then(|before| before.get(slot as usize)) != Some(peer) {
                    updates.push(MapUpdate::SetSlot(SlotKey::new(vni, *vip, slot), *peer));
                }
            }
        }
        let gone = service.tables.keys().filter(|vip| !now.contains_key(*vip));
        for vip in gone {
            let delete = |slot| MapUpdate::DelSlot(SlotKey::new(vni, *vip, slot));
            updates.extend((0..SLOTS).map(delete));
        }
        service.tables = now;
        if service.vips.is_none() && service.backends.is_empty() {
            self.all.remove(name);
        }
        updates
    }
}

/// A VIP's table: empty when no backend has an address of its family. Those that are not ready
/// have no slots, unless none is.
fn table(vip: Ip16, backends: &Backends) -> Vec<Peer> {
    let fits = |ip: &&Ip16| Family::of(ip) == Family::of(&vip) && !is_link_local(ip);
    let peer = |((mac, _), backend): (&(MacAddr, Ip16), &Backend)| {
        let ip = backend.ips.iter().find(fits)?;
        let peer = Peer {
            ip: *ip,
            mac: mac.0,
            _zero: [0; 2],
        };
        Some((peer, !backend.unready))
    };
    let all: Vec<(Peer, bool)> = backends.iter().filter_map(peer).collect();
    let is_any = all.iter().any(|(_, ready)| *ready);
    let chosen = all.into_iter().filter(|(_, ready)| *ready || !is_any);
    let mut peers: Vec<Peer> = chosen.map(|(peer, _)| peer).collect();
    peers.dedup_by_key(|peer| peer.mac);
    // MACs are what endpoints of a network never share, on all hosts the same.
    let names: Vec<String> = peers.iter().map(|p| MacAddr(p.mac).to_string()).collect();
    let slots = maglev::table(&names, SLOTS as usize);
    slots.into_iter().map(|i| peers[i]).collect()
}

fn is_link_local(ip: &Ip16) -> bool {
    ip[0] == 0xfe && ip[1] & 0xc0 == 0x80
}
