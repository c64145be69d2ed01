//! The anti-replay window (RFC 4303 section 3.4.3): which of the last sequence numbers have been
//! seen. A ring of words, as RFC 6479 has it, so that it moves on without shifting.

/// Words of 64 numbers each. One more than the window needs: the newest word is never full.
///
/// One key serves all workers of both hosts. While one of them waits for its CPU, with a ring of
/// 1024 frames before it at either end, the others go on as fast as they can.
const WORDS: usize = 257;
const BITS: u32 = 64;

/// How far behind the highest number seen one may be and still be taken.
pub const SIZE: u32 = (WORDS as u32 - 1) * BITS;

/// A window. The first number is 1; 0 is never taken.
#[derive(Clone, Debug)]
pub struct Window {
    highest: u32,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Window {
        Window {
            highest: 0,
            seen: [0; WORDS],
        }
    }
}

impl Window {
    /// The highest number seen; 0 when none was.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Whether a packet with this number may be taken, if it is found to be genuine.
    pub fn may_take(&self, number: u32) -> bool {
        if number > self.highest {
            return true;
        }
        if number == 0 || self.highest - number >= SIZE {
            return false;
        }
        let (word, bit) = place(number);
        self.seen[word] & bit == 0
    }

    /// Marks the number of a genuine packet as seen. False when it must not be taken: it was seen
    /// meanwhile, or has become too old.
    pub fn take(&mut self, number: u32) -> bool {
        if !self.may_take(number) {
            return false;
        }
        if number > self.highest {
            // The words in between begin empty; all of them after a long way.
            let steps = (number / BITS - self.highest / BITS).min(WORDS as u32);
            for step in 0..steps {
                self.seen[word_of(number / BITS - step)] = 0;
            }
            self.highest = number;
        }
        let (word, bit) = place(number);
        self.seen[word] |= bit;
        true
    }
}

fn word_of(index: u32) -> usize {
    index as usize % WORDS
}

fn place(number: u32) -> (usize, u64) {
    (word_of(number / BITS), 1 << (number % BITS))
}

const _: () = assert!(SIZE == 16_384);
