//! The end of a stream that tells what this host has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{FactsNews, MAX_NETWORKS, Version};
use overlay_core::model::{Endpoint, HostId, Vni};
use overlay_core::multicast::Group;

use super::Fault;
use crate::book::Book;
use crate::log::{News, cost, cost_of_groups};
use crate::swim;
use crate::wire::{Ask, Change, FULL, Position, Tell, decode, digest, encode};

/// How long after the last news a follower is told where it should be. It is told again after
/// twice the time, and so on: in a large cluster that is most of what is said.
const DIGEST_AFTER: Duration = Duration::from_secs(5);
const MAX_DOUBLINGS: u32 = 3;

/// What does not fit in one frame, and is under way.
enum Rest {
    Snapshot {
        vni: Vni,
        at: Position,
        first: bool,
        settled: bool,
        endpoints: std::vec::IntoIter<Arc<Endpoint>>,
        groups: Option<Arc<[Group]>>,
    },
    Changes {
        vni: Vni,
        incarnation: u64,
        next: u64,
        changes: std::vec::IntoIter<Change>,
    },
    Facts {
        encoded: Vec<u8>,
        sent: usize,
    },
}

/// Leads one follower on one stream.
pub struct Leader {
    follower: HostId,
    greeted: bool,
    said_hello: bool,
    /// What the follower knows when it has received everything that was sent.
    told: BTreeMap<Vni, Position>,
    /// Of these, those that may have moved since.
    moved: BTreeSet<Vni>,
    /// The last move that was looked at.
    seen: u64,
    facts: Version,
    rest: Option<Rest>,
    digest_at: Option<Instant>,
    /// Digests since the last news.
    digests: u32,
}

impl Leader {
    /// On a stream that `follower` opened.
    pub fn new(follower: HostId) -> Leader {
        Leader {
            follower,
            greeted: false,
            said_hello: false,
            told: BTreeMap::new(),
            moved: BTreeSet::new(),
            seen: 0,
            facts: Version::default(),
            rest: None,
            digest_at: None,
            digests: 0,
        }
    }

    /// When [`Leader::poll`] has something to say, even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.digest_at
    }

    /// Takes a frame. Returns the follower's identity when that is what it says, once: for
    /// [`Swim::connected`](crate::Swim::connected).
    ///
    /// # Errors
    /// When the stream must be given up.
    pub fn receive(&mut self, frame: &[u8]) -> Result<Option<swim::Id>, Fault> {
        let frame: Ask = decode(frame).ok_or(Fault::Malformed)?;
        match frame {
            Ask::Hello { .. } if self.greeted => return Err(Fault::Protocol("a second greeting")),
            Ask::Hello { swim, facts } => {
                if swim.host() != self.follower {
                    return Err(Fault::Protocol("somebody else's identity"));
                }
                self.greeted = true;
                self.facts = facts;
                return Ok(Some(swim));
            }
            _ if !self.greeted => return Err(Fault::Protocol("no greeting")),
            Ask::Subscribe(lines) => {
                for (vni, have) in lines {
                    self.told.insert(vni, have);
                    self.moved.insert(vni);
                    self.give_up(vni);
                }
                if self.told.len() > MAX_NETWORKS {
                    return Err(Fault::Protocol("too many networks"));
                }
            }
            Ask::Unsubscribe(gone) => {
                for vni in gone {
                    self.told.remove(&vni);
                    self.moved.remove(&vni);
                    self.give_up(vni);
                }
            }
            Ask::Facts(version) => self.facts = version,
        }
        Ok(None)
    }

    /// What is under way of a network is not wanted any more.
    fn give_up(&mut self, vni: Vni) {
        if let Some(Rest::Snapshot { vni: of, .. } | Rest::Changes { vni: of, .. }) = &self.rest
            && *of == vni
        {
            self.rest = None;
        }
    }

    /// The next frame to send, if there is one. `me` is [`Swim::me`](crate::Swim::me); `since`
    /// tells what is newer than a version of the facts, and is called on managers only.
    pub fn poll(
        &mut self,
        me: swim::Id,
        book: &Book,
        since: impl FnOnce(Version) -> FactsNews,
        now: Instant,
    ) -> Option<Vec<u8>> {
        if !self.greeted {
            return None;
        }
        if !self.said_hello {
            self.said_hello = true;
            return encode(&Tell::Hello(me));
        }
        if let Some(rest) = self.rest.take() {
            return self.go_on(rest);
        }
        if let Some(news) = self.news_of_facts(book, since) {
            return self.go_on(news);
        }
        self.look_for_moves(book);
        while let Some(vni) = self.moved.pop_first() {
            if let Some(news) = self.news_of(vni, book) {
                (self.digest_at, self.digests) = (None, 0);
                return self.go_on(news);
            }
        }
        let due = self.digest_at.is_some_and(|at| at <= now);
        if self.told.is_empty() {
            self.digest_at = None;
        } else if due || self.digest_at.is_none() {
            self.digest_at = Some(now + self.pause());
            self.digests += 1;
        }
        let positions = self.told.iter().map(|(vni, at)| (*vni, *at));
        due.then(|| Tell::Digest(digest(positions)))
            .and_then(|frame| encode(&frame))
    }

    /// Not all followers at once: each has its own rhythm.
    fn pause(&self) -> Duration {
        let after = DIGEST_AFTER * (1 << self.digests.min(MAX_DOUBLINGS));
        after.mul_f64(0.75 + (self.follower.0 % 1024) as f64 / 2048.0)
    }

    fn news_of_facts(
        &mut self,
        book: &Book,
        since: impl FnOnce(Version) -> FactsNews,
    ) -> Option<Rest> {
        let version = book.facts().version();
        let manager = book.facts().host(book.me()).is_some_and(|me| me.manager);
        if !manager || version <= self.facts {
            return None;
        }
        let news = since(self.facts);
        self.facts = match &news {
            FactsNews::Nothing => version,
            FactsNews::Changes { version, .. } => *version,
            FactsNews::Snapshot(facts) => facts.version(),
        };
        let encoded = (news != FactsNews::Nothing)
            .then(|| encode(&news))
            .flatten()?;
        Some(Rest::Facts { encoded, sent: 0 })
    }

    fn look_for_moves(&mut self, book: &Book) {
        let moves = book.own.moves();
        if moves == self.seen {
            return;
        }
        match book.own.moved_since(self.seen) {
            None => self.moved.extend(self.told.keys()),
            Some(moved) => {
                let told = moved.filter(|vni| self.told.contains_key(vni));
                self.moved.extend(told);
            }
        }
        self.seen = moves;
    }

    fn news_of(&mut self, vni: Vni, book: &Book) -> Option<Rest> {
        let told = self.told.get_mut(&vni)?;
        let at = book.own.position(vni);
        let have = std::mem::replace(told, at);
        match book.own.since(vni, have) {
            News::Nothing => None,
            News::Changes { first, changes } => Some(Rest::Changes {
                vni,
                incarnation: at.incarnation,
                next: first,
                changes: changes.into_iter(),
            }),
            News::Snapshot {
                settled,
                endpoints,
                groups,
            } => Some(Rest::Snapshot {
                vni,
                at,
                first: true,
                settled,
                endpoints: endpoints.into_iter(),
                groups,
            }),
        }
    }

    /// As much as fits in a frame; what is left stays in `rest`.
    fn go_on(&mut self, rest: Rest) -> Option<Vec<u8>> {
        let (frame, rest) = rest.frame();
        self.rest = rest;
        encode(&frame)
    }
}

impl Rest {
    /// As much as fits in one frame, and what is left then.
    fn frame(self) -> (Tell, Option<Rest>) {
        match self {
            Rest::Snapshot {
                vni,
                at,
                first,
                settled,
                endpoints: mut rest,
                groups,
            } => {
                let endpoints = fill(&mut rest, |endpoint| cost(endpoint));
                let last = rest.len() == 0;
                let left = (!last).then_some(Rest::Snapshot {
                    vni,
                    at,
                    first: false,
                    settled,
                    endpoints: rest,
                    groups: None,
                });
                let part = Tell::Snapshot {
                    vni,
                    at,
                    first,
                    settled,
                    endpoints,
                    groups,
                    last,
                };
                (part, left)
            }
            Rest::Changes {
                vni,
                incarnation,
                next: first,
                changes: mut rest,
            } => {
                let changes = fill(&mut rest, |change| match change {
                    Change::Up(endpoint) => cost(endpoint),
                    Change::Down(name) => name.len() + 8,
                    Change::Settled => 1,
                    Change::Groups(groups) => 8 + cost_of_groups(groups.len()),
                });
                let left = (rest.len() > 0).then_some(Rest::Changes {
                    vni,
                    incarnation,
                    next: first + changes.len() as u64,
                    changes: rest,
                });
                let part = Tell::Changes {
                    vni,
                    incarnation,
                    first,
                    changes,
                };
                (part, left)
            }
            Rest::Facts { encoded, sent } => {
                let end = encoded.len().min(sent + FULL);
                let part = encoded[sent..end].to_vec();
                let last = end == encoded.len();
                let left = (!last).then_some(Rest::Facts { encoded, sent: end });
                (Tell::Facts { part, last }, left)
            }
        }
    }
}

/// Takes as many as fit in a frame, at least one.
fn fill<T>(rest: &mut std::vec::IntoIter<T>, cost: impl Fn(&T) -> usize) -> Vec<T> {
    let mut size = 0;
    let fits = rest.as_slice().iter().take_while(|item| {
        let room = size < FULL;
        size += cost(item);
        room
    });
    let count = fits.count();
    rest.take(count).collect()
}
