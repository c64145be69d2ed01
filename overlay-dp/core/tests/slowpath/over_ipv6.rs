//! The same over an IPv6 underlay: what differs is outside.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlay_common::counters::DropReason;
use overlay_common::layout::{Config, FdbEntry, FdbKey};
use overlay_common::outer::{OuterV4, OuterV6};
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::wire::Ip16;
use overlay_core::model::{Multicast, Network, Vni};
use overlay_core::slowpath::{Asker, FloodLimit, Output, SlowPath};
use overlay_core::tables::{Local, MapUpdate, Tables};

use super::packets::*;
use super::rig::{endpoint, hop, mac};

const MTU: u32 = 1430;

/// 2001:db8::<last>
const fn vtep(last: u8) -> Ip16 {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Frames as they come.
#[derive(Default)]
struct Raw {
    sent: Vec<Vec<u8>>,
    updates: Vec<MapUpdate>,
    drops: Vec<DropReason>,
}

impl Output for Raw {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        let mut frame = vec![0xa5; len];
        write(&mut frame);
        self.sent.push(frame);
    }

    fn update(&mut self, update: MapUpdate) {
        self.updates.push(update);
    }

    fn query(&mut self, _: Asker, _: &[u8]) {}

    fn query_refused(&mut self) {}

    fn drop(&mut self, reason: DropReason) {
        self.drops.push(reason);
    }
}

/// This host has port 11; endpoint 2 is behind VTEP 2, endpoint 3 behind VTEP 3.
fn tables() -> Tables {
    let local = Local {
        vtep: IpAddr::from(vtep(1)),
        data_port: 4789,
        esp_port: 4500,
        mtu: MTU,
    };
    let mut tables = Tables::new(local).unwrap();
    tables.network_add(Network {
        name: "net1".into(),
        vni: Vni::new(1).unwrap(),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: "10.0.0.1".parse().unwrap(),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: Some(Multicast::Flood),
    });
    for last in [2, 3] {
        let ip = IpAddr::from(vtep(last));
        tables.vtep_add(ip).unwrap();
        tables.endpoint_up(ip, &endpoint(1, last)).unwrap();
        tables.next_hop(ip, hop(MTU));
    }
    tables.port_up(11, &endpoint(1, 11)).unwrap();
    tables
}

fn handle(frame: &[u8]) -> Raw {
    let mut out = Raw::default();
    let now = Duration::from_secs(60);
    SlowPath::new(FloodLimit::default()).handle(&tables(), frame, now, &mut out);
    out
}

/// The container behind port 11 has sent this. The punt link's own headers are IPv4.
fn from_port(reason: Reason, inner: &[u8]) -> Raw {
    let config = Config {
        vtep: vtep(1),
        punt_ifindex: 7,
        data_port: 4789,
        crypt_ifindex: 901,
        esp_port: 4500,
    };
    let marker = punt::encode(Kind::FromPort, Some(reason), 11, 0x0800);
    let outer = OuterV4::punted(&config, marker, 1).to_bytes(inner.len() as u32);
    handle(&[&outer[..], inner].concat())
}

fn uplink_frame(from: u8, tos: u8, reason: Reason, inner: &[u8]) -> Vec<u8> {
    let marker = punt::encode(Kind::FromUplink, Some(reason), 2, 0x86dd);
    let outer = OuterV6 {
        dst_mac: *marker.first_chunk().unwrap(),
        src_mac: *marker[6..].first_chunk().unwrap(),
        src: &vtep(from),
        dst: &vtep(1),
        tos,
        flow_label: 7,
        src_port: 50_000,
        dst_port: 4789,
        vni: 1,
    };
    [&outer.to_bytes(inner.len() as u32)[..], inner].concat()
}

/// Checks a frame to a VTEP; returns its last byte and the inner frame.
fn to_vtep(frame: &[u8]) -> (u8, &[u8]) {
    let marker = punt::decode(frame.first_chunk().unwrap()).unwrap();
    assert_eq!((marker.kind, marker.reason), (Kind::ToVtep, None));
    let packet = SlicedPacket::from_ethernet(frame).expect("valid outer headers");
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
    else {
        panic!("no UDP in IPv6 outside")
    };
    let header = ip.header().to_header();
    assert_eq!((header.source, header.hop_limit), (vtep(1), 64));
    assert_eq!(usize::from(header.payload_length) + 54, frame.len());
    assert_eq!(usize::from(udp.length()) + 54, frame.len());
    assert_eq!((udp.checksum(), udp.destination_port()), (0, 4789));
    assert_eq!(frame[62..70], [8, 0, 0, 0, 0, 0, 1, 0]);
    (header.destination[15], &frame[70..])
}

/// The inner frame of one to a port.
fn to_port(frame: &[u8]) -> &[u8] {
    let marker = punt::decode(frame.first_chunk().unwrap()).unwrap();
    assert_eq!((marker.kind, marker.ifindex), (Kind::ToPort, 11));
    assert_eq!(frame[12..14], [8, 0], "the punt link's headers are IPv4");
    &frame[50..]
}

#[test]
fn unicast_and_broadcast_to_vteps() {
    let frame = udp4(11, mac(2), v4(2), 100);
    let out = from_port(Reason::UnknownDestination, &frame);
    assert_eq!(out.drops, []);
    assert_eq!(out.sent.len(), 1);
    assert_eq!(to_vtep(&out.sent[0]), (2, &frame[..]));
    let entry = FdbEntry::remote(vtep(2));
    let update = MapUpdate::SetFdb(FdbKey::new(1, mac(2)), entry);
    assert_eq!(out.updates, [update]);

    let frame = udp4(11, [0xff; 6], v4(255), 100);
    let out = from_port(Reason::Flood, &frame);
    let to: Vec<_> = out.sent.iter().map(|sent| to_vtep(sent)).collect();
    assert_eq!(to, [(2, &frame[..]), (3, &frame[..])]);
}

#[test]
fn frames_of_vteps() {
    let frame = udp4(2, mac(11), v4(11), 10);
    let out = handle(&uplink_frame(2, 0, Reason::UnknownSource, &frame));
    assert_eq!(out.drops, []);
    assert_eq!(to_port(&out.sent[0]), frame);
    let entry = FdbEntry::remote(vtep(2));
    let update = MapUpdate::SetFdb(FdbKey::new(1, mac(2)), entry);
    assert_eq!(out.updates, [update]);
    let out = handle(&uplink_frame(3, 0, Reason::UnknownSource, &frame));
    assert_eq!(out.drops, [DropReason::WrongVtep]);
    let out = handle(&uplink_frame(9, 0, Reason::UnknownSource, &frame));
    assert_eq!(out.drops, [DropReason::UnknownVtep]);

    // ECN comes out of the traffic class, which lies across two bytes.
    let group = udp4(2, [0xff; 6], v4(255), 10);
    let mut ect0 = group.clone();
    ect0[15] |= 2;
    let out = handle(&uplink_frame(2, 0xb8, Reason::Flood, &ect0));
    assert_eq!(to_port(&out.sent[0])[15], ect0[15]);
    let out = handle(&uplink_frame(2, 0xbb, Reason::Flood, &ect0));
    assert_eq!(to_port(&out.sent[0])[15], ect0[15] | 3);
    let out = handle(&uplink_frame(2, 3, Reason::Flood, &group));
    assert_eq!(out.drops, [DropReason::EcnIllegal]);
}

#[test]
fn cut_anywhere_it_is_dropped() {
    let frame = uplink_frame(2, 0, Reason::Flood, &udp4(2, [0xff; 6], v4(255), 10));
    for len in 0..84 {
        let out = handle(&frame[..len]);
        assert_eq!((out.sent.len(), out.drops.len()), (0, 1), "{len}");
    }
}
