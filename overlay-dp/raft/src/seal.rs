//! Checksums for what is kept.

use sha2::{Digest, Sha256};

const TAG: usize = 8;

/// `body`, with a checksum in front that covers `place`, too: what was moved elsewhere is damage.
pub(crate) fn seal(place: &str, body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(TAG + body.len());
    sealed.extend_from_slice(&tag(place, body));
    sealed.extend_from_slice(body);
    sealed
}

/// What [`seal`] was given, unless it has changed since.
pub(crate) fn unseal<'a>(place: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (found, body) = sealed.split_at_checked(TAG)?;
    (found == tag(place, body)).then_some(body)
}

fn tag(place: &str, body: &[u8]) -> [u8; TAG] {
    let mut hash = Sha256::new();
    hash.update((place.len() as u64).to_le_bytes());
    hash.update(place);
    hash.update(body);
    let mut tag = [0; TAG];
    tag.copy_from_slice(&hash.finalize()[..TAG]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_shows() {
        let sealed = seal("log 7", b"entry");
        assert_eq!(unseal("log 7", &sealed), Some(&b"entry"[..]));
        assert_eq!(unseal("log 8", &sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal("log 7", &bad), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(unseal("log 7", &sealed[..len]), None, "length {len}");
        }
    }
}
