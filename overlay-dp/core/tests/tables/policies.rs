//! What ports have of their networks' policies, and when.

use overlay_common::layout::FdbKey;
use overlay_common::policy::{ALLOW, MAX_RULES, PolicyEntry, judge};
use overlay_common::verdict::testing::{Memory, Slice};
use overlay_core::policy::{
    Action, Policy, PolicyProtocol, PolicyRule, RateLimit, Selector, identity,
};
use overlay_core::tables::{MapContents, MapUpdate, NetPolicies, PortOptions};
use proptest::prelude::*;

use super::maps::drain;
use super::*;

fn task(last: u8, service: Option<&str>) -> Endpoint {
    Endpoint {
        service: service.map(str::to_owned),
        ..endpoint(&format!("c{last}"), 1, last)
    }
}

fn policy(name: &str, to: &str, from: &str, action: Action) -> Policy {
    Policy {
        name: name.to_owned(),
        vni: vni(1),
        rule: PolicyRule {
            to: to.parse().unwrap(),
            from: from.parse().unwrap(),
            protocol: None,
            ports: None,
            action,
        },
    }
}

fn set(tables: &mut Tables, policies: &[Policy], deny: bool) {
    let policies = policies.to_vec();
    tables.policies_set(vni(1), NetPolicies { policies, deny });
}

#[test]
fn a_policy_is_about_whom_it_names() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.network_add(network(1));
    tables.port_up(7, &task(2, Some("web"))).unwrap();
    tables.port_up(8, &task(3, None)).unwrap();
    drain(&mut tables, &mut maps);
    assert!(maps.policies.is_empty());
    assert_eq!(
        maps.fdb[&FdbKey::new(1, mac(2).0)].identity(),
        identity("web")
    );
    assert_eq!(maps.fdb[&FdbKey::new(1, mac(3).0)].identity(), 0);

    let web = policy("web", "service:web", "service:api", Action::Allow);
    set(&mut tables, std::slice::from_ref(&web), false);
    drain(&mut tables, &mut maps);
    assert_eq!(maps.policies.keys().copied().collect::<Vec<_>>(), [7]);
    let entry = maps.policies[&7];
    assert_eq!((entry.otherwise, entry.count), (0, 1));
    assert_eq!(entry.used(), [web.rule.compiled().into()]);
    let compiled = web.rule.compiled();
    assert_eq!(
        (compiled.identity, compiled.action),
        (identity("api"), ALLOW)
    );

    // A deny policy closes nothing; an address names whoever has it.
    let other = policy("other", "10.0.0.3", "any", Action::Deny);
    set(&mut tables, &[other.clone(), web.clone()], false);
    drain(&mut tables, &mut maps);
    assert_eq!(maps.policies[&8].otherwise, ALLOW);
    assert_eq!(tables.policy_at(8, 0), Some(&other));
    assert_eq!(tables.policy_at(7, 0), Some(&web));

    // Who joins the service is policed from then on, without a gap; and who leaves it is not.
    tables.port_up(8, &task(3, Some("web"))).unwrap();
    let updates = drain(&mut tables, &mut maps);
    assert_eq!(maps.policies[&8].count, 2);
    assert!(!updates.iter().any(|u| matches!(u, MapUpdate::DelPort(_))));
    set(&mut tables, std::slice::from_ref(&web), false);
    tables.port_up(8, &task(3, None)).unwrap();
    drain(&mut tables, &mut maps);
    assert!(!maps.policies.contains_key(&8) && !maps.ports[&8].is_policed());

    // All of a network that denies, and the host's own port never.
    set(&mut tables, &[], true);
    let router = Endpoint {
        router: true,
        ..task(9, None)
    };
    tables.port_up(9, &router).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.policies.len(), 2);
    assert_eq!(maps.policies[&8], PolicyEntry::SHUT);
    set(&mut tables, &[], false);
    drain(&mut tables, &mut maps);
    assert!(maps.policies.is_empty());
}

#[test]
fn policies_are_there_before_a_port_carries_anything() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    set(
        &mut tables,
        &[policy("p", "any", "any", Action::Deny)],
        false,
    );
    tables.network_add(network(1));
    tables.port_up(7, &task(2, None)).unwrap();
    // `drain` looks after each update that no policed port lacks its policies.
    drain(&mut tables, &mut maps);
    assert!(maps.ports[&7].is_policed());
    tables.port_up(8, &task(3, None)).unwrap();
    drain(&mut tables, &mut maps);
    tables.port_down(7);
    tables.port_down(8);
    drain(&mut tables, &mut maps);
    assert_eq!(maps, MapContents::default());
}

#[test]
fn more_rules_than_there_can_be_shut_the_port() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.network_add(network(1));
    let all: Vec<Policy> = (0..=MAX_RULES)
        .map(|n| policy(&format!("p{n}"), "any", "any", Action::Allow))
        .collect();
    set(&mut tables, &all, false);
    tables.port_up(7, &task(2, None)).unwrap();
    drain(&mut tables, &mut maps);
    assert_eq!(maps.policies[&7], PolicyEntry::SHUT);
}

#[test]
fn a_port_has_its_rate() {
    let (mut tables, mut maps) = (tables(), MapContents::default());
    tables.network_add(network(1));
    let options = PortOptions {
        flags: 0,
        limit: RateLimit::new(1_000_000, Some(500_000)),
    };
    tables.port_up_with(7, &task(2, None), options).unwrap();
    drain(&mut tables, &mut maps);
    let port = maps.ports[&7];
    assert_eq!((port.rate, port.burst_ns), (1_000_000, 500_000_000));
}

/// Who sends, by its place in this list.
const SENDERS: [(u8, Option<&str>, bool); 4] = [
    (2, Some("api"), false),
    (3, Some("db"), false),
    (4, None, false),
    (9, None, true),
];

/// The port's endpoint.
const RECEIVER: u8 = 20;

fn any_policy() -> impl Strategy<Value = PolicyRule> {
    let who = prop::sample::select(vec![
        "any",
        "service:api",
        "service:web",
        "10.0.0.2",
        "10.0.0.0/30",
        "10.0.0.20",
        "outside",
    ]);
    let protocol = prop::sample::select(vec![
        None,
        Some(PolicyProtocol::Tcp),
        Some(PolicyProtocol::Udp),
        Some(PolicyProtocol::Icmp),
    ]);
    let ports = prop::sample::select(vec![None, Some("80"), Some("79-81")]);
    (who.clone(), who, protocol, ports, any::<bool>()).prop_filter_map(
        "it can't be",
        |(to, from, protocol, ports, allow)| {
            let rule = PolicyRule {
                to: to.parse().unwrap(),
                from: from.parse().unwrap(),
                protocol,
                ports: ports.map(|ports| ports.parse().unwrap()),
                action: if allow { Action::Allow } else { Action::Deny },
            };
            rule.check().ok().map(|()| rule)
        },
    )
}

/// What the README says.
fn may(rules: &[PolicyRule], deny: bool, sender: usize, protocol: u8, port: u16) -> bool {
    let (last, service, outside) = SENDERS[sender];
    let is = |who: &Selector, last: u8, service: Option<&str>, outside: bool| match who {
        Selector::Any => true,
        Selector::Service(name) => service == Some(name),
        Selector::Addresses(net) => net.contains([10, 0, 0, last].into()),
        Selector::Outside => outside,
    };
    let about = |rule: &&PolicyRule| is(&rule.to, RECEIVER, Some("web"), false);
    let matches = |rule: &&PolicyRule| {
        let number = match rule.protocol {
            None => return is(&rule.from, last, service, outside),
            Some(PolicyProtocol::Tcp) => 6,
            Some(PolicyProtocol::Udp) => 17,
            Some(PolicyProtocol::Icmp) => 1,
        };
        let ports = rule.ports.is_none_or(|p| p.first <= port && port <= p.last);
        number == protocol && ports && is(&rule.from, last, service, outside)
    };
    let mine = || rules.iter().filter(about);
    let by = |action| mine().filter(matches).any(|rule| rule.action == action);
    let closed = deny || mine().any(|rule| rule.action == Action::Allow);
    !by(Action::Deny) && (by(Action::Allow) || !closed)
}

/// A packet that begins something.
fn packet(sender: usize, protocol: u8, port: u16) -> Vec<u8> {
    let (last, ..) = SENDERS[sender];
    let mut frame = [&mac(RECEIVER).0[..], &mac(last).0, &[8, 0, 0x45]].concat();
    frame.resize(60, 0);
    frame[23] = protocol;
    frame[26..30].copy_from_slice(&[10, 0, 0, last]);
    frame[30..34].copy_from_slice(&[10, 0, 0, RECEIVER]);
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    match protocol {
        6 => frame[47] = 2,
        1 => frame[34] = 8,
        _ => {}
    }
    frame
}

proptest! {
    #[test]
    fn rules_are_judged_as_they_are_told(
        rules in prop::collection::vec(any_policy(), 0..6),
        deny: bool,
        sender in 0..SENDERS.len(),
        protocol in prop::sample::select(vec![1u8, 6, 17]),
        port in 78..83u16,
    ) {
        let (mut tables, mut maps) = (tables(), MapContents::default());
        tables.network_add(network(1));
        let policies = rules.iter().enumerate().map(|(n, rule)| Policy {
            name: n.to_string(),
            vni: vni(1),
            rule: rule.clone(),
        });
        let policies = NetPolicies { policies: policies.collect(), deny };
        tables.policies_set(vni(1), policies);
        tables.port_up(7, &task(RECEIVER, Some("web"))).unwrap();
        let far = ip("192.0.2.2");
        tables.vtep_add(far).unwrap();
        for (last, service, router) in SENDERS {
            let sender = Endpoint { router, ..task(last, service) };
            tables.endpoint_up(far, &sender).unwrap();
        }
        drain(&mut tables, &mut maps);
        let expected = may(&rules, deny, sender, protocol, port);
        let memory = Memory {
            fdb: maps.fdb.clone(),
            policies: maps.policies.clone(),
            ..Memory::default()
        };
        let frame = packet(sender, protocol, port);
        // For ICMP what lies in the place of a port is of no consequence.
        let judged = !maps.ports[&7].is_policed()
            || judge(&Slice::new(&frame), 0, &memory, 1, 7).is_ok();
        prop_assert_eq!(judged, expected);
    }
}
