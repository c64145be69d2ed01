//! A map that remembers the order of coming.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Values by key, in the order in which they came.
#[derive(Debug)]
pub struct Sequence<K, V> {
    values: BTreeMap<u64, V>,
    places: HashMap<K, u64>,
    next: u64,
}

impl<K, V> Default for Sequence<K, V> {
    fn default() -> Self {
        Sequence {
            values: BTreeMap::new(),
            places: HashMap::new(),
            next: 0,
        }
    }
}

impl<K: Eq + Hash, V> Sequence<K, V> {
    /// Puts a value at the end, and returns the one that its key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.next;
        self.next += 1;
        self.values.insert(place, value);
        let before = self.places.insert(key, place)?;
        self.values.remove(&before)
    }

    /// Takes a value out.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let place = self.places.remove(key)?;
        self.values.remove(&place)
    }

    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.values.get(self.places.get(key)?)
    }

    /// All values, those that came first first.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.values.values()
    }
}
