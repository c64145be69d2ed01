//! Sets of offsets, kept as ranges: a /8 costs as little as a /30.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Offsets in a network's subnets, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    /// The lowest.
    pub first: u32,
    /// The highest; a range with `last < first` is empty.
    pub last: u32,
}

impl Range {
    /// The range of one offset.
    pub const fn one(offset: u32) -> Range {
        Range {
            first: offset,
            last: offset,
        }
    }

    /// How many offsets it has.
    pub fn count(self) -> u64 {
        (u64::from(self.last) + 1).saturating_sub(self.first.into())
    }

    /// Whether it has `offset`.
    pub fn contains(self, offset: u32) -> bool {
        (self.first..=self.last).contains(&offset)
    }

    /// What both have.
    pub fn intersection(self, other: Range) -> Option<Range> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Range { first, last })
    }

    /// What is left of it in front of and behind `cut`, which lies inside.
    pub(crate) fn around(self, cut: Range) -> impl Iterator<Item = Range> {
        let before = (self.first < cut.first).then(|| Range {
            first: self.first,
            last: cut.first - 1,
        });
        let behind = (cut.last < self.last).then(|| Range {
            first: cut.last + 1,
            last: self.last,
        });
        before.into_iter().chain(behind)
    }
}

/// A set of offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// First to last, neither overlapping nor adjacent.
    map: BTreeMap<u32, u32>,
    count: u64,
}

impl Ranges {
    /// How many offsets it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// How many ranges it takes to write it down: what it costs.
    pub fn pieces(&self) -> usize {
        self.map.len()
    }

    /// Whether it has `offset`.
    pub fn contains(&self, offset: u32) -> bool {
        self.at(offset).is_some()
    }

    /// The range around `offset`.
    pub fn at(&self, offset: u32) -> Option<Range> {
        let (first, last) = self.map.range(..=offset).next_back()?;
        (offset <= *last).then_some(Range {
            first: *first,
            last: *last,
        })
    }

    /// Its ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range> {
        self.map.iter().map(|(first, last)| Range {
            first: *first,
            last: *last,
        })
    }

    /// The parts of it within `bounds`, ascending.
    pub fn within(&self, bounds: Range) -> impl DoubleEndedIterator<Item = Range> {
        let before = self
            .at(bounds.first)
            .filter(|range| range.first < bounds.first);
        let upper = bounds.last.max(bounds.first);
        let inside = self
            .map
            .range(bounds.first..=upper)
            .map(|(first, last)| Range {
                first: *first,
                last: *last,
            });
        before
            .into_iter()
            .chain(inside)
            .filter_map(move |range| range.intersection(bounds))
    }

    /// The parts of `bounds` that are not in it, ascending.
    pub fn gaps(&self, bounds: Range) -> impl Iterator<Item = Range> {
        // The gap in front of each part, then the one behind the last.
        let mut next = Some(bounds.first);
        let parts = self.within(bounds).map(Some).chain([None]);
        parts.filter_map(move |part| {
            let first = next?;
            next = part.and_then(|part| part.last.checked_add(1));
            let last = match part {
                Some(part) => part.first.checked_sub(1)?,
                None => bounds.last,
            };
            (first <= last).then_some(Range { first, last })
        })
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range) {
        if range.count() == 0 {
            return;
        }
        self.remove(range);
        let mut merged = range;
        if let Some(before) = range
            .first
            .checked_sub(1)
            .and_then(|offset| self.at(offset))
        {
            merged.first = before.first;
            self.map.remove(&before.first);
        }
        if let Some(behind) = range.last.checked_add(1).and_then(|offset| self.at(offset)) {
            merged.last = behind.last;
            self.map.remove(&behind.first);
        }
        self.map.insert(merged.first, merged.last);
        self.count += range.count();
    }

    /// Takes a range out, as far as it is in.
    pub fn remove(&mut self, range: Range) {
        let hit: Vec<Range> = self.within(range).collect();
        for cut in hit {
            let Some(whole) = self.at(cut.first) else {
                continue;
            };
            self.map.remove(&whole.first);
            self.count -= cut.count();
            for rest in whole.around(cut) {
                self.map.insert(rest.first, rest.last);
            }
        }
    }
}

impl FromIterator<Range> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Ranges {
        let mut set = Ranges::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}
