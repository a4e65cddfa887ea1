use std::collections::BTreeMap;

use crate::quotient;

/// Precision, recall and F1 of one class, or of several together ([`Average`]).
///
/// Each is from 0 to 1, and 0 where nothing divides: the precision of a class that is never predicted, the recall of
/// one that is never a label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Of what was predicted to be of the class, the share that is.
    pub precision: f64,
    /// Of what is of the class, the share that was predicted to be.
    pub recall: f64,
    /// The harmonic mean of both: `2 hits / (predicted + support)`.
    pub f1: f64,
    /// How often the class is a label; of several classes, the sum.
    pub support: usize,
}

/// How the scores of several classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// The plain mean over classes: a rare class counts as much as a frequent one.
    Macro,
    /// The scores of the sums of what was counted: each decision counts as much as any other. Where each row has one
    /// class, all three are the accuracy.
    Micro,
    /// The mean over classes, each as often as it is a label.
    Weighted,
}

/// How often one class occurs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) predicted: usize,
    pub(crate) actual: usize,
    pub(crate) hits: usize,
}

impl Counts {
    /// Counts one decision on the class.
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

/// The scores of several classes as one.
pub(crate) fn average(classes: &[Counts], how: Average) -> Scores {
    let sum = |of: fn(&Counts) -> usize| classes.iter().map(of).sum();
    let all = Counts { predicted: sum(|c| c.predicted), actual: sum(|c| c.actual), hits: sum(|c| c.hits) };
    match how {
        Average::Micro => all.scores(),
        Average::Macro => mean(classes, all.actual, |_| 1.0),
        Average::Weighted => mean(classes, all.actual, |class| class.actual as f64),
    }
}

fn mean(classes: &[Counts], support: usize, weight: fn(&Counts) -> f64) -> Scores {
    let total = classes.iter().map(weight).sum();
    let mean = |of: fn(Scores) -> f64| {
        let sum = classes.iter().map(|class| weight(class) * of(class.scores())).sum();
        quotient(sum, total)
    };
    Scores { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1), support }
}
