//! Probes as bytes: VXLAN with VNI 0, and behind it the echo.
//!
//! ```text
//!  0      1 .. 3   4 .. 6   7   8 .. 9    10 .. 11  12 .. 15  16 .. 23  24 ..
//! +------+--------+--------+---+---------+---------+---------+---------+---------+
//! | 0x08 |   0    | VNI 0  | 0 | request |  reply  | "OVLE"  |  nonce  | padding |
//! +------+--------+--------+---+---------+---------+---------+---------+---------+
//! ```
//!
//! A request has `request` = 1 and `reply` = 0; the far end's program swaps the two.

use std::net::IpAddr;

/// The least UDP payload, in bytes.
pub const LEN: usize = 24;

const VXLAN: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 0, 0];
const REQUEST: [u8; 4] = [0, 1, 0, 0];
const ANSWER: [u8; 4] = [0, 0, 0, 1];
const MAGIC: [u8; 4] = *b"OVLE";

/// What IP and UDP put in front of a payload, in bytes.
pub fn headers(to: IpAddr) -> usize {
    match to.to_canonical() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// The first bytes of a request; zeros follow.
pub fn request(nonce: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&VXLAN);
    bytes[8..12].copy_from_slice(&REQUEST);
    bytes[12..16].copy_from_slice(&MAGIC);
    bytes[16..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

/// The nonce of an answer; `None` for all else.
pub fn answer(payload: &[u8]) -> Option<u64> {
    let head: &[u8; LEN] = payload.first_chunk()?;
    let is_answer = head[..8] == VXLAN && head[8..12] == ANSWER && head[12..16] == MAGIC;
    let nonce = head.last_chunk().copied().map(u64::from_be_bytes);
    nonce.filter(|_| is_answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_are_answers() {
        let mut bytes = request(0x0102_0304_0506_0708);
        assert_eq!(answer(&bytes), None);
        bytes.swap(9, 11);
        assert_eq!(answer(&bytes), Some(0x0102_0304_0506_0708));
        assert_eq!(answer(&bytes[..LEN - 1]), None);
        for byte in 0..16 {
            let mut wrong = bytes;
            wrong[byte] ^= 0x40;
            assert_eq!(answer(&wrong), None, "{byte}");
        }
    }
}
