//! The programs' log lines. The agent sets `AYA_LOG_LEVEL` when it loads the programs; at 0 the
//! verifier sees that these are never reached and takes them out.

use core::hint::black_box;

use aya_log_ebpf::debug;
use overlay_common::counters::DropReason;
use overlay_common::punt::Reason;

/// A name and spaces. Of one length, so that the programs copy a known number of bytes, and in
/// place, because a table of pointers would need relocations that BPF does not have.
type Name = [u8; 20];

static DROPS: [Name; DropReason::COUNT] = {
    let mut names = [[b' '; 20]; DropReason::COUNT];
    let mut i = 0;
    while i < DropReason::COUNT {
        names[i] = padded(DropReason::ALL[i].name());
        i += 1;
    }
    names
};

/// By [`Reason`]'s number; it has none for 0.
static PUNTS: [Name; Reason::ALL.len() + 1] = {
    let mut names = [[b' '; 20]; Reason::ALL.len() + 1];
    let mut i = 0;
    while i < Reason::ALL.len() {
        names[Reason::ALL[i] as usize] = padded(Reason::ALL[i].name());
        i += 1;
    }
    names
};

/// A frame that came in on `ifindex` was dropped.
#[inline(always)]
pub fn dropped(reason: DropReason, ifindex: u32) {
    debug!(
        (),
        "interface {}: drop, {}",
        ifindex,
        lookup(&DROPS, reason as usize)
    );
}

/// A frame that came in on `ifindex` was handed to the agent.
#[inline(always)]
pub fn punted(reason: Reason, ifindex: u32, vni: u32) {
    let reason = reason as usize;
    debug!(
        (),
        "interface {}, VNI {}: punt, {}",
        ifindex,
        vni,
        lookup(&PUNTS, reason)
    );
}

#[inline(always)]
fn lookup<const N: usize>(names: &'static [Name; N], index: usize) -> &'static str {
    // The compiler knows the index to be in range, but the verifier wants to see it checked.
    let name = names.get(black_box(index)).unwrap_or(&names[0]);
    // SAFETY: names are ASCII.
    unsafe { core::str::from_utf8_unchecked(name) }
}

const fn padded(name: &str) -> Name {
    let name = name.as_bytes();
    let mut padded = [b' '; 20];
    let mut i = 0;
    while i < name.len() {
        assert!(name[i].is_ascii());
        padded[i] = name[i];
        i += 1;
    }
    padded
}
