//! Running a frame through a program without sending it (`BPF_PROG_TEST_RUN`): the program that is
//! attached, over the maps that it has. It counts as the real thing does; what it would send goes
//! nowhere.

use anyhow::{Context, Result, bail};
use aya::programs::{Program, TestRun as _, TestRunOptions};
use overlay_common::counters::DropReason;

use super::{Bpf, HookKind, Site};

/// More than any headers that a program puts in front.
const ROOM: usize = 256;

/// What a program told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The host's own stack gets it.
    Pass,
    /// It goes nowhere.
    Drop,
    /// It leaves by another interface.
    Redirect,
}

/// What came of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What is done with it.
    pub action: Action,
    /// As it would leave.
    pub bytes: Vec<u8>,
    /// The reasons counted meanwhile: other frames' may be among them.
    pub drops: Vec<DropReason>,
}

impl Bpf {
    /// Runs a frame through the program of a site, as if it had come in on this interface.
    ///
    /// # Errors
    /// When the kernel can't run such a frame.
    pub fn try_out(&self, site: Site, kind: HookKind, ifindex: u32, frame: &[u8]) -> Result<Tried> {
        let name = site.program(kind);
        let program = self.ebpf.program(name);
        let program = program.with_context(|| format!("the BPF object has no program {name}"))?;
        let mut out = vec![0; frame.len() + ROOM];
        let skb = sk_buff(ifindex);
        let md = xdp_md(ifindex, frame.len())?;
        let mut options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let before = self.drops()?;
        let result = match program {
            Program::Xdp(program) => {
                options.ctx_in = Some(&md);
                program.test_run(options)
            }
            Program::SchedClassifier(program) => {
                options.ctx_in = Some(&skb);
                program.test_run(options)
            }
            _ => bail!("{name} is of another type"),
        }
        .with_context(|| format!("the kernel does not try {name} with such a frame"))?;
        let after = self.drops()?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let drops = before.iter().zip(&after);
        Ok(Tried {
            action: match (kind, result.return_value) {
                (HookKind::Xdp, 1) | (HookKind::Tcx, 2) => Action::Drop,
                (HookKind::Xdp, 2) | (HookKind::Tcx, u32::MAX) => Action::Pass,
                (HookKind::Xdp, 4) | (HookKind::Tcx, 7) => Action::Redirect,
                (_, code) => bail!("{name} returned {code}"),
            },
            bytes: out,
            drops: drops
                .filter(|((_, before), (_, after))| after > before)
                .map(|((reason, _), _)| *reason)
                .collect(),
        })
    }
}

/// The kernel's `struct __sk_buff`, zero but for the interface.
fn sk_buff(ifindex: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// The kernel's `struct xdp_md`: where the frame ends, and the interface.
fn xdp_md(ifindex: u32, len: usize) -> Result<[u8; 24]> {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(len)?.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    Ok(context)
}
