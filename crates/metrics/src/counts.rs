use std::collections::BTreeMap;

use crate::quotient;

/// Precision, recall and F1 of one class, or averaged over several ([`Average`]).
///
/// Each is from 0 to 1, and 0 if its denominator is 0: the precision of a class that is never predicted, the recall of
/// one that is never a label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Share of the rows predicted as the class that belong to it.
    pub precision: f64,
    /// Share of the rows of the class that are predicted as it.
    pub recall: f64,
    /// Harmonic mean of both: `2 hits / (predicted + support)`.
    pub f1: f64,
    /// Number of rows of the class; the sum for several classes.
    pub support: usize,
}

/// Average over classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// Unweighted mean over classes: a rare class counts as much as a frequent one.
    Macro,
    /// Scores of the summed counts: each decision has the same weight. With one class per row, all three are the
    /// accuracy.
    Micro,
    /// Mean over classes, weighted by their support.
    Weighted,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) predicted: usize,
    pub(crate) actual: usize,
    pub(crate) hits: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, predicted: bool, actual: bool) {
        self.predicted += usize::from(predicted);
        self.actual += usize::from(actual);
        self.hits += usize::from(predicted && actual);
    }

    pub(crate) fn scores(self) -> Scores {
        let hits = self.hits as f64;
        Scores {
            precision: quotient(hits, self.predicted as f64),
            recall: quotient(hits, self.actual as f64),
            f1: quotient(2.0 * hits, (self.predicted + self.actual) as f64),
            support: self.actual,
        }
    }
}

/// Counts of each class that occurs on either side.
pub(crate) fn counts(predicted: &[i64], actual: &[i64]) -> BTreeMap<i64, Counts> {
    let mut classes: BTreeMap<i64, Counts> = BTreeMap::new();
    for (&p, &a) in predicted.iter().zip(actual) {
        classes.entry(p).or_default().add(true, p == a);
        if p != a {
            classes.entry(a).or_default().add(false, true);
        }
    }
    classes
}

pub(crate) fn averaged_scores(classes: &[Counts], average: Average) -> Scores {
    let sum = |count: fn(&Counts) -> usize| classes.iter().map(count).sum();
    let all = Counts { predicted: sum(|c| c.predicted), actual: sum(|c| c.actual), hits: sum(|c| c.hits) };
    match average {
        Average::Micro => all.scores(),
        Average::Macro => mean(classes, all.actual, |_| 1.0),
        Average::Weighted => mean(classes, all.actual, |class| class.actual as f64),
    }
}

fn mean(classes: &[Counts], support: usize, weight: fn(&Counts) -> f64) -> Scores {
    let total = classes.iter().map(weight).sum();
    let mean = |score: fn(Scores) -> f64| {
        let sum = classes.iter().map(|class| weight(class) * score(class.scores())).sum();
        quotient(sum, total)
    };
    Scores { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1), support }
}
