use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn group(n: u16) -> Group {
    let [a, b] = n.to_be_bytes();
    Group::new(IpAddr::from([239, 1, a, b])).unwrap()
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_port_that_hoards_harms_only_itself() {
    let mut members = Members::new();
    let joined = (0..1000).filter(|n| members.join(1, group(*n), 7, s(1)).is_ok());
    assert_eq!(joined.count(), OF_ONE_PORT);
    assert_eq!(members.join(1, group(0), 7, s(2)), Ok(()), "again");
    assert_eq!(members.join(1, group(5000), 8, s(2)), Ok(()));
    // In one network, all hosts are told of so many; then of those that there are, only.
    for n in 0..2000 {
        let _ = members.join(1, group(n), 100 + u32::from(n) / 100, s(2));
    }
    assert_eq!(members.groups(1), MAX_GROUPS);
    assert_eq!(members.join(1, group(6000), 9, s(2)), Err(Full));
    assert_eq!(members.join(1, group(5000), 9, s(2)), Ok(()));
    assert_eq!(members.join(2, group(6000), 9, s(2)), Ok(()));
    for n in 0..9000_u32 {
        let _ = members.join(3 + n / 1000, group((n % 1000) as u16), 1000 + n / 100, s(2));
    }
    assert_eq!(members.all().len(), IN_ALL);
    assert_eq!(members.sorted.capacity(), IN_ALL);
    members.expire(s(2) + LIFE, |_, _| false);
    assert!(members.all().is_empty());
}

#[test]
fn who_leaves_is_asked_twice() {
    let mut members = Members::new();
    members.join(1, group(1), 7, s(10)).unwrap();
    assert!(members.leave(1, group(1), 7, s(20)));
    assert!(!members.leave(1, group(1), 7, s(20)), "is being asked");
    assert!(!members.leave(1, group(2), 7, s(20)), "is no member");
    assert_eq!(members.due(), Some(s(20)));
    for now in [s(20), s(21)] {
        assert_eq!(members.next_to_ask(now).map(|m| m.ifindex), Some(7));
        assert_eq!(members.next_to_ask(now), None);
    }
    // Its answer.
    members.join(1, group(1), 7, s(21)).unwrap();
    members.expire(s(30), |_, _| false);
    assert_eq!(members.of_group(1, group(1)).len(), 1);
    members.leave(1, group(1), 7, s(30));
    members.expire(s(31), |_, _| false);
    assert_eq!(members.of_group(1, group(1)).len(), 1);
    members.expire(s(32), |_, _| false);
    assert!(members.all().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Join(u32, u16, u32),
    Leave(u32, u16, u32),
    Gone(u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || (1..3_u32, 0..4_u16, 1..4_u32);
    let step = prop_oneof![
        4 => key().prop_map(|(v, g, i)| Step::Join(v, g, i)),
        2 => key().prop_map(|(v, g, i)| Step::Leave(v, g, i)),
        1 => (1..4_u32).prop_map(Step::Gone),
        3 => (1..200_000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

/// One member, said as plainly as can be.
#[derive(Clone, Copy)]
struct Plain {
    until: Duration,
    /// How often it is still to be asked, and when next.
    doubt: Option<(u32, Duration)>,
    rests_until: Duration,
}

proptest! {
    /// Against the plainest thing that says the same.
    #[test]
    fn members_are_those_who_said_so_lately(steps in steps()) {
        let mut members = Members::new();
        let mut model: BTreeMap<Key, Plain> = BTreeMap::new();
        let mut now = s(100);
        for step in steps {
            let before = model.keys().copied().collect::<Vec<_>>();
            let revision = members.revision();
            match step {
                Step::Join(vni, n, ifindex) => {
                    members.join(vni, group(n), ifindex, now).unwrap();
                    let new = Plain { until: now, doubt: None, rests_until: s(0) };
                    let plain = model.entry((vni, group(n), ifindex)).or_insert(new);
                    (plain.until, plain.doubt) = (now + LIFE, None);
                }
                Step::Leave(vni, n, ifindex) => {
                    let asks = members.leave(vni, group(n), ifindex, now);
                    let plain = model.get_mut(&(vni, group(n), ifindex));
                    let plain = plain.filter(|plain| plain.doubt.is_none());
                    prop_assert_eq!(asks, plain.is_some());
                    if let Some(plain) = plain {
                        let at = now.max(plain.rests_until);
                        plain.doubt = Some((2, at));
                        plain.until = plain.until.min(at + s(2));
                    }
                }
                Step::Gone(gone) => {
                    members.expire(now, |ifindex, _| ifindex == gone);
                    model.retain(|(_, _, ifindex), plain| *ifindex != gone && plain.until > now);
                }
                Step::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    let asked = std::iter::from_fn(|| members.next_to_ask(now)).count();
                    let mut wanted = 0;
                    for plain in model.values_mut() {
                        while let Some((left @ 1.., at)) = plain.doubt.filter(|(_, at)| *at <= now) {
                            plain.rests_until = now + s(1);
                            plain.doubt = Some((left - 1, at + s(1)));
                            wanted += 1;
                        }
                    }
                    prop_assert_eq!(asked, wanted);
                    members.expire(now, |_, _| false);
                    model.retain(|_, plain| plain.until > now);
                }
            }
            let have: Vec<Key> = members.all().iter().map(Member::key).collect();
            let wanted: Vec<Key> = model.keys().copied().collect();
            prop_assert_eq!(&have, &wanted);
            prop_assert_eq!(before != wanted, revision != members.revision());
            for (vni, n) in [(1, 0), (1, 3), (2, 1)] {
                let of_group = members.of_group(vni, group(n)).iter().map(|m| m.ifindex);
                let of_model = wanted.iter().filter(|(v, g, _)| (*v, *g) == (vni, group(n)));
                prop_assert!(of_group.eq(of_model.map(|(_, _, ifindex)| *ifindex)));
            }
        }
    }
}
