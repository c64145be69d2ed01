//! What the user has chosen, and what a key changes.

use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use super::Sort;
use super::model::{EndpointRow, Snapshot};

/// The fastest and the slowest that keys can make it.
const INTERVALS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(60)];

/// What is chosen.
#[derive(Clone, Debug)]
pub struct State {
    /// Between two looks.
    pub interval: Duration,
    /// Only this network.
    pub network: Option<String>,
    /// Only what has this in it.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// The order of endpoints.
    pub sort: Sort,
    /// The other way round.
    pub reversed: bool,
    /// The first endpoint that is shown.
    pub offset: usize,
    /// Why what is shown is old.
    pub problem: Option<String>,
}

impl Default for State {
    fn default() -> State {
        State {
            interval: Duration::from_secs(1),
            network: None,
            filter: String::new(),
            typing: false,
            sort: Sort::default(),
            reversed: false,
            offset: 0,
            problem: None,
        }
    }
}

/// What comes after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Going on.
    On,
    /// The end.
    Quit,
}

impl State {
    /// Whether an endpoint is shown.
    pub fn wants(&self, endpoint: &EndpointRow) -> bool {
        let wanted = self.filter.to_lowercase();
        let fields = [
            &endpoint.name,
            &endpoint.network,
            &endpoint.ip,
            &endpoint.host,
        ];
        self.network.as_ref().is_none_or(|n| *n == endpoint.network)
            && fields
                .iter()
                .any(|field| field.to_lowercase().contains(&wanted))
    }

    /// Does what a key says.
    pub fn take(&mut self, event: &Event, shown: &Snapshot) -> Next {
        let Event::Key(key) = event else {
            return Next::On;
        };
        if key.kind == KeyEventKind::Release {
            return Next::On;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Next::Quit;
        }
        if self.typing {
            self.typed(key.code);
            return Next::On;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('s') => self.sort = next_sort(self.sort),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('n') => self.network = next_network(self.network.as_deref(), shown),
            KeyCode::Char('/') => {
                self.typing = true;
                self.filter.clear();
            }
            KeyCode::Char('+') => self.interval = (self.interval * 2).min(INTERVALS[1]),
            KeyCode::Char('-') => self.interval = (self.interval / 2).max(INTERVALS[0]),
            KeyCode::Down | KeyCode::Char('j') => self.offset = self.offset.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::PageDown => self.offset = self.offset.saturating_add(10),
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(10),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = usize::MAX,
            _ => {}
        }
        Next::On
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() < 64 => self.filter.push(c),
            _ => {}
        }
        self.offset = 0;
    }
}

fn next_sort(sort: Sort) -> Sort {
    match sort {
        Sort::Rate => Sort::Rx,
        Sort::Rx => Sort::Tx,
        Sort::Tx => Sort::Name,
        Sort::Name => Sort::Network,
        Sort::Network => Sort::Host,
        Sort::Host => Sort::Rate,
    }
}

/// All networks, then one after the other.
fn next_network(now: Option<&str>, shown: &Snapshot) -> Option<String> {
    let mut names = shown.networks.iter().map(|network| &network.name);
    let next = match now {
        None => names.next(),
        Some(now) => names.skip_while(|name| *name != now).nth(1),
    };
    next.cloned()
}
