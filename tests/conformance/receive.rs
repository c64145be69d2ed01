//! Frames on the wire, and what arrives in the container: how each is put, and what is seen.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bed::{Place, contains};
use super::frames::{Ip, Outer, ecn};
use super::table::Claim;

/// How often each frame is sent.
const TIMES: usize = 5;
/// For what must arrive on a busy machine.
const HANG: Duration = Duration::from_secs(30);
/// For what must not, when what was sent later has.
const GRACE: Duration = Duration::from_millis(30);

/// One case.
pub struct Row {
    pub claim: Claim,
    make: Make,
}

type Make = Box<dyn Fn(&Place, &mut Marks) -> Vec<Given>>;

/// What frames are told apart by.
pub struct Marks {
    row: usize,
    count: usize,
}

impl Marks {
    pub fn another(&mut self) -> Vec<u8> {
        self.count += 1;
        format!("row-{:04}-{:04}", self.row, self.count).into_bytes()
    }
}

/// A packet on the wire, in one frame or more, and what it carries.
pub struct Given {
    pub mark: Vec<u8>,
    pub wire: Vec<Vec<u8>>,
    pub inner: Vec<u8>,
}

/// A mark, and a good inner frame with it.
fn good(place: &Place, marks: &mut Marks, v6: bool) -> (Vec<u8>, Vec<u8>) {
    let mark = marks.another();
    let ends = place.ins()[usize::from(v6)];
    let inner = ends.udp(Ip::default(), (4000, 9), &mark, 60);
    (mark, inner)
}

pub fn row(claim: Claim, make: impl Fn(&Place, &mut Marks) -> Vec<Given> + 'static) -> Row {
    let make = Box::new(make);
    Row { claim, make }
}

/// Outer headers that were changed, one kind after the other, each around good frames of both
/// families.
pub fn outers(claim: Claim, kinds: impl Fn(Outer) -> Vec<Outer> + 'static) -> Row {
    row(claim, move |place, marks| {
        let kinds = kinds(place.outer());
        let both = kinds
            .iter()
            .flat_map(|outer| [(outer, false), (outer, true)]);
        both.map(|(outer, v6)| {
            let (mark, inner) = good(place, marks, v6);
            let wire = vec![outer.around(&inner)];
            Given { mark, wire, inner }
        })
        .collect()
    })
}

/// The same with one kind.
pub fn outer(claim: Claim, change: impl Fn(&mut Outer) + 'static) -> Row {
    outers(claim, move |mut outer| {
        change(&mut outer);
        vec![outer]
    })
}

/// Good outer headers around changed inner frames.
pub fn inside(claim: Claim, change: impl Fn(&Place, &[u8]) -> Vec<u8> + 'static) -> Row {
    row(claim, move |place, marks| {
        let both = [false, true].into_iter();
        both.map(|v6| {
            let (mark, inner) = good(place, marks, v6);
            let inner = change(place, &inner);
            let wire = vec![place.outer().around(&inner)];
            Given { mark, wire, inner }
        })
        .collect()
    })
}

/// Good frames whose bytes on the wire were changed.
pub fn wire(claim: Claim, change: impl Fn(&Place, &[u8]) -> Vec<Vec<u8>> + 'static) -> Row {
    row(claim, move |place, marks| {
        let both = [false, true].into_iter();
        both.map(|v6| {
            let (mark, inner) = good(place, marks, v6);
            let wire = change(place, &inner);
            Given { mark, wire, inner }
        })
        .collect()
    })
}

impl Row {
    /// Does it, and says what was seen.
    pub fn see(&self, place: &Place, row: usize) -> Result<String> {
        let given = (self.make)(place, &mut Marks { row, count: 0 });
        let before = place.drops()?;
        place.inside.drain()?;
        for _ in 0..TIMES {
            for frame in given.iter().flat_map(|given| &given.wire) {
                place.wire.send(frame)?;
            }
        }
        let claimed = self.claim.of(place.is_kernel());
        let due = match claimed.starts_with("arrives") {
            true => given.len() * TIMES,
            false => 0,
        };
        let arrived = arrived(place, row, due)?;
        let mut seen = BTreeSet::new();
        let mut dropped = 0;
        for given in &given {
            let own = arrived.iter().filter(|frame| contains(frame, &given.mark));
            let own: Vec<_> = own.collect();
            match own.len() {
                0 => dropped += TIMES,
                TIMES => seen.extend(own.iter().map(|frame| describe(frame, &given.inner))),
                some => ensure!(false, "{some} of {TIMES} arrive: {}", self.claim.what),
            }
        }
        if dropped > 0 {
            // Each reason is given for one family inside at least.
            let times = (dropped / 2).max(TIMES) as u64;
            seen.insert(place.dropped(&before, times, claimed.contains('('))?);
        }
        Ok(seen.into_iter().collect::<Vec<_>>().join(" / "))
    }
}

/// All frames of a row that arrive: until `due` are there and one has that was sent after them, and
/// a little longer.
fn arrived(place: &Place, row: usize, due: usize) -> Result<Vec<Vec<u8>>> {
    let of_row = format!("row-{row:04}-").into_bytes();
    let last = format!("end-{row:04}").into_bytes();
    let ends = place.ins()[0];
    let frame = ends.udp(Ip::default(), (4000, 9), &last, 60);
    place.wire.send(&place.outer().around(&frame))?;
    let mut arrived = Vec::new();
    let mut ended = false;
    let mut deadline = Instant::now() + HANG;
    while let Some(frame) = place.inside.receive(deadline)? {
        if contains(&frame, &last) {
            ended = true;
        } else if contains(&frame, &of_row) {
            arrived.push(frame);
        }
        if ended && arrived.len() >= due {
            deadline = deadline.min(Instant::now() + GRACE);
        }
    }
    ensure!(ended, "a good frame does not arrive");
    Ok(arrived)
}

/// What became of a frame that arrived.
fn describe(frame: &[u8], inner: &[u8]) -> String {
    // The kernel keeps a tag beside the frame.
    let tagged = inner[12..14] == [0x81, 0] || inner[12..14] == [0x88, 0xa8];
    let untagged = [&inner[..12], &inner[16..]].concat();
    if frame == inner || (tagged && frame == untagged) {
        return "arrives".to_owned();
    }
    if frame.len() > inner.len() && frame.starts_with(inner) {
        return format!("arrives with {} bytes more", frame.len() - inner.len());
    }
    let ecn = ecn(frame);
    if frame == super::frames::with_ecn(inner, ecn) {
        return format!("arrives as {}", ECN[usize::from(ecn)]);
    }
    "arrives changed".to_owned()
}

/// The names of ECN's values (RFC 3168).
pub const ECN: [&str; 4] = ["Not-ECT", "ECT(1)", "ECT(0)", "CE"];
