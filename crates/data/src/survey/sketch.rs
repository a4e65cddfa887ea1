use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use super::{Count, Lengths};

/// Counter of distinct values, which keeps the smallest hashes and is exact for few values.
///
/// Bar-Yossef et al., "Counting distinct elements in a data stream" (2002).
#[derive(Debug, Default)]
pub(super) struct DistinctCounter {
    hashes: BTreeSet<u64>,
    capacity: usize,
    is_estimate: bool,
}

impl DistinctCounter {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    pub(super) fn add(&mut self, value: &[u8]) {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(value);
        let hash = hasher.finish();
        if self.hashes.len() == self.capacity && self.hashes.last().is_some_and(|last| *last < hash) {
            self.is_estimate = true;
        } else if self.hashes.insert(hash) && self.hashes.len() > self.capacity {
            self.hashes.pop_last();
            self.is_estimate = true;
        }
    }

    pub(super) fn count(&self) -> Count {
        let n_hashes = self.hashes.len();
        match self.hashes.last() {
            Some(&last) if self.is_estimate => {
                let part = last as f64 / u64::MAX as f64;
                Count { n: ((n_hashes - 1) as f64 / part).round() as usize, exact: false }
            }
            _ => Count { n: n_hashes, exact: true },
        }
    }
}

/// Histogram of lengths. Large lengths are rounded, to limit the number of bins.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: BTreeMap<usize, usize>,
    n: usize,
    sum: usize,
    max: usize,
}

impl Histogram {
    pub(super) fn add(&mut self, length: usize) {
        // Rounds to twelve significant bits.
        let shift = (usize::BITS - length.leading_zeros()).saturating_sub(12);
        *self.counts.entry(length >> shift << shift).or_default() += 1;
        self.n += 1;
        self.sum += length;
        self.max = self.max.max(length);
    }

    pub(super) fn mean(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.sum as f64 / self.n as f64 }
    }

    pub(super) fn lengths(&self) -> Lengths {
        let p = |percent| self.percentile(percent);
        Lengths { mean: self.mean(), p50: p(50), p90: p(90), p95: p(95), p99: p(99), max: self.max }
    }

    /// Least length that this percentage of the values does not exceed.
    fn percentile(&self, percent: usize) -> usize {
        let rank = (self.n * percent).div_ceil(100);
        let mut below = 0;
        let found = self.counts.iter().find(|(_, count)| {
            below += **count;
            below >= rank
        });
        found.map_or(0, |(length, _)| *length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_count_is_exact_for_few_values_and_estimated_for_many() {
        for (values, capacity) in [(1000, 1000), (50_000, 1024)] {
            let mut distinct = DistinctCounter::new(capacity);
            for value in (0..values).chain(0..values) {
                distinct.add(format!("value {value}").as_bytes());
            }
            let count = distinct.count();
            assert_eq!(count.exact, values <= capacity);
            assert!(count.n.abs_diff(values) <= if count.exact { 0 } else { values / 8 }, "{count:?} for {values}");
            assert!(distinct.hashes.len() <= capacity);
        }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut lengths = Histogram::default();
        (1..=100).rev().for_each(|length| lengths.add(length));
        let expected = Lengths { mean: 50.5, p50: 50, p90: 90, p95: 95, p99: 99, max: 100 };
        assert_eq!(lengths.lengths(), expected);
        lengths.add(10_007);
        assert_eq!((lengths.lengths().max, lengths.percentile(100)), (10_007, 10_004));
        assert_eq!(Histogram::default().lengths(), Lengths::default());
    }
}
