//! Backups: all that the managers agree on, in one piece.
//!
//! Eight bytes of magic, the format (u16), the index of the last command in it (u64, both little
//! endian), the SHA-256 of all else, then the state machine in postcard.

use overlay_core::facts::StateMachine;
use sha2::{Digest, Sha256};

use crate::error::BackupError;
use crate::file::encode;
use crate::machine::decode_machine;

const MAGIC: &[u8; 8] = b"OVDPBKUP";
const FORMAT: u16 = 5;
const HEAD: usize = 8 + 2 + 8;
const SUM: usize = 32;

pub(crate) fn write(machine: &StateMachine, index: u64) -> Vec<u8> {
    let mut backup = MAGIC.to_vec();
    backup.extend_from_slice(&FORMAT.to_le_bytes());
    backup.extend_from_slice(&index.to_le_bytes());
    let body = encode(machine);
    backup.extend_from_slice(&sum(&backup, &body));
    backup.extend_from_slice(&body);
    backup
}

/// The state, and the index of its last command.
pub(crate) fn read(backup: &[u8]) -> Result<(StateMachine, u64), BackupError> {
    let rest = backup.strip_prefix(MAGIC).ok_or(BackupError::NotABackup)?;
    let (format, rest) = rest.split_first_chunk().ok_or(BackupError::Damaged)?;
    let format = u16::from_le_bytes(*format);
    if format != FORMAT {
        return Err(BackupError::Format(format));
    }
    let (index, rest) = rest.split_first_chunk().ok_or(BackupError::Damaged)?;
    let (found, body) = rest
        .split_first_chunk::<SUM>()
        .ok_or(BackupError::Damaged)?;
    if *found != sum(&backup[..HEAD], body) {
        return Err(BackupError::Damaged);
    }
    let machine = decode_machine(body).ok_or(BackupError::Damaged)?;
    Ok((machine, u64::from_le_bytes(*index)))
}

fn sum(head: &[u8], body: &[u8]) -> [u8; SUM] {
    Sha256::new()
        .chain_update(head)
        .chain_update(body)
        .finalize()
        .into()
}
