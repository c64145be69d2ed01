//! Frames that the tests share, and what is claimed about what comes of them.

use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::punt::{self, Kind, Marker, Reason};

use super::frames::*;
use super::object::{Action, Hook, Object, Outcome};
use super::world::*;

pub const IP: u16 = 0x0800;
pub const IP6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;

/// Loads the object or leaves the test.
#[macro_export]
macro_rules! object {
    () => {
        match $crate::support_bpf::object::Object::load(&$crate::support_bpf::world::tables()) {
            Some(object) => object,
            None => return,
        }
    };
}

/// A frame from A to the endpoint with this address.
pub fn to(ip: Ip4, packet: &[u8]) -> Vec<u8> {
    eth(mac(ip), mac(A), IP, packet)
}

pub fn udp_to(ip: Ip4) -> Vec<u8> {
    to(ip, &ipv4(A, ip, 0, UDP, &udp(1000, 2000, b"hello")))
}

/// A VXLAN frame from R's VTEP to here.
pub fn from_r(inner: &[u8]) -> Vec<u8> {
    vxlan(VTEP_R, VTEP, 0, VNI, inner)
}

pub fn inner_to_a() -> Vec<u8> {
    eth(
        mac(A),
        mac(R),
        IP,
        &ipv4(R, A, 0, UDP, &udp(1, 2, &[7; 40])),
    )
}

#[track_caller]
pub fn drops(object: &mut Object, hooks: &[Hook], reason: DropReason, frame: &[u8]) {
    for &hook in hooks {
        let outcome = object.run(hook, frame);
        assert_eq!(outcome.action, Action::Drop, "{hook:?}");
        assert_eq!(outcome.drops, [reason], "{hook:?}");
        assert_eq!(outcome.bytes, frame, "{hook:?} changed what it dropped");
        let taken = match hook {
            Hook::PortXdp | Hook::PortTc => vec![Stat::PortFrames],
            Hook::UplinkXdp | Hook::UplinkTc => vec![Stat::UplinkFrames],
            Hook::AgentTc | Hook::PuntXdp => vec![],
        };
        assert_eq!(outcome.stats, taken, "{hook:?}");
    }
}

#[track_caller]
pub fn sends(object: &mut Object, hooks: &[Hook], stat: Stat, frame: &[u8], expected: &[u8]) {
    for &hook in hooks {
        let outcome = object.run(hook, frame);
        assert_eq!(outcome.drops, [], "{hook:?}");
        assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
        assert_eq!(outcome.stats.last(), Some(&stat), "{hook:?}");
        assert_eq!(outcome.bytes, expected, "{hook:?}");
    }
}

/// What varies in the headers of an encapsulated frame.
pub struct Encapsulated {
    pub src_port: u16,
    pub tos: u8,
}

#[track_caller]
pub fn encapsulated(outcome: &Outcome, inner: &[u8]) -> Encapsulated {
    assert_eq!(outcome.drops, []);
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(outcome.stats, [Stat::PortFrames, Stat::Encapsulated]);
    assert_eq!(outcome.bytes[..6], NEXT_HOP);
    assert_eq!(outcome.bytes[6..12], OWN_UPLINK);
    let packet = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else {
        panic!("no IPv4 outside");
    };
    let header = ip.header();
    assert_eq!(header.ihl(), 5);
    assert!(header.dont_fragment() && !header.is_fragmenting_payload());
    assert_eq!(header.ttl(), 64);
    assert_eq!(header.protocol(), IpNumber::UDP);
    assert_eq!(header.source(), VTEP);
    assert_eq!(header.destination(), VTEP_R);
    assert_eq!(usize::from(header.total_len()), 36 + inner.len());
    let checksum = header.to_header().calc_header_checksum();
    assert_eq!(header.header_checksum(), checksum);
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("no UDP outside");
    };
    assert_eq!(udp.destination_port(), 4789);
    assert_eq!(udp.checksum(), 0);
    assert_eq!(usize::from(udp.length()), 16 + inner.len());
    assert!((49152..=65535).contains(&udp.source_port()));
    let [_, v0, v1, v2] = VNI.to_be_bytes();
    assert_eq!(udp.payload()[..8], [8, 0, 0, 0, v0, v1, v2, 0]);
    assert_eq!(&udp.payload()[8..], inner);
    Encapsulated {
        src_port: udp.source_port(),
        tos: header.to_header().dscp.value() << 2 | header.to_header().ecn.value(),
    }
}

#[track_caller]
pub fn punted(outcome: &Outcome, kind: Kind, why: Reason) -> &[u8] {
    assert_eq!(outcome.drops, []);
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(outcome.stats.last(), Some(&Stat::Punted));
    let marker = punt::decode(outcome.bytes.first_chunk().unwrap());
    let expected = Marker {
        kind,
        reason: Some(why),
        ifindex: PORT_A,
    };
    assert_eq!(marker, Some(expected));
    assert_eq!(outcome.bytes[12..14], IP.to_be_bytes());
    let [_, v0, v1, v2] = VNI.to_be_bytes();
    assert_eq!(outcome.bytes[42..50], [8, 0, 0, 0, v0, v1, v2, 0]);
    &outcome.bytes[50..]
}

/// A frame that the agent sends to a VTEP over IPv6.
pub fn to_vtep6(dst: Ip4, inner: &[u8]) -> Vec<u8> {
    let mut frame = vxlan6(VTEP, dst, 0, VNI, inner);
    frame[..14].copy_from_slice(&punt::encode(Kind::ToVtep, None, 0, IP6));
    frame
}

/// A frame that the agent sends: `kind` and what for.
pub fn from_agent(kind: Kind, ifindex: u32, dst: Ip4, inner: &[u8]) -> Vec<u8> {
    let mut frame = vxlan(VTEP, dst, 0, VNI, inner);
    frame[..14].copy_from_slice(&punt::encode(kind, None, ifindex, IP));
    frame
}
