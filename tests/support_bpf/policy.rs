//! Policies, judged at the port that a frame is for; and a port's rate.

use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::{FdbEntry, FdbKey, PORT_POLICED, names};
use overlay_common::policy::{ALLOW, DENY, MAX_RULES, PROTO_ICMP, PolicyEntry, Rule};
use overlay_common::punt::Kind;
use overlay_common::verdict::testing::Memory;
use overlay_common::wire::{Family, map_v4};

use super::checks::*;
use super::frames::*;
use super::object::{Action, Hook, Object, PORT, UPLINK};
use super::world::*;

/// Whose tasks are R, and whose A.
pub const OF_R: u32 = 77;
pub const OF_A: u32 = 78;

pub const ANY: Rule = Rule {
    ip: [0; 16],
    mask: [0; 16],
    identity: 0,
    first_port: 0,
    last_port: u16::MAX,
    protocol: 0,
    action: ALLOW,
    outside: false,
};

/// The world with these policies about the endpoints behind both ports.
pub fn police(tables: &mut Memory, closed: bool, rules: &[Rule]) {
    let entry = PolicyEntry::new(closed, rules.iter().copied());
    for ifindex in [PORT_A, PORT_B] {
        tables.policies.insert(ifindex, entry);
        tables.ports.get_mut(&ifindex).unwrap().flags |= PORT_POLICED;
    }
    let mut change = |ip, change: &dyn Fn(FdbEntry) -> FdbEntry| {
        let key = FdbKey::new(VNI, mac(ip));
        let entry = change(tables.fdb[&key]);
        tables.fdb.insert(key, entry);
    };
    change(R, &|entry| entry.identified(OF_R));
    change(A, &|entry| entry.policed(true).identified(OF_A));
    change(B, &|entry| entry.policed(true));
}

fn policed(closed: bool, rules: &[Rule]) -> Option<Object> {
    let mut tables = tables_over(Family::V4);
    police(&mut tables, closed, rules);
    Object::load(&tables)
}

fn segment(src: Ip4, dst: Ip4, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut tcp = tcp(ports.0, ports.1, b"abc");
    tcp[13] = flags;
    eth(mac(dst), mac(src), IP, &ipv4(src, dst, 0, TCP, &tcp))
}

fn datagram(src: Ip4, dst: Ip4, ports: (u16, u16)) -> Vec<u8> {
    let udp = udp(ports.0, ports.1, b"abc");
    eth(mac(dst), mac(src), IP, &ipv4(src, dst, 0, UDP, &udp))
}

fn ping(kind: u8) -> Vec<u8> {
    let mut message = echo();
    message[0] = kind;
    eth(mac(A), mac(R), IP, &ipv4(R, A, 0, 1, &message))
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn comes_in(object: &mut Object, inner: &[u8]) {
    sends(object, &UPLINK, Stat::Decapsulated, &from_r(inner), inner);
}

fn is_denied(object: &mut Object, inner: &[u8]) {
    drops(object, &UPLINK, DropReason::Policy, &from_r(inner));
}

#[test]
fn only_what_a_rule_allows_comes_in() {
    let rules = [
        Rule {
            identity: OF_R,
            protocol: TCP,
            first_port: 80,
            last_port: 90,
            ..ANY
        },
        Rule {
            protocol: TCP,
            first_port: 85,
            last_port: 85,
            action: DENY,
            ..ANY
        },
        Rule {
            ip: map_v4([10, 0, 0, 4]),
            mask: [0xff; 16],
            protocol: UDP,
            ..ANY
        },
    ];
    let Some(mut object) = policed(true, &rules) else {
        return;
    };
    for (port, comes) in [
        (79, false),
        (80, true),
        (85, false),
        (90, true),
        (91, false),
    ] {
        for flags in [SYN, SYN | ACK, ACK] {
            let frame = segment(R, A, (1000, port), flags);
            match comes {
                true => comes_in(&mut object, &frame),
                false => is_denied(&mut object, &frame),
            }
        }
    }
    is_denied(&mut object, &datagram(R, A, (1000, 80)));
    is_denied(&mut object, &ping(8));
    // Answers, errors and whoever asks for an address need no rule.
    for kind in [0, 3, 11] {
        comes_in(&mut object, &ping(kind));
    }
    let request = arp(1, mac(R), R, mac(A), A);
    comes_in(&mut object, &eth(mac(A), mac(R), ARP, &request));
    // From A to B, whom the rules are about as well: A is of another service.
    drops(
        &mut object,
        &PORT,
        DropReason::Policy,
        &segment(A, B, (1000, 80), SYN),
    );
    // The agent's frames are judged, too.
    let agent = [Hook::AgentTc];
    let denied = from_agent(Kind::ToPort, PORT_A, VTEP, &datagram(R, A, (1000, 80)));
    drops(&mut object, &agent, DropReason::Policy, &denied);
    let inner = datagram(B, A, (1000, 80));
    let allowed = from_agent(Kind::ToPort, PORT_A, VTEP, &inner);
    sends(&mut object, &agent, Stat::AgentToPort, &allowed, &inner);
}

#[test]
fn what_an_endpoint_has_begun_is_answered() {
    let Some(mut object) = policed(true, &[]) else {
        return;
    };
    let sent = |object: &mut Object, frame: &[u8]| {
        for hook in PORT {
            let outcome = object.run(hook, frame);
            assert_eq!(outcome.drops, [], "{hook:?}");
        }
    };
    let answers = [
        (
            segment(A, R, (40_000, 22), SYN),
            segment(R, A, (22, 40_000), SYN | ACK),
        ),
        // Older than the policy, by the ports that it has.
        (
            segment(A, R, (40_001, 22), ACK),
            segment(R, A, (22, 40_001), ACK),
        ),
        (datagram(A, R, (40_000, 53)), datagram(R, A, (53, 40_000))),
        (datagram(A, R, (123, 123)), datagram(R, A, (123, 123))),
    ];
    for (question, answer) in &answers {
        is_denied(&mut object, answer);
        sent(&mut object, question);
        comes_in(&mut object, answer);
    }
    // Nobody begins something with what may be an answer's addresses.
    is_denied(&mut object, &segment(R, A, (22, 40_000), SYN));
    is_denied(&mut object, &segment(R, A, (23, 40_000), ACK));
    // What looks like an answer of A's begins nothing.
    sent(&mut object, &segment(A, R, (80, 50_000), SYN | ACK));
    is_denied(&mut object, &segment(R, A, (50_000, 80), ACK));
    sent(&mut object, &datagram(A, R, (80, 50_000)));
    is_denied(&mut object, &datagram(R, A, (50_000, 80)));
}

#[test]
fn what_hides_its_ports_is_denied_if_anything_like_it_is() {
    let tcp80 = Rule {
        protocol: TCP,
        first_port: 80,
        last_port: 80,
        ..ANY
    };
    let whole = ipv4(R, A, 0, TCP, &tcp(1000, 80, &[0; 64]));
    let fragment = |offset| eth(mac(A), mac(R), IP, &fragment(whole.clone(), offset));
    let mut options = eth(mac(A), mac(R), IP, &whole);
    options[14] = 0x46;
    fix_ipv4_checksum(&mut options[14..]);
    for (rule, closed) in [
        (tcp80, true),
        (
            Rule {
                action: DENY,
                ..tcp80
            },
            false,
        ),
    ] {
        let Some(mut object) = policed(closed, &[rule]) else {
            return;
        };
        let judged = if closed { comes_in } else { is_denied };
        judged(&mut object, &fragment(0x2000));
        // It is worth nothing without the first.
        comes_in(&mut object, &fragment(0x0010));
        // It could put other flags over the first one's.
        is_denied(&mut object, &fragment(0x2001));
        is_denied(&mut object, &options);
    }
}

#[test]
fn as_many_rules_as_there_can_be_are_all_looked_at() {
    let mut rules = [Rule {
        protocol: UDP,
        first_port: 1,
        last_port: 1,
        ..ANY
    }; MAX_RULES];
    rules[MAX_RULES - 1] = Rule {
        protocol: PROTO_ICMP,
        ..ANY
    };
    let Some(mut object) = policed(true, &rules) else {
        return;
    };
    comes_in(&mut object, &ping(8));
    comes_in(&mut object, &datagram(R, A, (9, 1)));
    is_denied(&mut object, &datagram(R, A, (9, 2)));
}

#[test]
fn a_port_that_says_so_and_has_no_policy_gets_nothing() {
    let mut tables = tables_over(Family::V4);
    police(&mut tables, false, &[]);
    tables.policies.clear();
    let Some(mut object) = Object::load(&tables) else {
        return;
    };
    is_denied(&mut object, &datagram(R, A, (1, 2)));
}

#[test]
fn a_port_sends_its_burst_and_then_no_more() {
    let mut tables = tables_over(Family::V4);
    // A byte in a second: a frame of 45 bytes is paid for long after this test.
    let port = tables.ports.get_mut(&PORT_A).unwrap();
    (port.rate, port.burst_ns) = (1, 100 * 1_000_000_000);
    for hook in PORT {
        let Some(mut object) = Object::load(&tables) else {
            return;
        };
        let frame = datagram(A, R, (1000, 2000));
        assert_eq!(frame.len(), 45);
        // The first one makes the bucket.
        for _ in 0..3 {
            assert_eq!(
                object.run(hook, &frame).action,
                Action::Redirect,
                "{hook:?}"
            );
        }
        drops(&mut object, &[hook], DropReason::RateLimit, &frame);
        // What is for nobody costs as much, and what the program answers nothing.
        drops(
            &mut object,
            &[hook],
            DropReason::RateLimit,
            &datagram(A, NOBODY, (1, 2)),
        );
        let request = eth(BROADCAST, mac(A), ARP, &arp_request(mac(A), A, R));
        assert_eq!(object.run(hook, &request).action, Action::Redirect);
        // Who has no limit is not looked at.
        tables.ports.get_mut(&PORT_A).unwrap().rate = 0;
        object.insert(names::PORTS, &tables.ports);
        assert_eq!(
            object.run(hook, &frame).action,
            Action::Redirect,
            "{hook:?}"
        );
        let port = tables.ports.get_mut(&PORT_A).unwrap();
        (port.rate, port.burst_ns) = (1, 100 * 1_000_000_000);
    }
}
