//! Security associations: a key in use, in one direction.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use overlay_common::counters::DropReason;
use overlay_common::esp::{HEADER_LEN, ICV_LEN, IV_LEN};
use overlay_common::wire::Ip16;
use parking_lot::Mutex;

use crate::secret::{SALT_LEN, Secret};
use crate::window::Window;

/// AES-GCM as ESP uses it (RFC 4106). The key inside is wiped when it is dropped.
struct Cipher {
    key: LessSafeKey,
    salt: [u8; SALT_LEN],
}

impl Cipher {
    fn new(secret: &Secret) -> Option<Cipher> {
        let key = UnboundKey::new(&AES_256_GCM, secret.key()).ok()?;
        Some(Cipher {
            key: LessSafeKey::new(key),
            salt: secret.salt(),
        })
    }

    fn nonce(&self, iv: [u8; IV_LEN]) -> Nonce {
        let mut nonce = [0; SALT_LEN + IV_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What another host has told this one to send to it with.
pub struct Outbound {
    spi: u32,
    cipher: Cipher,
    /// How many sequence numbers are taken.
    taken: AtomicU64,
}

impl Outbound {
    /// One that has sent nothing yet: no other may ever have been made of this secret, or IVs would
    /// come twice. `None` when the cipher does not take it.
    pub fn new(secret: &Secret) -> Option<Outbound> {
        Some(Outbound {
            spi: secret.spi(),
            cipher: Cipher::new(secret)?,
            taken: AtomicU64::new(0),
        })
    }

    /// The receiver's name for it.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// How many packets were sealed with it.
    pub fn packets(&self) -> u64 {
        self.taken.load(Ordering::Relaxed).min(u32::MAX.into())
    }

    /// SPI and the next sequence number, never one twice.
    ///
    /// # Errors
    /// When there is none left: what is to be sent must wait for another key.
    pub fn next_header(&self) -> Result<[u8; HEADER_LEN], DropReason> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let number = u32::try_from(taken + 1).map_err(|_| DropReason::NoKey)?;
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&self.spi.to_be_bytes());
        header[4..].copy_from_slice(&number.to_be_bytes());
        Ok(header)
    }

    /// Seals in place; the IV is the sequence number (RFC 4106 section 3.1 asks only that none comes
    /// twice), and is returned with the ICV.
    ///
    /// # Errors
    /// When the cipher refuses, which no length that fits a frame makes it.
    pub fn seal(
        &self,
        header: &[u8; HEADER_LEN],
        text: &mut [u8],
    ) -> Result<([u8; IV_LEN], [u8; ICV_LEN]), DropReason> {
        let mut iv = [0; IV_LEN];
        iv[IV_LEN - 4..].copy_from_slice(&header[4..]);
        let (nonce, aad) = (self.cipher.nonce(iv), Aad::from(header));
        let sealed = self
            .cipher
            .key
            .seal_in_place_separate_tag(nonce, aad, text)
            .map_err(|_| DropReason::NoKey)?;
        let icv = sealed.as_ref().first_chunk().ok_or(DropReason::NoKey)?;
        Ok((iv, *icv))
    }
}

/// What this host has told another one to send to it with.
pub struct Inbound {
    spi: u32,
    /// The VTEP that alone may send with it.
    peer: Ip16,
    cipher: Cipher,
    window: Mutex<Window>,
    packets: AtomicU64,
}

impl Inbound {
    /// One of which nothing was received yet. `None` when the cipher does not take the secret.
    pub fn new(secret: &Secret, peer: Ip16) -> Option<Inbound> {
        Some(Inbound {
            spi: secret.spi(),
            peer,
            cipher: Cipher::new(secret)?,
            window: Mutex::default(),
            packets: AtomicU64::new(0),
        })
    }

    /// This host's name for it.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// The VTEP that alone may send with it.
    pub fn peer(&self) -> &Ip16 {
        &self.peer
    }

    /// How many genuine packets came with it.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// The highest sequence number that came with it.
    pub fn highest(&self) -> u32 {
        self.window.lock().highest()
    }

    /// Opens `sealed` into `text`, which is as long.
    ///
    /// # Errors
    /// When it came before, or was not sealed so.
    pub fn open(
        &self,
        header: &[u8; HEADER_LEN],
        iv: [u8; IV_LEN],
        (sealed, icv): (&[u8], &[u8; ICV_LEN]),
        text: &mut [u8],
    ) -> Result<(), DropReason> {
        let [_, _, _, _, number @ ..] = *header;
        let number = u32::from_be_bytes(number);
        if !self.window.lock().may_take(number) {
            return Err(DropReason::Replay);
        }
        let (nonce, aad) = (self.cipher.nonce(iv), Aad::from(header));
        self.cipher
            .key
            .open_separate_gather(nonce, aad, sealed, icv, text)
            .map_err(|_| DropReason::BadIcv)?;
        // Only what is genuine moves the window on.
        if !self.window.lock().take(number) {
            return Err(DropReason::Replay);
        }
        self.packets.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// All that are in use, as the workers look them up.
#[derive(Default)]
pub struct Sas {
    /// By the receiver's VTEP.
    pub outbound: HashMap<Ip16, Arc<Outbound>>,
    /// By SPI.
    pub inbound: HashMap<u32, Arc<Inbound>>,
}
