//! Warm-up phase, with which every schedule begins.

/// Returns `steps` if it is not 0, otherwise `ratio` of `total_steps`, rounded up.
pub fn steps_or_ratio(total_steps: usize, steps: usize, ratio: f64) -> usize {
    if steps > 0 { steps } else { (total_steps as f64 * ratio).ceil() as usize }
}

/// Returns the factor during the warm-up; none afterwards.
pub(super) fn warmup_factor(step: usize, warmup_steps: usize) -> Option<f64> {
    (step < warmup_steps).then(|| step as f64 / warmup_steps as f64)
}
