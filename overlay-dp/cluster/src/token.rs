//! The join token: which cluster (the hash of its CA), and the secret that lets a host in.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::hex;

const PREFIX: &str = "OVTKN-1-";

/// SHA-256 of a CA certificate.
pub(crate) type Fingerprint = [u8; 32];
/// 128 random bits.
pub(crate) type Secret = [u8; 16];

/// `OVTKN-1-<SHA-256 of the CA certificate>-<secret>`, in lower-case hex.
///
/// Whoever has it can make a host a member; only the managers know whether as a worker or as
/// another manager.  [`fmt::Debug`] hides the secret, `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(crate) ca: Fingerprint,
    pub(crate) secret: Secret,
}

impl Token {
    /// A token of the cluster with this CA certificate; `None` when the secret is none.
    pub(crate) fn of(ca_cert: &[u8], secret: &[u8]) -> Option<Token> {
        Some(Token {
            ca: fingerprint(ca_cert),
            secret: secret.try_into().ok()?,
        })
    }
}

pub(crate) fn fingerprint(cert: &[u8]) -> Fingerprint {
    Sha256::digest(cert).into()
}

pub(crate) fn new_secret() -> Secret {
    rand::rng().random()
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{}-{}",
            hex::encode(&self.ca),
            hex::encode(&self.secret)
        )
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-…", hex::encode(&self.ca))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let (ca, secret) = rest.split_once('-').ok_or(TokenError::Length(text.len()))?;
        if ca.len() != 64 || secret.len() != 32 {
            return Err(TokenError::Length(text.len()));
        }
        let bytes = |text| hex::decode(text).ok_or(TokenError::Digits);
        let length = |_| TokenError::Length(text.len());
        Ok(Token {
            ca: bytes(ca)?.try_into().map_err(length)?,
            secret: bytes(secret)?.try_into().map_err(length)?,
        })
    }
}

/// Why a text is no token. The text itself is not repeated: it may be most of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error(
        "this is no join token: it begins with {PREFIX}; copy the whole --token that the first host printed"
    )]
    Prefix,
    /// Part of it is missing, or there is more.
    #[error(
        "the join token is not whole: it has {0} characters, not 105; copy it from the first host again"
    )]
    Length(usize),
    /// Not hex.
    #[error(
        "the join token has a character other than 0-9 and a-f: copy it from the first host again"
    )]
    Digits,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token::of(b"a certificate", &[7; 16]).unwrap()
    }

    #[test]
    fn text_round_trips() {
        let text = token().to_string();
        assert_eq!(text.len(), 105);
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()), "as pasted");
        assert!(!format!("{:?}", token()).contains("0707"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = token().to_string();
        assert_eq!("SWMTKN-1-x-y".parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!(text[..90].parse::<Token>(), Err(TokenError::Length(90)));
        assert_eq!(
            format!("{text}0").parse::<Token>(),
            Err(TokenError::Length(106))
        );
        assert_eq!(
            text.replace("0707", "070Z").parse::<Token>(),
            Err(TokenError::Digits)
        );
        assert_eq!("OVTKN-1-".parse::<Token>(), Err(TokenError::Length(8)));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(OVTKN-1-)?\\PC{0,120}") {
            let _ = text.parse::<Token>();
        }

        #[test]
        fn hex_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(hex::decode(&hex::encode(&bytes)), Some(bytes));
        }
    }
}
