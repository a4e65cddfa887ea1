//! Into how many micro-batches a batch is cut, learned from what it took.

/// The numbers of parts that are tried, in this order.
pub(crate) const PARTS: [usize; 5] = [1, 2, 4, 8, 16];
/// The share of the time that a finer cut must get below to be worth it.
const WORTH_IT: f64 = 0.97;
/// Measurements of a cut before a finer one is tried: the first may have opened connections.
const ENOUGH: usize = 2;
/// How much a slower measurement weighs against those before it.
const WEIGHT: f64 = 0.3;
/// After so many calls all is learned anew: other clients may have come or gone.
const FORGET_AFTER: usize = 500;

/// What cuts took. A plan predicts what a finer cut would gain if the servers are machines of their own; whether they
/// are shows when it is tried.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// The servers that this was learned of.
    changes: u64,
    calls: usize,
    learned: [Learned; PARTS.len()],
}

#[derive(Debug, Clone, Copy, Default)]
struct Learned {
    /// Seconds per token.
    took: f64,
    times: usize,
}

impl Cuts {
    /// Which of [`PARTS`] to cut into. `changes` counts changes among the servers; `predict` gives the seconds per token
    /// that a plan of this cut promises, or `None` where there is no such cut.
    pub(crate) fn choose(&mut self, changes: u64, mut predict: impl FnMut(usize) -> Option<f64>) -> usize {
        if changes != self.changes || self.calls >= FORGET_AFTER {
            *self = Self { changes, ..Self::default() };
        }
        self.calls += 1;
        let mut best: Option<(usize, f64)> = None;
        // How far the next coarser cut that was measured fell short of its promise: a finer one will, too.
        let mut shortfall = None;
        let mut untried: Vec<(usize, f64)> = Vec::new();
        for (i, learned) in self.learned.iter().enumerate() {
            let Some(promised) = predict(i) else { break };
            match (learned.times, shortfall) {
                // The coarsest cut is measured before any other.
                (0, None) => return i,
                (0, Some(shortfall)) => {
                    untried.push((i, promised * shortfall));
                    continue;
                }
                (1..ENOUGH, _) => return i,
                _ => shortfall = Some(learned.took / promised),
            }
            if best.is_none_or(|(_, time)| learned.took < time * WORTH_IT) {
                best = Some((i, learned.took));
            }
        }
        let Some((best, time)) = best else { return 0 };
        untried.iter().find(|(_, promised)| *promised < time * WORTH_IT).map_or(best, |&(i, _)| i)
    }

    /// What the cut took.
    pub(crate) fn took(&mut self, choice: usize, seconds_per_token: f64) {
        let learned = &mut self.learned[choice];
        let is_better = learned.times == 0 || seconds_per_token < learned.took;
        learned.took =
            if is_better { seconds_per_token } else { learned.took + WEIGHT * (seconds_per_token - learned.took) };
        learned.times += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cuts chosen, and how often each, when a cut promises and takes so long.
    fn check(promise: impl Fn(usize) -> f64, takes: impl Fn(usize) -> f64, expected: usize) {
        let mut cuts = Cuts::default();
        let mut chosen = Vec::new();
        for _ in 0..40 {
            let choice = cuts.choose(1, |i| Some(promise(PARTS[i])));
            cuts.took(choice, takes(PARTS[choice]));
            chosen.push(PARTS[choice]);
        }
        assert_eq!(chosen[0], 1, "the coarsest cut first");
        assert!(chosen[12..].iter().all(|&parts| parts == expected), "{chosen:?}");
    }

    #[test]
    fn servers_of_their_own_are_all_used() {
        check(|parts| 1.0 / parts.min(8) as f64, |parts| 0.9 / parts.min(8) as f64, 8);
    }

    #[test]
    fn servers_that_share_a_machine_are_not_made_to_compete() {
        check(|parts| 1.0 / parts as f64, |parts| parts as f64, 1);
    }

    #[test]
    fn nothing_is_tried_that_promises_nothing() {
        let mut cuts = Cuts::default();
        for _ in 0..10 {
            assert_eq!(cuts.choose(1, |_| Some(1.0)), 0);
            cuts.took(0, 1.0);
        }
    }

    #[test]
    fn there_may_be_no_finer_cut_and_changes_start_anew() {
        let mut cuts = Cuts::default();
        for _ in 0..5 {
            assert_eq!(cuts.choose(1, |i| (i == 0).then_some(1.0)), 0);
            cuts.took(0, 1.0);
        }
        assert_eq!(cuts.choose(1, |i| Some(1.0 / PARTS[i] as f64)), 1);
        cuts.took(1, 0.5);
        for _ in 0..5 {
            cuts.took(1, 0.5);
        }
        assert_eq!(cuts.choose(1, |i| (i == 0).then_some(1.0)), 0, "a batch too small for the best cut");
        assert_eq!(cuts.choose(2, |i| Some(1.0 / PARTS[i] as f64)), 0, "another server has come");
    }
}
