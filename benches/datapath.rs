//! The programs, packet by packet (BPF_PROG_TEST_RUN): nanoseconds per packet by the kernel's own
//! clock. Nothing is attached, and a redirect ends where the program says where to.
//!
//! The kernel hands what a run leaves of the frame to the next repetition of the same call, so
//! only a program that changes nothing can be repeated. The cases in `alone` are one call of the
//! kernel per packet, a fresh frame each: caches and branch predictors are as a system call has
//! left them, about as they are when a packet comes alone. What the clock takes, and starting
//! cold, is in there: `alone/…/pass`, a frame that is none of ours, shows how much. The cases in
//! `in-a-row` are 10,000 repetitions per call, of those programs that change nothing: as in a burst.
//!
//! After each case the programs' counters must have counted every packet as what its name says.

mod support;

use anyhow::Result;
use criterion::{BenchmarkGroup, BenchmarkId};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::names;
use support::*;

/// One kind of frame.
struct Case {
    name: &'static str,
    /// The programs that may get it: XDP, tcx.
    programs: [&'static str; 2],
    frame: Vec<u8>,
    /// What they count; nothing for a frame that is none of theirs.
    counted: Option<Event>,
    /// Whether the frame stays as it is.
    unchanged: bool,
}

const PORT: [&str; 2] = [names::PORT_XDP, names::PORT_TC];
const UPLINK: [&str; 2] = [names::UPLINK_XDP, names::UPLINK_TC];
const HOOKS: [&str; 2] = ["xdp", "tcx"];

fn cases() -> Vec<Case> {
    let changing = |name, programs, frame, stat| Case {
        name,
        programs,
        frame,
        counted: Some(Event::Stat(stat)),
        unchanged: false,
    };
    let remote = endpoint_ip(0);
    let full = MTU as usize + 14;
    let stranger = [203, 0, 113, 9].into();
    let inner = tcp_between(remote, OWN, full);
    vec![
        changing(
            "encap-1464B",
            PORT,
            tcp_frame(remote, full),
            Stat::Encapsulated,
        ),
        changing("encap-64B", PORT, tcp_frame(remote, 64), Stat::Encapsulated),
        changing(
            "decap-1464B",
            UPLINK,
            encapsulated(endpoint_vtep(0), &inner),
            Stat::Decapsulated,
        ),
        changing("arp-reply", PORT, arp_request(remote), Stat::ArpReplies),
        Case {
            unchanged: true,
            ..changing("switch-1464B", PORT, tcp_frame(PEER, full), Stat::Switched)
        },
        Case {
            name: "drop-unknown-vtep",
            programs: UPLINK,
            frame: encapsulated(stranger, &inner),
            counted: Some(Event::Drop(DropReason::UnknownVtep)),
            unchanged: true,
        },
        Case {
            name: "pass",
            programs: UPLINK,
            frame: tcp_between(remote, OWN, full),
            counted: None,
            unchanged: true,
        },
    ]
}

fn main() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    pin_to_cpu(0);
    let mut programs = Programs::load(&mut tables(1000)?)?;
    let mut criterion = criterion();
    for (kind, repeat, samples) in [("alone", 1, 100), ("in-a-row", 10_000, 20)] {
        let mut group = criterion.benchmark_group(kind);
        group.sample_size(samples);
        for case in cases().iter().filter(|case| repeat == 1 || case.unchanged) {
            for (hook, program) in HOOKS.into_iter().zip(case.programs) {
                measure(&mut group, &mut programs, case, (hook, program), repeat)?;
            }
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}

fn measure(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    programs: &mut Programs,
    case: &Case,
    (hook, program): (&str, &str),
    repeat: u32,
) -> Result<()> {
    let before = case
        .counted
        .map(|event| programs.count(event))
        .transpose()?;
    let mut packets = 0;
    group.bench_function(BenchmarkId::new(hook, case.name), |bencher| {
        bencher.iter_custom(|iterations| {
            // In a row, an iteration is the average of all repetitions.
            (0..iterations)
                .map(|_| {
                    packets += u64::from(repeat);
                    let took = programs.run(program, &case.frame, repeat);
                    took.expect("the kernel runs the program")
                })
                .sum()
        });
    });
    match case.counted.zip(before) {
        Some((event, before)) => programs.check(event, before, packets),
        None => Ok(()),
    }
}
