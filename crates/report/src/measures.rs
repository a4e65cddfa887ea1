//! Confusion counts and scores of classes.

use sepal_metrics::{Average, MetricError, Scores, averaged, confusion, per_class};

/// Confusion matrix with the scores of its classes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Confusion {
    counts: Vec<Vec<usize>>,
    pub(crate) scores: Vec<Scores>,
    /// Unweighted mean over classes, and mean weighted by rows.
    pub(crate) means: [Scores; 2],
}

impl Confusion {
    /// Counts classes `[rows]`, each below `n`.
    pub(crate) fn new(n: usize, actual: &[usize], predicted: &[usize]) -> Result<Self, MetricError> {
        let numbers = |classes: &[usize]| classes.iter().map(|&class| class as i64).collect::<Vec<_>>();
        let (actual, predicted) = (numbers(actual), numbers(predicted));
        let mean = |how| averaged(&predicted, &actual, how);
        Ok(Self {
            counts: confusion(&predicted, &actual, n)?,
            scores: per_class(&predicted, &actual, n)?,
            means: [mean(Average::Macro)?, mean(Average::Weighted)?],
        })
    }

    /// Number of rows of the class `actual` with the prediction `predicted`.
    pub(crate) fn count(&self, actual: usize, predicted: usize) -> usize {
        self.counts[actual][predicted]
    }

    pub(crate) fn support(&self, class: usize) -> usize {
        self.scores[class].support
    }

    /// Number of rows with this prediction.
    pub(crate) fn predicted(&self, class: usize) -> usize {
        self.counts.iter().map(|row| row[class]).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Pairs of confused classes, `(actual, predicted, rows)`, the most frequent first.
    pub(crate) fn mistaken(&self) -> Vec<(usize, usize, usize)> {
        let pairs = (0..self.len()).flat_map(|a| (0..self.len()).map(move |p| (a, p))).filter(|(a, p)| a != p);
        let mut pairs: Vec<_> = pairs.map(|(a, p)| (a, p, self.count(a, p))).filter(|pair| pair.2 > 0).collect();
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
    }
}
