//! Medians.

use serde::{Deserialize, Serialize};

/// How values lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Half of the values are between these.
    pub quartiles: [f64; 2],
}

impl Summary {
    /// None when there is no value, or one that is none.
    pub fn of(values: &[f64]) -> Option<Summary> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Summary {
            median: at(&sorted, 0.5)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            quartiles: [at(&sorted, 0.25)?, at(&sorted, 0.75)?],
        })
    }

    /// How far half of the values are from the median, as a part of that.
    pub fn spread(&self) -> f64 {
        let [low, high] = self.quartiles;
        (high - self.median).max(self.median - low) / self.median
    }
}

/// The value below which a part of them lies, between two of them where it must be.
fn at(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * (sorted.len().checked_sub(1)? as f64);
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let share = place - place.floor();
    Some(sorted[below] * (1.0 - share) + sorted[above] * share)
}
