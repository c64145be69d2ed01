//! Sending XDP frames, and swallowing them: two programs of a few instructions, by bpf(2) itself.
//! (aya loads programs from objects, and these are too small to be compiled.)

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// `enum bpf_cmd` of linux/bpf.h, as everything here.
const MAP_CREATE: c_long = 0;
const MAP_LOOKUP_ELEM: c_long = 1;
const PROG_LOAD: c_long = 5;
const PROG_TEST_RUN: c_long = 10;
const LINK_CREATE: c_long = 28;

const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;
const MAP_TYPE_ARRAY: u32 = 2;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// As many as a NIC's driver handles at once.
const BATCH: u32 = 64;

/// Sends frames out of an interface, as XDP programs do.
pub struct Sender {
    program: OwnedFd,
    ifindex: u32,
}

impl Sender {
    /// Out of an interface of this thread's namespace.
    pub fn new(ifindex: u32) -> Result<Sender> {
        let program = load(PROG_TYPE_XDP, &[mov(0, XDP_TX), EXIT])?;
        Ok(Sender { program, ifindex })
    }

    /// Sends a frame so many times. What happens to them happens meanwhile, as far as it does on
    /// this CPU. This thread must be in the interface's namespace.
    pub fn send(&self, frame: &[u8], times: u32) -> Result<()> {
        #[repr(C)]
        #[derive(Default)]
        struct Run {
            prog_fd: i32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            padding: u32,
        }
        /// `struct xdp_md`.
        #[repr(C)]
        struct Context {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress_ifindex: u32,
            rx_queue_index: u32,
            egress_ifindex: u32,
        }
        let len = u32::try_from(frame.len())?;
        let context = Context {
            data: 0,
            data_end: len,
            data_meta: 0,
            ingress_ifindex: self.ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let mut run = Run {
            prog_fd: self.program.as_raw_fd(),
            data_size_in: len,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            ctx_size_in: size_of::<Context>() as u32,
            ctx_in: (&raw const context) as u64,
            flags: TEST_XDP_LIVE_FRAMES,
            batch_size: BATCH,
            ..Run::default()
        };
        // SAFETY: `data_in` and `ctx_in` point at `frame` and `context`, which outlive the call
        // and have the sizes that are told; the kernel only reads them. The pointers for output
        // are null.
        unsafe { bpf(PROG_TEST_RUN, &mut run) }.context("sending live XDP frames")?;
        Ok(())
    }
}

/// Where a [`Sink`] sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tcx,
}

/// Swallows and counts the frames of one length that come in on an interface, until it is dropped.
pub struct Sink {
    counter: OwnedFd,
    _link: OwnedFd,
}

impl Sink {
    /// On an interface of this thread's namespace. Native XDP makes a veth copy what does not
    /// come as an XDP frame with enough room in front; tcx makes it build a packet of what does.
    pub fn attach(ifindex: u32, hook: Hook, frame_len: usize) -> Result<Sink> {
        #[repr(C)]
        struct Link {
            prog_fd: i32,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
            more: [u64; 6],
        }
        let counter = counter()?;
        let (kind, attach_type, flags) = match hook {
            Hook::Xdp => (PROG_TYPE_XDP, ATTACH_XDP, XDP_FLAGS_DRV_MODE),
            Hook::Tcx => (PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS, 0),
        };
        let program = load(kind, &swallow(hook, i32::try_from(frame_len)?, &counter))?;
        let mut link = Link {
            prog_fd: program.as_raw_fd(),
            target_ifindex: ifindex,
            attach_type,
            flags,
            more: [0; 6],
        };
        // SAFETY: the attribute has no pointers.
        let link = unsafe { bpf(LINK_CREATE, &mut link) };
        let link = link.with_context(|| format!("attaching a sink by {hook:?}"))?;
        Ok(Sink {
            counter,
            _link: owned(link),
        })
    }

    /// How many it has swallowed.
    pub fn count(&self) -> Result<u64> {
        #[repr(C)]
        struct Lookup {
            map_fd: i32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, mut value) = (0_u32, 0_u64);
        let mut lookup = Lookup {
            map_fd: self.counter.as_raw_fd(),
            padding: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads a key of 4 bytes from `key` and writes a value of 8 to `value`,
        // as the map was made for (see `counter`); both outlive the call.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut lookup) }.context("reading a sink's count")?;
        Ok(value)
    }
}

/// An array of one number.
fn counter() -> Result<OwnedFd> {
    #[repr(C)]
    struct Map {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut map = Map {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
    };
    // SAFETY: the attribute has no pointers.
    let fd = unsafe { bpf(MAP_CREATE, &mut map) }.context("making a sink's counter")?;
    Ok(owned(fd))
}

fn load(kind: u32, program: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let license = c"Apache-2.0";
    let mut load = Load {
        prog_type: kind,
        insn_cnt: u32::try_from(program.len())?,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: `insns` points at `insn_cnt` instructions of 8 bytes, `license` at a string with a
    // NUL at its end; both outlive the call, and the kernel only reads them.
    let fd = unsafe { bpf(PROG_LOAD, &mut load) }.context("loading a program of this bench")?;
    Ok(owned(fd))
}

/// Lets anything else on its CPU run before this thread. A sender must: what ksoftirqd has taken
/// over to do would else wait for its turn while more is sent, and be too much for the queues.
pub fn yield_to_softirqs() -> Result<()> {
    let only_priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameter, which outlives the call; 0 is this thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const only_priority) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("setting SCHED_IDLE");
    }
    Ok(())
}

/// bpf(2). What is behind the attribute is 0 for the kernel.
///
/// # Safety
/// `A` is the beginning of the command's part of `union bpf_attr`, and the pointers in it are
/// valid for what the command does with them.
unsafe fn bpf<A>(command: c_long, attribute: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the given size at the pointer, which is that of
    // a live, exclusively borrowed struct; what that points at is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<A>(),
        )
    };
    match i32::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with what the kernel has just returned for a new map, program or link,
    // which nobody else knows of.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Drops and counts frames of this length, and lets others pass.
fn swallow(hook: Hook, len: i32, counter: &OwnedFd) -> Vec<u64> {
    let (drop, pass) = match hook {
        Hook::Xdp => (XDP_DROP, XDP_PASS),
        Hook::Tcx => (TC_ACT_SHOT, TC_ACT_OK),
    };
    let mut program = match hook {
        // r3 = data_end - data
        Hook::Xdp => vec![
            load_word(3, 1, 4),
            load_word(2, 1, 0),
            instruction(0x1f, 3, 2, 0, 0),
        ],
        // r3 = len
        Hook::Tcx => vec![load_word(3, 1, 0)],
    };
    program.extend([
        // if r3 != len goto the last two
        instruction(0x55, 3, 0, 6, len),
        // r1 = where the map's value is
        instruction(0x18, 1, 2, 0, counter.as_raw_fd()),
        0,
        mov(2, 1),
        // lock *(u64 *)r1 += r2
        instruction(0xdb, 1, 2, 0, 0),
        mov(0, drop),
        EXIT,
        mov(0, pass),
        EXIT,
    ]);
    program
}

const EXIT: u64 = 0x95;

fn mov(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, 0, 0, value)
}

/// `to = *(u32 *)(from + offset)`
fn load_word(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}

/// `struct bpf_insn`.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    u64::from_ne_bytes([code, src << 4 | dst, o0, o1, v0, v1, v2, v3])
}
