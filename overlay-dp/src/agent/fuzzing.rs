//! The agent's files, as the fuzzer reaches their parsers.

use super::state;

/// Takes what the journal may have become.
pub fn journal(bytes: &[u8]) {
    state::read_journal(bytes);
}

/// Good ones.
pub fn journals() -> Vec<Vec<u8>> {
    state::some_journal().into_iter().collect()
}
