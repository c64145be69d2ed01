//! Which of a service's backends gets which slot of its table: consistent hashing as in Google's
//! Maglev (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Every backend has an order of its own in which it would like to have the slots. They take turns,
//! each taking the first slot of its order that is still free. So all have the same number of slots,
//! but for one, and when a backend comes or goes few slots change hands between the others. The
//! result depends on nothing but the set of names: all hosts come to the same table.

use std::hash::Hasher;

/// The backend of each of `slots` slots (a prime number), as an index into `names`, which are all
/// different. Empty when there are no backends.
pub fn table<N: AsRef<str>>(names: &[N], slots: usize) -> Vec<usize> {
    if names.is_empty() || slots < 2 {
        return Vec::new();
    }
    // By name: the turns must not depend on the order in which the backends were learned.
    let mut turns: Vec<usize> = (0..names.len()).collect();
    turns.sort_by_key(|&i| names[i].as_ref());
    let mut wishes: Vec<Wishes> = turns
        .iter()
        .map(|&i| Wishes::new(names[i].as_ref(), slots))
        .collect();
    let mut taken: Vec<Option<usize>> = vec![None; slots];
    let mut left = slots;
    'full: loop {
        for (turn, wishes) in turns.iter().zip(&mut wishes) {
            // The step has no common divisor with the prime, so each order has every slot.
            let free = std::iter::from_fn(|| Some(wishes.next()))
                .take(slots)
                .find(|slot| taken[*slot].is_none());
            if let Some(slot) = free {
                taken[slot] = Some(*turn);
                left -= 1;
            }
            if left == 0 {
                break 'full;
            }
        }
    }
    taken.into_iter().flatten().collect()
}

/// A backend's order of the slots.
struct Wishes {
    next: usize,
    step: usize,
    slots: usize,
}

impl Wishes {
    fn new(name: &str, slots: usize) -> Wishes {
        Wishes {
            next: (hash(name, 0) % slots as u64) as usize,
            step: (hash(name, 1) % (slots as u64 - 1)) as usize + 1,
            slots,
        }
    }

    fn next(&mut self) -> usize {
        let slot = self.next;
        self.next = (slot + self.step) % self.slots;
        slot
    }
}

/// FNV-1a, and a last mixing: names differ in their last letter only.
fn hash(name: &str, seed: u8) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^ (mixed >> 33)
        }

        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(&[seed]);
    hasher.write(name.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: usize = 1021;

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|i| format!("web.{i}")).collect()
    }

    fn by_name(names: &[String]) -> Vec<&str> {
        let table = table(names, SLOTS);
        assert_eq!(table.len(), SLOTS);
        table.into_iter().map(|i| names[i].as_str()).collect()
    }

    #[test]
    fn all_have_the_same_share() {
        for count in [1, 2, 3, 7, 50, 200] {
            let names = names(count);
            let mut shares = vec![0; count];
            for i in table(&names, SLOTS) {
                shares[i] += 1;
            }
            let (min, max) = (shares.iter().min(), shares.iter().max());
            assert!(max.unwrap() - min.unwrap() <= 1, "{count}: {shares:?}");
        }
    }

    #[test]
    fn the_order_of_their_coming_does_not_matter() {
        let forth = names(9);
        let back: Vec<String> = forth.iter().rev().cloned().collect();
        assert_eq!(by_name(&forth), by_name(&back));
    }

    #[test]
    fn who_leaves_takes_little_with_it() {
        let all = names(10);
        for gone in 0..all.len() {
            let mut rest = all.clone();
            let left = rest.remove(gone);
            let (before, after) = (by_name(&all), by_name(&rest));
            let moved = before.iter().zip(&after).filter(|(b, a)| b != a);
            let moved = moved.filter(|(b, _)| **b != left).count();
            // A tenth was the leaver's; of the others, hardly any should move.
            assert!(moved < SLOTS / 10, "{left}: {moved} of {SLOTS} moved");
        }
    }

    #[test]
    fn without_backends_there_is_no_table() {
        assert!(table::<&str>(&[], SLOTS).is_empty());
        // More backends than slots: some get none, and that is all.
        assert_eq!(table(&names(30), 7).len(), 7);
    }
}
