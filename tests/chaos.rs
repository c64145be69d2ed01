//! Five hosts, three of them managers, and everything that can happen to them, at random.
//!
//! ```text
//!   host1 ─┐           ┌─ host4      killed agents, restarts, partitions, one-way cuts, pulled
//!   host2 ─┼─ router ──┤             cables, power cuts; containers and networks come and go,
//!   host3 ─┘           └─ host5      roles change
//! ```
//!
//! Every command that succeeded is remembered. In the end the network is healed and all hosts are
//! there: nothing that was acknowledged may be lost, nothing that was removed may be left, nobody
//! may have another's address (which is looked at all the time), and `verify` must find nothing.
//!
//! It runs for a minute; `OVERLAY_DP_CHAOS_SECONDS=600` for longer. `OVERLAY_DP_CHAOS_SEED` brings
//! the same events again, as far as the machine's timing allows.

#[path = "chaos/damage.rs"]
mod damage;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "chaos/work.rs"]
mod work;

use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use overlay_lab::{Cluster, Lab, LabSpec, test};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use damage::Damage;
use ledger::Ledger;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const HOSTS: usize = 5;
const MANAGERS: usize = 3;
/// In which everything must be as it should be after the last healing.
const HEALED: Duration = Duration::from_secs(60);

#[test]
fn nothing_acknowledged_is_lost() {
    let seconds = setting("OVERLAY_DP_CHAOS_SECONDS").unwrap_or(60);
    let seed = setting("OVERLAY_DP_CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default().as_micros() as u64
    });
    println!("OVERLAY_DP_CHAOS_SEED={seed} OVERLAY_DP_CHAOS_SECONDS={seconds}");
    let spec = LabSpec {
        hosts: HOSTS,
        containers: 20,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let run = Chaos::start(lab, seed).and_then(|mut chaos| {
            chaos.run(Duration::from_secs(seconds))?;
            chaos.conclude()
        });
        run.with_context(|| format!("OVERLAY_DP_CHAOS_SEED={seed}"))
    });
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// All of a run.
struct Chaos<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    rng: StdRng,
    ledger: Ledger,
    damage: Damage,
    started: Instant,
    slowest: (Duration, String),
    /// All is mended: nothing is killed any more, so each answer is the last word.
    mended: bool,
}

impl<'a> Chaos<'a> {
    fn start(lab: &'a Lab, seed: u64) -> Result<Chaos<'a>> {
        let mut chaos = Chaos {
            lab,
            cluster: Cluster::start(lab, MANAGERS, "")?,
            rng: StdRng::seed_from_u64(seed),
            ledger: Ledger::new(lab.containers(), MANAGERS),
            damage: Damage::default(),
            started: Instant::now(),
            slowest: (Duration::ZERO, String::new()),
            mended: false,
        };
        // Something to lose.
        chaos.create_network()?;
        chaos.create_network()?;
        for _ in 0..6 {
            chaos.add_container()?;
        }
        Ok(chaos)
    }

    fn run(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        let mut events = 0;
        while Instant::now() < end {
            self.event()?;
            self.cluster.check_running()?;
            self.ledger.no_address_twice()?;
            let pause = self.rng.random_range(0..200);
            sleep(Duration::from_millis(pause));
            events += 1;
        }
        self.note(&format!(
            "{events} events; slowest command {:?}: {}",
            self.slowest.0, self.slowest.1
        ));
        Ok(())
    }

    fn event(&mut self) -> Result<()> {
        match self.rng.random_range(0..100) {
            0..30 => self.add_container(),
            30..48 => self.remove_container(),
            48..56 => self.create_network(),
            56..60 => self.remove_network(),
            60..64 => self.change_role(),
            64..82 => self.break_something(),
            _ => self.mend_something(),
        }
    }

    /// Everything is mended; then everything must be right; then everything goes.
    fn conclude(mut self) -> Result<()> {
        self.mend_all()?;
        self.mended = true;
        self.cluster.wait_settled(HEALED)?;
        self.note("all mended");
        self.settle_doubts()?;
        self.ledger.no_address_twice()?;
        self.nothing_is_lost()?;
        self.note("nothing is lost");
        overlay_lab::all_reach_each_other(self.ledger.attached(), Duration::from_secs(15))?;
        self.note("all containers reach each other");
        self.lab.verify_clean(HEALED)?;
        self.note("verify is clean");
        self.remove_all()?;
        self.lab.verify_clean(HEALED)?;
        self.note("all is removed, and verify is clean");
        self.nothing_is_left()
    }

    /// A random one of these.
    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        match of.len() {
            0 => None,
            count => Some(of[self.rng.random_range(0..count)]),
        }
    }

    /// For the reader of a failure.
    fn note(&self, what: &str) {
        println!("{:8.3} {what}", self.started.elapsed().as_secs_f64());
    }
}
