//! What the number of endpoints costs: the fast path's FDB, the agent's tables, and the slow path
//! per packet.
//!
//! `encap` is the kernel's own clock (see datapath.rs, the cases in `alone`), each packet to
//! another destination in random order, so that big tables are as cold in the caches as they would
//! be. `lookup` and `slow-path` are the agent's code, timed from outside; the slow path's frames
//! are written to memory, and not sent.

mod support;

use std::fs;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion};
use etherparse::PacketBuilder;
use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::{Config, FdbEntry, FdbKey, names};
use overlay_common::outer::OuterV4;
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::wire::{ETH_P_IP, map_v4};
use overlay_core::slowpath::{Asker, FloodLimit, Output, SlowPath};
use overlay_core::tables::{MapUpdate, Tables};
use support::*;

fn main() -> Result<()> {
    pin_to_cpu(0);
    let mut criterion = criterion();
    lookups(&mut criterion)?;
    slow_path(&mut criterion)?;
    if is_root() {
        encap(&mut criterion)?;
    }
    criterion.final_summary();
    Ok(())
}

/// Numbers below `limit` in no order (xorshift; Marsaglia, "Xorshift RNGs", 2003).
struct Shuffle {
    state: u32,
    limit: u32,
}

impl Shuffle {
    fn below(limit: u32) -> Shuffle {
        Shuffle {
            state: 0x9e37_79b9,
            limit,
        }
    }

    fn next(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state % self.limit
    }
}

fn lookups(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("lookup");
    let sizes: &[u32] = if test_mode() {
        &[100]
    } else {
        &[1_000, 100_000]
    };
    for &size in sizes {
        let tables = tables(size)?;
        let mut numbers = Shuffle::below(size);
        group.bench_function(BenchmarkId::new("mac", size), |bencher| {
            bencher.iter(|| {
                let key = FdbKey::new(VNI, mac(endpoint_ip(numbers.next())));
                black_box(tables.fdb_entry(&key)).is_some()
            });
        });
        group.bench_function(BenchmarkId::new("ip", size), |bencher| {
            bencher.iter(|| {
                let ip = map_v4(endpoint_ip(numbers.next()).octets());
                black_box(tables.neighbour_entry(VNI, ip)).is_some()
            });
        });
    }
    group.finish();
    Ok(())
}

/// Frames are written and forgotten.
struct Null {
    room: Vec<u8>,
    frames: u64,
    updates: u64,
    drops: u64,
}

impl Output for Null {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        if let Some(room) = self.room.get_mut(..len) {
            write(room);
            black_box(room);
            self.frames += 1;
        }
    }

    fn update(&mut self, update: MapUpdate) {
        black_box(update);
        self.updates += 1;
    }

    fn query(&mut self, _: Asker, payload: &[u8]) {
        black_box(payload);
    }

    fn query_refused(&mut self) {
        self.drops += 1;
    }

    fn drop(&mut self, _: DropReason) {
        self.drops += 1;
    }
}

/// A frame from OWN's port, as the programs punt it.
fn punted(reason: Reason, inner: &[u8]) -> Vec<u8> {
    let config = Config {
        vtep: map_v4(VTEP.octets()),
        punt_ifindex: 900,
        data_port: 4789,
        crypt_ifindex: 901,
        esp_port: 4500,
    };
    let marker = punt::encode(Kind::FromPort, Some(reason), OWN_PORT, ETH_P_IP);
    let outer = OuterV4::punted(&config, marker, VNI);
    [&outer.to_bytes(inner.len() as u32)[..], inner].concat()
}

/// As a DHCP discovery: to everybody, 300 bytes of UDP payload.
fn broadcast() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(OWN), [0xff; 6])
        .ipv4(OWN.octets(), Ipv4Addr::BROADCAST.octets(), 64)
        .udp(68, 67)
        .write(&mut frame, &[0x5a; 300])
        .expect("room in a Vec");
    frame
}

fn slow_path(criterion: &mut Criterion) -> Result<()> {
    // The network has two ports besides the sender's, and endpoints behind two VTEPs.
    const THIRD_PORT: u32 = 8;
    let mut tables = tables(1_000)?;
    let third = overlay_core::model::Endpoint {
        name: "third".to_owned(),
        vni: vni(),
        mac: overlay_core::model::MacAddr::from_ipv4([10, 255, 0, 3].into()),
        ips: vec![[10, 255, 0, 3].into()],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    };
    tables.port_up(THIRD_PORT, &third)?;
    let tables: Tables = tables;
    let remote = endpoint_ip(0);
    let full = MTU as usize + 14;
    let mut slow = SlowPath::new(FloodLimit {
        frames: 0,
        bytes: 0,
    });
    let mut now = Duration::ZERO;
    let mut group = criterion.benchmark_group("slow-path");
    // Frames out, map entries out.
    for (name, reason, inner, frames, updates) in [
        ("flood-2-ports-2-vteps", Reason::Flood, broadcast(), 4, 0),
        (
            "unknown-destination",
            Reason::UnknownDestination,
            tcp_frame(remote, full),
            1,
            1,
        ),
        (
            "arp-miss",
            Reason::UnknownNeighbour,
            arp_request(remote),
            1,
            1,
        ),
        ("too-big", Reason::TooBig, tcp_frame(remote, full + 1), 1, 0),
    ] {
        let frame = punted(reason, &inner);
        let mut out = Null {
            room: vec![0; 4096],
            frames: 0,
            updates: 0,
            drops: 0,
        };
        let mut handled = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Slow enough that no ICMP error is held back.
                now += Duration::from_millis(2);
                handled += 1;
                slow.handle(&tables, black_box(&frame), now, &mut out);
            });
        });
        let seen = (out.frames, out.updates, out.drops);
        assert_eq!(seen, (frames * handled, updates * handled, 0), "{name}");
    }
    group.finish();
    Ok(())
}

/// The FDB's size in the programs: up to as many entries as the map takes.
fn encap(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("encap");
    let sizes: &[u32] = if test_mode() {
        &[100]
    } else {
        &[1_000, 100_000, 1_000_000]
    };
    let mut programs = Programs::load(&mut tables(0)?)?;
    let mut filled = 0;
    for &size in sizes {
        if size > 500_000 && available_memory() < 2 << 30 {
            eprintln!("SKIPPED: {size} FDB entries want 2 GiB of free memory");
            continue;
        }
        for number in filled..size {
            let key = FdbKey::new(VNI, mac(endpoint_ip(number)));
            let entry = FdbEntry::remote(map_v4(endpoint_vtep(number).octets()));
            programs.apply(MapUpdate::SetFdb(key, entry))?;
        }
        filled = size;
        let mut numbers = Shuffle::below(size);
        for (hook, program) in [("xdp", names::PORT_XDP), ("tcx", names::PORT_TC)] {
            let event = Event::Stat(Stat::Encapsulated);
            let before = programs.count(event)?;
            let mut packets = 0;
            let mut frame = tcp_frame(endpoint_ip(0), MTU as usize + 14);
            group.bench_function(BenchmarkId::new(hook, size), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        packets += 1;
                        frame[..6].copy_from_slice(&mac(endpoint_ip(numbers.next())));
                        let took = programs.run(program, &frame, 1);
                        total += took.expect("the kernel runs the program");
                    }
                    total
                });
            });
            programs.check(event, before, packets)?;
        }
    }
    group.finish();
    Ok(())
}

/// In bytes.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix(" kB")
    });
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}
