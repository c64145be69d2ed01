use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use overlay_core::model::{MacAddr, Vni};
use overlay_core::multicast::Group;
use proptest::prelude::*;

use super::own::RECENT;
use super::*;
use crate::wire::{Change, Position};

const ALL: u8 = 255;

fn vni() -> Vni {
    Vni::new(4096).unwrap()
}

fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        name: format!("e{n}"),
        vni: vni(),
        mac: MacAddr([2, 0x42, 10, 0, 0, n]),
        ips: vec![IpAddr::from([10, 0, 0, n])],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

fn added(endpoint: &Endpoint) -> Diff {
    Diff {
        old: None,
        new: Some(Arc::new(endpoint.clone())),
    }
}

fn gone(endpoint: &Endpoint) -> Diff {
    Diff {
        old: Some(Arc::new(endpoint.clone())),
        new: None,
    }
}

fn at(incarnation: u64, seq: u64) -> Position {
    Position { incarnation, seq }
}

fn up(endpoint: &Endpoint) -> Change {
    Change::Up(Arc::new(endpoint.clone()))
}

/// A followed log of which everything is allowed.
struct Peer {
    log: PeerLog,
    account: Account,
}

impl Peer {
    fn new() -> Peer {
        Peer {
            log: PeerLog::new(vni(), 1),
            account: Account::default(),
        }
    }

    fn changes(&mut self, life: u64, first: u64, changes: &[Change]) -> Result<Vec<Diff>, Gap> {
        let changes = changes.to_vec();
        self.log
            .changes(life, first, changes, &mut self.account, |_| true)
    }

    fn snapshot(&mut self, at: Position, settled: bool, endpoints: Vec<Endpoint>) -> Vec<Diff> {
        let endpoints: Vec<_> = endpoints.into_iter().map(Arc::new).collect();
        self.log
            .snapshot(at, settled, (endpoints, None), &mut self.account, |_| true)
    }

    fn forget(&mut self) -> Vec<Diff> {
        self.log.forget(&mut self.account)
    }

    /// Brings it up to date, as a gossip stream does.
    fn sync(&mut self, own: &OwnLogs) -> Vec<Diff> {
        let at = own.position(vni());
        match own.since(vni(), self.log.have()) {
            News::Nothing => Vec::new(),
            News::Changes { first, changes } => {
                self.changes(at.incarnation, first, &changes).unwrap()
            }
            News::Snapshot {
                settled,
                endpoints,
                groups,
            } => {
                let records = (endpoints, groups);
                self.log
                    .snapshot(at, settled, records, &mut self.account, |_| true)
            }
        }
    }
}

#[test]
fn a_restart_withdraws_only_what_is_not_published_again() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    own.settle();
    let [a, b, c] = [2, 3, 4].map(endpoint);
    for e in [&a, &b, &c] {
        assert!(own.publish(e.clone()));
    }
    assert!(!own.publish(a.clone()));
    assert_eq!(peer.sync(&own), [added(&a), added(&b), added(&c)]);

    let mut own = OwnLogs::new(2);
    assert_eq!(peer.sync(&own), []);
    own.publish(a.clone());
    let moved = Endpoint {
        mac: endpoint(9).mac,
        ..b.clone()
    };
    own.publish(moved.clone());
    let diff = Diff {
        old: gone(&b).old,
        new: added(&moved).new,
    };
    assert_eq!(peer.sync(&own), [diff]);
    own.settle();
    assert_eq!(peer.sync(&own), [gone(&c)]);
    assert!(!own.settle());
    assert_eq!(peer.sync(&own), []);
}

#[test]
fn a_log_that_was_never_written_to_settles_too() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    own.publish(endpoint(2));
    peer.sync(&own);
    let mut own = OwnLogs::new(2);
    assert_eq!(peer.sync(&own), []);
    let seen = own.moves();
    own.settle();
    assert!(own.moved_since(seen).is_none(), "all of them");
    assert_eq!(peer.sync(&own), [gone(&endpoint(2))]);
    own.publish(endpoint(3));
    assert_eq!(peer.sync(&own), [added(&endpoint(3))]);
    assert_eq!(peer.log.have(), at(2, 2));
}

#[test]
fn moves_tell_which_logs_changed() {
    let mut own = OwnLogs::new(1);
    let other = Vni::new(5000).unwrap();
    own.settle();
    own.publish(endpoint(2));
    let seen = own.moves();
    let elsewhere = |n| Endpoint {
        vni: other,
        ..endpoint(n)
    };
    own.publish(elsewhere(2));
    own.publish(elsewhere(3));
    let moved: Vec<Vni> = own.moved_since(seen).unwrap().collect();
    assert_eq!(moved, [other]);
    assert_eq!(own.moved_since(own.moves()).unwrap().count(), 0);
    assert_eq!(own.moved_since(1).unwrap().count(), 2);
    own.withdraw(other, "e2");
    own.withdraw(other, "e3");
    own.withdraw(other, "e4");
    assert_eq!(own.networks().collect::<Vec<_>>(), [vni()]);
}

#[test]
fn a_withdrawal_before_settling_counts() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    let a = endpoint(2);
    own.publish(a.clone());
    peer.sync(&own);
    let mut own = OwnLogs::new(2);
    peer.sync(&own);
    own.withdraw(a.vni, &a.name);
    assert_eq!(peer.sync(&own), [gone(&a)]);
}

#[test]
fn what_comes_twice_or_late_is_passed_over_and_gaps_are_noticed() {
    let (mut own, mut peer) = (OwnLogs::new(5), Peer::new());
    let [a, b] = [2, 3].map(endpoint);
    own.publish(a.clone());
    own.publish(b.clone());
    let both = [up(&a), up(&b)];
    assert_eq!(
        peer.changes(5, 1, &both[..1]),
        Err(Gap),
        "its snapshot is missing"
    );
    peer.sync(&own);
    assert_eq!(peer.changes(5, 1, &both), Ok(vec![]));
    assert_eq!(peer.changes(4, 3, &both), Ok(vec![]), "of the life before");
    assert_eq!(peer.changes(5, 4, &both), Err(Gap));
    assert_eq!(peer.changes(6, 1, &both), Err(Gap));
    assert_eq!(peer.snapshot(at(5, 1), true, vec![]), []);
    let down = Change::Down(a.name.clone());
    assert_eq!(
        peer.changes(5, 2, &[both[1].clone(), down]),
        Ok(vec![gone(&a)])
    );
}

#[test]
fn a_forgotten_log_comes_back() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    let a = endpoint(2);
    own.publish(a.clone());
    peer.sync(&own);
    assert_eq!(peer.forget(), [gone(&a)]);
    assert_eq!(peer.account.records, 0);
    assert_eq!(peer.sync(&own), [added(&a)]);
}

#[test]
fn far_behind_means_a_snapshot() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    peer.sync(&own);
    for round in 0..RECENT {
        own.publish(Endpoint {
            mac: MacAddr([2, 0, 0, 0, (round >> 8) as u8, round as u8]),
            ..endpoint(2)
        });
    }
    let since = |own: &OwnLogs, seq| own.since(vni(), at(1, seq));
    assert!(matches!(since(&own, 0), News::Changes { .. }));
    own.publish(endpoint(3));
    assert!(matches!(since(&own, 0), News::Snapshot { .. }));
    assert!(matches!(since(&own, 9999), News::Snapshot { .. }));
    assert_eq!(peer.sync(&own).len(), 2);
    assert_eq!(own.since(vni(), peer.log.have()), News::Nothing);
}

#[test]
fn hostile_records_are_counted_and_bounded() {
    let mut peer = Peer::new();
    let with = |change: fn(&mut Endpoint)| {
        let mut endpoint = endpoint(2);
        change(&mut endpoint);
        endpoint
    };
    let bad = vec![
        with(|e| e.name = "../x".into()),
        with(|e| e.mac = MacAddr([0xff; 6])),
        with(|e| e.ips = vec![]),
        with(|e| e.ips = vec![e.ips[0]; MAX_IPS + 1]),
        with(|e| e.aliases = vec!["a".into(); MAX_ALIASES + 1]),
        with(|e| e.aliases = vec!["x".repeat(64)]),
        with(|e| e.service = Some(String::new())),
        with(|e| e.vni = Vni::MAX),
    ];
    let count = bad.len() as u64;
    assert_eq!(peer.snapshot(at(1, u64::MAX), true, bad), []);
    assert_eq!(peer.account.refused, count);
    assert_eq!(peer.changes(1, u64::MAX, &[Change::Settled]), Err(Gap));

    let flood = |from: usize, count: usize| {
        let make = |i| Endpoint {
            name: format!("e{i}"),
            ..endpoint(2)
        };
        (from..from + count).map(make).collect::<Vec<_>>()
    };
    let mut peer = Peer::new();
    peer.snapshot(at(1, 1), false, flood(0, MAX_ENDPOINTS));
    // The life before does not make room for twice as many.
    peer.snapshot(at(2, 0), false, flood(MAX_ENDPOINTS, 10));
    assert_eq!(peer.log.visible().count(), MAX_ENDPOINTS);
    assert_eq!(
        (peer.account.records, peer.account.refused),
        (MAX_ENDPOINTS, 10)
    );
}

#[test]
fn names_can_not_fill_the_memory() {
    let mut own = OwnLogs::new(1);
    let large = |n: usize| Endpoint {
        name: format!("e{n}"),
        aliases: (0..MAX_ALIASES).map(|i| format!("{i:x>63}")).collect(),
        ..endpoint(2)
    };
    let mut count = 0;
    while !own.is_full() {
        own.publish(large(count));
        count += 1;
    }
    assert!(count > 4000);
    let mut peer = Peer::new();
    peer.sync(&own);
    assert_eq!((peer.account.records, peer.account.refused), (count, 0));
    for n in count..count + 1000 {
        own.publish(large(n));
    }
    peer.sync(&own);
    assert!(peer.account.bytes <= MAX_BYTES && peer.account.refused > 0);
    for n in 0..count + 1000 {
        own.withdraw(vni(), &format!("e{n}"));
    }
    own.settle();
    peer.sync(&own);
    assert_eq!((peer.account.records, peer.account.bytes), (0, 0));
    assert!(!own.is_full());
}

#[test]
fn what_waits_is_bounded_and_asked_for_again_when_it_may_be_allowed() {
    let mut peer = Peer::new();
    let make = |i| Endpoint {
        name: format!("e{i}"),
        ..endpoint(2)
    };
    let all: Vec<_> = (0..MAX_WAITING + 1).map(|i| Arc::new(make(i))).collect();
    let nothing = |_: &Endpoint| false;
    let (log, account) = (&mut peer.log, &mut peer.account);
    assert_eq!(
        log.snapshot(at(1, 9), true, (all.clone(), None), account, nothing),
        []
    );
    assert_eq!((account.waiting, account.refused), (MAX_WAITING, 1));
    let touched = |e: &Endpoint| e.name == "e7";
    let shown = log.recheck(true, touched, account, |_| true);
    assert_eq!(shown, [added(&make(7))]);
    assert_eq!(account.waiting, MAX_WAITING - 1);
    assert!(log.have() < at(1, 9), "not all of it is here");
    let shown = log.snapshot(at(1, 9), true, (all, None), account, |_| true);
    assert_eq!(shown.len(), MAX_WAITING);
    assert_eq!((account.waiting, log.have()), (0, at(1, 9)));
    let hidden = log.recheck(false, touched, account, nothing);
    assert_eq!(hidden, [gone(&make(7))]);
    assert_eq!(
        log.recheck(true, |_| true, account, |_| true),
        [added(&make(7))]
    );
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8, u8),
    Withdraw(u8),
    Settle,
    Restart,
    Sync,
    Forget,
    /// Addresses up to this one are allowed, from now on.
    Allow(u8),
}

fn allowed(endpoint: &Endpoint, limit: u8) -> bool {
    matches!(endpoint.ips[0], IpAddr::V4(ip) if ip.octets()[3] <= limit)
}

proptest! {
    /// Whatever happens and whenever the follower catches up, it shows in the end what the owner
    /// has and the facts allow, and its differences add up to that.
    #[test]
    fn a_follower_converges(steps in prop::collection::vec(prop_oneof![
        5 => (0..5u8, 0..3u8).prop_map(|(name, ip)| Step::Publish(name, ip)),
        3 => (0..5u8).prop_map(Step::Withdraw),
        1 => Just(Step::Settle),
        1 => Just(Step::Restart),
        3 => Just(Step::Sync),
        1 => Just(Step::Forget),
        2 => (1..6u8).prop_map(Step::Allow),
    ], 0..80)) {
        let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
        let mut seen: HashMap<String, Arc<Endpoint>> = HashMap::new();
        let (mut life, mut limit) = (1, ALL);
        for step in steps.into_iter().chain([Step::Settle, Step::Sync]) {
            let diffs = match step {
                Step::Publish(name, ip) => {
                    let mut e = endpoint(name);
                    e.ips = vec![IpAddr::from([10, 0, 0, ip + 2])];
                    own.publish(e);
                    vec![]
                }
                Step::Withdraw(name) => {
                    own.withdraw(vni(), &format!("e{name}"));
                    vec![]
                }
                Step::Settle => {
                    own.settle();
                    vec![]
                }
                Step::Restart => {
                    life += 1;
                    own = OwnLogs::new(life);
                    vec![]
                }
                Step::Sync => {
                    let diffs = peer.sync(&own);
                    // `sync` allows everything.
                    let hidden = peer.log.recheck(
                        false, |_| true, &mut peer.account, |e| allowed(e, limit));
                    diffs.into_iter().chain(hidden).collect()
                }
                Step::Forget => peer.forget(),
                Step::Allow(next) => {
                    let allows = next >= limit;
                    limit = next;
                    peer.log.recheck(
                        allows, |_| true, &mut peer.account, |e| allowed(e, limit))
                }
            };
            for Diff { old, new } in diffs {
                prop_assert_ne!(&old, &new);
                if let Some(old) = old {
                    prop_assert_eq!(seen.remove(&old.name), Some(old));
                }
                if let Some(new) = new {
                    prop_assert_eq!(seen.insert(new.name.clone(), new), None);
                }
            }
            let waiting = peer.account.records - seen.len();
            prop_assert_eq!(peer.account.waiting, waiting);
        }
        let mut owned: Vec<&Endpoint> = own.endpoints(vni()).collect();
        prop_assert_eq!(peer.account.records, owned.len());
        owned.retain(|e| allowed(e, limit));
        let mut shown: Vec<&Endpoint> = peer.log.visible().map(|e| &**e).collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(&shown, &owned);
        prop_assert_eq!(seen.len(), owned.len());
    }
}

fn groups(last: impl IntoIterator<Item = u16>) -> BTreeSet<Group> {
    let ip = |n: u16| IpAddr::from([239, 1, (n >> 8) as u8, n as u8]);
    last.into_iter().filter_map(|n| Group::new(ip(n))).collect()
}

#[test]
fn groups_are_known_as_their_owner_said_last() {
    let (mut own, mut peer) = (OwnLogs::new(1), Peer::new());
    own.settle();
    assert!(own.set_groups(vni(), &groups([1, 2])));
    assert!(!own.set_groups(vni(), &groups([2, 1])));
    peer.sync(&own);
    assert_eq!(peer.log.take_news_of_groups(), Some(&groups([1, 2])));
    assert_eq!(peer.log.take_news_of_groups(), None);
    // Changes one by one, several at once, and as a snapshot.
    own.set_groups(vni(), &groups([2]));
    peer.sync(&own);
    assert_eq!(peer.log.groups(), &groups([2]));
    for n in 0..1000 {
        own.set_groups(vni(), &groups(0..n % 7));
        if n % 3 == 0 || n > 990 {
            peer.sync(&own);
            assert_eq!(peer.log.groups(), &groups(0..n % 7));
        }
    }
    own.publish(endpoint(2));
    for n in 0..1000 {
        own.set_groups(vni(), &groups(n..n + 9));
    }
    peer.sync(&own);
    assert_eq!(peer.log.groups(), &groups(999..1008));
    // A restart forgets none until something is said; being away does.
    let mut own = OwnLogs::new(2);
    own.publish(endpoint(2));
    own.settle();
    peer.sync(&own);
    assert_eq!(peer.log.groups(), &groups(999..1008));
    own.set_groups(vni(), &groups([]));
    peer.sync(&own);
    assert_eq!(peer.log.groups(), &groups([]));
    own.set_groups(vni(), &groups([3]));
    peer.sync(&own);
    peer.forget();
    assert_eq!(peer.log.take_news_of_groups(), Some(&groups([])));
    assert_eq!((peer.account.records, peer.account.bytes), (0, 0));
    peer.sync(&own);
    assert_eq!(peer.log.groups(), &groups([3]));
}

#[test]
fn too_many_groups_are_none() {
    let mut peer = Peer::new();
    let say = |peer: &mut Peer, seq, count: u16| {
        let list = groups(0..count).into_iter().collect();
        peer.changes(0, seq, &[Change::Groups(list)]).unwrap();
    };
    say(&mut peer, 1, 1024);
    assert_eq!((peer.log.groups().len(), peer.account.refused), (1024, 0));
    say(&mut peer, 2, 1025);
    assert_eq!((peer.log.groups().len(), peer.account.refused), (0, 1));
    assert_eq!(peer.account.bytes, 0);
}
