use etherparse::{ArpOperation, Icmpv6Type, NetSlice, SlicedPacket};
use overlay_common::counters::DropReason;
use overlay_common::layout::{NeighbourEntry, NeighbourKey};
use overlay_common::punt::Reason;
use overlay_common::wire::map_v4;
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

const ALL: [To; 4] = [To::Port(12), To::Vtep(A), To::Vtep(B), To::Vtep(C)];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// A nonce (RFC 3971 section 5.3.2), as Linux adds it when it looks for duplicates.
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

fn update(ip: [u8; 16], last: u8) -> MapUpdate {
    let entry = NeighbourEntry {
        mac: mac(last),
        _zero: [0; 2],
    };
    MapUpdate::SetNeighbour(NeighbourKey::new(1, ip), entry)
}

#[track_caller]
fn check_arp_reply(out: Out, asker: [u8; 4], last: u8) {
    assert_eq!(out.updates, [update(map_v4(v4(last)), last)]);
    let sent = out.only();
    assert_eq!(sent.to, To::Port(11));
    assert_eq!(
        (&sent.inner[..6], &sent.inner[6..12]),
        (&mac(11)[..], &mac(last)[..])
    );
    let packet = SlicedPacket::from_ethernet(&sent.inner).unwrap();
    let Some(NetSlice::Arp(arp)) = packet.net else {
        panic!("no ARP")
    };
    assert_eq!(arp.operation(), ArpOperation::REPLY);
    assert_eq!(
        (arp.sender_hw_addr(), arp.sender_protocol_addr()),
        (&mac(last)[..], &v4(last)[..])
    );
    assert_eq!(
        (arp.target_hw_addr(), arp.target_protocol_addr()),
        (&mac(11)[..], &asker[..])
    );
}

#[test]
fn arp_requests() {
    let mut rig = Rig::new();
    // Another host's, the gateway's, a neighbour's on this host.
    for last in [2, 1, 12] {
        let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(last));
        check_arp_reply(rig.port(Reason::UnknownNeighbour, &request), v4(11), last);
    }
    let request = arp(ArpOperation::REQUEST, 11, v4(11), v4(99));
    let out = rig.port(Reason::UnknownNeighbour, &request);
    out.flooded(&ALL, &request);
    assert_eq!(out.updates, []);
}

#[test]
fn arp_probes_and_announcements() {
    let mut rig = Rig::new();
    // Somebody else's address is defended (RFC 5227 section 2.4).
    let probe = arp(ArpOperation::REQUEST, 11, [0; 4], v4(2));
    check_arp_reply(rig.port(Reason::UnknownNeighbour, &probe), [0; 4], 2);
    // One's own may be probed for and announced.
    for sender in [[0; 4], v4(11)] {
        let own = arp(ArpOperation::REQUEST, 11, sender, v4(11));
        rig.port(Reason::UnknownNeighbour, &own).flooded(&ALL, &own);
    }
    let announcement = arp(ArpOperation::REPLY, 11, v4(11), v4(11));
    rig.port(Reason::Flood, &announcement)
        .flooded(&ALL, &announcement);
    let lie = arp(ArpOperation::REPLY, 11, v4(2), v4(2));
    rig.port(Reason::Flood, &lie)
        .dropped(DropReason::SpoofedNeighbour);
}

#[test]
fn requests_from_the_uplink_reach_the_ports() {
    let request = arp(ArpOperation::REQUEST, 2, v4(2), v4(11));
    let out = Rig::new().uplink(Reason::Flood, A, &request);
    out.flooded(&[To::Port(11), To::Port(12)], &request);
}

#[track_caller]
fn check_advertisement(frame: &[u8], (to_mac, to): ([u8; 6], [u8; 16]), last: u8, solicited: bool) {
    assert_eq!(frame[14 + 7], 255, "hop limit");
    let na = parse_icmp6(frame);
    let Icmpv6Type::NeighborAdvertisement(flags) = na.kind else {
        panic!("{:?}", na.kind)
    };
    assert!(!flags.router && flags.r#override);
    assert_eq!(flags.solicited, solicited);
    assert_eq!(na.eth, (to_mac, mac(last)));
    assert_eq!((na.src, na.dst), (v6(last), to));
    assert_eq!(na.payload[..16], v6(last));
    assert_eq!(na.payload[16..], [&[2, 1][..], &mac(last)].concat());
}

#[test]
fn solicitations() {
    let mut rig = Rig::new();
    let nonce = [&source_option(11)[..], &NONCE].concat();
    for options in [&source_option(11)[..], &nonce, &[]] {
        let ns = solicitation(v6(11), 255, v6(2), options);
        let out = rig.port(Reason::UnknownNeighbour, &ns);
        assert_eq!(out.updates, [update(v6(2), 2)]);
        let sent = out.only();
        assert_eq!(sent.to, To::Port(11));
        check_advertisement(&sent.inner, (mac(11), v6(11)), 2, true);
    }
    let ns = solicitation(v6(11), 255, v6(99), &source_option(11));
    rig.port(Reason::UnknownNeighbour, &ns).flooded(&ALL, &ns);
}

#[test]
fn duplicate_address_detection() {
    let mut rig = Rig::new();
    // Somebody else's address is defended, before all nodes.
    for options in [&NONCE[..], &[]] {
        let ns = solicitation([0; 16], 255, v6(2), options);
        let sent = rig.port(Reason::UnknownNeighbour, &ns).only();
        check_advertisement(&sent.inner, ([0x33, 0x33, 0, 0, 0, 1], ALL_NODES), 2, false);
    }
    // One's own, or nobody's: everybody hears it, and nobody answers.
    for last in [11, 99] {
        let ns = solicitation([0; 16], 255, v6(last), &NONCE);
        rig.port(Reason::UnknownNeighbour, &ns).flooded(&ALL, &ns);
    }
}

#[test]
fn a_solicitation_that_was_routed_is_not_answered() {
    let mut rig = Rig::new();
    let ns = solicitation(v6(11), 254, v6(2), &source_option(11));
    let out = rig.port(Reason::UnknownNeighbour, &ns);
    assert_eq!(
        (&out.drops[..], out.sent.len()),
        (&[DropReason::InnerHeader][..], 0)
    );
    // The length in the IPv6 header lies.
    let mut ns = solicitation([0; 16], 255, v6(2), &[]);
    ns[19] = 25;
    let out = rig.port(Reason::UnknownNeighbour, &ns);
    assert_eq!(
        (&out.drops[..], out.sent.len()),
        (&[DropReason::InnerHeader][..], 0)
    );
}
