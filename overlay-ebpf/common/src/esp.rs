//! ESP in UDP around VXLAN: what a frame of an encrypted network is between hosts.
//!
//! ```text
//! Ethernet | IPv4/IPv6 | UDP, to the ESP port | SPI, sequence number | IV
//!                        RFC 3948               RFC 4303               RFC 4106
//!     | UDP, to the data port | VXLAN | inner frame | padding, its length, 17 | ICV
//!       \\____________ encrypted with AES-256-GCM ____________________________/
//! ```
//!
//! Transport mode: it is the UDP datagram of VXLAN that is protected, and the outer IP header is
//! its own.

use crate::punt;
use crate::wire::{ETH_LEN, IPV6_LEN, UDP_LEN, VXLAN_LEN};

/// The UDP port of ESP (RFC 3948).
pub const PORT: u16 = 4500;
/// SPI 4, sequence number 4 (RFC 4303 section 2).
pub const HEADER_LEN: usize = 8;
/// The explicit IV of AES-GCM (RFC 4106 section 3.1).
pub const IV_LEN: usize = 8;
/// Pad length 1, next header 1.
pub const TRAILER_LEN: usize = 2;
/// The integrity check value: AES-GCM's tag, whole.
pub const ICV_LEN: usize = 16;
/// What is encrypted, trailer included, ends on such a boundary (RFC 4303 section 2.4).
pub const ALIGN: usize = 4;

/// What is in front of the encrypted part, behind the outer IP header.
pub const FRONT_LEN: usize = UDP_LEN + HEADER_LEN + IV_LEN;
/// The VXLAN datagram's own headers and the inner frame's.
const INSIDE: u32 = (UDP_LEN + VXLAN_LEN + ETH_LEN) as u32;
/// What a host without ESP puts between the outer IP header and the inner packet.
const CLEAR: u32 = INSIDE;

/// The largest inner packet of an encrypted network, where one of a network that is not has at
/// most `clear` bytes. Neither is it larger than the crypt link carries.
#[inline(always)]
pub const fn inner_mtu(clear: u32) -> u32 {
    let mtu = behind_ip(clear.saturating_add(CLEAR));
    if mtu < LARGEST { mtu } else { LARGEST }
}

/// The largest inner packet of which a datagram of `room` bytes, behind the outer IP header, is
/// made.
#[inline(always)]
const fn behind_ip(room: u32) -> u32 {
    let sealed = room.saturating_sub((FRONT_LEN + ICV_LEN) as u32) & !(ALIGN as u32 - 1);
    sealed.saturating_sub(TRAILER_LEN as u32 + INSIDE)
}

/// As much as the crypt link carries over either family.
const LARGEST: u32 = behind_ip(punt::MTU - IPV6_LEN as u32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Family;

    /// What goes on the wire, behind the outer Ethernet header, for an inner packet of this size.
    fn on_the_wire(family: Family, inner: u32) -> u32 {
        let clear = INSIDE + inner + TRAILER_LEN as u32;
        let padded = clear.next_multiple_of(ALIGN as u32);
        family.overhead() - INSIDE + FRONT_LEN as u32 + padded + ICV_LEN as u32
    }

    #[test]
    fn the_largest_that_fits() {
        for family in [Family::V4, Family::V6] {
            for link in 1372..=3498 {
                let mtu = inner_mtu(link - family.overhead());
                assert!(on_the_wire(family, mtu) <= link, "{family:?} {link}");
                let next = on_the_wire(family, mtu + 1);
                assert!(next > link || mtu == LARGEST, "{family:?} {link}");
            }
        }
        assert_eq!((inner_mtu(1450), inner_mtu(1430)), (1408, 1388));
        assert_eq!(
            (inner_mtu(8950), inner_mtu(0), inner_mtu(u32::MAX)),
            (LARGEST, 0, LARGEST)
        );
        assert!(on_the_wire(Family::V6, LARGEST) <= punt::MTU);
    }
}
