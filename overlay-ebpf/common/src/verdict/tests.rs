//! The decisions, one table at a time. What the programs make of them, byte by byte, is tested
//! with the BPF object.

use std::vec::Vec;

use super::testing::{Memory, Slice};
use super::{Verdict, Way, from_agent, from_port, from_uplink, neighbour};
use crate::checksum;
use crate::counters::DropReason;
use crate::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use crate::outer::{Meta, OuterV4};
use crate::punt::{self, Kind, Reason};
use crate::wire::{
    ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Family, Mac, PROTO_TCP, PROTO_UDP, UNSPECIFIED, map_v4,
};

const VNI: u32 = 4096;
const PORT: u32 = 10;
const OTHER_PORT: u32 = 11;
const A: [u8; 4] = [10, 0, 0, 2];
const B: [u8; 4] = [10, 0, 0, 3];
const REMOTE: [u8; 4] = [10, 0, 0, 4];
const VTEP: [u8; 4] = [172, 31, 1, 5];
const FAR_VTEP: [u8; 4] = [192, 168, 1, 5];

const fn mac(ip: [u8; 4]) -> Mac {
    [2, 0x42, ip[0], ip[1], ip[2], ip[3]]
}

fn tables() -> Memory {
    let mut tables = Memory {
        config: Some(Config {
            vtep: map_v4(VTEP),
            punt_ifindex: 3,
            data_port: 4789,
            crypt_ifindex: 901,
            esp_port: 4500,
        }),
        ..Memory::default()
    };
    for (ifindex, ip) in [(PORT, A), (OTHER_PORT, B)] {
        let entry = PortEntry {
            vni: VNI,
            mtu: 1450,
            mac: mac(ip),
            _zero: [0; 2],
            ip4: ip,
            ip6: [UNSPECIFIED; 2],
            flags: 0,
            rate: 0,
            burst_ns: 0,
        };
        tables.ports.insert(ifindex, entry);
        let key = FdbKey::new(VNI, mac(ip));
        tables.fdb.insert(key, FdbEntry::local(ifindex));
    }
    tables.networks.insert(VNI, NetworkEntry::closed(1450));
    let key = FdbKey::new(VNI, mac(REMOTE));
    tables.fdb.insert(key, FdbEntry::remote(map_v4(FAR_VTEP)));
    let entry = NeighbourEntry {
        mac: mac(REMOTE),
        _zero: [0; 2],
    };
    let key = NeighbourKey::new(VNI, map_v4(REMOTE));
    tables.neighbours.insert(key, entry);
    tables.vteps.insert(map_v4(FAR_VTEP), vtep(5, 1450));
    tables
}

fn vtep(ifindex: u32, mtu: u32) -> VtepEntry {
    VtepEntry {
        src_ip: map_v4(VTEP),
        ifindex,
        mtu,
        src_mac: [1; 6],
        dst_mac: [3; 6],
    }
}

fn eth(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 0, l0, l1, 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head[..], &src, &dst, payload].concat()
}

fn to_remote(payload: &[u8]) -> Vec<u8> {
    eth(
        mac(REMOTE),
        mac(A),
        ETH_P_IP,
        &ipv4(A, REMOTE, PROTO_UDP, payload),
    )
}

fn port<'t>(tables: &'t Memory, frame: &[u8]) -> Verdict<'t> {
    from_port(&Slice::new(frame), tables, PORT)
}

/// A frame from the far VTEP, or whichever.
fn wrap(from: [u8; 4], vni: u32, inner: &[u8]) -> Vec<u8> {
    let tables = tables();
    let mut entry = vtep(5, 1450);
    entry.src_ip = map_v4(from);
    let config = tables.config.as_ref().unwrap();
    let outer = OuterV4::to_vtep(config, &entry, &map_v4(VTEP), Meta::default(), vni);
    [&outer.to_bytes(inner.len() as u32)[..], inner].concat()
}

#[track_caller]
fn drops(verdict: Verdict<'_>, expected: DropReason) {
    assert!(
        matches!(verdict, Verdict::Drop(reason) if reason == expected),
        "{verdict:?} instead of {expected:?}"
    );
}

#[track_caller]
fn punts(verdict: Verdict<'_>, expected: Reason) {
    assert!(
        matches!(verdict, Verdict::Punt { reason, vni: VNI } if reason == expected),
        "{verdict:?} instead of {expected:?}"
    );
}

#[test]
fn a_port_needs_its_fdb_entry_and_a_resolved_vtep() {
    let mut tables = tables();
    let frame = to_remote(&[0; 8]);
    let Verdict::Encap {
        vtep: to, dst, vni, ..
    } = port(&tables, &frame)
    else {
        panic!("not encapsulated");
    };
    assert_eq!((to.ifindex, *dst, vni), (5, map_v4(FAR_VTEP), VNI));

    tables.vteps.insert(map_v4(FAR_VTEP), vtep(0, 1450));
    punts(port(&tables, &frame), Reason::Unresolved);
    tables.vteps.insert(map_v4(FAR_VTEP), vtep(5, 27));
    punts(port(&tables, &frame), Reason::TooBig);
    tables.vteps.clear();
    punts(port(&tables, &frame), Reason::Unresolved);
    tables.fdb.clear();
    punts(port(&tables, &frame), Reason::UnknownDestination);
    tables.ports.clear();
    drops(port(&tables, &frame), DropReason::UnknownPort);
}

#[test]
fn local_ports_are_switched_but_not_to_themselves() {
    let tables = tables();
    let to_b = eth(mac(B), mac(A), 0x88b5, &[0; 50]);
    let verdict = port(&tables, &to_b);
    assert!(matches!(
        verdict,
        Verdict::Switch {
            ifindex: OTHER_PORT,
            answer: 0,
            policed: 0
        }
    ));
    let to_self = eth(mac(A), mac(A), 0x88b5, &[0; 50]);
    drops(port(&tables, &to_self), DropReason::Hairpin);
}

/// The wire size of a super-packet is that of its segments.
#[test]
fn the_mtu_is_exact_for_frames_and_segments() {
    let tables = tables();
    let fits = |frame: &[u8], gso_size: u32| {
        let frame = Slice {
            bytes: frame,
            gso_size,
            ..Slice::default()
        };
        match from_port(&frame, &tables, PORT) {
            Verdict::Encap { .. } => true,
            Verdict::Punt {
                reason: Reason::TooBig,
                ..
            } => false,
            other => panic!("{other:?}"),
        }
    };
    assert!(fits(&to_remote(&[0; 1430]), 0));
    assert!(!fits(&to_remote(&[0; 1431]), 0));
    let mut segment = [0; 4000];
    segment[12] = 8 << 4; // a TCP header of 32 bytes
    let packet = ipv4(A, REMOTE, PROTO_TCP, &segment);
    let tcp = eth(mac(REMOTE), mac(A), ETH_P_IP, &packet);
    assert!(fits(&tcp, 1450 - 20 - 32));
    assert!(!fits(&tcp, 1450 - 20 - 32 + 1));
    assert!(fits(&to_remote(&[0; 4000]), 1450 - 20 - 8));
    assert!(!fits(&to_remote(&[0; 4000]), 1450 - 20 - 8 + 1));
    // What is not IP counts, too, with all its padding.
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &mac(A),
        &A,
        &mac(REMOTE),
        &REMOTE,
    ]
    .concat();
    let long = eth(
        mac(REMOTE),
        mac(A),
        ETH_P_ARP,
        &[&arp[..], &[0; 1423]].concat(),
    );
    assert!(!fits(&long, 0));
    assert!(fits(&long[..long.len() - 1], 0));
}

#[test]
fn tags_are_refused_wherever_the_kernel_keeps_them() {
    let tables = tables();
    let aside = |frame| Slice {
        bytes: frame,
        vlan_aside: true,
        ..Slice::default()
    };
    let frame = to_remote(&[0; 8]);
    drops(
        from_port(&aside(&frame), &tables, PORT),
        DropReason::InnerVlan,
    );
    let tagged = eth(mac(REMOTE), mac(A), 0x8100, &[0; 50]);
    drops(port(&tables, &tagged), DropReason::InnerVlan);
    // On the uplink, the tagged frame is a VLAN interface's.
    let outer = wrap(FAR_VTEP, VNI, &eth(mac(A), mac(REMOTE), 0x88b5, &[0; 50]));
    let verdict = from_uplink(&Slice::new(&outer), &tables, Way::Clear);
    assert!(matches!(
        verdict,
        Verdict::Decap {
            ifindex: PORT,
            family: Family::V4,
            ecn: None,
            answer: 0,
            router: false,
            entered: false,
            policed: 0,
        }
    ));
    let verdict = from_uplink(&aside(&outer), &tables, Way::Clear);
    assert!(matches!(verdict, Verdict::Pass));
}

#[test]
fn who_asks_for_its_own_address_gets_no_answer_here() {
    let mut tables = tables();
    let own = NeighbourEntry {
        mac: mac(A),
        _zero: [0; 2],
    };
    let key = NeighbourKey::new(VNI, map_v4(A));
    tables.neighbours.insert(key, own);
    let ask = |target: [u8; 4]| {
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac(A), &A, &[0; 6], &target].concat();
        eth([0xff; 6], mac(A), ETH_P_ARP, &arp)
    };
    punts(port(&tables, &ask(A)), Reason::UnknownNeighbour);
    punts(
        port(&tables, &ask([10, 0, 0, 77])),
        Reason::UnknownNeighbour,
    );
    let Verdict::ArpReply { mac: answer } = port(&tables, &ask(REMOTE)) else {
        panic!("no answer");
    };
    let mut frame: [u8; neighbour::ARP_FRAME] = ask(REMOTE).try_into().unwrap();
    neighbour::arp_reply(&mut frame, &answer);
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &mac(REMOTE),
        &REMOTE,
        &mac(A),
        &A,
    ]
    .concat();
    assert_eq!(&frame[..], eth(mac(A), mac(REMOTE), ETH_P_ARP, &arp));
}

#[test]
fn an_advertisement_has_a_valid_checksum() {
    let mut frame = [0; neighbour::ND_FRAME];
    for (i, byte) in frame.iter_mut().enumerate() {
        *byte = (i * 7) as u8;
    }
    frame[12..14].copy_from_slice(&ETH_P_IPV6.to_be_bytes());
    let asked = frame;
    neighbour::nd_reply(&mut frame, &mac(REMOTE));
    assert_eq!(frame[..6], asked[6..12]);
    assert_eq!(frame[6..12], mac(REMOTE));
    assert_eq!(frame[22..38], asked[62..78], "from the target");
    assert_eq!(frame[38..54], asked[22..38], "to who asked");
    assert_eq!(frame[54..56], [136, 0]);
    assert_eq!(frame[58..62], [0x60, 0, 0, 0]);
    assert_eq!(frame[78..], [2, 1, 2, 0x42, 10, 0, 0, 4]);
    let body: &[u8; 64] = frame[22..].try_into().unwrap();
    assert_eq!(checksum::fold(checksum::sum(body) + 32 + 58), 0xffff);
}

#[test]
fn the_uplink_trusts_nothing() {
    let mut tables = tables();
    let inner = eth(mac(A), mac(REMOTE), 0x88b5, &[0; 50]);
    let good = wrap(FAR_VTEP, VNI, &inner);
    let verdict =
        |tables: &Memory, frame: &[u8]| match from_uplink(&Slice::new(frame), tables, Way::Clear) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Punt { reason, .. } => Ok(Some(reason)),
            Verdict::Decap { .. } => Ok(None),
            other => panic!("{other:?}"),
        };
    assert_eq!(verdict(&tables, &good), Ok(None));

    let stranger = wrap([9; 4], VNI, &inner);
    assert_eq!(verdict(&tables, &stranger), Err(DropReason::UnknownVtep));
    let elsewhere = wrap(FAR_VTEP, VNI + 1, &inner);
    assert_eq!(verdict(&tables, &elsewhere), Err(DropReason::UnknownVni));
    // The sender claims a MAC of ours; then one behind another VTEP; then one nobody knows.
    let local = wrap(FAR_VTEP, VNI, &eth(mac(A), mac(B), 0x88b5, &[0; 50]));
    assert_eq!(verdict(&tables, &local), Err(DropReason::WrongVtep));
    tables.vteps.insert(map_v4([8; 4]), vtep(5, 1450));
    let thief = wrap([8; 4], VNI, &inner);
    assert_eq!(verdict(&tables, &thief), Err(DropReason::WrongVtep));
    let unknown = wrap(FAR_VTEP, VNI, &eth(mac(A), mac([1; 4]), 0x88b5, &[0; 50]));
    assert_eq!(verdict(&tables, &unknown), Ok(Some(Reason::UnknownSource)));
    // From one VTEP to another through us: never.
    tables
        .fdb
        .insert(FdbKey::new(VNI, mac(A)), FdbEntry::remote(map_v4([8; 4])));
    assert_eq!(verdict(&tables, &good), Err(DropReason::NotLocal));
}

#[test]
fn a_checksum_probe_that_does_not_add_up_is_answered_so() {
    let tables = tables();
    // Its bytes are IPv4's, of 66 in all: the message takes an inner frame's place.
    let request = crate::echo::checksum_request(7);
    let mut frame = wrap(FAR_VTEP, crate::echo::VNI, &request[8..]);
    frame[0] &= !1;
    let datagram: [u8; 32] = *frame[34..].first_chunk().unwrap();
    let ends: [u8; 8] = *frame[26..].first_chunk().unwrap();
    let sum = checksum::sum(&datagram) + checksum::sum(&ends) + 17 + 32;
    let unsound = |frame: &[u8], sum_aside| {
        let bytes = frame;
        let slice = Slice {
            sum_aside,
            ..Slice::new(bytes)
        };
        match from_uplink(&slice, &tables, Way::Clear) {
            Verdict::EchoReply { unsound, .. } => Ok(unsound),
            Verdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unsound(&frame, false), Err(DropReason::MalformedEcho));
    frame[40..42].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    assert_eq!(unsound(&frame, false), Ok(false));
    frame[65] ^= 1;
    assert_eq!(unsound(&frame, false), Ok(true));
    assert_eq!(unsound(&frame, true), Ok(false));
}

/// GRO may leave any lengths in a merged packet's outer headers; a single packet's must be right.
#[test]
fn outer_lengths_are_checked_except_of_super_packets() {
    let tables = tables();
    let mut frame = wrap(FAR_VTEP, VNI, &eth(mac(A), mac(REMOTE), 0x88b5, &[0; 50]));
    frame[38..40].copy_from_slice(&[0, 3]);
    let single = Slice::new(&frame);
    drops(
        from_uplink(&single, &tables, Way::Clear),
        DropReason::OuterLength,
    );
    let merged = Slice {
        gso_size: 1400,
        ..single
    };
    assert!(matches!(
        from_uplink(&merged, &tables, Way::Clear),
        Verdict::Decap { .. }
    ));
}

#[test]
fn the_agent_sends_only_what_is_marked_so() {
    let tables = tables();
    let inner = eth(mac(A), mac(REMOTE), 0x88b5, &[0; 50]);
    let sent = |kind, ifindex, ethertype| {
        let mut frame = wrap(VTEP, VNI, &inner);
        frame[30..34].copy_from_slice(&FAR_VTEP);
        frame[..14].copy_from_slice(&punt::encode(kind, None, ifindex, ethertype));
        frame
    };
    let verdict = |frame: &[u8]| from_agent(&Slice::new(frame), &tables);
    let to_port = sent(Kind::ToPort, PORT, ETH_P_IP);
    assert!(matches!(
        verdict(&to_port),
        Verdict::Decap {
            ifindex: PORT,
            family: Family::V4,
            ecn: None,
            answer: VNI,
            router: false,
            entered: false,
            policed: 0
        }
    ));
    let to_vtep = sent(Kind::ToVtep, 0, ETH_P_IP);
    assert!(matches!(verdict(&to_vtep), Verdict::Forward { vtep } if vtep.ifindex == 5));
    drops(
        verdict(&sent(Kind::ToPort, 99, ETH_P_IP)),
        DropReason::UnknownPort,
    );
    drops(
        verdict(&sent(Kind::ToPort, PORT, ETH_P_IPV6)),
        DropReason::NotPunted,
    );
    drops(
        verdict(&sent(Kind::FromPort, PORT, ETH_P_IP)),
        DropReason::NotPunted,
    );
    drops(verdict(&to_port[..63]), DropReason::Truncated);
    drops(verdict(&[0xff; 80]), DropReason::NotPunted);
}
