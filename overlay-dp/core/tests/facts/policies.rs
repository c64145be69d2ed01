//! Policies: which can be added, and how they go.

use overlay_core::facts::{Command, MAX_RULES, PolicySpec, Refusal, Reply, ServiceSpec};
use overlay_core::policy::{Action, Policy, PolicyError, PolicyProtocol, PolicyRule, Selector};

use super::*;

fn rule(to: &str, from: &str) -> PolicyRule {
    PolicyRule {
        to: to.parse().unwrap(),
        from: from.parse().unwrap(),
        protocol: Some(PolicyProtocol::Tcp),
        ports: Some("80".parse().unwrap()),
        action: Action::Allow,
    }
}

fn add(rig: &mut Rig, name: &str, network: &str, rule: PolicyRule) -> Result<Policy, Refusal> {
    let spec = PolicySpec {
        name: name.into(),
        network: network.into(),
        rule,
    };
    match rig.apply(Command::PolicyAdd { spec })? {
        Reply::Policy(policy) => Ok(policy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_is_added_and_removed() {
    let mut rig = Rig::new(1);
    let network = rig.create(spec("net", &[])).unwrap();
    let copy = rig.facts().clone();
    let added = add(&mut rig, "p", "net", rule("service:web", "any")).unwrap();
    assert_eq!(
        (added.vni, rig.facts().policy("p")),
        (network.vni, Some(&added))
    );
    let again = add(&mut rig, "p", "net", rule("any", "any"));
    assert_eq!(again, Err(Refusal::PolicyExists("p".into())));
    let nowhere = add(&mut rig, "q", "other", rule("any", "any"));
    assert_eq!(nowhere, Err(Refusal::NoNetwork("other".into())));

    // A copy follows, and a default that is said twice is one change.
    let deny = |deny| Command::PolicyDefault {
        network: "net".into(),
        deny,
    };
    rig.apply(deny(true)).unwrap();
    let version = rig.facts().version();
    rig.apply(deny(true)).unwrap();
    assert_eq!(rig.facts().version(), version);
    let mut copy = copy;
    copy.update(rig.machine.since(copy.version())).unwrap();
    assert_eq!(&copy, rig.facts());
    assert!(copy.denies(network.vni));

    let name = "p".to_owned();
    let remove = Command::PolicyRemove { name };
    rig.apply(remove.clone()).unwrap();
    assert_eq!(rig.apply(remove), Err(Refusal::NoPolicy("p".into())));
}

#[test]
fn policies_go_with_their_network() {
    let mut rig = Rig::new(1);
    let network = rig.create(spec("net", &[])).unwrap();
    rig.create(spec("other", &[])).unwrap();
    add(&mut rig, "p", "net", rule("any", "any")).unwrap();
    add(&mut rig, "kept", "other", rule("any", "any")).unwrap();
    rig.apply(Command::PolicyDefault {
        network: "net".into(),
        deny: true,
    })
    .unwrap();
    let name = "net".to_owned();
    rig.apply(Command::NetworkRemove { name }).unwrap();
    let left: Vec<&str> = rig.facts().policies().map(|p| p.name.as_str()).collect();
    assert_eq!(left, ["kept"]);
    // Whatever network gets its VNI is open.
    let anew = NetworkSpec {
        vni: Some(network.vni),
        ..spec("net", &[])
    };
    rig.create(anew).unwrap();
    assert!(!rig.facts().denies(network.vni));
}

#[test]
fn what_can_not_be_is_refused() {
    let mut rig = Rig::new(1);
    rig.create(spec("net", &["10.9.0.0/24"])).unwrap();
    let service = ServiceSpec {
        name: "web".into(),
        network: "net".into(),
        ip: Some(ip("10.9.0.9")),
        ..ServiceSpec::default()
    };
    rig.apply(Command::ServiceCreate {
        spec: service,
        from: None,
    })
    .unwrap();
    assert_eq!(
        add(&mut rig, "p", "net", rule("10.9.0.9", "any")),
        Err(Refusal::PolicyToVip {
            ip: ip("10.9.0.9"),
            service: "web".into()
        })
    );
    add(&mut rig, "near", "net", rule("10.9.0.0/28", "10.9.0.9")).unwrap();
    assert!(matches!(
        add(&mut rig, "p", "net", rule("10.8.0.9", "any")),
        Err(Refusal::Address { .. })
    ));
    let without = PolicyRule {
        protocol: None,
        ..rule("any", "any")
    };
    let refused = add(&mut rig, "p", "net", without);
    assert_eq!(refused, Err(Refusal::Policy(PolicyError::NoPorts)));
    // From a member that does not check what it sends.
    let odd = PolicyRule {
        from: Selector::Service("a b".into()),
        ..rule("any", "any")
    };
    assert!(matches!(
        add(&mut rig, "p", "net", odd),
        Err(Refusal::Policy(PolicyError::Selector(_)))
    ));
}

#[test]
fn about_one_container_there_are_so_many_at_most() {
    let mut rig = Rig::new(1);
    rig.create(spec("net", &[])).unwrap();
    rig.create(spec("other", &[])).unwrap();
    let half = MAX_RULES / 2;
    for n in 0..half {
        add(&mut rig, &format!("any{n}"), "net", rule("any", "any")).unwrap();
        add(
            &mut rig,
            &format!("web{n}"),
            "net",
            rule("service:web", "any"),
        )
        .unwrap();
        add(
            &mut rig,
            &format!("db{n}"),
            "net",
            rule("service:db", "any"),
        )
        .unwrap();
    }
    for to in ["any", "service:web", "10.0.0.9"] {
        let more = add(&mut rig, "more", "net", rule(to, "any"));
        assert_eq!(more, Err(Refusal::TooManyPolicies), "{to}");
    }
    add(&mut rig, "more", "net", rule("service:api", "any")).unwrap();
    add(&mut rig, "elsewhere", "other", rule("any", "any")).unwrap();
}
