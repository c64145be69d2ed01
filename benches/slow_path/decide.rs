//! What a decision takes without any kernel: the frame is in the cache, the answers go to memory.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use criterion::{Criterion, Throughput};
use overlay_common::counters::DropReason;
use overlay_common::outer::OuterV4;
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::wire::ETH_P_IP;
use overlay_core::slowpath::{Asker, FloodLimit, Output, SlowPath};
use overlay_core::tables::{MapUpdate, Tables};

use crate::support::*;

/// Where answers go: always the same memory, as the TX ring's is soon.
struct Room {
    frame: Box<[u8; 4096]>,
    frames: u64,
    updates: u64,
    drops: u64,
}

impl Output for Room {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        write(&mut self.frame[..len]);
        black_box(&mut self.frame);
        self.frames += 1;
    }

    fn update(&mut self, update: MapUpdate) {
        black_box(update);
        self.updates += 1;
    }

    fn query(&mut self, _: Asker, _: &[u8]) {}

    fn query_refused(&mut self) {}

    fn drop(&mut self, _: DropReason) {
        self.drops += 1;
    }
}

struct Case {
    name: &'static str,
    tables: Tables,
    frame: Vec<u8>,
    /// Frames and updates that come of it.
    makes: (u64, u64),
}

pub fn all(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("decide");
    group.throughput(Throughput::Elements(1));
    let from_port = |reason, inner: &[u8]| punted(Kind::FromPort, OWN_PORT, VTEP, reason, inner);
    let mut broadcast = tcp_frame(Ipv4Addr::BROADCAST, 64);
    broadcast[..6].fill(0xff);
    let remote = endpoint_ip(0);
    let unicast = tcp_frame(remote, 64);
    let to_own = tcp_between(remote, OWN, 64);
    let cases = [
        Case {
            name: "flood-1-vtep",
            tables: alone_with(1)?,
            frame: from_port(Reason::Flood, &broadcast),
            makes: (1, 0),
        },
        Case {
            name: "flood-10-vteps",
            tables: alone_with(10)?,
            frame: from_port(Reason::Flood, &broadcast),
            makes: (10, 0),
        },
        Case {
            name: "arp-reply",
            tables: tables(1000)?,
            frame: from_port(Reason::UnknownNeighbour, &arp_request(remote)),
            makes: (1, 1),
        },
        Case {
            name: "unknown-source",
            tables: tables(1000)?,
            frame: punted(
                Kind::FromUplink,
                2,
                endpoint_vtep(0),
                Reason::UnknownSource,
                &to_own,
            ),
            makes: (1, 1),
        },
        Case {
            name: "unknown-destination",
            tables: tables(1000)?,
            frame: from_port(Reason::UnknownDestination, &unicast),
            makes: (1, 1),
        },
    ];
    for case in cases {
        let mut slow = SlowPath::new(FloodLimit {
            frames: 0,
            bytes: 0,
        });
        let mut room = Room {
            frame: Box::new([0; 4096]),
            frames: 0,
            updates: 0,
            drops: 0,
        };
        let mut handled = 0;
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| {
                handled += 1;
                slow.handle(
                    &case.tables,
                    black_box(&case.frame),
                    Duration::ZERO,
                    &mut room,
                );
            });
        });
        let made = (room.frames, room.updates, room.drops);
        let wanted = (case.makes.0 * handled, case.makes.1 * handled, 0);
        ensure!(
            made == wanted,
            "{}: {made:?} instead of {wanted:?}",
            case.name
        );
    }
    group.finish();
    Ok(())
}

/// One port, and one endpoint behind each of so many VTEPs.
fn alone_with(vteps: u8) -> Result<Tables> {
    let mut tables = tables(0)?;
    tables.port_down(PEER_PORT);
    for number in 1..=vteps {
        let vtep = Ipv4Addr::new(198, 51, 100, number);
        tables.vtep_add(vtep.into())?;
        tables.next_hop(vtep.into(), Some(next_hop()));
        let ip = endpoint_ip(number.into());
        let endpoint = endpoint(&format!("e{number}"), ip);
        tables.endpoint_up(vtep.into(), &endpoint)?;
    }
    Ok(tables)
}

/// A frame as it comes over the punt link.
fn punted(kind: Kind, ifindex: u32, from: Ipv4Addr, reason: Reason, inner: &[u8]) -> Vec<u8> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] =
        punt::encode(kind, Some(reason), ifindex, ETH_P_IP);
    let outer = OuterV4 {
        dst_mac: [d0, d1, d2, d3, d4, d5],
        src_mac: [s0, s1, s2, s3, s4, s5],
        src: from.octets(),
        dst: VTEP.octets(),
        tos: 0,
        src_port: 50_000,
        dst_port: 4789,
        vni: VNI,
    };
    [&outer.to_bytes(inner.len() as u32)[..], inner].concat()
}
