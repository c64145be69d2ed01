//! The BPF programs, packet in and packet out (BPF_PROG_TEST_RUN), XDP and tcx alike.
//!
//! Nothing is attached and no interface is touched. Where a frame is redirected to shows in the
//! netns tests; here a redirect is known by its return code and the bytes that leave.

mod support_bpf;

use overlay_common::counters::{DropReason, Stat};
use overlay_common::punt::Kind;

use support_bpf::checks::*;
use support_bpf::frames::*;
use support_bpf::object::Action;
use support_bpf::object::{Beside, Hook, Object, PORT, UPLINK};
use support_bpf::world::*;

#[test]
fn the_verifier_takes_all_programs() {
    let object = object!();
    let sizes = object.sizes();
    assert_eq!(sizes.len(), 6);
    for (name, instructions, verified) in sizes {
        println!("{name}: {instructions} instructions, {verified} looked at by the verifier");
        // The verifier's limit is a million, and older kernels' need more for the same. What judges
        // policies, in a loop over all rules, takes most of this.
        assert!(verified < 250_000, "{name}");
    }
}

#[test]
fn drops_and_punts_are_logged_when_asked_for() {
    let Some(mut silent) = Object::load(&tables()) else {
        return;
    };
    let mut talking = Object::load_logging(&tables(), 5).expect("it could be loaded just now");
    let spoofed = eth(mac(R), mac(B), IP, &[0; 40]);
    let unknown_vtep = vxlan([9; 4], VTEP, 0, VNI, &inner_to_a());
    let cases = [
        (PORT, &spoofed, "interface , drop spoofed-mac"),
        (
            PORT,
            &udp_to(NOBODY),
            "interface , VNI  punt unknown-destination",
        ),
        (UPLINK, &unknown_vtep, "interface , drop unknown-vtep"),
        (
            UPLINK,
            &from_r(&eth(BROADCAST, mac(R), IP, &[0; 40])),
            "punt flood",
        ),
    ];
    for (hooks, frame, words) in cases {
        for hook in hooks {
            silent.run(hook, frame);
            talking.run(hook, frame);
            let records = talking.logged();
            assert_eq!(records.len(), 1, "{hook:?}");
            let text = String::from_utf8_lossy(&records[0]);
            for word in words.split(' ') {
                assert!(text.contains(word), "{hook:?}: no '{word}' in {text:?}");
            }
        }
    }
    assert!(silent.logged().is_empty());
}

#[test]
fn frames_cut_at_any_byte_are_dropped_or_short_payload() {
    let mut object = object!();
    let arp = eth(BROADCAST, mac(A), ARP, &arp_request(mac(A), A, R));
    let ip6 = eth(
        mac(R),
        mac(A),
        IP6,
        &ipv6(ip6(A), ip6(R), 0, UDP, 64, &[0; 8]),
    );
    for (hooks, frame, headers, reason) in [
        (PORT, udp_to(R), 34, DropReason::Truncated),
        (PORT, arp, 42, DropReason::Truncated),
        (PORT, ip6, 54, DropReason::Truncated),
        (
            UPLINK,
            from_r(&inner_to_a()),
            usize::MAX,
            DropReason::OuterLength,
        ),
    ] {
        for hook in hooks {
            for len in 14..frame.len() {
                // The kernel itself refuses to test some frames that are hardly more than
                // an Ethernet header as an skb.
                let Ok(outcome) = object.run_with(hook, &frame[..len], Beside::default()) else {
                    assert!(!hook.is_xdp() && len < 54, "{hook:?} {len}");
                    continue;
                };
                let uplink = hooks == UPLINK;
                if uplink && len < 42 {
                    // Not known to be VXLAN.
                    assert_eq!(outcome.action, Action::Pass, "{hook:?} {len}");
                } else if len < headers {
                    assert_eq!(outcome.drops, [reason], "{hook:?} {len}");
                } else {
                    assert_eq!(outcome.drops, [], "{hook:?} {len}");
                }
            }
        }
    }
    // Lengths that agree with each other do not help when the inner frame itself is cut.
    let inner = inner_to_a();
    for (len, tos, reason) in [
        (14, 1, DropReason::Truncated),
        (25, 1, DropReason::Truncated),
    ] {
        let frame = vxlan(VTEP_R, VTEP, tos, VNI, &inner[..len]);
        drops(&mut object, &UPLINK, reason, &frame);
    }
    for len in 0..14 {
        drops(
            &mut object,
            &UPLINK,
            DropReason::OuterLength,
            &from_r(&inner[..len]),
        );
    }
}

#[test]
fn the_agents_frames_go_where_they_say() {
    let mut object = object!();
    let agent = [Hook::AgentTc];
    for inner in [
        inner_to_a(),
        eth(BROADCAST, mac(R), ARP, &arp_request(mac(R), R, A)),
    ] {
        let frame = from_agent(Kind::ToPort, PORT_B, VTEP, &inner);
        sends(&mut object, &agent, Stat::AgentToPort, &frame, &inner);
        let frame = from_agent(Kind::ToVtep, 0, VTEP_R, &inner);
        let expected = eth(NEXT_HOP, OWN_UPLINK, IP, &frame[14..]);
        sends(&mut object, &agent, Stat::AgentToVtep, &frame, &expected);
    }
    let inner = inner_to_a();
    for (frame, reason) in [
        (
            from_agent(Kind::ToPort, 999, VTEP, &inner),
            DropReason::UnknownPort,
        ),
        (
            from_agent(Kind::ToVtep, 0, VTEP_LOST, &inner),
            DropReason::UnknownVtep,
        ),
        (
            from_agent(Kind::ToVtep, 0, VTEP_UNRESOLVED, &inner),
            DropReason::Unresolved,
        ),
        (
            from_agent(Kind::FromPort, PORT_A, VTEP, &inner),
            DropReason::NotPunted,
        ),
        (from_r(&inner), DropReason::NotPunted),
    ] {
        drops(&mut object, &agent, reason, &frame);
    }
}

#[test]
fn only_marked_frames_reach_the_agent() {
    let mut object = object!();
    let punt = [Hook::PuntXdp];
    // No socket is in the map here: a frame meant for the agent is counted as such.
    for kind in [Kind::FromPort, Kind::FromUplink] {
        let frame = from_agent(kind, PORT_A, VTEP, &inner_to_a());
        drops(&mut object, &punt, DropReason::NoAgent, &frame);
    }
    for frame in [
        from_agent(Kind::ToPort, PORT_A, VTEP, &inner_to_a()),
        from_r(&inner_to_a()),
        eth(BROADCAST, mac(A), IP6, &[0; 20]),
    ] {
        drops(&mut object, &punt, DropReason::NotPunted, &frame);
    }
}
