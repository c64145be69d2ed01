//! Running a frame through a program without sending it (`BPF_PROG_TEST_RUN`): the program that is
//! attached, over the maps that it has. It counts as the real thing does; what it would send goes
//! nowhere.

use anyhow::{Context, Result, bail};
use aya::programs::{Program, TestRun as _, TestRunOptions};
use overlay_common::counters::DropReason;
use overlay_common::punt::{self, Kind};
use overlay_common::wire::ETH_P_IP;

use super::{Bpf, HookKind, Site};

/// More than any headers that a program puts in front.
const ROOM: usize = 256;
/// An Ethernet frame without anything in it.
const SHORTEST: usize = 60;

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
        self.try_on(site, kind, (ifindex, 0), frame)
    }

    /// Whether what is punted finds the agent's socket: with a queue of the crypt link that worker's,
    /// else the slow path's. A map of sockets can't be read, so a frame is tried, which is counted
    /// as one for no agent when there is none.
    ///
    /// # Errors
    /// When the kernel can't run such a frame.
    pub fn finds_socket(&self, far_ifindex: u32, crypt_queue: Option<u32>) -> Result<bool> {
        let (site, kind) = match crypt_queue {
            Some(_) => (Site::CryptFar, Kind::ToSeal),
            None => (Site::PuntFar, Kind::FromPort),
        };
        let mut frame = [0; SHORTEST];
        let marker = punt::encode(kind, None, far_ifindex, ETH_P_IP);
        frame[..marker.len()].copy_from_slice(&marker);
        let on = (far_ifindex, crypt_queue.unwrap_or(0));
        let tried = self.try_on(site, HookKind::Xdp, on, &frame)?;
        Ok(tried.action == Action::Redirect)
    }

    fn try_on(
        &self,
        site: Site,
        kind: HookKind,
        (ifindex, queue): (u32, u32),
        frame: &[u8],
    ) -> Result<Tried> {
        let name = site.program(kind);
        let program = self.ebpf.program(name);
        let program = program.with_context(|| format!("the BPF object has no program {name}"))?;
        let mut out = vec![0; frame.len() + ROOM];
        let skb = sk_buff(ifindex);
        let md = xdp_md(ifindex, queue, frame.len())?;
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

/// The kernel's `struct xdp_md`: where the frame ends, and the interface with its queue.
fn xdp_md(ifindex: u32, queue: u32, len: usize) -> Result<[u8; 24]> {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(len)?.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context[16..20].copy_from_slice(&queue.to_ne_bytes());
    Ok(context)
}
