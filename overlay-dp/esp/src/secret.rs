//! What is secret about a security association, and how hosts tell it to each other.

use std::fmt;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a key of AES-256.
pub const KEY_LEN: usize = 32;
/// Bytes of the salt in front of each packet's IV (RFC 4106 section 4).
pub const SALT_LEN: usize = 4;
const LEN: usize = 4 + KEY_LEN + SALT_LEN;

/// The SPIs up to this one are reserved (RFC 4303 section 2.1).
const RESERVED: u32 = 255;

/// A security parameter index with its key and salt. Wiped when dropped; printed without them.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret {
    spi: u32,
    key: [u8; KEY_LEN],
    salt: [u8; SALT_LEN],
}

impl Secret {
    /// One that nobody else has, from the system's generator.
    ///
    /// # Errors
    /// When that has failed.
    pub fn draw() -> Result<Secret, Unspecified> {
        loop {
            let mut bytes = Zeroizing::new([0; LEN]);
            rand::fill(bytes.as_mut())?;
            if let Some(secret) = Secret::from_bytes(&bytes) {
                return Ok(secret);
            }
        }
    }

    /// SPI, key and salt; `None` when the SPI is a reserved one.
    pub fn new(spi: u32, key: [u8; KEY_LEN], salt: [u8; SALT_LEN]) -> Option<Secret> {
        (spi > RESERVED).then_some(Secret { spi, key, salt })
    }

    /// The security parameter index, which is no secret.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    pub(crate) fn key(&self) -> &[u8; KEY_LEN] {
        &self.key
    }

    pub(crate) fn salt(&self) -> [u8; SALT_LEN] {
        self.salt
    }

    fn from_bytes(bytes: &[u8; LEN]) -> Option<Secret> {
        let (spi, rest) = bytes.split_first_chunk()?;
        let (key, salt) = rest.split_first_chunk()?;
        Secret::new(u32::from_be_bytes(*spi), *key, *salt.first_chunk()?)
    }

    fn to_bytes(&self) -> Zeroizing<[u8; LEN]> {
        let mut bytes = Zeroizing::new([0; LEN]);
        bytes[..4].copy_from_slice(&self.spi.to_be_bytes());
        bytes[4..4 + KEY_LEN].copy_from_slice(&self.key);
        bytes[4 + KEY_LEN..].copy_from_slice(&self.salt);
        bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:#010x})", self.spi)
    }
}

/// As hexadecimal digits.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)] as char;
        // No larger than it is made, so that nothing is left behind by growing.
        let mut text = Zeroizing::new(String::with_capacity(2 * LEN));
        for byte in self.to_bytes().iter() {
            text.push(digit(byte >> 4));
            text.push(digit(*byte));
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let wrong = || serde::de::Error::custom("not a security association's secret");
        let mut bytes = Zeroizing::new([0; LEN]);
        if text.len() != 2 * LEN {
            return Err(wrong());
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let [high, low] = pair else {
                return Err(wrong());
            };
            let value = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
            let (high, low) = value(*high).zip(value(*low)).ok_or_else(wrong)?;
            *byte = high << 4 | low;
        }
        Secret::from_bytes(&bytes).ok_or_else(wrong)
    }
}
