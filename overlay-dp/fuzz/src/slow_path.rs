//! Frames from the punt link through the slow path.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_common::counters::DropReason;
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::wire::ETH_LEN;
use overlay_core::model::{Endpoint, MacAddr, Network, Subnet, Vni};
use overlay_core::slowpath::{Asker, FloodLimit, LEARNING, Output, SlowPath};
use overlay_core::tables::{Local, MapUpdate, NextHop, Tables};

use crate::world::{A, B, R, VTEP, VTEP_R, inner, ip4, ip6, mac, memberships, vxlan};

/// What comes out must be a whole frame for the punt link.
struct Check<'t>(&'t Tables);

impl Output for Check<'_> {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        let mut frame = vec![0xa5; len];
        write(&mut frame);
        let marker = frame.first_chunk().and_then(punt::decode);
        let marker = marker.expect("a marker");
        assert!(matches!(marker.kind, Kind::ToPort | Kind::ToVtep));
        assert!(len <= punt::MTU as usize + ETH_LEN, "{len} bytes");
    }

    fn update(&mut self, update: MapUpdate) {
        if let MapUpdate::SetFdb(key, entry) = update {
            assert_eq!(
                self.0.fdb_entry(&key),
                Some(&entry),
                "a map learns an untruth"
            );
        }
    }

    fn query(&mut self, _: Asker, _: &[u8]) {}

    fn query_refused(&mut self) {}

    fn drop(&mut self, _: DropReason) {}
}

fn build() -> Result<Tables, overlay_core::tables::Error> {
    let mut tables = Tables::new(Local {
        vtep: Ipv4Addr::from(VTEP).into(),
        data_port: 4789,
        esp_port: 4500,
        mtu: 1450,
    })?;
    let vni = Vni::new(crate::world::VNI).expect("24 bits");
    let net = |address: IpAddr, prefix| ipnetwork::IpNetwork::new(address, prefix).expect("valid");
    tables.network_add(Network {
        name: "net".to_owned(),
        vni,
        subnet: net(ip4(0).into(), 24),
        gateway: ip4(1).into(),
        ipv6: Some(Subnet {
            subnet: net(ip6(0).into(), 64),
            gateway: ip6(1).into(),
        }),
        internal: false,
        encrypted: false,
        multicast: None,
    });
    let vtep = Ipv4Addr::from(VTEP_R).into();
    tables.vtep_add(vtep)?;
    let hop = NextHop {
        ifindex: 2,
        src_mac: [2; 6],
        dst_mac: [4; 6],
        mtu: 1450,
    };
    tables.next_hop(vtep, Some(hop));
    let endpoint = |last: u8| Endpoint {
        name: format!("e{last}"),
        vni,
        mac: MacAddr(mac(last)),
        ips: vec![ip4(last).into(), ip6(last).into()],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    };
    for (ifindex, last) in [(1, A), (7, B)] {
        tables.port_up(ifindex, &endpoint(last))?;
    }
    tables.endpoint_up(vtep, &endpoint(R))?;
    Ok(tables)
}

pub fn run(input: &[u8]) {
    thread_local! {
        static TABLES: Tables = build().expect("tables of which nothing contradicts another");
    }
    TABLES.with(|tables| {
        let mut slow = SlowPath::new(FloodLimit::default());
        let mut now = LEARNING;
        slow.tick(tables, now, &mut Check(tables));
        slow.handle(tables, input, now, &mut Check(tables));
        // Again, as the second of a burst, and when its time is over.
        slow.handle(tables, input, now, &mut Check(tables));
        slow.tick(tables, now, &mut Check(tables));
        now += Duration::from_secs(2);
        slow.look_again(tables, now, &mut Check(tables));
        assert!(!slow.is_waiting(), "a frame waits for ever");
        // Who has joined groups with it is asked, and forgotten.
        assert!(
            slow.members()
                .iter()
                .all(|member| member.ifindex == 1 || member.ifindex == 7)
        );
        now += Duration::from_secs(300);
        slow.tick(tables, now, &mut Check(tables));
        assert!(slow.members().is_empty(), "a member for ever");
    });
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |kind, reason, frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[..ETH_LEN].copy_from_slice(&punt::encode(kind, Some(reason), 1, 0x0800));
        seeds.push(frame);
    };
    for reason in Reason::ALL {
        for dst in [1, R, B, 77] {
            for frame in inner(A, dst) {
                add(
                    Kind::FromPort,
                    *reason,
                    &vxlan(VTEP, VTEP, 0, &frame, false),
                );
            }
        }
        for frame in inner(R, A) {
            add(
                Kind::FromUplink,
                *reason,
                &vxlan(VTEP_R, VTEP, 1, &frame, false),
            );
        }
    }
    for frame in memberships(A) {
        let frame = vxlan(VTEP, VTEP, 0, &frame, false);
        add(Kind::FromPort, Reason::Flood, &frame);
    }
    for frame in memberships(R) {
        let frame = vxlan(VTEP_R, VTEP, 1, &frame, false);
        add(Kind::FromUplink, Reason::Flood, &frame);
    }
    seeds
}
