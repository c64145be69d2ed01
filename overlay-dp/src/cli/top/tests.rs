//! The screen without a terminal.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use overlay_core::model::HostId;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::Sort;
use super::model::{DropRow, EndpointRow, NetworkRow, Rates, Snapshot, bits, number};
use super::screen::draw;
use super::state::{Next, State};
use crate::api::{Checksums, DataPath, LatencyInfo, VtepInfo};

fn endpoint(name: &str, network: &str, rx_bits: Option<f64>) -> EndpointRow {
    EndpointRow {
        name: name.to_owned(),
        network: network.to_owned(),
        ip: "10.0.0.2".to_owned(),
        host: if rx_bits.is_some() { "host1" } else { "host2" }.to_owned(),
        rates: rx_bits.map(|rx_bits| Rates {
            rx_bits,
            tx_bits: 1.0,
            rx_packets: rx_bits / 8000.0,
            tx_packets: 2.0,
        }),
        dropped: rx_bits.map(|_| 7),
    }
}

fn snapshot() -> Snapshot {
    let network = |name: &str, endpoints| NetworkRow {
        name: name.to_owned(),
        endpoints,
        rates: Rates::default(),
    };
    Snapshot {
        at_ms: 0,
        host: "host1".to_owned(),
        manager: true,
        hosts: (1, 2),
        quorum: true,
        uptime_s: 61,
        total: Rates {
            rx_bits: 1.5e9,
            ..Rates::default()
        },
        punted: 3.0,
        networks: vec![network("blue", 2), network("green", 1)],
        endpoints: vec![
            endpoint("a.1", "blue", Some(1000.0)),
            endpoint("b.2", "blue", None),
            endpoint("c.3", "green", Some(2.5e6)),
        ],
        drops: vec![DropRow {
            reason: "spoofed-ip".to_owned(),
            total: 42,
            rate: 1.5,
        }],
        vteps: vec![VtepInfo {
            address: "192.168.1.5".parse().unwrap(),
            host: None::<HostId>,
            host_name: "host2".to_owned(),
            state: "down".to_owned(),
            data_path: DataPath::Silent,
            latency: Some(LatencyInfo {
                min_us: 100,
                average_us: 250,
                p99_us: 1900,
            }),
            loss_percent: Some(12.0),
            path_mtu: Some(1500),
            checksums: Checksums::Ok,
            next_hop: None,
            interface: None,
        }],
    }
}

/// The screen's lines.
fn lines(width: u16, height: u16, shown: &Snapshot, state: &mut State) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, shown, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        (0..width)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..height).map(line).collect()
}

fn press(state: &mut State, shown: &Snapshot, keys: &[KeyCode]) -> Next {
    let mut next = Next::On;
    for key in keys {
        let event = Event::Key(KeyEvent::new(*key, KeyModifiers::NONE));
        next = state.take(&event, shown);
    }
    next
}

fn order(state: &State) -> Vec<String> {
    let mut shown = snapshot();
    shown.arrange(state);
    shown.endpoints.into_iter().map(|e| e.name).collect()
}

#[test]
fn all_is_seen_in_80_by_24() {
    let (mut shown, mut state) = (snapshot(), State::default());
    shown.arrange(&state);
    let lines = lines(80, 24, &shown, &mut state);
    let text = lines.join("\n");
    for wanted in [
        "host1 (manager), 1 of 2 hosts alive, managers can agree",
        "rx 1.5 Gbit/s",
        "to the agent 3/s",
        "192.168.1.5",
        "SILENT",
        "0.25 ms",
        "1.9 ms",
        "12%",
        "2.5 Mbit/s",
        "blue",
        "green",
        "spoofed-ip",
        "42",
        "endpoints of all networks (3), by rate",
        "q quit",
    ] {
        assert!(text.contains(wanted), "no '{wanted}' in\n{text}");
    }
    // The busiest first, and those of other hosts, whose rates are not known here, last.
    let at = |name: &str| {
        lines
            .iter()
            .position(|line| line.starts_with(name))
            .unwrap()
    };
    assert!(at("c.3") < at("a.1") && at("a.1") < at("b.2"), "{text}");
}

#[test]
fn no_size_is_too_small_or_too_large() {
    let (mut shown, mut state) = (snapshot(), State::default());
    shown.endpoints = (0..500)
        .map(|n| endpoint(&format!("many.{n}"), "blue", Some(1.0)))
        .collect();
    shown.vteps = vec![shown.vteps[0].clone(); 100];
    for (width, height) in [(1, 1), (5, 3), (20, 5), (80, 10), (300, 100)] {
        state.offset = usize::MAX;
        lines(width, height, &shown, &mut state);
    }
}

#[test]
fn keys_sort_filter_and_quit() {
    let (shown, mut state) = (snapshot(), State::default());
    assert_eq!(order(&state), ["c.3", "a.1", "b.2"]);
    press(&mut state, &shown, &[KeyCode::Char('r')]);
    assert_eq!(order(&state), ["b.2", "a.1", "c.3"]);
    press(
        &mut state,
        &shown,
        &[
            KeyCode::Char('r'),
            KeyCode::Char('s'),
            KeyCode::Char('s'),
            KeyCode::Char('s'),
        ],
    );
    assert_eq!(
        (state.sort, order(&state)),
        (Sort::Name, vec!["a.1".into(), "b.2".into(), "c.3".into()])
    );

    press(&mut state, &shown, &[KeyCode::Char('n')]);
    assert_eq!(order(&state), ["a.1", "b.2"]);
    press(&mut state, &shown, &[KeyCode::Char('n')]);
    assert_eq!(order(&state), ["c.3"]);
    press(&mut state, &shown, &[KeyCode::Char('n')]);
    assert_eq!(order(&state).len(), 3);

    // What is typed is no command.
    let typed: Vec<KeyCode> = "/HOST2q".chars().map(KeyCode::Char).collect();
    assert_eq!(press(&mut state, &shown, &typed), Next::On);
    assert!(order(&state).is_empty());
    press(&mut state, &shown, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!(order(&state), ["b.2"]);
    assert_eq!(press(&mut state, &shown, &[KeyCode::Char('q')]), Next::Quit);
    let interrupt = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert_eq!(state.take(&interrupt, &shown), Next::Quit);
}

#[test]
fn the_intervals_have_ends() {
    let (shown, mut state) = (snapshot(), State::default());
    press(&mut state, &shown, &[KeyCode::Char('+'); 20]);
    assert_eq!(state.interval.as_secs(), 60);
    press(&mut state, &shown, &[KeyCode::Char('-'); 20]);
    assert_eq!(state.interval.as_millis(), 250);
}

#[test]
fn an_agent_that_is_gone_is_seen() {
    let mut state = State {
        problem: Some("no agent runs here".to_owned()),
        ..State::default()
    };
    let lines = lines(80, 24, &snapshot(), &mut state);
    assert!(lines[0].starts_with("no agent runs here"), "{lines:?}");
}

#[test]
fn three_digits_say_enough() {
    let shown: Vec<String> = [0.0, 999.0, 1000.0, 123_456.0, 2.5e6, 9.99e10]
        .map(bits)
        .into();
    let expected = [
        "0 bit/s",
        "999 bit/s",
        "1.0 kbit/s",
        "123 kbit/s",
        "2.5 Mbit/s",
        "99.9 Gbit/s",
    ];
    assert_eq!(shown, expected);
    let shown: Vec<String> = [7.0, 1234.0, 56_789.0, 2.5e6].map(number).into();
    assert_eq!(shown, ["7", "1.2k", "57k", "2.5M"]);
}
