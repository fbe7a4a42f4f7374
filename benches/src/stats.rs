//! Medians and percentiles.

use std::time::Duration;

use serde_json::{Value, json};

/// The median; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 0.5)
}

/// The value that a share of all does not exceed (nearest rank); 0 of nothing.
pub fn percentile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Durations in milliseconds, as they are reported.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    /// Notes one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    /// Notes all of another.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that a share of all does not exceed, in milliseconds.
    pub fn ms(&self, share: f64) -> f64 {
        percentile(self.0.iter().copied(), share)
    }

    /// `{count, p50Ms, p90Ms, p99Ms, maxMs}`.
    pub fn json(&self) -> Value {
        let at = |share| (self.ms(share) * 1e3).round() / 1e3;
        json!({ "count": self.count(), "p50Ms": at(0.5), "p90Ms": at(0.9), "p99Ms": at(0.99), "maxMs": at(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, wanted) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            assert_eq!(percentile(hundred.clone(), share), wanted, "{share}");
        }
        assert_eq!((median([3.0, 1.0, 2.0]), median([])), (2.0, 0.0));
    }
}
