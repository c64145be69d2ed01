//! What was measured, for people, programs and later runs.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use overlay_lab::Wire;
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::bed::Peer;
use crate::metric::Metric;
use crate::stats::Summary;

/// One run.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub rounds: u32,
    /// Of who sends and who answers.
    pub cpus: Vec<usize>,
    /// The same for streams.
    pub stream_cpus: Vec<usize>,
    pub lines: Vec<Line>,
}

/// One metric over one kind of wire.
#[derive(Serialize, Deserialize)]
pub struct Line {
    pub metric: Metric,
    /// Empty where it does not matter.
    pub wire: String,
    pub unit: String,
    pub series: Vec<Series>,
}

/// One peer's.
#[derive(Serialize, Deserialize)]
pub struct Series {
    pub peer: Peer,
    /// None when a value is none.
    pub summary: Option<Summary>,
    /// Ratios within the rounds.
    pub of_kernel: Option<Summary>,
    pub of_bare: Option<Summary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_docker: Option<Summary>,
    /// Round by round.
    pub values: Vec<f64>,
    /// Of all round trips of this and the next metric, in nanoseconds: how many took at most so
    /// long, and longer than the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histogram: Vec<(u64, u64)>,
}

impl Report {
    pub fn new(args: &Args, lines: Vec<Line>) -> Report {
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Report {
            kernel,
            rounds: args.rounds(),
            cpus: args.cpus.clone(),
            stream_cpus: args.stream_cpus.clone(),
            lines,
        }
    }

    pub fn takes_part(&self, peer: Peer) -> bool {
        self.lines.iter().any(|line| line.of(peer).is_some())
    }

    pub fn load(path: &Path) -> Result<Report> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("{}", path.display()))?;
        Ok(serde_json::to_writer(file, self)?)
    }
}

impl Line {
    pub fn new(metric: Metric, wire: Option<Wire>, mut series: Vec<Series>) -> Line {
        let values_of = |peer| {
            let of = series.iter().find(|series: &&Series| series.peer == peer);
            of.map(|series| series.values.clone())
        };
        let (kernel, bare) = (values_of(Peer::Kernel), values_of(Peer::Bare));
        let docker = values_of(Peer::Docker);
        for series in &mut series {
            series.of_kernel = ratios(&series.values, kernel.as_deref());
            series.of_bare = ratios(&series.values, bare.as_deref());
            series.of_docker = ratios(&series.values, docker.as_deref());
        }
        Line {
            metric,
            wire: wire.map_or("", Wire::name).to_owned(),
            unit: metric.unit().to_owned(),
            series,
        }
    }

    /// `TCP stream, wire mtu`
    pub fn name(&self) -> String {
        Line::name_of(self.metric, self.wire.parse().ok())
    }

    pub fn name_of(metric: Metric, wire: Option<Wire>) -> String {
        match wire {
            Some(wire) => format!("{metric}, wire {wire}"),
            None => metric.to_string(),
        }
    }

    pub fn of(&self, peer: Peer) -> Option<&Series> {
        self.series.iter().find(|series| series.peer == peer)
    }
}

impl Series {
    pub fn new(peer: Peer, values: Vec<f64>, histogram: Option<&Histogram<u64>>) -> Series {
        let buckets = histogram.map(|histogram| {
            // Steps of about 4 %.
            let steps = histogram.iter_log(1000, 1.04);
            steps
                .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
                .filter(|(_, count)| *count > 0)
                .collect()
        });
        Series {
            peer,
            summary: Summary::of(&values),
            of_kernel: None,
            of_bare: None,
            of_docker: None,
            values,
            histogram: buckets.unwrap_or_default(),
        }
    }

    /// Ratios to another peer.
    pub fn ratio_to(&self, peer: Peer) -> Option<&Summary> {
        match peer {
            Peer::Bare => self.of_bare.as_ref(),
            Peer::Kernel => self.of_kernel.as_ref(),
            Peer::Docker => self.of_docker.as_ref(),
            Peer::Xdp | Peer::Tcx | Peer::Auto | Peer::Encrypted => None,
        }
    }
}

/// Round by round; none when the other one has a value of 0.
fn ratios(values: &[f64], others: Option<&[f64]>) -> Option<Summary> {
    let pairs = values.iter().zip(others?);
    Summary::of(
        &pairs
            .map(|(value, other)| value / other)
            .collect::<Vec<_>>(),
    )
}
