//! Capturing what goes through the data path, from copies that the programs themselves make: the
//! kernel's own taps (AF_PACKET) see neither what XDP takes nor what `redirect_peer` hands over.
//!
//! The agent has no part in it, and need not run: this process turns the copying on in a map, reads
//! the copies from the kernel's perf buffers, and writes them. What it turned on ends by itself when
//! it dies.

mod file;
mod filter;
mod tap;

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use overlay_common::capture::{Control, INNER, MAX_SNAP, OUTER, Place};
use overlay_common::wire::{OUTER_V4_LEN, OUTER_V6_LEN};
use overlay_core::model::{MacAddr, Vni};

use crate::instance::Instance;
pub use file::File;
pub use filter::Filter;
use tap::{Copy, Tap};

/// How long the kernel may go on copying for a process that has died.
const HOLD: Duration = Duration::from_secs(3);
/// How often it is put off, and what has come is written.
const TURN: Duration = Duration::from_millis(200);

/// Any headers of a tunnel and of what is in it.
const HEADERS: u32 = 256;

/// What is captured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What containers send and get.
    pub inner: bool,
    /// What goes over the uplink, outer headers and all.
    pub outer: bool,
    /// Of this network only.
    pub network: Option<Vni>,
    /// Of this container only: its port, and its MAC.
    pub container: Option<(u32, MacAddr)>,
    /// Only containers' packets of this kind.
    pub filter: Filter,
    /// The bytes of each packet.
    pub snap: u32,
    /// So many packets, then it ends.
    pub count: Option<u64>,
    /// So long, then it ends.
    pub duration: Option<Duration>,
}

/// An interface that packets are seen on.
#[derive(Clone, Debug)]
pub struct Interface {
    /// For people.
    pub name: String,
    /// More about it.
    pub description: String,
    /// The network it is on; none for the uplink.
    pub network: Option<Vni>,
}

/// How a capture has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets in the file.
    pub written: u64,
    /// Packets that were copied and not wanted.
    pub unwanted: u64,
    /// Packets that came too fast to be copied.
    pub lost: u64,
}

/// Captures until it is told to stop, or has what was asked for. `begin` makes the file, and is
/// called when nothing keeps this capture from running any more. `interfaces` names ports and uplinks
/// by their ifindex; it is asked again when there is a new one.
///
/// # Errors
/// When nothing of overlay-dp runs here, another capture does, or the file can't be written.
pub fn run<W: Write>(
    instance: &Instance,
    wanted: &Wanted,
    begin: impl FnOnce() -> Result<File<W>>,
    mut interfaces: impl FnMut() -> HashMap<u32, Interface>,
    stop: &AtomicBool,
) -> Result<Summary> {
    let mut tap = Tap::open(instance)?;
    let mut file = begin()?;
    let places = [(wanted.inner, INNER), (wanted.outer, OUTER)];
    let places = places.iter().filter(|(is_wanted, _)| *is_wanted);
    let mut control = Control {
        places: places.fold(0, |all, (_, some)| all | some),
        // What is looked into needs its headers, however few bytes are kept.
        snap: wanted.snap.clamp(HEADERS, MAX_SNAP),
        ifindex: wanted.container.map_or(0, |(ifindex, _)| ifindex),
        ..Control::default()
    };
    let mut known = interfaces();
    let mut asked = Instant::now();
    let end = wanted.duration.map(|duration| Instant::now() + duration);
    let mut summary = Summary::default();
    let is_over = |summary: &Summary| {
        stop.load(Ordering::Relaxed)
            || end.is_some_and(|end| Instant::now() >= end)
            || wanted.count.is_some_and(|count| summary.written >= count)
    };
    while !is_over(&summary) {
        control.until_ns = tap::now_ns().saturating_add(HOLD.as_nanos() as u64);
        tap.set(control)?;
        let wait = end.map_or(TURN, |end| TURN.min(end - Instant::now().min(end)));
        let (copies, lost) = tap.read(wait)?;
        summary.lost += lost;
        for copy in copies {
            if is_full(&summary, wanted) {
                break;
            }
            let ifindex = copy.header.ifindex;
            // A new container: whoever has it is asked at most five times a second.
            if !known.contains_key(&ifindex) && asked.elapsed() > TURN {
                known = interfaces();
                asked = Instant::now();
            }
            let interface = known.get(&ifindex);
            if !wants(wanted, &copy, interface) {
                summary.unwanted += 1;
                continue;
            }
            file.write(&copy, interface, tap.to_wall())?;
            summary.written += 1;
        }
        file.flush()?;
    }
    tap.set(Control::default())?;
    Ok(summary)
}

fn is_full(summary: &Summary, wanted: &Wanted) -> bool {
    wanted.count.is_some_and(|count| summary.written >= count)
}

/// Whether a copy belongs into the file.
fn wants(wanted: &Wanted, copy: &Copy, interface: Option<&Interface>) -> bool {
    let outer = copy.is(Place::Arrived) || copy.is(Place::Left);
    let (vni, inner) = match outer {
        false => (interface.and_then(|i| i.network), Some(&copy.bytes[..])),
        true => match tunnelled(&copy.bytes) {
            Some((vni, inner)) => (Vni::try_from(vni).ok(), Some(inner)),
            None => (None, None),
        },
    };
    if wanted.network.is_some() && wanted.network != vni {
        return false;
    }
    // What is inside the tunnel the programs have sorted out.
    if let (true, Some((_, mac))) = (outer, wanted.container) {
        let is_its = inner.is_some_and(|frame| {
            frame.get(..6) == Some(&mac.0) || frame.get(6..12) == Some(&mac.0)
        });
        if !is_its {
            return false;
        }
    }
    wanted.filter.is_all() || inner.is_some_and(|frame| wanted.filter.wants(frame))
}

/// The VNI of a VXLAN frame, and what is in it.
fn tunnelled(frame: &[u8]) -> Option<(u32, &[u8])> {
    let outer_len = match frame.get(12..14)? {
        [0x08, 0x00] => OUTER_V4_LEN,
        [0x86, 0xdd] => OUTER_V6_LEN,
        _ => return None,
    };
    let vni = frame.get(outer_len - 4..outer_len - 1)?;
    let vni = u32::from_be_bytes([0, vni[0], vni[1], vni[2]]);
    Some((vni, frame.get(outer_len..)?))
}
