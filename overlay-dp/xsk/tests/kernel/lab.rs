//! The namespace, the veth and the program of a test, and what the frames are.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, panic, process, thread};

use overlay_xsk::{Xsk, XskConfig};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

pub const MTU: usize = 3400;
pub const XSK: &str = "xsk0";
pub const PEER: &str = "peer0";
/// For experiments (IEEE 802): nothing else in the namespace sends it.
pub const ETHERTYPE: u16 = 0x88b5;
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

pub fn ifindex(name: &str) -> u32 {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    );
    rustix::net::netdevice::name_to_index(socket.unwrap(), name).unwrap()
}

/// To standard error itself: the test harness swallows what eprintln prints in a test that passes.
pub fn shout(message: &str) {
    let _ = writeln!(io::stderr(), "\n*** {message} ***\n");
}

/// True when the test can run; panics instead of skipping in CI.
pub fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        env::var("CI").as_deref() != Ok("true"),
        "AF_XDP tests need root, and CI must run them"
    );
    shout("SKIPPED: this AF_XDP test needs root, and has shown NOTHING");
    false
}

/// Deletes its namespace, and with it the veth, however the test ends.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Runs a test on a thread inside a new namespace which has the veth, both ends up.
pub fn in_lab(test: impl FnOnce() + Send) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !is_root() {
        return;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace(format!("xsk-{}-{number}", process::id()));
    ip(&format!("netns add {}", namespace.0));
    let file = fs::File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    let result = thread::scope(|scope| {
        let inside = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            ip(&format!(
                "link add {XSK} mtu {MTU} type veth peer name {PEER} mtu {MTU}"
            ));
            ip(&format!("link set {XSK} up"));
            ip(&format!("link set {PEER} up"));
            test();
        };
        scope.spawn(inside).join()
    });
    drop(namespace);
    if let Err(panic) = result {
        panic::resume_unwind(panic);
    }
}

/// Rings small enough to go round often.
pub fn small() -> XskConfig {
    XskConfig {
        frame_count: 256,
        rx_ring: 64,
        tx_ring: 64,
        ..XskConfig::new(ifindex(XSK), 0)
    }
}

/// A bound socket with the XDP program that feeds it.
pub struct Bound {
    pub xsk: Xsk,
    _link: OwnedFd,
}

impl Bound {
    pub fn new(config: &XskConfig, mode: sys::XdpMode) -> Self {
        let xsk = Xsk::bind(config).unwrap();
        let map = sys::xskmap();
        let _link = sys::attach_redirect(map.as_fd(), config.ifindex, mode);
        sys::xskmap_set(map.as_fd(), xsk.as_raw_fd());
        Self { xsk, _link }
    }

    /// Receives until there are `count` frames.
    pub fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let deadline = Instant::now() + TIMEOUT;
        while frames.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} of {count}; {:?}",
                frames.len(),
                self.xsk.statistics()
            );
            let mut fds = [PollFd::new(&self.xsk, PollFlags::IN)];
            poll(&mut fds, Some(&left.try_into().unwrap())).unwrap();
            self.xsk
                .rx()
                .receive(16, |frame| frames.push(frame.to_vec()));
        }
        frames
    }

    /// Queues a frame; false when none is free.
    pub fn queue(&mut self, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.xsk.tx().reserve() else {
            return false;
        };
        frame.buffer()[..bytes.len()].copy_from_slice(bytes);
        frame.commit(bytes.len()).unwrap();
        true
    }

    /// Flushes until the kernel has taken everything.
    pub fn flush(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.xsk.tx().flush().unwrap() > 0 {
            assert!(Instant::now() < deadline, "{:?}", self.xsk.statistics());
            thread::yield_now();
        }
    }
}

/// A frame which differs from all others, `len` bytes long.
pub fn frame_of(seq: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ETHERTYPE.to_be_bytes());
    let mut state = seq.wrapping_mul(0x9e37_79b9) | 1;
    frame.resize_with(len, || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    });
    frame
}

/// A frame with a length of its own, from 60 bytes to all that the MTU permits.
pub fn frame(seq: u32) -> Vec<u8> {
    frame_of(seq, 60 + (seq as usize * 37) % (MTU + 14 - 60 + 1))
}
