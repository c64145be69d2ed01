//! Where the frames go that come out of the slow path.

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use overlay_common::counters::DropReason;
use overlay_common::layout::names;
use overlay_dp::bpf::Bpf;
use overlay_lab::Ns;

/// Counts and drops all that comes to a container, before its network stack has any work with it.
/// (The program for what the agent sends drops what is not the agent's.)
pub struct Sink {
    bpf: Bpf,
}

impl Sink {
    pub fn new(container: &Ns, ifname: &str) -> Result<Sink> {
        let pins = PathBuf::from(format!("/sys/fs/bpf/ovl-sink-{}", std::process::id()));
        let bpf = Bpf::load(&pins, false);
        // The maps live as long as they are open; so nothing stays, however this process ends.
        Bpf::unpin_all(&pins)?;
        let mut bpf = bpf?;
        let program = bpf.ebpf_mut().program_mut(names::AGENT_TC);
        let program: &mut SchedClassifier = program.context("no such program")?.try_into()?;
        program.load()?;
        container.within(|| Ok(program.attach(ifname, TcAttachType::Ingress)?))?;
        Ok(Sink { bpf })
    }

    /// How many there were.
    pub fn frames(&self) -> Result<u64> {
        let drops = self.bpf.drops()?;
        let count = drops
            .iter()
            .find(|(reason, _)| *reason == DropReason::NotPunted);
        Ok(count.context("no such counter")?.1)
    }
}
