//! The world the frames of these tests live in: what the agent would have put into the maps.
//!
//! ```text
//!   a (port 1, 10.0.0.2) ─┐                              ┌─ r (10.0.0.3)
//!                         ├─ 172.31.1.5 ─── 192.168.1.5 ─┘
//!   b (port 7, 10.0.0.4) ─┘       ├──────── 192.168.1.6 ─── unresolved
//!                                 ├──────── 192.168.1.7 ─── lost (no such VTEP any more)
//!                                 └──────── 192.168.1.8 ─── narrow (MTU 1000)
//! ```

use overlay_common::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::verdict::testing::Memory;
use overlay_common::wire::{Family, Ip16, Mac, UNSPECIFIED, map_v4};

use super::frames::Ip4;

/// The interface that TEST_RUN lets every frame come in on.
pub const PORT_A: u32 = 1;
pub const PORT_B: u32 = 7;
pub const UPLINK_IFINDEX: u32 = 50;
pub const PUNT: u32 = 900;
pub const CRYPT: u32 = 901;
pub const VNI: u32 = 0x123456;
pub const MTU: u32 = 1450;

pub const VTEP: Ip4 = [172, 31, 1, 5];
pub const VTEP_R: Ip4 = [192, 168, 1, 5];
pub const VTEP_UNRESOLVED: Ip4 = [192, 168, 1, 6];
pub const VTEP_LOST: Ip4 = [192, 168, 1, 7];
pub const VTEP_NARROW: Ip4 = [192, 168, 1, 8];

pub const A: Ip4 = [10, 0, 0, 2];
pub const R: Ip4 = [10, 0, 0, 3];
pub const B: Ip4 = [10, 0, 0, 4];
pub const UNRESOLVED: Ip4 = [10, 0, 0, 5];
pub const LOST: Ip4 = [10, 0, 0, 6];
pub const NARROW: Ip4 = [10, 0, 0, 8];
pub const NOBODY: Ip4 = [10, 0, 0, 99];

pub const BROADCAST: Mac = [0xff; 6];
pub const NEXT_HOP: Mac = [0x52, 0x54, 0, 0, 0, 1];
pub const OWN_UPLINK: Mac = [0x52, 0x54, 0, 0, 0, 2];

pub const fn mac(ip: Ip4) -> Mac {
    [0x02, 0x42, ip[0], ip[1], ip[2], ip[3]]
}

/// fd00::<last byte of the IPv4 address>
pub const fn ip6(ip: Ip4) -> Ip16 {
    let mut ip6 = [0; 16];
    ip6[0] = 0xfd;
    ip6[15] = ip[3];
    ip6
}

pub const fn link_local(ip: Ip4) -> Ip16 {
    let m = mac(ip);
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        m[0] ^ 2,
        m[1],
        m[2],
        0xff,
        0xfe,
        m[3],
        m[4],
        m[5],
    ]
}

/// The address of a VTEP over IPv6: 2001:db8::<its IPv4 address>.
pub const fn vtep6(ip: Ip4) -> Ip16 {
    let mut ip6 = [0; 16];
    (ip6[0], ip6[1], ip6[2], ip6[3]) = (0x20, 1, 0x0d, 0xb8);
    (ip6[12], ip6[13], ip6[14], ip6[15]) = (ip[0], ip[1], ip[2], ip[3]);
    ip6
}

pub fn tables() -> Memory {
    tables_over(Family::V4)
}

/// The same with an underlay of that family.
pub fn tables_over(family: Family) -> Memory {
    let vtep = |ip: Ip4| match family {
        Family::V4 => map_v4(ip),
        Family::V6 => vtep6(ip),
    };
    let mut tables = Memory {
        config: Some(Config {
            vtep: vtep(VTEP),
            punt_ifindex: PUNT,
            data_port: 4789,
            crypt_ifindex: CRYPT,
            esp_port: 4500,
        }),
        ..Memory::default()
    };
    for (ifindex, ip) in [(PORT_A, A), (PORT_B, B)] {
        tables.ports.insert(
            ifindex,
            PortEntry {
                vni: VNI,
                mtu: MTU,
                mac: mac(ip),
                _zero: [0; 2],
                ip4: ip,
                ip6: [link_local(ip), if ip == A { ip6(ip) } else { UNSPECIFIED }],
                flags: 0,
                rate: 0,
                burst_ns: 0,
            },
        );
    }
    tables.networks.insert(VNI, NetworkEntry::closed(MTU));
    let places = [
        (A, FdbEntry::local(PORT_A)),
        (B, FdbEntry::local(PORT_B)),
        (R, FdbEntry::remote(vtep(VTEP_R))),
        (UNRESOLVED, FdbEntry::remote(vtep(VTEP_UNRESOLVED))),
        (LOST, FdbEntry::remote(vtep(VTEP_LOST))),
        (NARROW, FdbEntry::remote(vtep(VTEP_NARROW))),
    ];
    for (ip, place) in places {
        tables.fdb.insert(FdbKey::new(VNI, mac(ip)), place);
        let entry = NeighbourEntry {
            mac: mac(ip),
            _zero: [0; 2],
        };
        for address in [map_v4(ip), ip6(ip), link_local(ip)] {
            tables
                .neighbours
                .insert(NeighbourKey::new(VNI, address), entry);
        }
    }
    for (ip, ifindex, mtu) in [
        (VTEP_R, UPLINK_IFINDEX, MTU),
        (VTEP_UNRESOLVED, 0, MTU),
        (VTEP_NARROW, UPLINK_IFINDEX, 1000),
    ] {
        tables.vteps.insert(
            vtep(ip),
            VtepEntry {
                src_ip: vtep(VTEP),
                ifindex,
                mtu,
                src_mac: OWN_UPLINK,
                dst_mac: NEXT_HOP,
            },
        );
    }
    tables
}
