//! Thinning and smoothing of curves.

/// Point of a curve: step and value.
pub(crate) type Point = (f64, f64);

/// Reduces a curve to at most `limit` points that keep its look: the lowest and the highest of each interval, and the
/// first and the last of all. Non-finite values are left out.
pub(crate) fn thin(points: &[Point], limit: usize) -> Vec<Point> {
    let points: Vec<Point> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return points };
    if points.len() <= limit {
        return points;
    }
    let stretch = points.len().div_ceil((limit.max(6) - 2) / 2);
    let mut thinned = vec![first];
    for part in points.chunks(stretch) {
        let low = part.iter().enumerate().min_by(|a, b| a.1.1.total_cmp(&b.1.1)).map_or(0, |found| found.0);
        let high = part.iter().enumerate().max_by(|a, b| a.1.1.total_cmp(&b.1.1)).map_or(0, |found| found.0);
        thinned.extend([part[low.min(high)], part[low.max(high)]]);
    }
    thinned.push(last);
    thinned.dedup();
    thinned
}

/// Minimum number of points of a smoothed curve; shorter ones show better unsmoothed.
pub(crate) const SMOOTHED_FROM: usize = 30;

/// Half-life of a value in [`smooth`]: a fiftieth of the curve.
pub(crate) fn half_life(points: usize) -> usize {
    points.div_ceil(50).max(2)
}

/// Exponential moving average with bias correction (Kingma and Ba 2015, section 3), in which the weight of a value
/// halves after `half_life` more. Non-finite values are left out.
pub(crate) fn smooth(points: &[Point], half_life: usize) -> Vec<Point> {
    let keep = 0.5_f64.powf(1.0 / half_life as f64);
    let (mut mean, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|(_, y)| y.is_finite());
    finite
        .map(|&(x, y)| {
            mean = keep * mean + (1.0 - keep) * y;
            weight = keep * weight + (1.0 - keep);
            (x, mean / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thin_keeps_ends_and_peaks() {
        let mut points: Vec<Point> = (0..200_000).map(|i| (f64::from(i), (f64::from(i) / 9000.0).sin())).collect();
        points[70_123].1 = 9.0;
        points[130_001].1 = -9.0;
        points[5].1 = f64::NAN;
        let thinned = thin(&points, 1000);
        assert!((900..=1000).contains(&thinned.len()), "{}", thinned.len());
        assert!(thinned.contains(&points[70_123]) && thinned.contains(&points[130_001]));
        assert_eq!((thinned.first(), thinned.last()), (points.first(), points.last()));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thin(&points[..4], 1000), points[..4]);
        assert!(thin(&[(0.0, f64::NAN)], 1000).is_empty() && thin(&[], 10).is_empty());
    }

    #[test]
    fn smooth_equals_manual_values() {
        let smoothed = smooth(&[(1.0, 4.0), (2.0, f64::NAN), (3.0, 1.0)], 1);
        assert_eq!(smoothed, [(1.0, 4.0), (3.0, (0.5 * 4.0 * 0.5 + 0.5) / 0.75)]);
        let level: Vec<Point> = (0..99).map(|i| (f64::from(i), 0.5)).collect();
        assert!(smooth(&level, half_life(99)).iter().all(|(_, y)| (y - 0.5).abs() < 1e-12));
    }
}
