//! Good enough?

use anyhow::{Result, bail};

use crate::bed::Peer;
use crate::metric::Metric;
use crate::report::{Line, Report, Series};

/// The class that users were promised, in µs.
const P50_LIMIT: f64 = 1000.0;
const P99_LIMIT: f64 = 5000.0;
/// A ratio may be so much worse than in the baseline.
const SLACK: f64 = 0.10;

/// Round trips in the 1 ms class.
pub fn class(report: &Report) -> Result<()> {
    let limits = report.lines.iter().filter_map(|line| match line.metric {
        Metric::UdpP50 | Metric::TcpP50 => Some((line, P50_LIMIT)),
        Metric::UdpP99 | Metric::TcpP99 => Some((line, P99_LIMIT)),
        _ => None,
    });
    let mut slow = Vec::new();
    for (line, limit) in limits {
        let over = |series: &&Series| series.summary.is_none_or(|all| all.median >= limit);
        if line.of(Peer::Bare).filter(over).is_some() {
            bail!(
                "THE MACHINE IS TOO BUSY to tell: {} of bare routing itself is not below {limit} µs",
                line.name()
            );
        }
        let ours = line
            .series
            .iter()
            .filter(|series| series.peer.datapath().is_some());
        slow.extend(
            ours.filter(over).map(|series| {
                format!("{} of {} is not below {limit} µs", line.name(), series.peer)
            }),
        );
    }
    if !slow.is_empty() {
        bail!("TOO SLOW for the 1 ms class:\n{}", slow.join("\n"));
    }
    Ok(())
}

/// A line's goal, and what came of it.
pub struct Outcome {
    pub to: Peer,
    pub goal: f64,
    pub ratio: f64,
    pub met: bool,
}

/// All that the line has goals for.
pub fn outcomes(line: &Line) -> Vec<Outcome> {
    let goals = line.metric.goal(line.wire.parse().ok());
    let judged = line.of(line.metric.judged());
    let outcome = |to: Peer| {
        let (goal, ratio) = (goals.to(to)?, judged?.ratio_to(to)?.median);
        let met = if line.metric.more_is_better() {
            ratio >= goal
        } else {
            ratio <= goal
        };
        Some(Outcome {
            to,
            goal,
            ratio,
            met,
        })
    };
    [Peer::Kernel, Peer::Bare, Peer::Docker]
        .into_iter()
        .filter_map(outcome)
        .collect()
}

/// Every goal.
pub fn goals(report: &Report) -> Result<()> {
    let all = report.lines.iter().flat_map(|line| {
        let missed = outcomes(line).into_iter().filter(|outcome| !outcome.met);
        missed.map(|outcome| {
            let Outcome {
                to, goal, ratio, ..
            } = outcome;
            format!("{}: {ratio:.2} of {to}, the goal is {goal:.2}", line.name())
        })
    });
    let missed: Vec<String> = all.collect();
    if !missed.is_empty() {
        bail!("goals MISSED:\n{}", missed.join("\n"));
    }
    Ok(())
}

/// No ratio to kernel vxlan is worse than it was by more than a tenth, or by more than what such
/// ratios spread.
pub fn regressions(report: &Report, baseline: &Report) -> Result<()> {
    let mut worse = Vec::new();
    let mut compared = 0;
    for line in &report.lines {
        let mut known = baseline.lines.iter();
        let Some(old) = known.find(|old| old.metric == line.metric && old.wire == line.wire) else {
            continue;
        };
        for now in line
            .series
            .iter()
            .filter(|now| now.peer.datapath().is_some())
        {
            let before = old.of(now.peer).and_then(|before| before.of_kernel);
            let Some((before, after)) = before.zip(now.of_kernel) else {
                continue;
            };
            compared += 1;
            let slack = SLACK.max(before.spread()).max(after.spread());
            let change = if line.metric.more_is_better() {
                before.median / after.median - 1.0
            } else {
                after.median / before.median - 1.0
            };
            if change > slack {
                worse.push(format!(
                    "{} of {}: {:.2} of kernel vxlan, was {:.2} (worse by {:.0} %, {:.0} % may be chance)",
                    line.name(),
                    now.peer,
                    after.median,
                    before.median,
                    change * 100.0,
                    slack * 100.0
                ));
            }
        }
    }
    if compared == 0 {
        bail!("the baseline has nothing of what was measured, or kernel vxlan did not take part");
    }
    if !worse.is_empty() {
        bail!("REGRESSIONS:\n{}", worse.join("\n"));
    }
    println!("No regressions: none of {compared} ratios to kernel vxlan is worse than it was.");
    Ok(())
}
