//! The system calls of the tests: bpf(2) with a program made by hand, and AF_PACKET. All unsafe code
//! of the tests is here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::lab::ETHERTYPE;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const XDP_DROP: i32 = 1;
const LICENSE: &CStr = c"GPL";

/// How an XDP program is attached.
#[derive(Clone, Copy)]
pub enum XdpMode {
    Generic = 1 << 1,
    Native = 1 << 2,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
/// Addresses in `attr` must be of memory which is as long as the command expects.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> RawFd {
    // SAFETY: `attr` is readable for its size, and the caller vouches for what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    assert!(
        result >= 0,
        "bpf({command}): {}",
        io::Error::last_os_error()
    );
    result as RawFd
}

/// # Safety
/// As for [`bpf`], and the command must be one which opens a descriptor.
unsafe fn bpf_open<T>(command: libc::c_int, attr: &T) -> OwnedFd {
    // SAFETY: the caller vouches for both.
    unsafe { OwnedFd::from_raw_fd(bpf(command, attr)) }
}

pub fn xskmap() -> OwnedFd {
    let attr = MapCreate {
        map_type: BPF_MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
    };
    // SAFETY: no addresses, and it opens a map.
    unsafe { bpf_open(BPF_MAP_CREATE, &attr) }
}

pub fn xskmap_set(map: BorrowedFd<'_>, socket: RawFd) {
    let (key, value) = (0u32, socket as u32);
    let attr = MapUpdate {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: key and value are 4 bytes as the map's are, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) };
}

/// `return bpf_redirect_map(map, 0, XDP_DROP)`, attached for as long as the link is open.
pub fn attach_redirect(map: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> OwnedFd {
    let insn = |code: u8, dst: u8, src: u8, imm: i32| {
        let [a, b, c, d] = imm.to_ne_bytes();
        [code, dst | src << 4, 0, 0, a, b, c, d]
    };
    let program = [
        insn(0x18, 1, BPF_PSEUDO_MAP_FD, map.as_raw_fd()), // r1 = map, in two slots
        insn(0, 0, 0, 0),
        insn(0xb7, 2, 0, 0),                     // r2 = key 0
        insn(0xb7, 3, 0, XDP_DROP),              // r3 = action when there is no socket
        insn(0x85, 0, 0, BPF_FUNC_REDIRECT_MAP), // call
        insn(0x95, 0, 0, 0),                     // exit
    ];
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
    };
    // SAFETY: `insn_cnt` instructions of 8 bytes and a C string, which outlive the call; it opens a
    // program.
    let program = unsafe { bpf_open(BPF_PROG_LOAD, &load) };
    let link = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags: mode as u32,
    };
    // SAFETY: no addresses, and it opens a link.
    unsafe { bpf_open(BPF_LINK_CREATE, &link) }
}

/// Sends raw frames on an interface and receives those with the tests' EtherType.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    pub fn bind(ifindex: u32) -> Self {
        // SAFETY: no preconditions.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: a descriptor just opened, which nothing else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let timeout = libc::timeval {
            tv_sec: 2,
            tv_usec: 0,
        };
        socket.set(libc::SO_RCVTIMEO, &timeout);
        socket.set(libc::SO_RCVBUFFORCE, &(16i32 << 20));
        let addr = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETHERTYPE.to_be(),
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of_val(&addr) as u32;
        // SAFETY: the pointer and length describe `addr`, which outlives the call.
        let result = unsafe { libc::bind(fd, (&raw const addr).cast(), len) };
        assert_eq!(result, 0, "bind: {}", io::Error::last_os_error());
        socket
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the pointer and length describe `frame`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(
            sent,
            frame.len() as isize,
            "send: {}",
            io::Error::last_os_error()
        );
    }

    /// The next frame; none after 2 seconds.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65536];
        // SAFETY: the pointer and length describe `frame`.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        frame.truncate(usize::try_from(len).ok()?);
        Some(frame)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) {
        let (fd, len) = (self.0.as_raw_fd(), size_of::<T>() as u32);
        // SAFETY: the pointer and length describe `value`, and the callers pass what the option takes.
        let result = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                option,
                (&raw const *value).cast(),
                len,
            )
        };
        assert_eq!(result, 0, "setsockopt: {}", io::Error::last_os_error());
    }
}
