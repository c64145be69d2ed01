//! VTEP echo: what one agent sends to see whether another host's data path is alive, how long it
//! takes, and how large a packet gets through. The uplink program answers by itself, whether or
//! not an agent runs there.
//!
//! ```text
//!  outer IP and UDP         VXLAN, flags 0x08, VNI 0    message              to any length
//! +-----------------------+---------------------------+--------------------+---------------+
//! | from any port         |                           |                    |               |
//! | to the data port      | 08 00 00 00  00 00 00 00  | see below, 16      | padding       |
//! +-----------------------+---------------------------+--------------------+---------------+
//!
//!  request 2   answer 2   magic 4       nonce 8
//! +----------+----------+-------------+------------------------------+
//! | 1        | 0        | "OVLE"      | the asker's, any             |      a request
//! | 0        | 1        | "OVLE"      | the same                     |      its answer
//! | 2        | 0        | "OVLE"      | the asker's, any             |      a checksum probe
//! | 0        | 2        | "OVLE"      | the same                     |      its answer: sound
//! | 0        | 3        | "OVLE"      | the same                     |      its answer: unsound
//! +----------+----------+-------------+------------------------------+
//! ```
//!
//! VNI 0 is no network's. An answer is the request with its ends and the first two words of the
//! message exchanged: no checksum changes by that, so it is made in place. It is as long as the
//! request, whose padding thus says what both ways carry. It has what is left of the request's
//! TTL or hop limit.
//!
//! A checksum probe has no padding, and a UDP checksum that its sender's kernel leaves to the device,
//! as containers' are left. When that is not computed on arrival, a hook or a driver on the way has
//! lost the note that it is to be, and the answer, which then has none, says so. At tcx the note is
//! still there, and is kept: whatever the bytes are, they are sound. A host that knows no such probes
//! drops them.
//!
//! Only a request from a known VTEP whose lengths agree exactly is answered. The answer goes to a
//! port that is not the data port: it is the kernel's, for the agent's UDP socket, and known by its
//! nonce. (On the data port a socket would keep the kernel from joining what tunnels bring: see
//! `overlay_host::outer_gro`.) That socket must send all else without UDP checksum (`SO_NO_CHECK`;
//! for IPv6 `UDP_NO_CHECK6_TX`, and `UDP_NO_CHECK6_RX` to take the answer): XDP on a veth loses the
//! note. It should set DF (`IP_PMTUDISC_PROBE`) and must not use UDP segmentation offload.

use crate::wire::{VXLAN_FLAG_VNI, VXLAN_LEN};

/// The VNI of echoes.
pub const VNI: u32 = 0;
/// What the message says it is.
pub const MAGIC: [u8; 4] = *b"OVLE";
/// The first two words of a request, as one number.
const REQUEST: u32 = 0x0001_0000;
/// Those of an answer.
const ANSWER: u32 = 0x0000_0001;
/// Those of a checksum probe.
const CHECKSUM_REQUEST: u32 = 0x0002_0000;
/// Those of its answer when it was sound.
const CHECKSUM_SOUND: u32 = 0x0000_0002;
/// Those of its answer when it was not.
const CHECKSUM_UNSOUND: u32 = 0x0000_0003;
/// The same as bytes.
pub const UNSOUND: [u8; 4] = CHECKSUM_UNSOUND.to_be_bytes();
/// The message, in bytes.
pub const MESSAGE_LEN: usize = 16;
/// The shortest UDP payload: VXLAN header and message.
pub const PAYLOAD_LEN: usize = VXLAN_LEN + MESSAGE_LEN;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// That the request has come.
    Here,
    /// That a checksum probe has come with its checksum.
    Sound,
    /// That a checksum probe has come without it.
    Unsound,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's.
    pub nonce: u64,
    /// What it says.
    pub says: Says,
}

/// The UDP payload of a request. Padding goes behind it.
pub const fn request(nonce: u64) -> [u8; PAYLOAD_LEN] {
    message(REQUEST, nonce)
}

/// The UDP payload of a checksum probe.
pub const fn checksum_request(nonce: u64) -> [u8; PAYLOAD_LEN] {
    message(CHECKSUM_REQUEST, nonce)
}

const fn message(kind: u32, nonce: u64) -> [u8; PAYLOAD_LEN] {
    let [k0, k1, k2, k3] = kind.to_be_bytes();
    let [m0, m1, m2, m3] = MAGIC;
    let [n0, n1, n2, n3, n4, n5, n6, n7] = nonce.to_be_bytes();
    [
        VXLAN_FLAG_VNI,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        k0,
        k1,
        k2,
        k3,
        m0,
        m1,
        m2,
        m3,
        n0,
        n1,
        n2,
        n3,
        n4,
        n5,
        n6,
        n7,
    ]
}

/// An answer, from its UDP payload; `None` when it is none.
pub fn answer(payload: &[u8]) -> Option<Answer> {
    let (vxlan, message) = payload.split_first_chunk::<VXLAN_LEN>()?;
    let (words, message) = message.split_first_chunk()?;
    let (magic, message) = message.split_first_chunk::<4>()?;
    let nonce = u64::from_be_bytes(*message.first_chunk()?);
    let says = match u32::from_be_bytes(*words) {
        ANSWER => Says::Here,
        CHECKSUM_SOUND => Says::Sound,
        CHECKSUM_UNSOUND => Says::Unsound,
        _ => return None,
    };
    let on_vni_0 = vxlan[0] & VXLAN_FLAG_VNI != 0 && vxlan[4..7] == [0; 3];
    (on_vni_0 && *magic == MAGIC).then_some(Answer { nonce, says })
}

/// Whether a message is to be answered, by its first two words and its magic.
#[inline(always)]
pub const fn is_request(words: [u8; 4], magic: [u8; 4]) -> bool {
    is(REQUEST, words, magic)
}

/// Whether it is a checksum probe.
#[inline(always)]
pub const fn is_checksum_request(words: [u8; 4], magic: [u8; 4]) -> bool {
    is(CHECKSUM_REQUEST, words, magic)
}

#[inline(always)]
const fn is(kind: u32, words: [u8; 4], magic: [u8; 4]) -> bool {
    u32::from_ne_bytes(magic) == u32::from_ne_bytes(MAGIC) && u32::from_be_bytes(words) == kind
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x0102_0304_0506_0708;

    #[test]
    fn the_format() {
        for (kind, request) in [(1, request(NONCE)), (2, checksum_request(NONCE))] {
            assert_eq!(request[..8], [8, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(request[8..12], [0, kind, 0, 0]);
            assert_eq!(request[12..16], *b"OVLE");
            assert_eq!(request[16..], [1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(answer(&request), None, "a request is no answer");
            let words = [0, kind, 0, 0];
            assert_eq!(is_request(words, MAGIC), kind == 1);
            assert_eq!(is_checksum_request(words, MAGIC), kind == 2);
        }
    }

    #[test]
    fn answers() {
        let mut answered = [&request(NONCE)[..], &[0xee; 100]].concat();
        for (kind, says) in [(1, Says::Here), (2, Says::Sound), (3, Says::Unsound)] {
            answered[8..12].copy_from_slice(&[0, 0, 0, kind]);
            let nonce = NONCE;
            assert_eq!(answer(&answered), Some(Answer { nonce, says }));
            assert_eq!(answer(&answered[..24]), Some(Answer { nonce, says }));
            assert_eq!(answer(&answered[..23]), None);
        }
        assert_eq!(answered[8..12], UNSOUND);
        for (at, value) in [(0, 0), (4, 1), (6, 1), (9, 1), (11, 0), (11, 4), (12, b'o')] {
            let mut broken = answered.clone();
            broken[at] = value;
            assert_eq!(answer(&broken), None, "byte {at} is {value}");
        }
    }
}
