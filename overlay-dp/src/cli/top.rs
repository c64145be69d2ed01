//! `top`: what goes on, followed on a terminal; or once, as text or JSON.

mod model;
mod screen;
mod state;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use crossterm::event::{self, Event};
use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::print;
use crate::api::client::call;
use crate::api::overview::Overview;
use crate::instance::Instance;
use model::Snapshot;
use state::{Next, State};

/// `top`
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q quits, s sorts by another column and r the other way round, n shows one network after the other, \
    / filters by what is typed, + and - change the interval, the arrows scroll. Rates are of this host's containers, as \
    they see them: RX is what they receive. Where the output is no terminal, one look is printed.

Examples:
  overlay-dp top
  overlay-dp top --network uber-net --sort tx
  overlay-dp top --once --json | jq '.drops'"
)]
pub struct TopArgs {
    /// Seconds between two looks, which rates are of
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = parse_interval)]
    interval: f64,
    /// Print one look and end
    #[arg(long)]
    once: bool,
    /// This network only
    #[arg(long)]
    network: Option<String>,
    /// Only endpoints of which a part of this text is the name, address, network or host
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
}

/// The order of endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// The busiest first, both directions together
    #[default]
    Rate,
    /// Those that receive most first
    Rx,
    /// Those that send most first
    Tx,
    /// By name
    Name,
    /// By network
    Network,
    /// By host
    Host,
}

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("use seconds from 0.2 to 3600".to_owned()),
    }
}

/// Follows, or looks once.
pub async fn top(instance: &Instance, json: bool, args: TopArgs) -> Result<()> {
    let state = State {
        interval: Duration::from_secs_f64(args.interval),
        network: args.network.clone(),
        filter: args.filter.clone(),
        sort: args.sort,
        ..State::default()
    };
    if json || args.once || !std::io::stdout().is_terminal() {
        return once(instance, json, &state).await;
    }
    let first = look(instance).await?;
    // Raw mode: whatever happens, the terminal is put right again.
    let mut terminal = ratatui::try_init().context("can't use this terminal")?;
    let followed = follow(instance, state, first, &mut terminal).await;
    ratatui::restore();
    followed
}

async fn look(instance: &Instance) -> Result<Overview> {
    call(instance, Method::GET, "/v1/overview", None::<&()>).await
}

/// Rates need two looks.
async fn once(instance: &Instance, json: bool, state: &State) -> Result<()> {
    let before = look(instance).await?;
    sleep(state.interval).await;
    let now = look(instance).await?;
    let mut snapshot = Snapshot::new(&now, Some(&before));
    snapshot.arrange(state);
    print(json, &snapshot, || snapshot.text())
}

async fn follow(
    instance: &Instance,
    mut state: State,
    first: Overview,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<()> {
    let (mut keys, _reader) = read_keys();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut snapshot = Snapshot::new(&first, None);
    let mut last = first;
    // The first rates soon.
    let mut due = Instant::now() + state.interval.min(Duration::from_millis(500));
    loop {
        snapshot.arrange(&state);
        terminal.draw(|frame| screen::draw(frame, &snapshot, &mut state))?;
        tokio::select! {
            event = keys.recv() => match event {
                Some(event) => if state.take(&event, &snapshot) == Next::Quit {
                    return Ok(());
                },
                // Nobody types any more.
                None => return Ok(()),
            },
            () = sleep_until(due) => {
                match look(instance).await {
                    Ok(now) => {
                        state.problem = None;
                        snapshot = Snapshot::new(&now, Some(&last));
                        last = now;
                    }
                    Err(error) => state.problem = Some(format!("{error:#}")),
                }
                due = Instant::now() + state.interval;
            }
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

/// Has a thread read what is typed, for as long as the second value lives.
fn read_keys() -> (mpsc::Receiver<Event>, Stop) {
    let (sender, keys) = mpsc::channel(16);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let read = match event::poll(Duration::from_millis(100)) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(_) => return,
            };
            let sent = read.is_ok_and(|event| sender.blocking_send(event).is_ok());
            if !sent {
                return;
            }
        }
    });
    (keys, Stop(stop))
}

struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
