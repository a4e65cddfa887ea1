//! Successive halving as a plan: pure functions of numbers.
//!
//! Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.

use std::cmp::Ordering;

/// Part of a sweep between two selections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rung {
    /// Number of runs.
    pub(crate) runs: usize,
    /// Optimizer steps at its end; `None` for the end of the runs.
    pub(crate) steps: Option<u64>,
}

/// Rungs of `runs` runs: `factor` times fewer runs, rounded up, for `factor` times as many steps, until one run is left.
pub(crate) fn rungs(runs: usize, factor: u64, min_steps: u64) -> Vec<Rung> {
    let divisor = usize::try_from(factor.max(2)).unwrap_or(usize::MAX);
    let (mut runs, mut steps) = (runs, min_steps.max(1));
    let mut rungs = Vec::new();
    while runs > 1 {
        rungs.push(Rung { runs, steps: Some(steps) });
        (runs, steps) = (runs.div_ceil(divisor), steps.saturating_mul(factor.max(2)));
    }
    rungs.push(Rung { runs, steps: None });
    rungs
}

/// The best `keep` runs in the order of their numbers. Runs without a finite value are never among them; of equal runs the
/// earlier one is.
pub(crate) fn survivors(values: &[(usize, Option<f64>)], keep: usize, larger_is_better: bool) -> Vec<usize> {
    let finite = values.iter().filter_map(|&(run, value)| Some((run, value.filter(|value| value.is_finite())?)));
    let mut ranked: Vec<(usize, f64)> = finite.collect();
    let order = |a: f64, b: f64| -> Ordering { if larger_is_better { b.total_cmp(&a) } else { a.total_cmp(&b) } };
    ranked.sort_by(|a, b| order(a.1, b.1).then(a.0.cmp(&b.0)));
    let mut kept: Vec<usize> = ranked.into_iter().take(keep).map(|(run, _)| run).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runs: usize, factor: u64, min_steps: u64, expected: &[(usize, Option<u64>)]) {
        let found: Vec<_> = rungs(runs, factor, min_steps).into_iter().map(|rung| (rung.runs, rung.steps)).collect();
        assert_eq!(found, expected, "{runs} runs by {factor}");
    }

    #[test]
    fn rungs_divide_runs_and_multiply_steps() {
        check(9, 3, 50, &[(9, Some(50)), (3, Some(150)), (1, None)]);
        check(10, 3, 50, &[(10, Some(50)), (4, Some(150)), (2, Some(450)), (1, None)]);
        check(2, 3, 10, &[(2, Some(10)), (1, None)]);
        check(5, 2, 1, &[(5, Some(1)), (3, Some(2)), (2, Some(4)), (1, None)]);
        check(1, 3, 50, &[(1, None)]);
    }

    #[test]
    fn survivors_are_the_best_and_ties_go_to_the_earlier_run() {
        let values = [(0, Some(0.5)), (1, Some(0.9)), (2, Some(f64::NAN)), (3, None), (4, Some(0.9)), (5, Some(0.7))];
        assert_eq!(survivors(&values, 1, true), [1]);
        assert_eq!(survivors(&values, 3, true), [1, 4, 5]);
        assert_eq!(survivors(&values, 2, false), [0, 5]);
        assert_eq!(survivors(&values, 6, true), [0, 1, 4, 5], "runs without a value never continue");
        assert_eq!(survivors(&[(7, None)], 1, true), Vec::<usize>::new());
    }
}
