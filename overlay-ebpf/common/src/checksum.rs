//! The Internet checksum (RFC 1071) over headers of a fixed size.

/// Folds a sum of 16-bit words to 16 bits, carries added back in.
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of `N` bytes (an even number) as big-endian 16-bit words, folded to one. Added up as
/// they lie in memory, which makes no difference but to the order of the result's bytes (RFC 1071
/// section 2.B).
#[inline(always)]
pub const fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(2)) }
    let mut sum: u64 = 0;
    let mut rest = bytes.as_slice();
    while let Some((word, more)) = rest.split_first_chunk() {
        sum += u32::from_ne_bytes(*word) as u64;
        rest = more;
    }
    if let Some(half) = rest.first_chunk() {
        sum += u16::from_ne_bytes(*half) as u64;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    u16::from_be(fold(sum as u32)) as u32
}

/// The checksum after one 16-bit word of what it covers changed (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example header of RFC 1071's successors: a checksum that is known to be 0xb861.
    const HEADER: [u8; 20] = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
        0xc7,
    ];

    #[test]
    fn a_valid_header_sums_to_all_ones() {
        assert_eq!(fold(sum(&HEADER)), 0xffff);
    }

    #[test]
    fn update_equals_computing_again() {
        let mut changed = HEADER;
        changed[1] = 3;
        changed[10..12].fill(0);
        let again = !fold(sum(&changed));
        assert_eq!(update(0xb861, 0x4500, 0x4503), again);
    }
}
