//! The screen. 80 columns and 24 lines are enough.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table};

use super::Sort;
use super::model::{Snapshot, bits, endpoint_cells, vtep_cells};
use super::state::State;

/// Draws one look.
pub fn draw(frame: &mut Frame<'_>, shown: &Snapshot, state: &mut State) {
    let vteps = u16::try_from(shown.vteps.len())
        .unwrap_or(u16::MAX)
        .clamp(1, 4);
    let [head, totals, vtep_area, endpoints, bottom, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(vteps + 2),
        Constraint::Min(4),
        Constraint::Length(6),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let head_line = match &state.problem {
        None => Line::styled(shown.head(), bold),
        Some(problem) => Line::styled(problem.as_str(), bold.fg(Color::Red)),
    };
    frame.render_widget(head_line, head);
    frame.render_widget(Line::raw(shown.totals()), totals);
    draw_vteps(frame, vtep_area, shown);
    draw_endpoints(frame, endpoints, shown, state);
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
    let [networks, drops] = halves.areas(bottom);
    draw_networks(frame, networks, shown);
    draw_drops(frame, drops, shown);
    frame.render_widget(Paragraph::new(key_line(state)), keys);
}

fn titled(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

fn header<const N: usize>(cells: [&'static str; N]) -> Row<'static> {
    Row::new(cells).style(Style::new().add_modifier(Modifier::DIM))
}

fn draw_vteps(frame: &mut Frame<'_>, area: Rect, shown: &Snapshot) {
    let rows = shown.vteps.iter().map(|vtep| {
        let cells = vtep_cells(vtep);
        let silent = cells[3] == "SILENT";
        let lossy = vtep.loss_percent.is_some_and(|loss| loss > 1.0);
        let style = match (silent, lossy) {
            (true, _) => Style::new().fg(Color::Red),
            (false, true) => Style::new().fg(Color::Yellow),
            (false, false) => Style::new(),
        };
        Row::new(cells).style(style)
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(4),
        Constraint::Length(6),
    ];
    let table = Table::new(rows, widths)
        .header(header([
            "VTEP",
            "ADDRESS",
            "STATE",
            "DATA PATH",
            "LATENCY",
            "P99",
            "LOSS",
            "MTU",
        ]))
        .block(titled(format!("VTEPs ({})", shown.vteps.len())));
    frame.render_widget(table, area);
}

fn draw_endpoints(frame: &mut Frame<'_>, area: Rect, shown: &Snapshot, state: &mut State) {
    // The title and the header take two lines.
    let room = usize::from(area.height.saturating_sub(2));
    let last = shown.endpoints.len().saturating_sub(room);
    state.offset = state.offset.min(last);
    let rows = shown.endpoints.iter().skip(state.offset).take(room);
    let rows = rows.map(|endpoint| {
        let [name, network, ip, host, rx, tx, rx_pps, tx_pps, dropped] = endpoint_cells(endpoint);
        let busy = endpoint
            .rates
            .is_some_and(|rates| rates.rx_bits + rates.tx_bits > 0.0);
        let style = match busy {
            true => Style::new().add_modifier(Modifier::BOLD),
            false => Style::new(),
        };
        Row::new([name, network, ip, host, rx, tx, rx_pps, tx_pps, dropped]).style(style)
    });
    let widths = [
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(4),
    ];
    let network = state.network.as_deref().unwrap_or("all networks");
    let mut title = format!(
        "endpoints of {network} ({}), by {}",
        shown.endpoints.len(),
        sort_name(state.sort)
    );
    if state.reversed {
        title += ", reversed";
    }
    if !state.filter.is_empty() {
        title += &format!(", with '{}'", state.filter);
    }
    let table = Table::new(rows, widths)
        .header(header([
            "NAME", "NETWORK", "IP", "HOST", "RX", "TX", "RXPPS", "TXPPS", "DROP",
        ]))
        .block(titled(title));
    frame.render_widget(table, area);
}

fn sort_name(sort: Sort) -> &'static str {
    match sort {
        Sort::Rate => "rate",
        Sort::Rx => "rx",
        Sort::Tx => "tx",
        Sort::Name => "name",
        Sort::Network => "network",
        Sort::Host => "host",
    }
}

fn draw_networks(frame: &mut Frame<'_>, area: Rect, shown: &Snapshot) {
    let rows = shown.networks.iter().map(|network| {
        Row::new([
            network.name.clone(),
            network.endpoints.to_string(),
            bits(network.rates.rx_bits),
            bits(network.rates.tx_bits),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(4),
        Constraint::Length(11),
        Constraint::Length(11),
    ];
    let table = Table::new(rows, widths)
        .header(header(["NETWORK", "ENDS", "RX", "TX"]))
        .block(titled(format!("networks ({})", shown.networks.len())));
    frame.render_widget(table, area);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, shown: &Snapshot) {
    let rows = shown.drops.iter().map(|drop| {
        let style = match drop.rate > 0.0 {
            true => Style::new().fg(Color::Red),
            false => Style::new(),
        };
        Row::new([
            drop.reason.clone(),
            drop.total.to_string(),
            format!("{:.1}", drop.rate),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths)
        .header(header(["DROPPED", "TOTAL", "PER S"]))
        .block(titled("drops on this host".to_owned()));
    frame.render_widget(table, area);
}

fn key_line(state: &State) -> Line<'static> {
    if state.typing {
        return Line::from(vec![
            Span::raw("filter: "),
            Span::styled(
                state.filter.clone(),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::raw("_   (Enter keeps it, Esc drops it)"),
        ]);
    }
    let every = state.interval.as_secs_f64();
    Line::styled(
        format!(
            "q quit  s sort  r reverse  n network  / filter  + - interval ({every} s)  arrows scroll"
        ),
        Style::new().add_modifier(Modifier::DIM),
    )
}
