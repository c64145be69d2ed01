//! No frame makes the slow path allocate: memory is what a flood would take first. The counting
//! allocator is all of this test's unsafe code.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use etherparse::{ArpOperation, IcmpEchoHeader, Icmpv4Type};
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;
use overlay_core::slowpath::{Asker, Output};
use overlay_core::tables::MapUpdate;

use super::packets::*;
use super::rig::*;

const FRAMES: usize = 10_000;

thread_local! {
    /// Tests run side by side: each thread counts its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is passed on to the system's allocator as it came; a counter that needs no
// destructor and no allocation is all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller has it from `alloc`, which has it from the same allocator.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes everything, and keeps only numbers.
#[derive(Default)]
struct Counts {
    frames: usize,
    updates: usize,
    queries: usize,
    drops: usize,
}

impl Output for Counts {
    fn frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        write(&mut [0; 4096][..len]);
        self.frames += 1;
    }

    fn update(&mut self, _: MapUpdate) {
        self.updates += 1;
    }

    fn query(&mut self, _: Asker, _: &[u8]) {
        self.queries += 1;
    }

    fn query_refused(&mut self) {
        self.queries += 1;
    }

    fn drop(&mut self, _: DropReason) {
        self.drops += 1;
    }
}

#[test]
fn ten_thousand_frames_of_each_kind() {
    let port = |reason, inner: &[u8]| from_port(11, 1, reason, inner);
    let broadcast = udp4(11, [0xff; 6], [255; 4], 100);
    let known = arp(ArpOperation::REQUEST, 11, v4(11), v4(2));
    let unknown = arp(ArpOperation::REQUEST, 11, v4(11), v4(99));
    let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 1 });
    let too_big = udp4(11, mac(3), v4(3), 1400);
    let stranger = udp4(99, mac(11), v4(11), 100);
    let multicast = udp4(2, [0xff; 6], [255; 4], 100);
    let from_a = |reason, inner: &[u8]| from_uplink(A, 0, reason, inner);
    let kinds = [
        ("flood", port(Reason::Flood, &broadcast)),
        ("ARP, answered", port(Reason::UnknownNeighbour, &known)),
        ("ARP, kept", port(Reason::UnknownNeighbour, &unknown)),
        (
            "ND",
            port(
                Reason::UnknownNeighbour,
                &solicitation(v6(11), 255, v6(2), &source_option(11)),
            ),
        ),
        (
            "unicast",
            port(Reason::UnknownDestination, &udp4(11, mac(2), v4(2), 100)),
        ),
        (
            "local",
            port(Reason::UnknownDestination, &udp4(11, mac(12), v4(12), 100)),
        ),
        (
            "echo",
            port(Reason::UnknownDestination, &icmp4(echo, &[0x5a; 56])),
        ),
        (
            "DNS",
            port(Reason::UnknownDestination, &dns4(11, &[0x5a; 40])),
        ),
        ("too big", port(Reason::TooBig, &too_big)),
        ("flood from a VTEP", from_a(Reason::Flood, &multicast)),
        (
            "news from a VTEP",
            from_a(Reason::UnknownSource, &udp4(2, mac(11), v4(11), 100)),
        ),
        ("stranger, kept", from_a(Reason::UnknownSource, &stranger)),
        (
            "snooping: a report",
            port(Reason::Flood, &report3(11, &[(4, GROUP4, 0)])),
        ),
        (
            "snooping: to a group",
            port(
                Reason::Flood,
                &udp4(11, group_mac(GROUP4.into()), GROUP4, 100),
            ),
        ),
        ("cut off", port(Reason::Flood, &broadcast)[..40].to_vec()),
    ];
    assert!(ALLOCATIONS.get() > 0, "the frames were counted");
    for (kind, frame) in kinds {
        let mut rig = Rig::new();
        if kind.starts_with("snooping") {
            rig.multicast(None);
            rig.tick();
        }
        let mut counts = Counts::default();
        let before = ALLOCATIONS.get();
        for _ in 0..FRAMES {
            rig.now += Duration::from_micros(10);
            rig.slow.handle(&rig.tables, &frame, rig.now, &mut counts);
            rig.slow.look_again(&rig.tables, rig.now, &mut counts);
        }
        let allocations = ALLOCATIONS.get() - before;
        assert_eq!(allocations, 0, "{kind}");
        let Counts {
            frames,
            queries,
            drops,
            ..
        } = counts;
        assert!(
            frames + queries + drops >= FRAMES / 2,
            "{kind}: little was done"
        );
    }
}
