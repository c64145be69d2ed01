//! The differential test: thousands of damaged frames, each through a program and through the
//! native verdict function.

use std::cell::RefCell;
use std::collections::HashMap;

use overlay_common::layout::{FDB_ROUTER, FdbEntry, FdbKey, PORT_ROUTER};
use overlay_common::policy::{DENY, Rule};
use overlay_common::punt::Kind;
use overlay_common::verdict::testing::Memory;
use overlay_common::wire::{Family, map_v4};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::checks::*;
use super::frames::*;
use super::object::{Beside, Hook, Object};
use super::policy::{ANY, OF_R, police};
use super::world::*;
use super::{echo, model};

/// The gateway's addresses, and those of a service that has no tasks.
const GATEWAY: Ip4 = [10, 0, 0, 1];
const SERVICE: Ip4 = [10, 0, 0, 9];
/// Somewhere else, in both families.
const OUTSIDE: Ip4 = [203, 0, 113, 9];

/// The world with ways out: the gateway and this host's router behind a port, R as another host's
/// router, and a service's own address. With `routing`, A's port is the router's.
fn world(family: Family, routing: bool) -> Memory {
    let mut tables = tables_over(family);
    let network = tables.networks.get_mut(&VNI).unwrap();
    (network.net4, network.mask4) = ([10, 0, 0, 0], [255, 255, 255, 0]);
    (network.net6[0], network.mask6) = (0xfd, [0xff; 16]);
    network.mask6[15] = 0;
    network.router = mac(B);
    let far = tables.fdb[&FdbKey::new(VNI, mac(R))];
    let mut place = |ip, entry: FdbEntry| tables.fdb.insert(FdbKey::new(VNI, mac(ip)), entry);
    place(GATEWAY, FdbEntry::gateway(PORT_B));
    place(SERVICE, FdbEntry::service());
    place(R, far.with(FDB_ROUTER));
    if routing {
        tables.ports.get_mut(&PORT_A).unwrap().flags |= PORT_ROUTER;
    }
    tables
}

/// Good frames of all kinds, to be made worse.
fn templates(hook: Hook, family: Family) -> Vec<Vec<u8>> {
    let everybody = [A, R, B, UNRESOLVED, LOST, NARROW, NOBODY, GATEWAY, SERVICE];
    match hook {
        Hook::PortXdp | Hook::PortTc => everybody
            .into_iter()
            .flat_map(|dst| frames(A, dst))
            .chain(frames(B, R))
            // Out by the gateway, and in from there where A is the router.
            .chain(through(A, GATEWAY, A, OUTSIDE))
            .chain(through(A, B, OUTSIDE, B))
            .collect(),
        Hook::UplinkXdp | Hook::UplinkTc => {
            let good = [
                (R, A),
                (R, B),
                (R, NOBODY),
                (R, NARROW),
                (NARROW, A),
                (NOBODY, A),
            ];
            let mut wrapped = Vec::new();
            let inner = good.into_iter().flat_map(|(src, dst)| frames(src, dst));
            // R is a router: what comes from outside through it is noted.
            for inner in inner.chain(through(R, A, OUTSIDE, A)) {
                for tos in 0..4 {
                    wrapped.push(wrap(family, VTEP_R, tos, &inner));
                }
                wrapped.push(wrap(family, VTEP_NARROW, 0, &inner));
            }
            for _ in 0..20 {
                wrapped.push(echo::request(family, 90));
                wrapped.push(echo::checksum_request(family));
            }
            wrapped
        }
        Hook::AgentTc | Hook::PuntXdp => frames(R, B)
            .iter()
            .flat_map(|inner| {
                [
                    from_agent(Kind::ToPort, PORT_B, VTEP, inner),
                    match family {
                        Family::V4 => from_agent(Kind::ToVtep, 0, VTEP_R, inner),
                        Family::V6 => to_vtep6(VTEP_R, inner),
                    },
                ]
            })
            .collect(),
    }
}

fn wrap(family: Family, src: Ip4, tos: u8, inner: &[u8]) -> Vec<u8> {
    match family {
        Family::V4 => vxlan(src, VTEP, tos, VNI, inner),
        Family::V6 => vxlan6(src, VTEP, tos, VNI, inner),
    }
}

/// Packets between two addresses, from one endpoint to another.
fn through(src: Ip4, dst: Ip4, from: Ip4, to: Ip4) -> Vec<Vec<u8>> {
    // An answer's ports are a question's, exchanged: so one finds what was noted of the other.
    let ports = if from == OUTSIDE {
        (40_000, 80)
    } else {
        (80, 40_000)
    };
    let outside6 = |ip| {
        let mut ip6 = ip6(ip);
        if ip == OUTSIDE {
            ip6[..2].copy_from_slice(&[0x20, 1]);
        }
        ip6
    };
    let segment = tcp(ports.0, ports.1, b"abc");
    let packet = ipv4(from, to, 1, TCP, &segment);
    let parts = fragment(packet.clone(), 0x2000);
    let packet6 = ipv6(outside6(from), outside6(to), 1, TCP, 64, &segment);
    let mut frames = vec![eth(mac(dst), mac(src), IP6, &packet6)];
    frames.extend([packet, parts].map(|ip| eth(mac(dst), mac(src), IP, &ip)));
    // The more often one is taken, the more is noted, and found.
    vec![frames; 8].concat()
}

/// What one endpoint may send to another.
fn frames(src: Ip4, dst: Ip4) -> Vec<Vec<u8>> {
    let datagram = ipv4(src, dst, 0x2a, UDP, &udp(1000, 4789, &[0x5a; 64]));
    let first = fragment(datagram.clone(), 0x2000);
    let segment = ipv4(src, dst, 1, TCP, &tcp(1, 2, b"abc"));
    let segment6 = ipv6(ip6(src), ip6(dst), 0x55, TCP, 64, &tcp(3, 4, &[1; 1200]));
    let ns = nd(135, ip6(src), ip6(dst), ip6(dst), 1, mac(src));
    let na = nd(136, ip6(src), ip6(dst), ip6(src), 2, mac(src));
    let request = arp_request(mac(src), src, dst);
    let mut frames = vec![
        eth(BROADCAST, mac(src), ARP, &request),
        eth(BROADCAST, mac(src), IP, &datagram),
        eth(mac(dst), mac(src), ARP, &request),
    ];
    frames.extend([datagram, first, segment].map(|ip| eth(mac(dst), mac(src), IP, &ip)));
    frames.extend([segment6, ns, na].map(|ip| eth(mac(dst), mac(src), IP6, &ip)));
    frames
}

/// What is done to a good frame.
#[derive(Clone, Debug)]
struct Damage {
    template: prop::sample::Index,
    /// Offsets (headers are hit most) and what they are set to.
    bytes: Vec<(usize, u8)>,
    /// Where it is cut, from the end.
    cut: Option<prop::sample::Index>,
    fix_checksum: bool,
}

fn damage() -> impl Strategy<Value = Damage> {
    let offset = prop_oneof![4 => 0..64_usize, 2 => 64..140_usize, 1 => 0..1400_usize];
    let value = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(1), 0..9_u8];
    (
        any::<prop::sample::Index>(),
        prop::collection::vec((offset, value), 0..4),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
        any::<bool>(),
    )
        .prop_map(|(template, bytes, cut, fix_checksum)| Damage {
            template,
            bytes,
            cut,
            fix_checksum,
        })
}

/// How many frames for each hook: `OVERLAY_DP_FRAMES=1000000` for a long run.
fn cases() -> u32 {
    let asked = std::env::var("OVERLAY_DP_FRAMES").ok();
    asked.map_or(4000, |number| {
        number.parse().expect("OVERLAY_DP_FRAMES is a number")
    })
}

/// Every program says and does what the native verdict function, carried out by the model, does.
#[test]
fn programs_and_native_verdicts_agree() {
    agree(world(Family::V4, false), Family::V4);
}

#[test]
fn programs_and_native_verdicts_agree_about_routers() {
    agree(world(Family::V4, true), Family::V4);
}

#[test]
fn programs_and_native_verdicts_agree_over_ipv6() {
    agree(world(Family::V6, false), Family::V6);
}

#[test]
fn programs_and_native_verdicts_agree_about_policies() {
    let mut tables = world(Family::V4, false);
    let rules = [
        Rule {
            identity: OF_R,
            protocol: TCP,
            first_port: 2,
            last_port: 4,
            ..ANY
        },
        Rule {
            protocol: UDP,
            first_port: 4700,
            last_port: 4788,
            action: DENY,
            ..ANY
        },
        Rule {
            ip: map_v4(OUTSIDE),
            mask: [0xff; 16],
            outside: true,
            ..ANY
        },
    ];
    police(&mut tables, true, &rules);
    agree(tables, Family::V4);
}

fn agree(mut tables: Memory, family: Family) {
    let Some(mut object) = Object::load(&tables) else {
        return;
    };
    for hook in [
        Hook::PortXdp,
        Hook::PortTc,
        Hook::UplinkXdp,
        Hook::UplinkTc,
        Hook::AgentTc,
    ] {
        let templates = templates(hook, family);
        // What a frame has noted, the next one finds.
        let tables = RefCell::new(&mut tables);
        let object = RefCell::new(&mut object);
        let seen = RefCell::new(HashMap::<String, u32>::new());
        let mut runner = TestRunner::new(Config {
            cases: cases(),
            failure_persistence: None,
            ..Config::default()
        });
        runner
            .run(&damage(), |damage| {
                let mut frame = damage.template.get(&templates).clone();
                for (at, value) in damage.bytes {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = value;
                    }
                }
                if damage.fix_checksum && frame[14] == 0x45 {
                    fix_ipv4_checksum(&mut frame[14..]);
                }
                if let Some(cut) = damage.cut {
                    frame.truncate(14 + cut.index(frame.len() - 14));
                }
                let beside = Beside::default();
                let result = object.borrow_mut().run_with(hook, &frame, beside);
                let Ok(mut outcome) = result else {
                    // The kernel tests no skb with hardly more than an Ethernet header.
                    prop_assert!(!hook.is_xdp() && frame.len() < 54);
                    return Ok(());
                };
                let mut tables = tables.borrow_mut();
                let expected = model::outcome(hook, &frame, beside, &tables);
                let noted: Vec<_> = tables.noted.borrow_mut().drain(..).collect();
                tables.entrances.extend(noted);
                let class = format!("{:?}{:?}", expected.drops, expected.stats.last());
                *seen.borrow_mut().entry(class).or_default() += 1;
                // On old kernels what comes out of IPv6 is padded, as an Ethernet would.
                let padding = outcome.bytes.get(expected.bytes.len()..);
                if !hook.is_xdp()
                    && outcome.bytes.len() == 54
                    && padding.is_some_and(|padding| padding.iter().all(|byte| *byte == 0))
                {
                    outcome.bytes.truncate(expected.bytes.len());
                }
                prop_assert_eq!(outcome, expected);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{hook:?}: {error}"));
        println!("{hook:?}: {:?}", seen.borrow());
        let classes = seen.borrow().len();
        assert!(classes >= 4, "{hook:?} was tried on {classes} kinds only");
    }
}
