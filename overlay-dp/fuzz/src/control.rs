//! What managers are asked and answer, tokens, and what is on disk.

use overlay_cluster::{Token, fuzzing as cluster};
use overlay_raft::fuzzing as raft_wire;

/// A message of the control port, of whichever direction.
pub fn requests(input: &[u8]) {
    cluster::message(input);
}

pub fn request_seeds() -> Vec<Vec<u8>> {
    cluster::messages()
}

/// A message between managers, and one that came with a snapshot.
pub fn raft(input: &[u8]) {
    raft_wire::message(input);
}

pub fn raft_seeds() -> Vec<Vec<u8>> {
    raft_wire::messages()
}

/// A token that is taken is written as it was read.
pub fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string(), text.trim());
    }
}

pub fn token_seeds() -> Vec<Vec<u8>> {
    let token = format!(
        "OVTKN-1-{}-{}",
        "5a".repeat(32),
        "0123456789abcdef".repeat(2)
    );
    vec![
        token.clone().into_bytes(),
        format!(" {token}\n").into_bytes(),
    ]
}

/// The first byte says which file.
pub fn disk(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    match which % 3 {
        0 => cluster::state_file(bytes),
        1 => overlay_dp::fuzzing::journal(bytes),
        _ => {
            let _ = overlay_raft::facts_of_backup(bytes);
        }
    }
}

pub fn disk_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        [&[0], &cluster::state_file_seed()[..]].concat(),
        [&[2], &raft_wire::backup()[..]].concat(),
    ];
    let journals = overlay_dp::fuzzing::journals().into_iter();
    seeds.extend(journals.map(|journal| [&[1], &journal[..]].concat()));
    seeds
}
