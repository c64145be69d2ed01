//! Frames through the verdicts, the very code that the programs run.

use overlay_common::punt::{self, Kind};
use overlay_common::service::Flow;
use overlay_common::verdict::testing::{Memory, Slice};
use overlay_common::verdict::{
    Verdict, Way, from_agent, from_port, from_uplink, leave, neighbour, note_entrance,
    renew_entrance,
};
use overlay_common::wire::ETH_LEN;

use crate::world::{A, B, R, VNI, VTEP, VTEP_NARROW, VTEP_R, inner, tables, vxlan};

/// The ports of [`tables`].
const PORTS: [u32; 3] = [1, 7, 9];

/// The first byte says where the frame comes in, the second what the kernel knows of it, and the
/// rest is the frame.
pub fn run(input: &[u8]) {
    thread_local! {
        static TABLES: [Memory; 2] = [tables(false), tables(true)];
    }
    let Some((&[place, beside], bytes)) = input.split_first_chunk() else {
        return;
    };
    let frame = Slice {
        bytes,
        gso_size: if beside & 1 != 0 { 1400 } else { 0 },
        vlan_aside: beside & 2 != 0,
        sum_aside: beside & 4 != 0,
    };
    TABLES.with(|both| {
        let tables = &both[usize::from(place & 8 != 0)];
        match place & 3 {
            0 => port(&frame, tables, PORTS[usize::from(place >> 4) % 3]),
            1 => uplink(&frame, tables),
            _ => agent(&frame, tables),
        }
        tables.noted.borrow_mut().clear();
    });
}

fn port(frame: &Slice<'_>, tables: &Memory, ifindex: u32) {
    let verdict = match from_port(frame, tables, ifindex) {
        Verdict::Leave(leaving) => leave(frame, tables, &leaving),
        other => other,
    };
    match verdict {
        Verdict::Encap { vtep, .. } | Verdict::Return { vtep, .. } => {
            // Nothing leaves that does not fit.
            let len = frame.bytes.len() - ETH_LEN;
            assert!(frame.gso_size != 0 || len <= vtep.mtu as usize);
            assert!(vtep.ifindex != 0);
        }
        // It is turned in place: all of it must be there.
        Verdict::ArpReply { mac } => {
            let mut bytes = frame.bytes.to_vec();
            let answer = bytes.first_chunk_mut().expect("a whole ARP request");
            neighbour::arp_reply(answer, &mac);
        }
        Verdict::NdReply { mac } => {
            let mut bytes = frame.bytes.to_vec();
            let answer = bytes.first_chunk_mut().expect("a whole solicitation");
            neighbour::nd_reply(answer, &mac);
        }
        Verdict::Balance { vni } => {
            let _ = Flow::of(frame, vni);
        }
        Verdict::Enter { vni, .. } => renew_entrance(frame, tables, vni),
        Verdict::Switch { ifindex: to, .. } => assert!(to != ifindex, "back to the sender"),
        Verdict::Decap { .. } | Verdict::EchoReply { .. } | Verdict::Forward { .. } => {
            panic!("{verdict:?} is nothing for a port");
        }
        _ => {}
    }
}

fn uplink(frame: &Slice<'_>, tables: &Memory) {
    match from_uplink(frame, tables, Way::Clear) {
        Verdict::Decap {
            family,
            ecn,
            entered,
            ifindex,
            ..
        } => {
            let outer = family.outer_len();
            let needed = outer + ETH_LEN + if ecn.is_some() { 12 } else { 0 };
            assert!(frame.bytes.len() >= needed.min(outer + ETH_LEN + 2));
            assert!(tables.ports.contains_key(&ifindex));
            if entered {
                note_entrance(frame, tables, family);
            }
        }
        // It is answered in place, up to the end of the message.
        Verdict::EchoReply { family, .. } => {
            assert!(frame.bytes.len() >= family.outer_len() + 16);
        }
        Verdict::Pass | Verdict::Drop(_) | Verdict::Punt { .. } | Verdict::Open => {}
        other => panic!("{other:?} is nothing for an uplink"),
    }
    // Whatever a worker has opened of it: no answer, and nothing for a network in the clear.
    let opened = from_uplink(frame, tables, Way::Sealed);
    assert!(!matches!(opened, Verdict::EchoReply { .. }), "{opened:?}");
}

fn agent(frame: &Slice<'_>, tables: &Memory) {
    match from_agent(frame, tables) {
        Verdict::Decap { family, .. } => {
            assert!(frame.bytes.len() >= family.outer_len() + ETH_LEN);
        }
        Verdict::Forward { vtep } => assert!(vtep.ifindex != 0),
        Verdict::Drop(_) | Verdict::Seal => {}
        other => panic!("{other:?} is nothing for the agent"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |place: u8, frame: &[u8]| seeds.push([&[place, 0], frame].concat());
    for dst in [1, R, B, 8, 9, 77] {
        for frame in inner(A, dst) {
            add(0, &frame);
        }
    }
    for frame in inner(1, A) {
        add(2 << 4, &frame);
    }
    for frame in inner(R, A).into_iter().chain(inner(5, B)) {
        for (v6, place) in [(false, 1), (true, 9)] {
            for tos in 0..4 {
                add(place, &vxlan(VTEP_R, VTEP, tos, &frame, v6));
            }
            add(place, &vxlan(VTEP_NARROW, VTEP, 0, &frame, v6));
        }
        for (kind, ifindex, dst) in [(Kind::ToPort, 7, VTEP), (Kind::ToVtep, 0, VTEP_R)] {
            let mut punted = vxlan(VTEP, dst, 0, &frame, false);
            punted[..ETH_LEN].copy_from_slice(&punt::encode(kind, None, ifindex, 0x0800));
            add(2, &punted);
        }
    }
    // An echo request is on VNI 0.
    for v6 in [false, true] {
        let mut echo = vxlan(VTEP_R, VTEP, 0, &[0; 72], v6);
        let vni = VNI.to_be_bytes();
        let at = echo.windows(3).position(|bytes| bytes == &vni[1..]);
        if let Some(at) = at {
            echo[at..at + 3].fill(0);
        }
        add(if v6 { 9 } else { 1 }, &echo);
    }
    seeds
}
