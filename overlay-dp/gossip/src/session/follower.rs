//! The end of a stream that learns what the other host has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use overlay_core::facts::FactsNews;
use overlay_core::model::{Endpoint, HostId, Vni};
use overlay_core::multicast::Group;

use super::Fault;
use crate::book::Book;
use crate::log::{Gap, MAX_BYTES, MAX_ENDPOINTS, cost};
use crate::swim;
use crate::wire::{Ask, Position, Tell, decode, digest, encode};

/// Encoded facts of the largest cluster are smaller.
const MAX_FACTS: usize = 64 << 20;

/// A snapshot of which parts have come.
struct Parts {
    vni: Vni,
    at: Position,
    endpoints: Vec<Arc<Endpoint>>,
    groups: Option<Arc<[Group]>>,
    bytes: usize,
}

/// Follows one host on one stream.
pub struct Follower {
    leader: HostId,
    said_hello: bool,
    greeted: bool,
    /// [`Book::revision`] as of `subscribed`; none before the first time.
    revision: Option<u64>,
    /// What the leader was asked for, by the number of the log here.
    subscribed: BTreeMap<Vni, u64>,
    /// Of these, those to be asked for again.
    again: BTreeSet<Vni>,
    /// And those that were, and have not been answered.
    asked: BTreeSet<Vni>,
    parts: Option<Parts>,
    /// Parts of encoded facts.
    facts: Vec<u8>,
    /// The leader's facts do not follow on those here.
    lacks_facts: bool,
}

impl Follower {
    /// On a new stream to `leader`.
    pub fn new(leader: HostId) -> Follower {
        Follower {
            leader,
            said_hello: false,
            greeted: false,
            revision: None,
            subscribed: BTreeMap::new(),
            again: BTreeSet::new(),
            asked: BTreeSet::new(),
            parts: None,
            facts: Vec::new(),
            lacks_facts: false,
        }
    }

    /// The next frame to send, if there is one. `me` is [`Swim::me`](crate::Swim::me).
    pub fn poll(&mut self, me: swim::Id, book: &Book) -> Option<Vec<u8>> {
        if !self.said_hello {
            self.said_hello = true;
            return encode(&Ask::Hello {
                swim: me,
                facts: book.facts().version(),
            });
        }
        if self.lacks_facts {
            self.lacks_facts = false;
            return encode(&Ask::Facts(book.facts().version()));
        }
        if let Some(gone) = self.follow_interest(book) {
            return encode(&Ask::Unsubscribe(gone));
        }
        if self.again.is_empty() {
            return None;
        }
        let mut again = std::mem::take(&mut self.again);
        let wanted = book.wanted(self.leader);
        let lines = wanted.filter(|(vni, _)| again.contains(vni));
        let lines = lines.map(|(vni, log)| (vni, log.have())).collect();
        self.parts = self.parts.take().filter(|part| !again.contains(&part.vni));
        self.asked.append(&mut again);
        encode(&Ask::Subscribe(lines))
    }

    /// Finds out what is to be asked for, if others of the leader's logs are wanted than before.
    /// Returns what is not wanted any more.
    fn follow_interest(&mut self, book: &Book) -> Option<Vec<Vni>> {
        let revision = book.revision(self.leader);
        if self.revision == Some(revision) {
            return None;
        }
        self.revision = Some(revision);
        let wanted = book.wanted(self.leader);
        let wanted: BTreeMap<Vni, u64> = wanted.map(|(vni, log)| (vni, log.number())).collect();
        let before = std::mem::replace(&mut self.subscribed, wanted);
        let new = self.subscribed.iter();
        let new = new.filter(|(vni, number)| before.get(vni) != Some(number));
        self.again.extend(new.map(|(vni, _)| *vni));
        let gone = before.into_keys();
        let gone: Vec<Vni> = gone
            .filter(|vni| !self.subscribed.contains_key(vni))
            .collect();
        for vni in &gone {
            self.again.remove(vni);
            self.asked.remove(vni);
        }
        self.parts = self.parts.take().filter(|part| !gone.contains(&part.vni));
        (!gone.is_empty()).then_some(gone)
    }

    /// Takes a frame. Returns the leader's identity when that is what it says, once: for
    /// [`Swim::connected`](crate::Swim::connected).
    ///
    /// # Errors
    /// When the stream must be given up.
    pub fn receive(
        &mut self,
        frame: &[u8],
        book: &mut Book,
        now: Instant,
    ) -> Result<Option<swim::Id>, Fault> {
        let frame: Tell = decode(frame).ok_or(Fault::Malformed)?;
        if let Tell::Hello(id) = frame {
            if self.greeted {
                return Err(Fault::Protocol("a second greeting"));
            }
            if id.host() != self.leader {
                return Err(Fault::Protocol("somebody else's identity"));
            }
            self.greeted = true;
            book.up(self.leader);
            return Ok(Some(id));
        }
        if !self.greeted {
            return Err(Fault::Protocol("no greeting"));
        }
        match frame {
            Tell::Hello(_) => {}
            Tell::Snapshot {
                vni,
                at,
                first,
                settled,
                endpoints,
                groups,
                last,
            } => {
                let records = (endpoints, groups);
                self.snapshot(book, vni, at, (first, last), settled, records)?;
            }
            Tell::Changes {
                vni,
                incarnation,
                first,
                changes,
            } => {
                if self.subscribed.contains_key(&vni) {
                    match book.changes(self.leader, vni, incarnation, first, changes) {
                        Ok(()) => _ = self.asked.remove(&vni),
                        // What was under way when it was asked for may come, still.
                        Err(Gap) if self.asked.contains(&vni) => {}
                        Err(Gap) => _ = self.again.insert(vni),
                    }
                }
            }
            Tell::Digest(theirs) => {
                let known = book.wanted(self.leader);
                let known = known.filter(|(vni, _)| self.subscribed.contains_key(vni));
                let ours = digest(known.map(|(vni, log)| (vni, log.have())));
                if ours != theirs {
                    self.again = self.subscribed.keys().copied().collect();
                }
            }
            Tell::Facts { part, last } => self.facts(book, &part, last, now)?,
        }
        Ok(None)
    }

    fn snapshot(
        &mut self,
        book: &mut Book,
        vni: Vni,
        at: Position,
        (first, last): (bool, bool),
        settled: bool,
        (mut endpoints, groups): (Vec<Arc<Endpoint>>, Option<Arc<[Group]>>),
    ) -> Result<(), Fault> {
        if !self.subscribed.contains_key(&vni) {
            return Ok(());
        }
        if first {
            self.parts = Some(Parts {
                vni,
                at,
                endpoints: Vec::new(),
                groups,
                bytes: 0,
            });
        }
        // A part without its first one was under way when it was no longer wanted.
        let open = self.parts.as_mut();
        let Some(parts) = open.filter(|parts| parts.vni == vni && parts.at == at) else {
            return Ok(());
        };
        parts.bytes += endpoints
            .iter()
            .map(|endpoint| cost(endpoint))
            .sum::<usize>();
        parts.endpoints.append(&mut endpoints);
        if parts.endpoints.len() > MAX_ENDPOINTS || parts.bytes > MAX_BYTES {
            return Err(Fault::Protocol("too many endpoints"));
        }
        if last && let Some(parts) = self.parts.take() {
            let records = (parts.endpoints, parts.groups);
            book.snapshot(self.leader, vni, at, settled, records);
            self.asked.remove(&vni);
        }
        Ok(())
    }

    fn facts(
        &mut self,
        book: &mut Book,
        part: &[u8],
        last: bool,
        now: Instant,
    ) -> Result<(), Fault> {
        if !book.takes_facts_of(self.leader) {
            // A manager of which this host has not heard yet, or no longer one: not a crime.
            self.facts.clear();
            return Ok(());
        }
        self.facts.extend_from_slice(part);
        if self.facts.len() > MAX_FACTS {
            return Err(Fault::Protocol("too many facts"));
        }
        if last {
            let facts = std::mem::take(&mut self.facts);
            let news: FactsNews = postcard::from_bytes(&facts).map_err(|_| Fault::Malformed)?;
            self.lacks_facts = book.take_facts(news, now).is_err();
        }
        Ok(())
    }
}
