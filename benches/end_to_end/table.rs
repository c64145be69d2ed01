//! The summary for people.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Row, Table};

use crate::bed::Peer;
use crate::judge::outcomes;
use crate::report::{Line, Report};
use crate::stats::Summary;

/// Two tables: what was measured, and what that is to the peers.
pub fn render(report: &Report) -> String {
    let mut text = format!(
        "Container to container, kernel {}; {} rounds of turns; CPUs {:?}, streams {:?}.\n\
         Median of the rounds, and the smallest to the largest:\n{}\n",
        report.kernel,
        report.rounds,
        report.cpus,
        report.stream_cpus,
        values(report)
    );
    let ratios = ratios(report);
    let _ = writeln!(
        text,
        "Ratios within the rounds, their medians: to kernel vxlan / to bare routing.\n{ratios}"
    );
    let all: Vec<bool> = report
        .lines
        .iter()
        .flat_map(outcomes)
        .map(|o| o.met)
        .collect();
    let met = all.iter().filter(|met| **met).count();
    let _ = writeln!(text, "{met} of {} goals are met.", all.len());
    if !report.takes_part(Peer::Docker) {
        text +=
            "Docker's own overlay is not compared (--docker): kernel vxlan is built as it is.\n";
    }
    text
}

fn values(report: &Report) -> Table {
    let mut table = new_table();
    let peers = || {
        Peer::ALL
            .into_iter()
            .filter(|peer| report.takes_part(*peer))
    };
    let mut header = vec!["".to_owned(), "wire".to_owned(), "".to_owned()];
    header.extend(peers().map(|peer| peer.to_string()));
    table.set_header(header);
    for line in &report.lines {
        let mut row = vec![
            line.metric.to_string(),
            line.wire.clone(),
            line.unit.clone(),
        ];
        row.extend(peers().map(|peer| {
            let summary = line.of(peer).and_then(|series| series.summary.as_ref());
            summary.map_or("-".to_owned(), with_range)
        }));
        table.add_row(row);
    }
    align(&mut table, 3);
    table
}

fn ratios(report: &Report) -> Table {
    let mut table = new_table();
    let peers = || {
        Peer::ALL
            .into_iter()
            .filter(|peer| report.takes_part(*peer))
    };
    let mut header = vec!["".to_owned(), "wire".to_owned()];
    header.extend(
        peers()
            .filter(|p| *p != Peer::Kernel)
            .map(|peer| peer.to_string()),
    );
    let ours: Vec<Peer> = peers().filter(|p| p.datapath().is_some()).collect();
    let docker = report.takes_part(Peer::Docker) && !ours.is_empty();
    if docker {
        let names = ours.iter().filter_map(|peer| peer.datapath());
        header.push(format!("to docker: {}", joined(names)));
    }
    header.push("goal".to_owned());
    table.set_header(header);
    for line in &report.lines {
        let others = peers().filter(|p| *p != Peer::Kernel);
        let mut cells: Vec<String> = others.map(|peer| pair(line, peer)).collect();
        if docker {
            cells.push(to_docker(line, &ours));
        }
        if cells.iter().all(|cell| cell == "-") {
            continue;
        }
        let mut row = vec![line.metric.to_string(), line.wire.clone()];
        row.extend(cells);
        row.push(verdict(line));
        table.add_row(Row::from(row));
    }
    align(&mut table, 2);
    table
}

fn pair(line: &Line, peer: Peer) -> String {
    let Some(series) = line.of(peer) else {
        return "-".to_owned();
    };
    match (&series.of_kernel, &series.of_bare) {
        (None, None) => "-".to_owned(),
        (kernel, _) if peer == Peer::Bare => one(kernel.as_ref()),
        (kernel, bare) => joined([kernel, bare].map(|of| one(of.as_ref()))),
    }
}

fn to_docker(line: &Line, peers: &[Peer]) -> String {
    if line.of(Peer::Docker).is_none() {
        return "-".to_owned();
    }
    let ratio = |peer: &Peer| one(line.of(*peer).and_then(|of| of.of_docker.as_ref()));
    joined(peers.iter().map(ratio))
}

fn one(ratio: Option<&Summary>) -> String {
    ratio.map_or("-".to_owned(), |of| format!("{:.2}", of.median))
}

fn joined(words: impl IntoIterator<Item: Into<String>>) -> String {
    let words: Vec<String> = words.into_iter().map(Into::into).collect();
    words.join(" / ")
}

/// `≤ 0.75 met, ≤ 1.00 MISSED`
fn verdict(line: &Line) -> String {
    let sign = if line.metric.more_is_better() {
        '≥'
    } else {
        '≤'
    };
    let all = outcomes(line).into_iter().map(|outcome| {
        let word = if outcome.met { "met" } else { "MISSED" };
        let to = match outcome.to {
            Peer::Bare => "bare",
            Peer::Docker => "docker",
            _ => "kernel",
        };
        format!("{to} {sign} {:.2} {word}", outcome.goal)
    });
    all.collect::<Vec<_>>().join(", ")
}

/// `12.3 [11.9 - 14]`
fn with_range(summary: &Summary) -> String {
    let Summary {
        median, min, max, ..
    } = summary;
    format!("{} [{} - {}]", short(*median), short(*min), short(*max))
}

/// Three digits, which is more than the next run will repeat.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table
}

/// Numbers to the right.
fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
