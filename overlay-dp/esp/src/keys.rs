//! The agreement on keys: which host is told what, and when.
//!
//! A host that has a container in an encrypted network gives each other host a [`Secret`], to send
//! to it with. It asks that host with a [`Talk`] and gets an [`Answer`]; both say with which SPI
//! they send at present, so that each knows what has become of what it gave. A new secret becomes
//! the one in use as soon as the other host has it. The one before it is taken for a while longer:
//! no packet is lost.
//!
//! No secret is given twice, not even when the first answer was lost: whoever has forgotten what it
//! sent would begin to count anew, and use an IV twice.

mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use overlay_common::wire::Ip16;
use overlay_core::model::HostId;
use serde::{Deserialize, Serialize};

use crate::sa::Sas;
use crate::secret::Secret;
use peer::Peer;

/// How long what takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After so long another key takes a key's place.
    pub lifetime: Duration,
    /// The old one is taken for so much longer.
    pub grace: Duration,
    /// So often hosts compare what they use. Less than `grace`.
    pub check: Duration,
}

impl Timing {
    /// With keys that are used for so long.
    pub fn new(lifetime: Duration) -> Timing {
        Timing {
            lifetime,
            grace: Duration::from_secs(60),
            check: Duration::from_secs(15),
        }
    }
}

/// One host asks another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Talk {
    /// What to send to the asking host with from now on.
    pub give: Option<Secret>,
    /// What the asking host sends with to the one it asks.
    pub holds: Option<u32>,
    /// Whether it wants another one in any case.
    pub renew: bool,
}

/// The other one answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What to send to the answering host with from now on.
    pub give: Option<Secret>,
    /// What the answering host sends with to the one that asked.
    pub holds: Option<u32>,
}

/// What is in use with one host, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which host.
    pub host: HostId,
    /// What it sends to this one with: the newest last.
    pub inbound: Vec<Use>,
    /// What this one sends to it with.
    pub outbound: Option<Use>,
}

/// A security association in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Its security parameter index.
    pub spi: u32,
    /// How long it has been there.
    pub age: Duration,
    /// Packets that were sealed with it, or opened.
    pub packets: u64,
    /// Whether it is known to be the one that is sent with.
    pub current: bool,
}

/// Draws a secret, unless that is impossible.
pub type Draw<'a> = &'a mut dyn FnMut() -> Option<Secret>;

/// What this host has agreed on with the others.
pub struct Keys {
    timing: Timing,
    /// Whether this host is to receive anything that is encrypted.
    active: bool,
    peers: BTreeMap<HostId, Peer>,
    changed: bool,
}

impl Keys {
    /// Nothing is agreed on.
    pub fn new(timing: Timing) -> Keys {
        Keys {
            timing,
            active: false,
            peers: BTreeMap::new(),
            changed: false,
        }
    }

    /// Whether this host has a container in an encrypted network. What it gave to others is void
    /// when it has none any more; what it was given stays.
    pub fn set_active(&mut self, active: bool) {
        if self.active == active {
            return;
        }
        self.active = active;
        for peer in self.peers.values_mut() {
            peer.forget_inbound();
        }
        self.changed = true;
    }

    /// There is a host with this VTEP, or it is back, or has moved there.
    pub fn set_peer(&mut self, host: HostId, vtep: Ip16) {
        let peer = self.peers.entry(host).or_insert_with(|| Peer::new(vtep));
        self.changed |= peer.is_at(vtep);
    }

    /// That host is one no more: nothing is taken from it or sent to it from now on.
    pub fn remove_peer(&mut self, host: HostId) {
        self.changed |= self.peers.remove(&host).is_some();
    }

    /// All hosts are to have other keys, in both directions.
    pub fn rotate(&mut self) {
        for peer in self.peers.values_mut() {
            peer.rotate();
        }
    }

    /// The next host to ask now; [`Keys::answered`] or [`Keys::failed`] must follow.
    pub fn poll(&mut self, now: Duration, draw: Draw<'_>) -> Option<(HostId, Talk)> {
        for peer in self.peers.values_mut() {
            self.changed |= peer.expire(now);
        }
        if !self.active {
            return None;
        }
        let due = self.peers.iter().find(|(_, peer)| peer.is_due(now));
        let host = *due?.0;
        let taken = self.spis();
        let peer = self.peers.get_mut(&host)?;
        let talk = peer.talk(now, &self.timing, &mut |peer| {
            give(peer, (draw, &taken), now, &mut self.changed)
        });
        Some((host, talk))
    }

    /// When [`Keys::poll`] may have something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        let active = self.active;
        self.peers
            .values()
            .filter_map(|peer| peer.wake_at(active))
            .min()
    }

    /// A host that was asked has answered.
    pub fn answered(&mut self, host: HostId, answer: &Answer, now: Duration) {
        let Some(peer) = self.peers.get_mut(&host) else {
            return;
        };
        peer.answered(answer.holds, now, &self.timing);
        self.changed |= peer.take(answer.give.as_ref(), now);
    }

    /// A host that was asked has not answered.
    pub fn failed(&mut self, host: HostId, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.failed(now);
        }
    }

    /// Another host asks this one. `None` when it is not known (yet): it will ask again.
    pub fn asked(
        &mut self,
        from: HostId,
        talk: &Talk,
        now: Duration,
        draw: Draw<'_>,
    ) -> Option<Answer> {
        let taken = self.spis();
        let peer = self.peers.get_mut(&from)?;
        self.changed |= peer.take(talk.give.as_ref(), now);
        peer.heard(talk.holds, now, &self.timing);
        let lacks = talk.renew || !peer.has_given(talk.holds);
        let given = match self.active && lacks && peer.may_be_given() {
            true => give(peer, (draw, &taken), now, &mut self.changed),
            false => None,
        };
        if given.is_some() {
            peer.look_soon(now);
        }
        Some(Answer {
            give: given,
            holds: peer.holds(),
        })
    }

    fn spis(&self) -> BTreeSet<u32> {
        self.peers.values().flat_map(Peer::spis).collect()
    }

    /// Whether [`Keys::sas`] are others since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is in use.
    pub fn sas(&self) -> Sas {
        let mut sas = Sas::default();
        for peer in self.peers.values() {
            peer.collect(&mut sas);
        }
        sas
    }

    /// What is in use, for people.
    pub fn rows(&self, now: Duration) -> impl Iterator<Item = Row> {
        self.peers
            .iter()
            .map(move |(host, peer)| peer.row(*host, now))
    }
}

/// Makes a secret of which no other host knows, and is ready for what is sealed with it.
fn give(
    peer: &mut Peer,
    (draw, taken): (Draw<'_>, &BTreeSet<u32>),
    now: Duration,
    changed: &mut bool,
) -> Option<Secret> {
    let secret = loop {
        let secret = draw()?;
        if !taken.contains(&secret.spi()) {
            break secret;
        }
    };
    let sa = peer::inbound(&secret, peer)?;
    peer.add_inbound(Arc::new(sa), now);
    *changed = true;
    Some(secret)
}
