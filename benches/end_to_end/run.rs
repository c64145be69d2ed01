//! Everyone's turn, again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use overlay_lab::{Wire, check_signals};

use crate::args::Args;
use crate::bed::{Bed, Counted};
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

    /// What overlay-dp's programs must have counted for all slices together, if these were
    /// carried by them.
    fn carried(&self) -> Carried;

    /// How all its round trips spread, in nanoseconds.
    fn histogram(&self) -> Option<&Histogram<u64>> {
        None
    }
}

/// At least so many frames, by programs of host1.
pub enum Carried {
    Encapsulated(u64),
}

/// Measures all that was asked for.
pub fn all(beds: &[Bed], args: &Args) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for &wire in &args.wires {
        let cases: Vec<Case> = Case::ON_ANY_WIRE
            .into_iter()
            .filter(|case| wanted(*case, wire, args))
            .collect();
        if cases.is_empty() {
            continue;
        }
        for bed in beds {
            bed.lab.set_wire(wire)?;
        }
        for case in cases {
            eprintln!("{case:?}, wire {wire} …");
            let measured = measure(case, beds, args);
            lines.extend(
                measured
                    .with_context(|| format!("{case:?}, wire {wire}"))?
                    .into_lines(wire),
            );
        }
    }
    ensure!(!lines.is_empty(), "nothing has such a name");
    lines.retain(|line| args.wants(&line.name()));
    Ok(lines)
}

fn wanted(case: Case, wire: Wire, args: &Args) -> bool {
    let mut metrics = case.metrics().iter();
    metrics.any(|metric| args.wants(&Line::name_of(*metric, wire)))
}

/// One case's results.
struct Measured {
    case: Case,
    series: Vec<(crate::bed::Peer, Vec<Vec<f64>>, Option<Histogram<u64>>)>,
}

fn measure(case: Case, beds: &[Bed], args: &Args) -> Result<Measured> {
    let before = beds
        .iter()
        .map(|bed| bed.counted(1))
        .collect::<Result<Vec<_>>>()?;
    let mut probes = beds
        .iter()
        .map(|bed| open(case, bed, args).with_context(|| bed.peer.to_string()))
        .collect::<Result<Vec<_>>>()?;
    let mut values = vec![Vec::new(); beds.len()];
    for round in 0..args.rounds() as usize {
        for turn in 0..beds.len() {
            check_signals()?;
            let which = (round + turn) % beds.len();
            let slice = probes[which].slice(length(case));
            values[which].push(slice.with_context(|| beds[which].peer.to_string())?);
        }
    }
    let mut series = Vec::new();
    for (((bed, probe), before), values) in beds.iter().zip(&probes).zip(before).zip(values) {
        if let Some((before, after)) = before.zip(bed.counted(1)?) {
            check_fast_path(&probe.carried(), before, after)
                .with_context(|| bed.peer.to_string())?;
        }
        series.push((bed.peer, values, probe.histogram().cloned()));
    }
    Ok(Measured { case, series })
}

fn open(case: Case, bed: &Bed, args: &Args) -> Result<Box<dyn Probe>> {
    Ok(match case {
        Case::UdpRoundTrip => Box::new(RoundTrips::open(Protocol::Udp, bed, args.last_cpu())?),
        Case::TcpRoundTrip => Box::new(RoundTrips::open(Protocol::Tcp, bed, args.last_cpu())?),
        Case::UdpRate => Box::new(UdpRate::open(bed)?),
        Case::Stream => Box::new(Stream::open(bed, &args.stream_cpus)?),
    })
}

fn length(case: Case) -> Duration {
    let millis = match case {
        _ if test_mode() => 10,
        // The kernel tells idle times in steps of 10 ms.
        Case::Stream => 200,
        Case::UdpRoundTrip | Case::TcpRoundTrip | Case::UdpRate => 100,
    };
    Duration::from_millis(millis)
}

/// What was measured is the fast path, and not the agent.
fn check_fast_path(carried: &Carried, before: Counted, after: Counted) -> Result<()> {
    let (what, least, counted) = match *carried {
        Carried::Encapsulated(least) => (
            "encapsulated",
            least,
            after.encapsulated - before.encapsulated,
        ),
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
    fn into_lines(self, wire: Wire) -> Vec<Line> {
        let metrics = self.case.metrics().iter().enumerate();
        metrics
            .map(|(index, &metric)| {
                let series = self.series.iter().map(|(peer, slices, histogram)| {
                    let values = slices.iter().map(|slice| slice[index]).collect();
                    // Once is enough: with the median.
                    let histogram = histogram.as_ref().filter(|_| index == 0);
                    Series::new(*peer, values, histogram)
                });
                Line::new(metric, wire, series.collect())
            })
            .collect()
    }
}
