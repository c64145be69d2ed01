//! Who says what about a key. All claims are kept, the best one counts: when it is withdrawn the
//! next best takes its place.

use std::collections::BTreeMap;

use overlay_common::layout::FdbEntry;
use overlay_common::wire::Ip16;

/// Who makes a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The network itself: its gateway is wherever it is asked for.
    Gateway,
    /// A service of the network: so are its own addresses.
    Service,
    /// A port of this host.
    Port(u32),
    /// Somebody who typed `fdb add`.
    Static(Ip16),
    /// Another host of the cluster.
    Host(Ip16),
}

impl Owner {
    /// Where frames for a MAC of this owner go; the gateway's is the network's to say.
    pub fn fdb_entry(self) -> Option<FdbEntry> {
        match self {
            Owner::Gateway => None,
            Owner::Service => Some(FdbEntry::service()),
            Owner::Port(ifindex) => Some(FdbEntry::local(ifindex)),
            Owner::Static(vtep) | Owner::Host(vtep) => Some(FdbEntry::remote(vtep)),
        }
    }

    /// The VTEP it is behind.
    pub fn vtep(self) -> Option<Ip16> {
        match self {
            Owner::Static(vtep) | Owner::Host(vtep) => Some(vtep),
            Owner::Gateway | Owner::Service | Owner::Port(_) => None,
        }
    }

    pub fn rank(self, seq: u64) -> Rank {
        let class = match self {
            Owner::Gateway => Class::Gateway,
            Owner::Service => Class::Service,
            Owner::Port(_) => Class::Port,
            Owner::Static(_) => Class::Static,
            Owner::Host(_) => Class::Host,
        };
        Rank { class, seq }
    }
}

/// The better class counts, whoever was first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Gateway,
    Service,
    Port,
    Static,
    Host,
}

/// The order of the claims to one key: by class, then first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub class: Class,
    /// Of all claims ever made.
    pub seq: u64,
}

impl Rank {
    const BEST: Rank = Rank {
        class: Class::Gateway,
        seq: 0,
    };
    const WORST: Rank = Rank {
        class: Class::Host,
        seq: u64::MAX,
    };
}

/// All claims to keys of one kind. A key's claims lie next to each other, best first.
#[derive(Debug)]
pub(super) struct Claims<K, V> {
    all: BTreeMap<(K, Rank), V>,
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Claims {
            all: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord, V> Claims<K, V> {
    /// What counts for `key`, and its rank.
    pub fn best(&self, key: K) -> Option<(Rank, &V)> {
        let mut claims = self.all.range((key, Rank::BEST)..=(key, Rank::WORST));
        claims.next().map(|((_, rank), value)| (*rank, value))
    }

    /// Makes a claim, or changes it.
    pub fn set(&mut self, key: K, rank: Rank, value: V) {
        self.all.insert((key, rank), value);
    }

    /// A claim's value.
    pub fn get_mut(&mut self, key: K, rank: Rank) -> Option<&mut V> {
        self.all.get_mut(&(key, rank))
    }

    /// Withdraws a claim.
    pub fn unset(&mut self, key: K, rank: Rank) {
        self.all.remove(&(key, rank));
    }

    /// The claims that count, in order of keys.
    pub fn winners(&self) -> impl Iterator<Item = (K, Class, &V)> {
        let mut last = None;
        let first = move |claim: &(&(K, Rank), &V)| {
            let (key, _) = claim.0;
            last.replace(*key) != Some(*key)
        };
        let winners = self.all.iter().filter(first);
        winners.map(|((key, rank), value)| (*key, rank.class, value))
    }

    /// All values, of claims that don't count, too.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.all.values_mut()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
