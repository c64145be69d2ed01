//! The command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use overlay_lab::Wire;

use crate::bed::Peer;
use crate::support::test_mode;

/// Measures overlay-dp from container to container, in turns with its peers.
#[derive(Parser)]
#[command(bin_name = "cargo bench -p overlay-dp --bench end_to_end --")]
pub struct Args {
    /// Only what has one of these words in its name, such as 'udp', 'p99' or 'stream'
    #[arg(value_name = "WORD")]
    words: Vec<String>,
    /// The same, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "WORDS")]
    only: Vec<String>,
    /// What the cables do with super-packets
    #[arg(long = "wire", value_delimiter = ',', default_values = ["gso", "mtu", "mtu+gro"])]
    pub wires: Vec<Wire>,
    /// Who takes part
    #[arg(long = "peer", value_delimiter = ',', default_values = Peer::UNASKED)]
    peers: Vec<Peer>,
    /// Docker's own overlay, too: two daemons in a swarm. Needs Docker to be installed, running or
    /// not
    #[arg(long)]
    docker: bool,
    /// How often it is everyone's turn
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The CPUs of who sends and of who answers
    #[arg(long, value_delimiter = ',', default_values = ["0"])]
    pub cpus: Vec<usize>,
    /// The same for TCP streams; the last one also empties the socket of live frames
    #[arg(long, value_delimiter = ',', default_values = ["0", "1"])]
    pub stream_cpus: Vec<usize>,
    /// Fail when a ratio to kernel vxlan is worse than in this file, which an earlier run has left
    #[arg(long, value_name = "FILE", value_parser = from_workspace)]
    pub baseline: Option<PathBuf>,
    /// Fail when a goal is missed
    #[arg(long)]
    pub strict: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    /// Everything once, quickly
    #[arg(long)]
    test: bool,
    #[arg(long, hide = true)]
    pub list: bool,
    #[arg(long, hide = true)]
    format: Option<String>,
}

impl Args {
    /// Whether something of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        let mut words = self.words.iter().chain(&self.only).peekable();
        words.peek().is_none() || words.any(|word| name.contains(&word.to_lowercase()))
    }

    pub fn takes_part(&self, peer: Peer) -> bool {
        self.peers.contains(&peer) || (self.docker && peer == Peer::Docker)
    }

    pub fn rounds(&self) -> u32 {
        if test_mode() { 1 } else { self.rounds }
    }

    pub fn first_cpu(&self) -> usize {
        self.cpus.first().copied().unwrap_or_default()
    }

    pub fn last_cpu(&self) -> usize {
        self.cpus.last().copied().unwrap_or_default()
    }

    pub fn last_stream_cpu(&self) -> usize {
        self.stream_cpus.last().copied().unwrap_or_default()
    }
}

/// Cargo runs benches in their package's directory, and its user is elsewhere.
fn from_workspace(file: &str) -> anyhow::Result<PathBuf> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    [PathBuf::from(file), root.join(file)]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no file {file}"))
}
