//! The ratios as a picture: one group of bars per line, kernel vxlan at 1.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::bed::Peer;
use crate::report::{Line, Report, Series};
use crate::stats::Summary;

const WIDTH: u32 = 1200;
/// Of a bar and of what is between groups, in pixels.
const BAR: i32 = 9;
const GAP: i32 = 14;
/// For the lines' names, and above for the legend.
const LEFT: i32 = 260;
const TOP: i32 = 90;
/// The longest bar: more is cut off there.
const MOST: f64 = 8.0;

fn color(peer: Peer) -> RGBColor {
    match peer {
        Peer::Bare => RGBColor(150, 150, 150),
        Peer::Kernel => RGBColor(60, 60, 60),
        Peer::Docker => RGBColor(130, 90, 170),
        Peer::Xdp => RGBColor(214, 130, 40),
        Peer::Tcx => RGBColor(60, 130, 190),
        Peer::Auto => RGBColor(40, 150, 90),
        Peer::Encrypted => RGBColor(190, 70, 90),
    }
}

/// Where on the page a gain over kernel vxlan is; on a logarithmic scale, so that twice as good
/// and half as good are as long.
struct Scale {
    most: f64,
}

impl Scale {
    fn x(&self, gain: f64) -> i32 {
        let room = f64::from(WIDTH as i32 - LEFT - 30);
        let part = gain.clamp(1.0 / self.most, self.most).ln() / self.most.ln();
        LEFT + (room * (part + 1.0) / 2.0) as i32
    }
}

/// Writes the picture.
pub fn draw(report: &Report, path: &Path) -> Result<()> {
    let groups: Vec<(&Line, Vec<(&Series, Summary)>)> = report
        .lines
        .iter()
        .map(|line| (line, bars(line)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let height: i32 = groups
        .iter()
        .map(|(_, bars)| group_height(bars.len()))
        .sum();
    let size = (WIDTH, u32::try_from(TOP + height + 30)?);
    let page = SVGBackend::new(path, size).into_drawing_area();
    page.fill(&WHITE)?;
    let furthest = groups.iter().flat_map(|(line, bars)| {
        let gains = bars.iter().map(|(_, ratio)| gain(line, ratio.median));
        gains.map(|gain| gain.max(1.0 / gain))
    });
    let scale = Scale {
        most: furthest.fold(2.0, f64::max).min(MOST),
    };
    let shown = |peer: &Peer| *peer != Peer::Kernel && report.takes_part(*peer);
    let peers = Peer::ALL.into_iter().filter(shown);
    legend(&page, peers, &scale, TOP + height)?;
    let mut y = TOP;
    for (line, bars) in &groups {
        let middle = y + bars.len() as i32 * BAR / 2 - 8;
        page.draw(&Text::new(line.name(), (12, middle), ("sans-serif", 14)))?;
        for (series, ratio) in bars {
            let to = scale.x(gain(line, ratio.median));
            let fill = color(series.peer).filled();
            page.draw(&Rectangle::new(
                [(scale.x(1.0), y), (to, y + BAR - 1)],
                fill,
            ))?;
            // Half of the rounds are within.
            let [low, high] = ratio.quartiles.map(|at| scale.x(gain(line, at)));
            let whisker = [(low, y + BAR / 2), (high, y + BAR / 2)];
            page.draw(&PathElement::new(whisker, BLACK))?;
            y += BAR;
        }
        y += GAP;
    }
    page.present()
        .with_context(|| format!("{}", path.display()))
}

fn group_height(bars: usize) -> i32 {
    bars as i32 * BAR + GAP
}

fn bars(line: &Line) -> Vec<(&Series, Summary)> {
    let others = line
        .series
        .iter()
        .filter(|series| series.peer != Peer::Kernel);
    others
        .filter_map(|series| Some((series, series.of_kernel?)))
        .collect()
}

/// How many times as good as kernel vxlan.
fn gain(line: &Line, ratio: f64) -> f64 {
    if line.metric.more_is_better() {
        ratio
    } else {
        1.0 / ratio
    }
}

fn legend<B: DrawingBackend>(
    page: &DrawingArea<B, plotters::coord::Shift>,
    peers: impl Iterator<Item = Peer>,
    scale: &Scale,
    bottom: i32,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let title = "Times as good as kernel vxlan + bridge (to the right: better), same run";
    page.draw(&Text::new(title, (12, 12), ("sans-serif", 18)))?;
    for (place, peer) in (0..).zip(peers) {
        let x = LEFT + place * 170;
        let swatch = [(x, 40), (x + 12, 52)];
        page.draw(&Rectangle::new(swatch, color(peer).filled()))?;
        page.draw(&Text::new(
            peer.to_string(),
            (x + 18, 39),
            ("sans-serif", 14),
        ))?;
    }
    for at in [0.125, 0.25, 0.5, 0.75, 1.0, 1.33, 2.0, 4.0, 8.0] {
        if at > scale.most || at < 1.0 / scale.most {
            continue;
        }
        let x = scale.x(at);
        page.draw(&Text::new(
            format!("{at}"),
            (x - 8, TOP - 20),
            ("sans-serif", 12),
        ))?;
        let style = if at == 1.0 {
            BLACK.mix(0.8)
        } else {
            BLACK.mix(0.2)
        };
        page.draw(&PathElement::new([(x, TOP - 4), (x, bottom)], style))?;
    }
    Ok(())
}
