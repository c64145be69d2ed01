//! A host's tables and slow path, with what it is fed and what comes out.
//!
//! ```text
//!  this host, 172.31.1.5              others (network 1: 10.0.0.0/24 and fd00::/64)
//!   port 11  10.0.0.11  network 1      A  192.0.2.1  10.0.0.2
//!   port 12  10.0.0.12  network 1      B  192.0.2.2  10.0.0.3   smaller MTU
//!   port 21  10.0.0.21  network 2      C  192.0.2.3  10.0.0.4   static, no host
//!   port 31  fd00::11   network 3      D  192.0.2.4  10.0.0.5   no next hop
//!   port 41  10.0.0.41 and fd04::41, network 4, whose gateways are 10.0.0.1 and fd04::1
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlay_common::counters::DropReason;
use overlay_common::layout::Config;
use overlay_common::outer::OuterV4;
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::wire::{Mac, OUTER_V4_LEN, map_v4};
use overlay_core::model::{Endpoint, MacAddr, Multicast, Network, Subnet, Vni};
use overlay_core::slowpath::{Asker, FloodLimit, Output, SlowPath};
use overlay_core::tables::{Local, MapUpdate, NextHop, StaticEntry, Tables};

pub const OWN: [u8; 4] = [172, 31, 1, 5];
pub const A: [u8; 4] = [192, 0, 2, 1];
pub const B: [u8; 4] = [192, 0, 2, 2];
pub const C: [u8; 4] = [192, 0, 2, 3];
pub const D: [u8; 4] = [192, 0, 2, 4];
/// The MTU of the way to B.
pub const B_MTU: u32 = 1300;
pub const MTU: u32 = 1450;

/// A frame that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Port(u32),
    Vtep([u8; 4]),
}

#[derive(Clone, Debug)]
pub struct Sent {
    pub to: To,
    pub vni: u32,
    pub tos: u8,
    pub src_port: u16,
    pub inner: Vec<u8>,
}

#[derive(Default)]
pub struct Out {
    pub sent: Vec<Sent>,
    pub updates: Vec<MapUpdate>,
    pub drops: Vec<DropReason>,
    /// What containers asked.
    pub queries: Vec<(Asker, Vec<u8>)>,
    /// How many questions were too many.
    pub refused: usize,
    /// How many frames there is no room for.
    pub full: usize,
}

impl Output for Out {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        if self.full > 0 {
            self.full -= 1;
            return self.drop(DropReason::PuntQueueFull);
        }
        // Not zero, so that an unwritten byte shows.
        let mut frame = vec![0xa5; len];
        write(&mut frame);
        self.sent.push(parse(&frame));
    }

    fn update(&mut self, update: MapUpdate) {
        self.updates.push(update);
    }

    fn query(&mut self, from: Asker, payload: &[u8]) {
        self.queries.push((from, payload.to_vec()));
    }

    fn query_refused(&mut self) {
        self.refused += 1;
    }

    fn drop(&mut self, reason: DropReason) {
        self.drops.push(reason);
    }
}

/// Takes a frame apart, and checks all that is always so.
fn parse(frame: &[u8]) -> Sent {
    let eth = frame.first_chunk().unwrap();
    let marker = punt::decode(eth).expect("a marker");
    assert_eq!(marker.reason, None);
    let packet = SlicedPacket::from_ethernet(frame).expect("valid outer headers");
    let Some(NetSlice::Ipv4(ip)) = packet.net else {
        panic!("no IPv4 outside")
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("no UDP outside")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(usize::from(header.total_len) + 14, frame.len());
    assert_eq!(usize::from(udp.length()) + 34, frame.len());
    assert!(header.dont_fragment && header.time_to_live == 64);
    assert_eq!(header.source, OWN);
    assert_eq!((udp.checksum(), udp.destination_port()), (0, 4789));
    assert!(udp.source_port() >= 49152);
    let vxlan = udp.payload();
    assert_eq!((&vxlan[..4], vxlan[7]), (&[8, 0, 0, 0][..], 0));
    Sent {
        to: match marker.kind {
            Kind::ToPort => To::Port(marker.ifindex),
            Kind::ToVtep => To::Vtep(header.destination),
            other => panic!("{other:?} is not the agent's to send"),
        },
        vni: u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]),
        tos: frame[15],
        src_port: udp.source_port(),
        inner: vxlan[8..].to_vec(),
    }
}

pub struct Rig {
    pub tables: Tables,
    pub slow: SlowPath,
    pub now: Duration,
}

pub fn mac(last: u8) -> Mac {
    [2, 0x42, 10, 0, 0, last]
}

pub fn hop(mtu: u32) -> Option<NextHop> {
    Some(NextHop {
        ifindex: 2,
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        mtu,
    })
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn ips(last: u8) -> Vec<IpAddr> {
    let v6 = MacAddr(mac(last)).link_local();
    vec![IpAddr::from([10, 0, 0, last]), v6.into()]
}

pub fn endpoint(number: u32, last: u8) -> Endpoint {
    Endpoint {
        name: format!("e{last}"),
        vni: vni(number),
        mac: MacAddr(mac(last)),
        ips: ips(last),
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

impl Rig {
    pub fn new() -> Rig {
        let local = Local {
            vtep: OWN.into(),
            data_port: 4789,
            esp_port: 4500,
            mtu: MTU,
        };
        let mut tables = Tables::new(local).unwrap();
        for (number, gateway) in [(1, "10.0.0.1"), (2, "10.0.0.1"), (3, "fd00::1")] {
            tables.network_add(Network {
                name: format!("net{number}"),
                vni: vni(number),
                subnet: "10.0.0.0/24".parse().unwrap(),
                gateway: gateway.parse().unwrap(),
                ipv6: None,
                internal: false,
                encrypted: false,
                multicast: Some(Multicast::Flood),
            });
        }
        tables.network_add(Network {
            name: "net4".into(),
            vni: vni(4),
            subnet: "10.0.0.0/24".parse().unwrap(),
            gateway: "10.0.0.1".parse().unwrap(),
            ipv6: Some(Subnet {
                subnet: "fd04::/64".parse().unwrap(),
                gateway: "fd04::1".parse().unwrap(),
            }),
            internal: false,
            encrypted: false,
            multicast: Some(Multicast::Flood),
        });
        for (vtep, last) in [(A, 2), (B, 3), (D, 5)] {
            tables.vtep_add(vtep.into()).unwrap();
            tables.endpoint_up(vtep.into(), &endpoint(1, last)).unwrap();
        }
        tables
            .static_add(StaticEntry {
                vni: vni(1),
                mac: MacAddr(mac(4)),
                vtep: C.into(),
                ips: vec![Ipv4Addr::new(10, 0, 0, 4).into()],
            })
            .unwrap();
        tables.next_hop(A.into(), hop(MTU));
        tables.next_hop(B.into(), hop(B_MTU));
        tables.next_hop(C.into(), hop(MTU));
        tables.port_up(11, &endpoint(1, 11)).unwrap();
        tables.port_up(12, &endpoint(1, 12)).unwrap();
        tables.port_up(21, &endpoint(2, 21)).unwrap();
        let v6 = Endpoint {
            ips: vec!["fd00::11".parse().unwrap()],
            ..endpoint(3, 31)
        };
        tables.port_up(31, &v6).unwrap();
        let mut both = endpoint(4, 41);
        both.ips.insert(1, "fd04::41".parse().unwrap());
        tables.port_up(41, &both).unwrap();
        Rig {
            tables,
            slow: SlowPath::new(FloodLimit::default()),
            now: Duration::from_secs(60),
        }
    }

    /// From now on that becomes of broadcast and multicast on network 1.
    pub fn multicast(&mut self, mode: Option<Multicast>) {
        let network = self.tables.network(vni(1)).unwrap().clone();
        self.tables.network_add(Network {
            multicast: mode,
            ..network
        });
    }

    /// What is due now.
    pub fn tick(&mut self) -> Out {
        let mut out = Out::default();
        self.slow.tick(&self.tables, self.now, &mut out);
        out
    }

    /// The slow path gets this frame.
    pub fn handle(&mut self, frame: &[u8]) -> Out {
        let mut out = Out::default();
        self.handle_into(frame, &mut out);
        out
    }

    pub fn handle_into(&mut self, frame: &[u8], out: &mut Out) {
        self.slow.handle(&self.tables, frame, self.now, out);
    }

    /// So much later, frames that wait are looked at again.
    pub fn later(&mut self, after: Duration) -> Out {
        let mut out = Out::default();
        self.now += after;
        self.slow.look_again(&self.tables, self.now, &mut out);
        out
    }

    /// The container behind port 11 has sent this.
    pub fn port(&mut self, reason: Reason, inner: &[u8]) -> Out {
        self.handle(&from_port(11, 1, reason, inner))
    }

    /// This came in on the uplink, on network 1.
    pub fn uplink(&mut self, reason: Reason, vtep: [u8; 4], inner: &[u8]) -> Out {
        self.handle(&from_uplink(vtep, 0, reason, inner))
    }
}

pub fn from_port(ifindex: u32, vni: u32, reason: Reason, inner: &[u8]) -> Vec<u8> {
    let config = Config {
        vtep: map_v4(OWN),
        punt_ifindex: 7,
        data_port: 4789,
        crypt_ifindex: 901,
        esp_port: 4500,
    };
    let marker = punt::encode(Kind::FromPort, Some(reason), ifindex, 0x0800);
    let outer = OuterV4::punted(&config, marker, vni);
    // Lengths as those of a super-packet that was cut after it was punted.
    [&outer.to_bytes(60_000)[..], inner].concat()
}

pub fn from_uplink(vtep: [u8; 4], tos: u8, reason: Reason, inner: &[u8]) -> Vec<u8> {
    let marker = punt::encode(Kind::FromUplink, Some(reason), 2, 0x0800);
    let outer = OuterV4 {
        dst_mac: *marker.first_chunk().unwrap(),
        src_mac: *marker[6..].first_chunk().unwrap(),
        src: vtep,
        dst: OWN,
        tos,
        src_port: 50_000,
        dst_port: 4789,
        vni: 1,
    };
    let header: [u8; OUTER_V4_LEN] = outer.to_bytes(inner.len() as u32);
    [&header[..], inner].concat()
}

impl Out {
    /// Nothing but this one frame came out.
    #[track_caller]
    pub fn only(self) -> Sent {
        assert_eq!(self.drops, []);
        assert_eq!((self.queries.len(), self.refused), (0, 0));
        assert_eq!(self.sent.len(), 1, "{:?}", self.sent);
        self.sent.into_iter().next().unwrap()
    }

    /// Nothing came out, and this is why.
    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        assert_eq!(self.drops, [reason]);
        assert!(self.sent.is_empty(), "{:?}", self.sent);
        assert_eq!(self.updates, []);
        assert_eq!((self.queries.len(), self.refused), (0, 0));
    }

    /// Nothing came out, and nothing was counted.
    #[track_caller]
    pub fn nothing(&self) {
        assert_eq!(self.drops, []);
        assert!(self.sent.is_empty(), "{:?}", self.sent);
        assert_eq!(self.updates, []);
    }

    /// To whom how many copies went.
    pub fn copies(&self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for sent in &self.sent {
            *copies.entry(format!("{:?}", sent.to)).or_default() += 1;
        }
        copies
    }

    /// One copy went to each of these and none to anybody else, all with this inner frame.
    #[track_caller]
    pub fn flooded(&self, to: &[To], inner: &[u8]) {
        let wanted: BTreeMap<String, usize> = to.iter().map(|to| (format!("{to:?}"), 1)).collect();
        assert_eq!(self.copies(), wanted);
        for sent in &self.sent {
            assert_eq!((sent.vni, &sent.inner[..]), (1, inner));
        }
    }
}
