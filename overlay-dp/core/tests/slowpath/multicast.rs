//! Groups: who has joined gets, nobody else does; network 1 snoops here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use etherparse::{IpHeaders, NetSlice, SlicedPacket};
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;
use overlay_core::model::{Multicast, Vni};
use overlay_core::multicast::Group;
use overlay_core::slowpath::{FloodLimit, LEARNING, SlowPath};

use super::packets::*;
use super::rig::*;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.multicast(None);
    rig.tick();
    rig
}

fn group(ip: impl Into<IpAddr>) -> Group {
    Group::new(ip.into()).unwrap()
}

fn data4(src: u8) -> Vec<u8> {
    udp4(src, group_mac(GROUP4.into()), GROUP4, 100)
}

fn data6(src: u8) -> Vec<u8> {
    udp6(src, group_mac(GROUP6.into()), GROUP6, 100)
}

impl Rig {
    fn says(&mut self, ifindex: u32, frame: &[u8]) -> Out {
        self.handle(&from_port(ifindex, 1, Reason::Flood, frame))
    }

    /// To whom port 11's packet goes, C left out: it is no host, and gets all.
    #[track_caller]
    fn goes_to(&mut self, frame: &[u8], to: &[To]) {
        let mut all = to.to_vec();
        all.push(To::Vtep(C));
        let out = self.port(Reason::Flood, frame);
        out.flooded(&all, frame);
    }

    fn joined(&self) -> Vec<(u32, IpAddr)> {
        let members = self.slow.members().iter();
        members.map(|m| (m.ifindex, m.group.ip())).collect()
    }
}

#[test]
fn a_group_without_members_goes_nowhere() {
    let mut rig = rig();
    rig.tables
        .static_remove(Vni::new(1).unwrap(), overlay_core::model::MacAddr(mac(4)));
    rig.port(Reason::Flood, &data4(11))
        .dropped(DropReason::NoMember);
    rig.port(Reason::Flood, &data6(11))
        .dropped(DropReason::NoMember);
    rig.uplink(Reason::Flood, A, &data4(2))
        .dropped(DropReason::NoMember);
    // Nor does its only member hear itself.
    rig.says(11, &report3(11, &[(4, GROUP4, 0)])).nothing();
    rig.port(Reason::Flood, &data4(11))
        .dropped(DropReason::NoMember);
    let out = rig.uplink(Reason::Flood, A, &data4(2));
    out.flooded(&[To::Port(11)], &data4(2));
}

#[test]
fn members_here_and_at_other_hosts_get_it() {
    let mut rig = rig();
    let one: BTreeSet<Group> = [group(GROUP4)].into();
    let vni = Vni::new(1).unwrap();
    rig.tables.groups_set(A.into(), vni, &one);
    rig.goes_to(&data4(11), &[To::Vtep(A)]);
    rig.goes_to(&data6(11), &[]);
    let six = mld(
        12,
        v6(12),
        GROUP6,
        &[&[131, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat(),
    );
    for (join, data) in [
        (report3(12, &[(2, GROUP4, 0)]), data4(11)),
        (six, data6(11)),
    ] {
        // C, which is no host, may need to know.
        rig.says(12, &join).flooded(&[To::Vtep(C)], &join);
        let out = rig.uplink(Reason::Flood, B, &data.clone());
        out.dropped(DropReason::WrongVtep);
        assert!(
            rig.port(Reason::Flood, &data)
                .copies()
                .contains_key("Port(12)")
        );
    }
    // Of both families, and of its own network only.
    assert_eq!(rig.joined(), [(12, GROUP4.into()), (12, GROUP6.into())]);
    let other: BTreeSet<Group> = [group(GROUP6)].into();
    rig.tables.groups_set(B.into(), vni, &other);
    rig.goes_to(&data4(11), &[To::Port(12), To::Vtep(A)]);
    rig.goes_to(&data6(11), &[To::Port(12), To::Vtep(B)]);
    rig.tables.groups_set(A.into(), vni, &BTreeSet::new());
    rig.goes_to(&data4(11), &[To::Port(12)]);
    rig.tables.vtep_remove(B.into());
    rig.goes_to(&data6(11), &[To::Port(12)]);
    rig.tables.port_down(12);
    rig.tick();
    assert_eq!(rig.joined(), []);
}

#[test]
fn what_all_need_goes_to_all() {
    let mut rig = rig();
    let all = [To::Port(12), To::Vtep(A), To::Vtep(B), To::Vtep(C)];
    let mdns = udp4(11, [1, 0, 0x5e, 0, 0, 0xfb], [224, 0, 0, 251], 40);
    let nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let ping = udp6(11, [0x33, 0x33, 0, 0, 0, 1], nodes, 40);
    let broadcast = udp4(11, BROADCAST, [255; 4], 40);
    let lldp = raw(mac(11), [1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc, &[1; 50]);
    for frame in [mdns, ping, broadcast, lldp] {
        rig.port(Reason::Flood, &frame).flooded(&all, &frame);
    }
    let ask = solicitation(v6(11), 255, v6(99), &source_option(11));
    rig.port(Reason::UnknownNeighbour, &ask).flooded(&all, &ask);
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let solicit = ip6(
        (v6(11), [0x33, 0x33, 0, 0, 0, 2], routers),
        255,
        58,
        &[133, 0, 0, 0],
    );
    rig.port(Reason::Flood, &solicit).flooded(&all, &solicit);
}

#[test]
fn networks_that_flood_and_networks_that_do_not() {
    let mut rig = rig();
    rig.multicast(Some(Multicast::Flood));
    let join = report3(11, &[(4, GROUP4, 0)]);
    for frame in [data4(11), join] {
        let all = [To::Port(12), To::Vtep(A), To::Vtep(B), To::Vtep(C)];
        rig.port(Reason::Flood, &frame).flooded(&all, &frame);
    }
    rig.multicast(Some(Multicast::Off));
    let broadcast = udp4(11, BROADCAST, [255; 4], 40);
    for frame in [
        data4(11),
        data6(11),
        broadcast,
        report3(11, &[(4, GROUP4, 0)]),
    ] {
        rig.port(Reason::Flood, &frame)
            .dropped(DropReason::MulticastOff);
    }
    rig.uplink(Reason::Flood, A, &data4(2))
        .dropped(DropReason::MulticastOff);
    assert_eq!(rig.joined(), []);
    let ask = arp(etherparse::ArpOperation::REQUEST, 11, v4(11), v4(99));
    assert_eq!(rig.port(Reason::UnknownNeighbour, &ask).sent.len(), 4);
    let ask = arp(etherparse::ArpOperation::REQUEST, 2, v4(2), v4(99));
    assert_eq!(rig.uplink(Reason::Flood, A, &ask).sent.len(), 2);
}

#[test]
fn leaving_is_asked_about_and_silence_is_an_answer() {
    let mut rig = rig();
    rig.tick();
    rig.says(12, &report3(12, &[(4, GROUP4, 0), (4, [239, 7, 7, 7], 0)]));
    rig.says(12, &report_mld(12, &[(4, GROUP6, 0)]));
    rig.says(12, &report3(12, &[(3, GROUP4, 0)]));
    rig.says(12, &report_mld(12, &[(3, GROUP6, 0)]));
    for second in 0..2 {
        let out = rig.tick();
        assert_eq!(out.sent.len(), 2, "{second}: {:?}", out.sent);
        let asked: Vec<_> = out.sent.iter().map(|sent| query(sent, 12).1).collect();
        assert_eq!(asked, [Some(GROUP4.into()), Some(IpAddr::from(GROUP6))]);
        assert_eq!(rig.joined().len(), 3);
        rig.now += Duration::from_secs(1);
    }
    assert!(rig.tick().sent.is_empty());
    assert_eq!(rig.joined(), [(12, [239, 7, 7, 7].into())]);
    // And without a word.
    rig.now += Duration::from_secs(259);
    rig.tick();
    assert_eq!(rig.joined(), []);
}

#[test]
fn ports_are_asked_when_they_come_and_again() {
    let mut rig = Rig::new();
    rig.multicast(None);
    rig.slow = SlowPath::new(FloodLimit::default());
    rig.now = Duration::ZERO;
    let mut times = Vec::new();
    // The others' networks flood: nobody asks there.
    for _ in 0..4 {
        let out = rig.tick();
        let asked = out.sent.iter().map(|sent| match sent.to {
            To::Port(port) => (port, query(sent, port)),
            To::Vtep(_) => panic!("a query that leaves the host"),
        });
        let asked: Vec<_> = asked.collect();
        times.push(rig.now.as_secs());
        assert_eq!(asked.len(), 4, "{asked:?}");
        for (port, (src, group)) in asked {
            assert!(port == 11 || port == 12);
            assert_eq!(group, None);
            let gateway6 = overlay_core::model::MacAddr(mac(1)).link_local();
            assert!(
                src == IpAddr::from(v4(1)) || src == IpAddr::V6(gateway6),
                "{src}"
            );
        }
        while rig.slow.due().unwrap() <= rig.now + Duration::from_millis(200) {
            rig.now = rig.slow.due().unwrap();
            assert!(rig.tick().sent.is_empty());
        }
        rig.now = rig.slow.due().unwrap();
    }
    assert_eq!(times, [0, 31, 156, 281]);
}

#[test]
fn until_it_has_asked_it_floods() {
    let mut rig = rig();
    rig.now = LEARNING - Duration::from_millis(1);
    assert_eq!(rig.port(Reason::Flood, &data4(11)).sent.len(), 4);
    assert_eq!(rig.uplink(Reason::Flood, A, &data4(2)).sent.len(), 2);
    // But what is said of groups goes no further even then.
    let join = report3(11, &[(4, GROUP4, 0)]);
    rig.port(Reason::Flood, &join)
        .flooded(&[To::Vtep(C)], &join);
    rig.now = LEARNING;
    rig.goes_to(&data4(11), &[]);
}

#[test]
fn only_what_is_right_and_its_own_is_believed() {
    let mut rig = rig();
    let bad = DropReason::BadMembership;
    for (index, frame) in memberships(11).iter().enumerate() {
        // Not its queries; and 9 and 10 are for the group.
        if matches!(index, 0 | 5) {
            rig.port(Reason::Flood, frame).dropped(bad);
        }
        // Each byte of the message is covered by the checksum, and none may be missing.
        let at = if index < 5 { 34 } else { 63 };
        for byte in (at..frame.len()).filter(|_| index < 9) {
            let mut wrong = frame.clone();
            wrong[byte] ^= 0x10;
            rig.port(Reason::Flood, &wrong).dropped(bad);
            rig.port(Reason::Flood, &frame[..byte]).dropped(bad);
            rig.now += Duration::from_millis(3);
        }
    }
    assert_eq!(rig.joined(), []);
    // Another's address; the verdict has checked the packet's, but the router's may be any.
    let foreign = mld(
        11,
        v6(12),
        GROUP6,
        &[&[131, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat(),
    );
    rig.port(Reason::Flood, &foreign)
        .dropped(DropReason::SpoofedIp);
    // Who has no address yet may join (RFC 3590); what is no group nobody can.
    let early = mld(
        11,
        [0; 16],
        GROUP6,
        &[&[131, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat(),
    );
    rig.port(Reason::Flood, &early)
        .flooded(&[To::Vtep(C)], &early);
    assert_eq!(rig.joined(), [(11, GROUP6.into())]);
    let none = igmp(11, GROUP4, &[0x16, 0, 0, 0, 10, 0, 0, 7]);
    rig.port(Reason::Flood, &none).dropped(bad);
    for known in [[224, 0, 0, 251], [224, 0, 0, 1]] {
        let frame = igmp(11, known, &[&[0x16, 0, 0, 0][..], &known].concat());
        rig.port(Reason::Flood, &frame)
            .flooded(&[To::Vtep(C)], &frame);
    }
    assert_eq!(rig.joined().len(), 1);
    // What other hosts' containers say is for their own agents.
    rig.uplink(Reason::Flood, A, &report3(2, &[(4, GROUP4, 0)]))
        .dropped(DropReason::NoMember);
    let asks = igmp(2, [224, 0, 0, 1], &[0x11, 100, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.uplink(Reason::Flood, A, &asks).sent.len(), 2);
}

#[test]
fn more_groups_than_one_may_have_are_counted() {
    let mut rig = rig();
    let groups: Vec<_> = (0..200_u8).map(|n| (4, [239, 5, 5, n], 0)).collect();
    let report = report3(11, &groups[..150]);
    rig.port(Reason::Flood, &report)
        .dropped(DropReason::TooManyGroups);
    assert_eq!(rig.joined().len(), 128);
    rig.says(12, &report3(12, &groups[150..]));
    assert_eq!(rig.joined().len(), 178);
}

#[test]
fn what_one_port_sends_is_limited() {
    let mut rig = rig();
    rig.says(12, &report3(12, &[(4, GROUP4, 0)]));
    let frame = from_port(11, 1, Reason::Flood, &data4(11));
    let mut sent = 0;
    for _ in 0..20_000 {
        rig.now += Duration::from_micros(50);
        let out = rig.handle(&frame);
        match out.drops[..] {
            [] => sent += 1,
            [reason] => assert_eq!(reason, DropReason::FloodLimit),
            _ => panic!("{:?}", out.drops),
        }
    }
    assert_eq!(sent, 5500);
    // Others may still send, and this one may still ask who has an address.
    assert!(
        !rig.says(12, &udp4(12, BROADCAST, [255; 4], 9))
            .sent
            .is_empty()
    );
    let ask = arp(etherparse::ArpOperation::REQUEST, 11, v4(11), v4(99));
    assert!(!rig.port(Reason::UnknownNeighbour, &ask).sent.is_empty());
}

#[test]
fn joining_and_leaving_all_the_time_asks_once_in_a_second() {
    let mut rig = rig();
    let mut asked = 0;
    for _ in 0..5000 {
        rig.now += Duration::from_millis(2);
        rig.says(11, &report3(11, &[(4, GROUP4, 0)]));
        rig.says(11, &report3(11, &[(3, GROUP4, 0)]));
        asked += rig.tick().sent.len();
    }
    assert!((5..=15).contains(&asked), "{asked}");
}

/// Who asks, and about which group; the frame is a right query to this port.
#[track_caller]
fn query(sent: &Sent, port: u32) -> (IpAddr, Option<IpAddr>) {
    assert_eq!(sent.to, To::Port(port));
    let frame = &sent.inner;
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    assert_eq!(frame[6..12], mac(1));
    let headers = IpHeaders::from_slice(&frame[14..]).unwrap();
    let (src, dst, group) = match (packet.net, headers.0) {
        (Some(NetSlice::Ipv4(ip)), IpHeaders::Ipv4(header, _)) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.time_to_live, header.options.len()), (1, 4));
            let message = ip.payload().payload;
            assert_eq!((message[0], message.len()), (0x11, 12));
            let sum = etherparse::checksum::u32_16bit_word::add_slice(0, message);
            assert_eq!(
                etherparse::checksum::u32_16bit_word::ones_complement(sum),
                0
            );
            let group: [u8; 4] = message[4..8].try_into().unwrap();
            (
                header.source.into(),
                header.destination.into(),
                IpAddr::from(group),
            )
        }
        (Some(NetSlice::Ipv6(_)), IpHeaders::Ipv6(header, _)) => {
            assert_eq!((header.hop_limit, header.next_header.0), (1, 0));
            let message = &frame[62..];
            assert_eq!((message[0], message.len()), (130, 28));
            let len = message.len() as u8;
            let pseudo = [
                &header.source[..],
                &header.destination,
                &[0, 0, 0, len, 0, 0, 0, 58],
            ];
            let sum = etherparse::checksum::u32_16bit_word::add_slice(0, &pseudo.concat());
            let sum = etherparse::checksum::u32_16bit_word::add_slice(sum, message);
            assert_eq!(
                etherparse::checksum::u32_16bit_word::ones_complement(sum),
                0
            );
            let group: [u8; 16] = message[8..24].try_into().unwrap();
            let src = IpAddr::V6(Ipv6Addr::from(header.source));
            (src, IpAddr::from(header.destination), IpAddr::from(group))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(frame[..6], group_mac(dst));
    match group.is_unspecified() {
        true => (src, None),
        false => {
            assert_eq!(dst, group);
            (src, Some(group))
        }
    }
}
