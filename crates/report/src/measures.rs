//! Counts of classes as the pages need them; the measures themselves are those of `sepal-metrics`.

use sepal_metrics::{Average, MetricError, Scores, averaged, confusion, per_class};

/// How often each class was predicted for each true one, and the scores of that.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Confusion {
    /// `[actual][predicted]`
    counts: Vec<Vec<usize>>,
    /// Of each class.
    pub(crate) scores: Vec<Scores>,
    /// The plain mean over classes, and the one by their rows.
    pub(crate) means: [Scores; 2],
}

impl Confusion {
    /// Of classes `[rows]`, each below `n`.
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

    /// Rows of the class `actual` that got `predicted`.
    pub(crate) fn count(&self, actual: usize, predicted: usize) -> usize {
        self.counts[actual][predicted]
    }

    /// Rows of a class.
    pub(crate) fn support(&self, class: usize) -> usize {
        self.scores[class].support
    }

    /// Rows that got a class.
    pub(crate) fn predicted(&self, class: usize) -> usize {
        self.counts.iter().map(|row| row[class]).sum()
    }

    /// Classes.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Pairs of classes that were mistaken, `(actual, predicted, rows)`, the most frequent first.
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
    fn classes_by_hand() {
        // Of three 0s two are hit, of two 1s one; nothing is a 2, and it is predicted once; 3 occurs nowhere.
        let confusion = Confusion::new(4, &[0, 0, 0, 1, 1], &[0, 0, 1, 1, 2]).expect("rows");
        assert_eq!((confusion.support(0), confusion.predicted(1), confusion.len()), (3, 2, 4));
        assert_eq!(confusion.mistaken(), [(0, 1, 1), (1, 2, 1)]);
        let far = (confusion.means[0].f1 - 1.3 / 3.0).abs();
        assert!(far < 1e-12 && confusion.scores[3].support == 0, "{confusion:?}");
        assert_eq!(Confusion::new(2, &[], &[]), Err(MetricError::Empty));
    }
}
