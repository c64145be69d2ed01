//! VTEP echo: what one agent sends to see whether another host's data path is alive, how long it
//! takes, and how large a packet gets through. The uplink program answers by itself, whether or
//! not an agent runs there.
//!
//! ```text
//!  outer IP and UDP         VXLAN, flags 0x08, VNI 0    message              to any length
//! +-----------------------+---------------------------+--------------------+---------------+
//! | both ports: data port | 08 00 00 00  00 00 00 00  | see below, 16      | padding       |
//! +-----------------------+---------------------------+--------------------+---------------+
//!
//!  request 2   answer 2   magic 4       nonce 8
//! +----------+----------+-------------+------------------------------+
//! | 1        | 0        | "OVLE"      | the asker's, any             |      a request
//! | 0        | 1        | "OVLE"      | the same                     |      its answer
//! +----------+----------+-------------+------------------------------+
//! ```
//!
//! VNI 0 is no network's. An answer is the request with its ends and the first two words of the
//! message exchanged: no checksum changes by that, so it is made in place. It is as long as the
//! request, whose padding thus says what both ways carry. It has what is left of the request's
//! TTL or hop limit.
//!
//! Only a request from a known VTEP whose lengths agree exactly is answered, and only an answer
//! from a known VTEP gets to the kernel, for the agent's UDP socket on VTEP address and data port.
//! That socket must send without UDP checksum (`SO_NO_CHECK`; for IPv6 `UDP_NO_CHECK6_TX`, and
//! `UDP_NO_CHECK6_RX` to take the answer): XDP on a veth loses the note that one is still to be
//! computed. It should set DF (`IP_PMTUDISC_PROBE`) and must not use UDP segmentation offload.

use crate::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, VXLAN_FLAG_VNI, VXLAN_LEN, be16};

/// The VNI of echoes.
pub const VNI: u32 = 0;
/// What the message says it is.
pub const MAGIC: [u8; 4] = *b"OVLE";
/// The message, in bytes.
pub const MESSAGE_LEN: usize = 16;
/// The shortest UDP payload: VXLAN header and message.
pub const PAYLOAD_LEN: usize = VXLAN_LEN + MESSAGE_LEN;
/// From the outer Ethernet header to the two words, over IPv4: what [`reflect_v4`] changes.
pub const V4_HEAD: usize = ETH_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN + 4;
/// The same over IPv6, for [`reflect_v6`].
pub const V6_HEAD: usize = ETH_LEN + IPV6_LEN + UDP_LEN + VXLAN_LEN + 4;

/// Request or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be answered.
    Request,
    /// To be given to who asked.
    Answer,
}

/// The UDP payload of a request. Padding goes behind it.
pub const fn request(nonce: u64) -> [u8; PAYLOAD_LEN] {
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
        0,
        1,
        0,
        0,
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

/// The nonce of an answer, from its UDP payload; `None` when it is none.
pub fn answer(payload: &[u8]) -> Option<u64> {
    let (vxlan, message) = payload.split_first_chunk::<VXLAN_LEN>()?;
    let message: &[u8; MESSAGE_LEN] = message.first_chunk()?;
    let on_vni_0 = vxlan[0] & VXLAN_FLAG_VNI != 0 && vxlan[4..7] == [0; 3];
    let (head, nonce) = message.split_first_chunk::<8>()?;
    if !on_vni_0 || kind(head) != Some(Kind::Answer) {
        return None;
    }
    Some(u64::from_be_bytes(*nonce.first_chunk()?))
}

/// What a message is that begins so; `None` when it is no echo.
#[inline(always)]
pub const fn kind(message: &[u8; 8]) -> Option<Kind> {
    let magic = u32::from_ne_bytes([message[4], message[5], message[6], message[7]]);
    if magic != u32::from_ne_bytes(MAGIC) {
        return None;
    }
    match (be16(message[0], message[1]), be16(message[2], message[3])) {
        (1, 0) => Some(Kind::Request),
        (0, 1) => Some(Kind::Answer),
        _ => None,
    }
}

/// Makes a request over IPv4 its answer, from the first bytes of the frame.
#[inline(always)]
pub fn reflect_v4(frame: &mut [u8; V4_HEAD]) {
    swap::<V4_HEAD, 6>(frame, 0);
    swap::<V4_HEAD, 4>(frame, ETH_LEN + 12);
    swap::<V4_HEAD, 2>(frame, ETH_LEN + IPV4_LEN);
    swap::<V4_HEAD, 2>(frame, V4_HEAD - 4);
}

/// Makes a request over IPv6 its answer, from the first bytes of the frame.
#[inline(always)]
pub fn reflect_v6(frame: &mut [u8; V6_HEAD]) {
    swap::<V6_HEAD, 6>(frame, 0);
    swap::<V6_HEAD, 16>(frame, ETH_LEN + 8);
    swap::<V6_HEAD, 2>(frame, ETH_LEN + IPV6_LEN);
    swap::<V6_HEAD, 2>(frame, V6_HEAD - 4);
}

/// Exchanges two fields of `LEN` bytes, an even number, that lie behind one another.
#[inline(always)]
fn swap<const N: usize, const LEN: usize>(frame: &mut [u8; N], at: usize) {
    let mut i = at;
    while i < at + LEN {
        let (a, b) = (
            [frame[i], frame[i + 1]],
            [frame[i + LEN], frame[i + LEN + 1]],
        );
        [frame[i], frame[i + 1]] = b;
        [frame[i + LEN], frame[i + LEN + 1]] = a;
        i += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format() {
        let request = request(0x0102_0304_0506_0708);
        assert_eq!(request[..8], [8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request[8..12], [0, 1, 0, 0]);
        assert_eq!(request[12..16], *b"OVLE");
        assert_eq!(request[16..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(answer(&request), None, "a request is no answer");

        let mut answered = [&request[..], &[0xee; 100]].concat();
        answered[8..12].copy_from_slice(&[0, 0, 0, 1]);
        assert_eq!(answer(&answered), Some(0x0102_0304_0506_0708));
        assert_eq!(answer(&answered[..24]), Some(0x0102_0304_0506_0708));
        assert_eq!(answer(&answered[..23]), None);
        for (at, value) in [(0, 0), (4, 1), (6, 1), (9, 1), (11, 0), (11, 2), (12, b'o')] {
            let mut broken = answered.clone();
            broken[at] = value;
            assert_eq!(answer(&broken), None, "byte {at} is {value}");
        }
    }

    #[test]
    fn reflecting_twice_changes_nothing() {
        let v4: [u8; V4_HEAD] = core::array::from_fn(|i| i as u8);
        let mut frame = v4;
        reflect_v4(&mut frame);
        assert_eq!(frame[..14], [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 12, 13]);
        assert_eq!(
            frame[26..38],
            [30, 31, 32, 33, 26, 27, 28, 29, 36, 37, 34, 35]
        );
        assert_eq!(frame[50..], [52, 53, 50, 51]);
        reflect_v4(&mut frame);
        assert_eq!(frame, v4);

        let v6: [u8; V6_HEAD] = core::array::from_fn(|i| i as u8);
        let mut frame = v6;
        reflect_v6(&mut frame);
        assert_eq!(frame[22..38], v6[38..54]);
        assert_eq!(frame[38..54], v6[22..38]);
        assert_eq!(frame[54..58], [56, 57, 54, 55]);
        assert_eq!(frame[70..], [72, 73, 70, 71]);
        reflect_v6(&mut frame);
        assert_eq!(frame, v6);
    }
}
