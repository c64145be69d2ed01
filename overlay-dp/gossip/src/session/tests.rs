use overlay_core::facts::{Command, FactsNews, Version};
use overlay_core::model::{Endpoint, HostId, Network, Vni};
use proptest::prelude::*;

use super::*;
use crate::book::Book;
use crate::swim::Id;
use crate::testing::{ME, PEER, RETENTION, THIRD, World, at, endpoint};
use crate::wire::{Ask, Change, MAX_FRAME, Tell, encode};

/// `world`'s host leads, `PEER` follows; nothing gets lost in between.
struct Stream {
    world: World,
    book: Book,
    leader: Leader,
    follower: Follower,
    frames: usize,
}

impl Stream {
    fn new(world: World) -> Stream {
        let facts = world.book.facts().clone();
        let mut book = Book::new(PEER, facts, 1, RETENTION, world.now);
        book.set_interest(world.book.facts().networks().map(|n| n.vni).collect());
        Stream {
            book,
            leader: Leader::new(PEER),
            follower: Follower::new(ME),
            world,
            frames: 0,
        }
    }

    /// Leader and follower in a network in which the leader may have `count` endpoints.
    fn with_network(count: u32) -> (Stream, Network) {
        let mut world = World::new();
        let net = world.network("net");
        world.grant(ME, net.vni, count);
        world.hear();
        (Stream::new(world), net)
    }

    /// The leader's next frame.
    fn lead(&mut self) -> Option<Vec<u8>> {
        let since = |have| self.world.managers.since(have);
        let frame = self
            .leader
            .poll(Id::new(ME, 7), &self.world.book, since, self.world.now)?;
        assert!(frame.len() <= MAX_FRAME);
        self.frames += 1;
        Some(frame)
    }

    fn take(&mut self, frame: &[u8]) -> Result<Option<Id>, Fault> {
        self.follower.receive(frame, &mut self.book, self.world.now)
    }

    fn ask(&mut self) {
        while let Some(frame) = self.follower.poll(Id::new(PEER, 8), &self.book) {
            self.leader.receive(&frame).unwrap();
        }
    }

    fn pump(&mut self) {
        self.ask();
        while let Some(frame) = self.lead() {
            self.take(&frame).unwrap();
            self.ask();
        }
    }

    fn publish(&mut self, net: &Network, offset: u32) -> Endpoint {
        let endpoint = endpoint(net, offset);
        self.world.book.own.publish(endpoint.clone());
        endpoint
    }

    fn names(&self, vni: Vni) -> Vec<String> {
        let all = self.book.endpoints(vni).into_iter();
        all.map(|(_, endpoint)| endpoint.name).collect()
    }
}

#[test]
fn greetings_are_returned_once() {
    let (mut stream, _) = Stream::with_network(1);
    let hello = stream
        .follower
        .poll(Id::new(PEER, 8), &stream.book)
        .unwrap();
    assert_eq!(
        stream.lead(),
        None,
        "nothing before the follower's greeting"
    );
    assert_eq!(stream.leader.receive(&hello), Ok(Some(Id::new(PEER, 8))));
    assert!(!stream.book.is_up(ME));
    let hello = stream.lead().unwrap();
    assert_eq!(stream.take(&hello), Ok(Some(Id::new(ME, 7))));
    assert!(stream.book.is_up(ME));
    stream.pump();
}

#[test]
fn changes_follow_what_was_missing() {
    let (mut stream, net) = Stream::with_network(9);
    stream.publish(&net, 2);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2"]);
    stream.publish(&net, 3);
    stream.world.book.own.withdraw(net.vni, "e2");
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e3"]);
    let frames = stream.frames;
    stream.pump();
    assert_eq!(stream.frames, frames, "nothing to say");

    // Not of interest for a while.
    stream.book.set_interest([].into());
    stream.pump();
    assert_eq!(stream.leader.deadline(), None);
    stream.publish(&net, 4);
    stream.pump();
    assert_eq!(stream.frames, frames);
    stream.book.set_interest([net.vni].into());
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e3", "e4"]);
}

#[test]
fn a_restarted_owner_keeps_what_it_had_until_it_settles() {
    let (mut stream, net) = Stream::with_network(9);
    stream.world.book.own.settle();
    stream.publish(&net, 2);
    stream.publish(&net, 3);
    stream.pump();
    let facts = stream.world.book.facts().clone();
    stream.world.book = Book::new(ME, facts, 2, RETENTION, stream.world.now);
    stream.leader = Leader::new(PEER);
    stream.follower = Follower::new(ME);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2", "e3"]);
    stream.publish(&net, 3);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2", "e3"]);
    stream.world.book.own.settle();
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e3"]);
}

#[test]
fn much_comes_in_parts() {
    let mut world = World::new();
    let net = world.network_of("10.128.0.0/16");
    world.grant(ME, net.vni, 9000);
    world.hear();
    let mut stream = Stream::new(world);
    for offset in 2..8000 {
        stream.publish(&net, offset);
    }
    stream.pump();
    assert_eq!(stream.names(net.vni).len(), 7998);
    assert!(stream.frames > 3);
    // Changes as large as they may be.
    let frames = stream.frames;
    for offset in 2..250 {
        let mut endpoint = endpoint(&net, offset);
        endpoint.aliases = (0..64).map(|i| format!("{i:x>63}")).collect();
        stream.world.book.own.publish(endpoint);
    }
    stream.pump();
    assert!(stream.frames > frames + 3);
    let all = stream.book.endpoints(net.vni);
    assert_eq!(
        all.iter().filter(|(_, e)| e.aliases.len() == 64).count(),
        248
    );
    assert_eq!(stream.book.refused(), 0);
}

#[test]
fn parts_that_are_under_way_when_interest_changes_do_no_harm() {
    let mut world = World::new();
    let net = world.network_of("10.128.0.0/16");
    world.grant(ME, net.vni, 9000);
    world.hear();
    let mut stream = Stream::new(world);
    for offset in 2..8000 {
        stream.publish(&net, offset);
    }
    stream.ask();
    let (hello, first, second) = (stream.lead(), stream.lead(), stream.lead());
    stream.take(&hello.unwrap()).unwrap();
    stream.take(&first.unwrap()).unwrap();
    stream.book.set_interest([].into());
    stream.ask();
    stream.book.set_interest([net.vni].into());
    stream.ask();
    stream.take(&second.unwrap()).unwrap();
    stream.pump();
    assert_eq!(stream.names(net.vni).len(), 7998);
}

#[test]
fn interest_that_is_back_before_anybody_noticed_is_asked_for() {
    let (mut stream, net) = Stream::with_network(9);
    stream.publish(&net, 2);
    stream.pump();
    stream.book.set_interest([].into());
    stream.book.set_interest([net.vni].into());
    assert_eq!(stream.names(net.vni), [""; 0]);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2"]);
}

#[test]
fn who_is_back_is_asked_for_what_was_forgotten() {
    let (mut stream, net) = Stream::with_network(9);
    stream.publish(&net, 2);
    stream.pump();
    stream.book.down(ME, stream.world.now);
    stream.book.forget(ME);
    stream.pump();
    assert_eq!(stream.names(net.vni), [""; 0]);
    stream.book.up(ME);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2"]);
}

#[test]
fn a_digest_brings_back_what_was_forgotten() {
    let (mut stream, net) = Stream::with_network(9);
    stream.publish(&net, 2);
    stream.pump();
    stream.book.forget(ME);
    assert_eq!(stream.names(net.vni), [""; 0]);
    let frames = stream.frames;
    stream.pump();
    assert_eq!(stream.frames, frames);
    stream.world.now = stream.leader.deadline().unwrap();
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e2"]);
    let frames = stream.frames;
    stream.world.now = stream.leader.deadline().unwrap();
    stream.pump();
    assert_eq!(stream.frames, frames + 1, "a digest, and nothing differs");
}

#[test]
fn facts_come_from_managers_and_gaps_are_closed() {
    let (mut stream, _) = Stream::with_network(1);
    stream.pump();
    let before = stream.book.facts().version();
    let (a, b) = (stream.world.network("a"), stream.world.network("b"));
    stream.world.hear();
    stream.pump();
    assert!(stream.book.facts().network(b.vni).is_some());
    assert_eq!(stream.book.facts(), stream.world.book.facts());

    // Changes that do not follow: the follower says what it has.
    stream
        .world
        .agree(Command::NetworkRemove { name: "b".into() });
    stream.world.hear();
    let version = stream.world.book.facts().version();
    let index = version.index - 1;
    let gap = FactsNews::Changes {
        after: Version {
            index: 90,
            ..version
        },
        version: Version {
            index: 91,
            ..version
        },
        changes: vec![],
    };
    assert!(before.index < index);
    let part = encode(&gap).unwrap();
    let frame = encode(&Tell::Facts { part, last: true }).unwrap();
    stream.take(&frame).unwrap();
    stream.pump();
    assert!(stream.book.facts().network(b.vni).is_none());
    assert!(stream.book.facts().network(a.vni).is_some());

    // The leader is no manager any more: its word does not count.
    let (promote, demote) = (true, false);
    for (id, manager) in [(THIRD, promote), (ME, demote)] {
        stream.world.agree(Command::SetRole { id, manager });
    }
    stream.world.hear();
    let news = stream.world.managers.since(stream.book.facts().version());
    stream.book.take_facts(news, stream.world.now).unwrap();
    stream.world.network("c");
    let news = stream.world.managers.since(stream.book.facts().version());
    let part = encode(&news).unwrap();
    let frame = encode(&Tell::Facts { part, last: true }).unwrap();
    stream.take(&frame).unwrap();
    assert!(stream.book.facts().network_named("c").is_none());
    assert_eq!(stream.book.refused(), 1);
    stream.world.hear();
    let frames = stream.frames;
    stream.pump();
    assert_eq!(stream.frames, frames, "and it says none");
}

#[test]
fn who_breaks_the_rules_is_given_up() {
    let protocol = |result: Result<Option<Id>, Fault>| matches!(result, Err(Fault::Protocol(_)));
    let tell = |frame: &Tell| encode(frame).unwrap();
    let ask = |frame: &Ask| encode(frame).unwrap();
    let fresh = || Stream::with_network(1).0;

    let mut stream = fresh();
    assert!(protocol(stream.take(&tell(&Tell::Digest(0)))));
    assert!(protocol(
        stream.take(&tell(&Tell::Hello(Id::new(THIRD, 1))))
    ));
    let hello = tell(&Tell::Hello(Id::new(ME, 1)));
    assert!(stream.take(&hello).is_ok());
    assert!(protocol(stream.take(&hello)));
    assert_eq!(stream.take(&[]), Err(Fault::Malformed));
    assert_eq!(stream.take(&[0xff; 64]), Err(Fault::Malformed));
    assert_eq!(stream.take(&vec![2; MAX_FRAME + 1]), Err(Fault::Malformed));
    let mut long = tell(&Tell::Digest(0));
    long.push(0);
    assert_eq!(stream.take(&long), Err(Fault::Malformed));

    let mut leader = Leader::new(PEER);
    let hello = |host: HostId| Ask::Hello {
        swim: Id::new(host, 1),
        facts: Version::default(),
    };
    assert!(protocol(leader.receive(&ask(&Ask::Subscribe(vec![])))));
    assert!(protocol(leader.receive(&ask(&hello(ME)))));
    assert!(leader.receive(&ask(&hello(PEER))).is_ok());
    assert!(protocol(leader.receive(&ask(&hello(PEER)))));
    assert_eq!(leader.receive(b"noise"), Err(Fault::Malformed));
    let many = |from: u32| {
        let vnis = (from..from + 4096).filter_map(Vni::new);
        Ask::Subscribe(vnis.map(|vni| (vni, at(0, 0))).collect())
    };
    assert!(leader.receive(&ask(&many(1))).is_ok());
    assert!(protocol(leader.receive(&ask(&many(2)))));
}

#[test]
fn what_was_not_asked_for_is_passed_over() {
    let (mut stream, net) = Stream::with_network(9);
    stream.pump();
    let elsewhere = Vni::new(9999).unwrap();
    let up = Change::Up(std::sync::Arc::new(endpoint(&net, 2)));
    for vni in [elsewhere, net.vni] {
        let changes = Tell::Changes {
            vni,
            incarnation: u64::MAX,
            first: u64::MAX,
            changes: vec![up.clone(), Change::Settled],
        };
        stream.take(&encode(&changes).unwrap()).unwrap();
        let part = Tell::Snapshot {
            vni,
            at: at(u64::MAX, u64::MAX),
            first: false,
            settled: true,
            endpoints: vec![],
            groups: None,
            last: true,
        };
        stream.take(&encode(&part).unwrap()).unwrap();
    }
    stream.publish(&net, 3);
    stream.pump();
    assert_eq!(stream.names(net.vni), ["e3"]);
    assert_eq!(stream.book.endpoints(elsewhere), []);
}

/// Every kind of frame that a leader sends.
fn frames() -> Vec<Vec<u8>> {
    let (mut stream, net) = Stream::with_network(9);
    let mut frames = Vec::new();
    for round in 2..6 {
        stream.publish(&net, round);
        stream.world.network(&format!("n{round}"));
        stream.world.hear();
        stream.ask();
        while let Some(frame) = stream.lead() {
            stream.take(&frame).unwrap();
            frames.push(frame);
            stream.ask();
        }
        stream.world.now = stream.leader.deadline().unwrap();
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_frame_is_survived(
        noise: Vec<u8>,
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bytes: [u8; 3],
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut stream, net) = Stream::with_network(9);
        stream.publish(&net, 2);
        stream.pump();
        let frames = frames();
        let frame = which.get(&frames);
        let mut bent = frame.clone();
        let at = at.index(bent.len());
        for (place, byte) in bent[at..].iter_mut().zip(bytes) {
            *place = byte;
        }
        for frame in [&noise[..], &bent, &frame[..cut.index(frame.len())]] {
            let _ = stream.take(frame);
            let _ = stream.leader.receive(frame);
            stream.ask();
            while stream.lead().is_some() {}
        }
        for (_, endpoint) in stream.book.endpoints(net.vni) {
            prop_assert!(stream.book.facts().check(ME, &endpoint).is_ok());
        }
    }
}
