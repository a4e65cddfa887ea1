//! Confusion counts and scores of classes.

use std::collections::BTreeMap;

use sepal_metrics::{Average, MetricError, Scores, averaged, per_class};

/// Confusion matrix with the scores of its classes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Confusion {
    /// Number of rows of each pair of classes that occurs, `(actual, predicted)`. A run may have very many labels.
    counts: BTreeMap<(usize, usize), usize>,
    /// Number of rows with each prediction, `[n_labels]`.
    predicted: Vec<usize>,
    pub(crate) scores: Vec<Scores>,
    /// Unweighted mean over classes, and mean weighted by rows.
    pub(crate) means: [Scores; 2],
}

impl Confusion {
    /// Counts classes `[rows]`, each below `n`.
    pub(crate) fn new(n: usize, actual: &[usize], predicted: &[usize]) -> Result<Self, MetricError> {
        let numbers = |classes: &[usize]| classes.iter().map(|&class| class as i64).collect::<Vec<_>>();
        let (of_actual, of_predicted) = (numbers(actual), numbers(predicted));
        let mean = |how| averaged(&of_predicted, &of_actual, how);
        // This checks the classes, too.
        let scores = per_class(&of_predicted, &of_actual, n)?;
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut got = vec![0; n];
        for (&actual, &predicted) in actual.iter().zip(predicted) {
            *counts.entry((actual, predicted)).or_default() += 1;
            got[predicted] += 1;
        }
        Ok(Self { counts, predicted: got, scores, means: [mean(Average::Macro)?, mean(Average::Weighted)?] })
    }

    /// Number of rows of the class `actual` with the prediction `predicted`.
    pub(crate) fn count(&self, actual: usize, predicted: usize) -> usize {
        self.counts.get(&(actual, predicted)).copied().unwrap_or(0)
    }

    pub(crate) fn support(&self, class: usize) -> usize {
        self.scores[class].support
    }

    /// Number of rows with this prediction.
    pub(crate) fn predicted(&self, class: usize) -> usize {
        self.predicted[class]
    }

    pub(crate) fn len(&self) -> usize {
        self.scores.len()
    }

    /// Pairs of confused classes, `(actual, predicted, rows)`, the most frequent first.
    pub(crate) fn mistaken(&self) -> Vec<(usize, usize, usize)> {
        let mistakes = self.counts.iter().filter(|((actual, predicted), _)| actual != predicted);
        let mut pairs: Vec<_> = mistakes.map(|(&(actual, predicted), &rows)| (actual, predicted, rows)).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.2));
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confusion_equals_manual_counts() {
        // Two of three 0s and one of two 1s are hits; 2 is predicted once without a row, and 3 does not occur.
        let confusion = Confusion::new(4, &[0, 0, 0, 1, 1], &[0, 0, 1, 1, 2]).expect("rows");
        assert_eq!((confusion.support(0), confusion.predicted(1), confusion.len()), (3, 2, 4));
        assert_eq!(confusion.mistaken(), [(0, 1, 1), (1, 2, 1)]);
        let far = (confusion.means[0].f1 - 1.3 / 3.0).abs();
        assert!(far < 1e-12 && confusion.scores[3].support == 0, "{confusion:?}");
        assert_eq!(Confusion::new(2, &[], &[]), Err(MetricError::Empty));
        let many = Confusion::new(1 << 20, &[5, 7], &[5, 9]).expect("rows");
        assert_eq!((many.mistaken(), many.count(5, 5), many.predicted(9)), (vec![(7, 9, 1)], 1, 1));
    }
}
