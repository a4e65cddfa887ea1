//! Statistics of repeated runs.

/// Mean, deviation and best of the values of repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation with `n - 1` in the denominator; none for one value.
    pub deviation: Option<f64>,
    /// Best value.
    pub best: f64,
}

impl Statistics {
    /// Statistics of the finite values; none if there are none.
    pub fn new(values: impl IntoIterator<Item = f64>, larger_is_better: bool) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        let n = values.len();
        let better = if larger_is_better { f64::max } else { f64::min };
        let best = values.iter().copied().reduce(better)?;
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { n, mean, deviation, best })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_divides_by_one_less_than_the_values() {
        let found = Statistics::new([2.0, 4.0, 4.0, 6.0], true).expect("values");
        assert_eq!((found.n, found.mean, found.best), (4, 4.0, 6.0));
        let deviation = found.deviation.expect("several values");
        assert!((deviation - (8.0_f64 / 3.0).sqrt()).abs() < 1e-12, "{deviation}");
        assert_eq!(Statistics::new([2.0, 4.0], false).expect("values").best, 2.0);
    }

    #[test]
    fn single_value_has_no_deviation_and_non_finite_ones_do_not_count() {
        let found = Statistics::new([f64::NAN, 0.5, f64::INFINITY], true);
        assert_eq!(found, Some(Statistics { n: 1, mean: 0.5, deviation: None, best: 0.5 }));
        assert_eq!(Statistics::new([f64::NAN], true), None);
        assert_eq!(Statistics::new([], true), None);
    }
}
