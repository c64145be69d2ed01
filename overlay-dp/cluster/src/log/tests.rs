use std::collections::HashMap;

use overlay_core::model::MacAddr;
use proptest::prelude::*;

use super::*;

fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        name: format!("e{n}"),
        vni: Vni::new(4096).unwrap(),
        mac: MacAddr([2, 0x42, 10, 0, 0, n]),
        ips: vec![IpAddr::from([10, 0, 0, n])],
        aliases: Vec::new(),
        service: None,
    }
}

fn added(endpoint: &Endpoint) -> Diff {
    Diff {
        old: None,
        new: Some(endpoint.clone()),
    }
}

fn gone(endpoint: &Endpoint) -> Diff {
    Diff {
        old: Some(endpoint.clone()),
        new: None,
    }
}

/// Brings `peer` up to date, as a gossip stream does.
fn sync(own: &OwnLog, peer: &mut PeerLog) -> Vec<Diff> {
    let at = own.position();
    match own.since(peer.have()) {
        News::Nothing => Vec::new(),
        News::Changes { first, changes } => peer.changes(at.incarnation, first, changes).unwrap(),
        News::Snapshot { settled, endpoints } => peer.snapshot(at, settled, endpoints),
    }
}

#[test]
fn a_restart_withdraws_only_what_is_not_published_again() {
    let (mut own, mut peer) = (OwnLog::new(1), PeerLog::default());
    own.settle();
    let [a, b, c] = [2, 3, 4].map(endpoint);
    for e in [&a, &b, &c] {
        own.publish(e.clone());
    }
    assert_eq!(sync(&own, &mut peer), [added(&a), added(&b), added(&c)]);

    let mut own = OwnLog::new(2);
    assert_eq!(sync(&own, &mut peer), []);
    own.publish(a.clone());
    let moved = Endpoint {
        mac: endpoint(9).mac,
        ..b.clone()
    };
    own.publish(moved.clone());
    let diff = Diff {
        old: Some(b),
        new: Some(moved),
    };
    assert_eq!(sync(&own, &mut peer), [diff]);
    own.settle();
    assert_eq!(sync(&own, &mut peer), [gone(&c)]);
    assert!(!own.settle());
    assert_eq!(sync(&own, &mut peer), []);
}

#[test]
fn a_withdrawal_before_settling_counts() {
    let (mut own, mut peer) = (OwnLog::new(1), PeerLog::default());
    let a = endpoint(2);
    own.publish(a.clone());
    sync(&own, &mut peer);
    let mut own = OwnLog::new(2);
    sync(&own, &mut peer);
    own.withdraw(a.vni, &a.name);
    assert_eq!(sync(&own, &mut peer), [gone(&a)]);
}

#[test]
fn what_comes_twice_or_late_is_passed_over_and_gaps_are_noticed() {
    let (mut own, mut peer) = (OwnLog::new(5), PeerLog::default());
    let [a, b] = [2, 3].map(endpoint);
    own.publish(a.clone());
    own.publish(b.clone());
    let both = vec![Change::Up(a.clone()), Change::Up(b.clone())];
    assert_eq!(
        peer.changes(5, 1, both[..1].to_vec()),
        Err(Gap),
        "its snapshot is missing"
    );
    sync(&own, &mut peer);
    assert_eq!(peer.changes(5, 1, both.clone()), Ok(vec![]));
    assert_eq!(
        peer.changes(4, 3, both.clone()),
        Ok(vec![]),
        "of the life before"
    );
    assert_eq!(peer.changes(5, 4, both.clone()), Err(Gap));
    assert_eq!(peer.changes(6, 1, both.clone()), Err(Gap));
    assert_eq!(
        peer.snapshot(
            Position {
                incarnation: 5,
                seq: 1
            },
            true,
            vec![]
        ),
        []
    );
    let down = Change::Down {
        vni: a.vni,
        name: a.name.clone(),
    };
    assert_eq!(
        peer.changes(5, 2, vec![both[1].clone(), down]),
        Ok(vec![gone(&a)])
    );
}

#[test]
fn leaving_takes_all_and_a_forgotten_log_comes_back() {
    let (mut own, mut peer) = (OwnLog::new(1), PeerLog::default());
    let a = endpoint(2);
    own.publish(a.clone());
    sync(&own, &mut peer);
    assert_eq!(peer.forget(), [gone(&a)]);
    assert_eq!(sync(&own, &mut peer), [added(&a)]);
    own.leave();
    assert_eq!(sync(&own, &mut peer), [gone(&a)]);
    assert!(peer.left());
}

#[test]
fn far_behind_means_a_snapshot() {
    let (mut own, mut peer) = (OwnLog::new(1), PeerLog::default());
    sync(&own, &mut peer);
    for round in 0..RECENT {
        own.publish(Endpoint {
            mac: MacAddr([2, 0, 0, 0, (round >> 8) as u8, round as u8]),
            ..endpoint(2)
        });
    }
    assert!(matches!(
        own.since(Position {
            incarnation: 1,
            seq: 0
        }),
        News::Changes { .. }
    ));
    own.publish(endpoint(3));
    assert!(matches!(
        own.since(Position {
            incarnation: 1,
            seq: 0
        }),
        News::Snapshot { .. }
    ));
    assert!(matches!(
        own.since(Position {
            incarnation: 1,
            seq: 9999
        }),
        News::Snapshot { .. }
    ));
    assert_eq!(sync(&own, &mut peer).len(), 2);
    assert_eq!(own.since(peer.have()), News::Nothing);
}

#[test]
fn hostile_records_are_counted_and_bounded() {
    let mut peer = PeerLog::default();
    let bad = [
        Endpoint {
            name: "../x".into(),
            ..endpoint(2)
        },
        Endpoint {
            mac: MacAddr([0xff; 6]),
            ..endpoint(2)
        },
        Endpoint {
            ips: vec![],
            ..endpoint(2)
        },
        Endpoint {
            ips: vec![IpAddr::from([10, 0, 0, 2]); 9],
            ..endpoint(2)
        },
    ];
    let at = Position {
        incarnation: 1,
        seq: u64::MAX,
    };
    assert_eq!(peer.snapshot(at, true, bad.to_vec()), []);
    assert_eq!(peer.refused, 4);
    assert_eq!(peer.changes(1, u64::MAX, vec![Change::Settled]), Err(Gap));

    let mut peer = PeerLog::default();
    let flood = |from: usize, count: usize| {
        let make = |i| Endpoint {
            name: format!("e{i}"),
            ..endpoint(2)
        };
        (from..from + count).map(make).collect::<Vec<_>>()
    };
    peer.snapshot(
        Position {
            incarnation: 1,
            seq: 1,
        },
        false,
        flood(0, MAX_ENDPOINTS),
    );
    // The life before does not make room for twice as many.
    peer.snapshot(
        Position {
            incarnation: 2,
            seq: 0,
        },
        false,
        flood(MAX_ENDPOINTS, 10),
    );
    assert_eq!(
        (peer.endpoints().count(), peer.refused),
        (MAX_ENDPOINTS, 10)
    );
}

#[test]
fn an_endpoint_fits_its_network_or_not() {
    let network = Network {
        name: "net".into(),
        vni: Vni::new(4096).unwrap(),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: "10.0.0.1".parse().unwrap(),
        ipv6: None,
    };
    let with = |ip: &str| Endpoint {
        ips: vec![ip.parse().unwrap()],
        ..endpoint(2)
    };
    for good in ["10.0.0.2", "10.0.0.254", "fe80::1"] {
        assert_eq!(fits(&with(good), &network), Ok(()), "{good}");
    }
    for bad in [
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.255",
        "10.0.1.2",
        "fd00::1",
        "::ffff:10.0.0.2",
    ] {
        assert!(fits(&with(bad), &network).is_err(), "{bad}");
    }
    let gateway = Endpoint {
        mac: network.gateway_mac(),
        ..endpoint(2)
    };
    assert!(fits(&gateway, &network).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8, u8),
    Withdraw(u8),
    Settle,
    Restart,
    Sync,
    Forget,
}

proptest! {
    /// Whatever happens and whenever the follower catches up, it ends up with what the owner has,
    /// and its differences add up to that.
    #[test]
    fn a_follower_converges(steps in prop::collection::vec(prop_oneof![
        5 => (0..5u8, 0..3u8).prop_map(|(name, ip)| Step::Publish(name, ip)),
        3 => (0..5u8).prop_map(Step::Withdraw),
        1 => Just(Step::Settle),
        1 => Just(Step::Restart),
        3 => Just(Step::Sync),
        1 => Just(Step::Forget),
    ], 0..80)) {
        let (mut own, mut peer) = (OwnLog::new(1), PeerLog::default());
        let mut seen: HashMap<Key, Endpoint> = HashMap::new();
        let mut life = 1;
        let take = |diffs: Vec<Diff>, seen: &mut HashMap<Key, Endpoint>| {
            for Diff { old, new } in diffs {
                prop_assert_ne!(&old, &new);
                if let Some(old) = old {
                    prop_assert_eq!(seen.remove(&key(&old)), Some(old));
                }
                if let Some(new) = new {
                    prop_assert_eq!(seen.insert(key(&new), new), None);
                }
            }
            Ok(())
        };
        for step in steps.into_iter().chain([Step::Settle, Step::Sync]) {
            match step {
                Step::Publish(name, ip) => {
                    let mut e = endpoint(name);
                    e.ips = vec![IpAddr::from([10, 0, 0, ip + 2])];
                    own.publish(e);
                }
                Step::Withdraw(name) => own.withdraw(endpoint(name).vni, &format!("e{name}")),
                Step::Settle => {
                    own.settle();
                }
                Step::Restart => {
                    life += 1;
                    own = OwnLog::new(life);
                }
                Step::Sync => take(sync(&own, &mut peer), &mut seen)?,
                Step::Forget => take(peer.forget(), &mut seen)?,
            }
        }
        let owned: HashMap<Key, Endpoint> = own.endpoints().map(|e| (key(e), e.clone())).collect();
        prop_assert_eq!(&seen, &owned);
        prop_assert_eq!(peer.endpoints().count(), owned.len());
    }
}
