//! Everyone's turn, again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use overlay_lab::{Wire, check_signals};

use crate::args::Args;
use crate::bed::{Bed, Counted, Peer};
use crate::live::{ToSink, ToSocket};
use crate::metric::Case;
use crate::report::{Line, Series};
use crate::round_trip::{Protocol, RoundTrips};
use crate::stream::Stream;
use crate::support::test_mode;
use crate::udp_rate::UdpRate;

/// Something that runs between a lab's containers while it is its turn.
pub trait Probe {
    /// A turn of about this length. Returns the values of the case's metrics, in their order.
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>>;

    /// Turns that count for nothing: the first to see how much a slice can hold.
    fn warm_up(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.slice(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// What overlay-dp's programs must have counted for all slices together, if these were
    /// carried by them.
    fn carried(&self) -> Carried;

    /// How all its round trips spread, in nanoseconds.
    fn histogram(&self) -> Option<&Histogram<u64>> {
        None
    }
}

/// At least so many frames, that host1 has sent or host2 has received.
pub enum Carried {
    Encapsulated(u64),
    Decapsulated(u64),
}

/// Measures all that was asked for.
pub fn all(beds: &[Bed], args: &Args) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for &wire in &args.wires {
        measure_all(&Case::ON_ANY_WIRE, Some(wire), beds, args, &mut lines)?;
    }
    // Last: they turn GRO on where it is off else.
    measure_all(&Case::LIVE, None, beds, args, &mut lines)?;
    ensure!(!lines.is_empty(), "nothing has such a name");
    Ok(lines)
}

/// Measures those of the cases that were asked for.
fn measure_all(
    cases: &[Case],
    wire: Option<Wire>,
    beds: &[Bed],
    args: &Args,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let name = |case: Case| Line::name_of(case.metrics()[0], wire);
    let wanted = |case: &&Case| {
        let mut metrics = case.metrics().iter();
        metrics.any(|metric| args.wants(&Line::name_of(*metric, wire)))
    };
    let cases: Vec<Case> = cases.iter().filter(wanted).copied().collect();
    if cases.is_empty() {
        return Ok(());
    }
    for bed in beds {
        bed.lab.set_wire(wire.unwrap_or(Wire::Gso))?;
    }
    for case in cases {
        eprintln!("{} …", name(case));
        let measured = measure(case, beds, args).with_context(|| name(case))?;
        let measured = measured.into_lines(wire).into_iter();
        lines.extend(measured.filter(|line| args.wants(&line.name())));
    }
    Ok(())
}

/// One case's results.
struct Measured {
    case: Case,
    series: Vec<Slices>,
}

/// One peer's, slice by slice.
struct Slices {
    peer: Peer,
    values: Vec<Vec<f64>>,
    histogram: Option<Histogram<u64>>,
}

fn measure(case: Case, beds: &[Bed], args: &Args) -> Result<Measured> {
    let beds = beds.iter().filter(|bed| case.is_for(bed.peer));
    let mut turns = beds
        .map(|bed| Turns::open(case, bed, args).with_context(|| bed.peer.to_string()))
        .collect::<Result<Vec<_>>>()?;
    for round in 0..args.rounds() as usize {
        for turn in 0..turns.len() {
            check_signals()?;
            let which = (round + turn) % turns.len();
            let Turns {
                bed, probe, values, ..
            } = &mut turns[which];
            let slice = probe.slice(length(case));
            values.push(slice.with_context(|| bed.peer.to_string())?);
        }
    }
    let series = turns.into_iter().map(|turns| {
        let peer = turns.bed.peer;
        turns.close().with_context(|| peer.to_string())
    });
    Ok(Measured {
        case,
        series: series.collect::<Result<_>>()?,
    })
}

/// What becomes one peer's [`Slices`].
struct Turns<'a> {
    bed: &'a Bed,
    probe: Box<dyn Probe>,
    before: Option<Counted>,
    values: Vec<Vec<f64>>,
}

impl<'a> Turns<'a> {
    fn open(case: Case, bed: &'a Bed, args: &Args) -> Result<Turns<'a>> {
        let before = bed.counted()?;
        Ok(Turns {
            bed,
            probe: open(case, bed, args)?,
            before,
            values: Vec::new(),
        })
    }

    fn close(self) -> Result<Slices> {
        if let Some((before, after)) = self.before.zip(self.bed.counted()?) {
            check_fast_path(&self.probe.carried(), before, after)?;
        }
        Ok(Slices {
            peer: self.bed.peer,
            values: self.values,
            histogram: self.probe.histogram().cloned(),
        })
    }
}

fn open(case: Case, bed: &Bed, args: &Args) -> Result<Box<dyn Probe>> {
    Ok(match case {
        Case::UdpRoundTrip => Box::new(RoundTrips::open(Protocol::Udp, bed, args.last_cpu())?),
        Case::TcpRoundTrip => Box::new(RoundTrips::open(Protocol::Tcp, bed, args.last_cpu())?),
        Case::UdpRate => Box::new(UdpRate::open(bed)?),
        Case::Stream => Box::new(Stream::open(bed, &args.stream_cpus)?),
        Case::ToSocket => Box::new(ToSocket::open(bed, args.last_stream_cpu())?),
        Case::Encap => Box::new(ToSink::encap(bed, args.last_stream_cpu())?),
        Case::Decap => Box::new(ToSink::decap(bed, args.last_stream_cpu())?),
    })
}

fn length(case: Case) -> Duration {
    let millis = match case {
        _ if test_mode() => 10,
        // The kernel tells idle times in steps of 10 ms.
        Case::Stream => 200,
        _ => 100,
    };
    Duration::from_millis(millis)
}

/// What was measured is the fast path, and not the agent.
fn check_fast_path(carried: &Carried, before: Counted, after: Counted) -> Result<()> {
    let (what, least, counted) = match *carried {
        Carried::Encapsulated(least) => {
            let counted = after.encapsulated - before.encapsulated;
            ("encapsulated", least, counted)
        }
        Carried::Decapsulated(least) => {
            let counted = after.decapsulated - before.decapsulated;
            ("decapsulated", least, counted)
        }
    };
    ensure!(
        counted >= least,
        "{least} frames were sent, but only {counted} were {what} by programs"
    );
    let punted = after.punted - before.punted;
    // ARP, the hosts' own probes.
    ensure!(
        punted <= 100 + counted / 1000,
        "{punted} frames were left to the agent"
    );
    Ok(())
}

impl Measured {
    fn into_lines(self, wire: Option<Wire>) -> Vec<Line> {
        let metrics = self.case.metrics().iter().enumerate();
        metrics
            .map(|(index, &metric)| {
                let series = self.series.iter().map(|of| {
                    let values = of.values.iter().map(|slice| slice[index]).collect();
                    // Once is enough: with the median.
                    let histogram = of.histogram.as_ref().filter(|_| index == 0);
                    Series::new(of.peer, values, histogram)
                });
                Line::new(metric, wire, series.collect())
            })
            .collect()
    }
}
