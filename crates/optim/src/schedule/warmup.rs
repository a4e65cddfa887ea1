//! The warm-up, which every schedule begins with.

/// The steps that options ask for, of a run of `total_steps`: `steps` if it is not 0, else `ratio` of the run, rounded up.
pub fn share_of(total_steps: usize, steps: usize, ratio: f64) -> usize {
    if steps > 0 { steps } else { (total_steps as f64 * ratio).ceil() as usize }
}

/// The factor during the warm-up; `None` afterwards.
pub(super) fn rising(step: usize, warmup_steps: usize) -> Option<f64> {
    (step < warmup_steps).then(|| step as f64 / warmup_steps as f64)
}
