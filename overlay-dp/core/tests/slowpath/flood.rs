use etherparse::IpNumber;
use overlay_common::counters::DropReason;
use overlay_common::layout::FdbEntry;
use overlay_common::punt::Reason;
use overlay_common::wire::map_v4;
use overlay_core::model::Endpoint;
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

const GROUP: [u8; 4] = [239, 1, 2, 3];
const GROUP_MAC: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];

#[test]
fn from_a_port_to_ports_and_vteps() {
    let frame = udp4(11, BROADCAST, [255; 4], 100);
    let out = Rig::new().port(Reason::Flood, &frame);
    out.flooded(
        &[To::Port(12), To::Vtep(A), To::Vtep(B), To::Vtep(C)],
        &frame,
    );
    // D has no next hop.
    assert_eq!(out.drops, [DropReason::Unresolved]);
    assert_eq!(out.updates, []);
}

#[test]
fn what_is_not_ip_is_flooded_too() {
    let frame = raw(mac(11), BROADCAST, 0x88cc, &[1; 50]);
    let out = Rig::new().port(Reason::Flood, &frame);
    assert_eq!(out.sent.len(), 4);
    assert!(out.sent.iter().all(|sent| sent.tos == 0));
}

#[test]
fn a_copy_too_large_for_one_way_goes_the_others() {
    let frame = udp4(11, GROUP_MAC, GROUP, 1400);
    let out = Rig::new().port(Reason::Flood, &frame);
    out.flooded(&[To::Port(12), To::Vtep(A), To::Vtep(C)], &frame);
    let mut drops = out.drops.clone();
    drops.sort_by_key(|reason| *reason as u32);
    assert_eq!(drops, [DropReason::Unresolved, DropReason::PuntTooBig]);
}

#[test]
fn outer_headers_take_tos_and_flow_from_the_inner_packet() {
    let mut rig = Rig::new();
    let frame = ip4((11, GROUP_MAC, GROUP), IpNumber::UDP, &[9; 40], |header| {
        header.dscp = 46.try_into().unwrap();
        header.ecn = 2.try_into().unwrap();
    });
    let vtep = |out: &Out| {
        out.sent
            .iter()
            .find(|sent| sent.to == To::Vtep(A))
            .unwrap()
            .clone()
    };
    let first = vtep(&rig.port(Reason::Flood, &frame));
    assert_eq!(first.tos, 0xba);
    let later = fragment(11, GROUP_MAC, GROUP, 100, &[1; 64]);
    assert_eq!(
        vtep(&rig.port(Reason::Flood, &later)).src_port,
        first.src_port
    );
    let other = udp4(11, [1, 0, 0x5e, 1, 2, 4], [239, 1, 2, 4], 40);
    assert_ne!(
        vtep(&rig.port(Reason::Flood, &other)).src_port,
        first.src_port
    );
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut v6 = udp6(11, [0x33, 0x33, 0, 0, 0, 1], all_nodes, 40);
    v6[14] |= 0x0b;
    v6[15] |= 0xa0;
    assert_eq!(vtep(&rig.port(Reason::Flood, &v6)).tos, 0xba);
}

#[test]
fn a_full_queue_costs_single_copies() {
    let frame = udp4(11, BROADCAST, [255; 4], 100);
    let mut out = Out {
        full: 2,
        ..Out::default()
    };
    Rig::new().handle_into(&from_port(11, 1, Reason::Flood, &frame), &mut out);
    assert_eq!(out.sent.len(), 2);
    assert_eq!(out.drops.len(), 3);
}

#[test]
fn from_the_uplink_to_ports_only() {
    let frame = udp4(2, BROADCAST, [255; 4], 100);
    let out = Rig::new().uplink(Reason::Flood, A, &frame);
    out.flooded(&[To::Port(11), To::Port(12)], &frame);
    assert_eq!((&out.drops[..], &out.updates[..]), (&[][..], &[][..]));
}

#[test]
fn an_unknown_source_is_looked_up_first() {
    let frame = udp4(2, BROADCAST, [255; 4], 100);
    let out = Rig::new().uplink(Reason::UnknownSource, A, &frame);
    out.flooded(&[To::Port(11), To::Port(12)], &frame);
    let [MapUpdate::SetFdb(key, entry)] = out.updates[..] else {
        panic!()
    };
    assert_eq!((key.vni(), key.mac()), (1, mac(2)));
    assert_eq!(entry, FdbEntry::remote(map_v4(A)));
    // The same frame from another VTEP is a lie.
    let out = Rig::new().uplink(Reason::UnknownSource, B, &frame);
    out.dropped(DropReason::WrongVtep);
}

#[test]
fn congestion_met_on_the_way_is_told_inside() {
    let mut rig = Rig::new();
    let inner = |ecn: u8| {
        ip4((2, GROUP_MAC, GROUP), IpNumber::UDP, &[9; 40], |header| {
            header.ecn = ecn.try_into().unwrap();
        })
    };
    for (before, outer, after) in [
        (2, 3, 3),
        (1, 3, 3),
        (2, 1, 1),
        (2, 0, 2),
        (0, 1, 0),
        (3, 0, 3),
    ] {
        let out = rig.handle(&from_uplink(A, outer, Reason::Flood, &inner(before)));
        assert_eq!(out.sent.len(), 2);
        for sent in out.sent {
            assert_eq!(tos4(&sent.inner), after, "{before} {outer}");
        }
    }
    let out = rig.handle(&from_uplink(A, 3, Reason::Flood, &inner(0)));
    out.dropped(DropReason::EcnIllegal);

    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut v6 = udp6(2, [0x33, 0x33, 0, 0, 0, 1], all_nodes, 40);
    v6[15] |= 0x20;
    let out = rig.handle(&from_uplink(A, 3, Reason::Flood, &v6));
    assert_eq!(out.sent[0].inner[15] & 0xf0, 0x30);
}

#[test]
fn a_vtep_gets_copies_while_it_has_endpoints() {
    let mut rig = Rig::new();
    let frame = udp4(11, BROADCAST, [255; 4], 10);
    let to_a = |rig: &mut Rig| {
        let out = rig.port(Reason::Flood, &frame);
        out.sent
            .iter()
            .filter(|sent| sent.to == To::Vtep(A))
            .count()
    };
    rig.tables.endpoint_up(A.into(), &endpoint(1, 6)).unwrap();
    // This one loses its MAC to port 12, but is still there.
    let shadowed = Endpoint {
        mac: endpoint(1, 12).mac,
        ..endpoint(1, 7)
    };
    rig.tables.endpoint_up(A.into(), &shadowed).unwrap();
    // And this is on a network without a port.
    rig.tables.endpoint_up(A.into(), &endpoint(9, 8)).unwrap();
    for (last, copies) in [(2, 1), (6, 1)] {
        rig.tables.endpoint_down(A.into(), &endpoint(1, last));
        assert_eq!(to_a(&mut rig), copies, "{last}");
    }
    rig.tables.endpoint_down(A.into(), &shadowed);
    assert_eq!(to_a(&mut rig), 0);
    rig.tables.endpoint_up(A.into(), &endpoint(1, 2)).unwrap();
    assert_eq!(to_a(&mut rig), 1);
    rig.tables.vtep_remove(A.into());
    assert_eq!(to_a(&mut rig), 0);
}
