//! Measures that the report shows and the run did not write down, from labels and predictions.

/// How often each class was predicted for each true one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confusion {
    n: usize,
    counts: Vec<u64>,
}

/// How well one class is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ClassScore {
    /// Of the rows that got this class, the share that are of it; none if no row got it.
    pub(crate) precision: Option<f64>,
    /// Of the rows of this class, the share that got it; none if there is none.
    pub(crate) recall: Option<f64>,
    /// Their harmonic mean, `2 tp / (2 tp + fp + fn)`; none if the class occurs on neither side.
    pub(crate) f1: Option<f64>,
    /// Rows of the class.
    pub(crate) support: u64,
}

impl Confusion {
    /// Counts classes `[rows]`, each below `n`.
    pub(crate) fn new(n: usize, actual: &[usize], predicted: &[usize]) -> Self {
        let mut counts = vec![0; n * n];
        actual.iter().zip(predicted).for_each(|(&a, &p)| counts[a * n + p] += 1);
        Self { n, counts }
    }

    /// Rows of the class `actual` that got `predicted`.
    pub(crate) fn count(&self, actual: usize, predicted: usize) -> u64 {
        self.counts[actual * self.n + predicted]
    }

    /// Rows of a class.
    pub(crate) fn support(&self, class: usize) -> u64 {
        self.counts[class * self.n..][..self.n].iter().sum()
    }

    /// Rows that got a class.
    pub(crate) fn predicted(&self, class: usize) -> u64 {
        (0..self.n).map(|actual| self.count(actual, class)).sum()
    }

    /// Classes.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// The share of rows that got their class; none without rows.
    pub(crate) fn accuracy(&self) -> Option<f64> {
        share((0..self.n).map(|class| self.count(class, class)).sum(), self.counts.iter().sum())
    }

    /// Precision, recall and F1 of a class.
    pub(crate) fn score(&self, class: usize) -> ClassScore {
        score(self.count(class, class), self.predicted(class), self.support(class))
    }

    /// Pairs of classes that were mistaken, `(actual, predicted, rows)`, the most frequent first.
    pub(crate) fn mistaken(&self) -> Vec<(usize, usize, u64)> {
        let pairs = (0..self.n).flat_map(|a| (0..self.n).map(move |p| (a, p))).filter(|(a, p)| a != p);
        let mut pairs: Vec<_> = pairs.map(|(a, p)| (a, p, self.count(a, p))).filter(|pair| pair.2 > 0).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.2));
        pairs
    }
}

/// The score of one label of several, from `(actual, predicted)` of each row.
pub(crate) fn label_score(rows: impl Iterator<Item = (bool, bool)>) -> ClassScore {
    let (mut hits, mut predicted, mut support) = (0, 0, 0);
    for (actual, guess) in rows {
        hits += u64::from(actual && guess);
        predicted += u64::from(guess);
        support += u64::from(actual);
    }
    score(hits, predicted, support)
}

fn score(hits: u64, predicted: u64, support: u64) -> ClassScore {
    ClassScore {
        precision: share(hits, predicted),
        recall: share(hits, support),
        f1: share(2 * hits, predicted + support),
        support,
    }
}

/// The plain mean of each measure over the classes that occur, where what is undefined counts as 0 (scikit-learn's
/// `average="macro"`); none without classes.
pub(crate) fn macro_mean(scores: &[ClassScore]) -> Option<ClassScore> {
    mean(scores, |_| 1.0)
}

/// The mean weighted by rows of the class (scikit-learn's `average="weighted"`); none without rows.
pub(crate) fn weighted_mean(scores: &[ClassScore]) -> Option<ClassScore> {
    mean(scores, |score| score.support as f64)
}

fn mean(scores: &[ClassScore], weight: impl Fn(&ClassScore) -> f64) -> Option<ClassScore> {
    let there: Vec<&ClassScore> = scores.iter().filter(|score| score.f1.is_some()).collect();
    let total: f64 = there.iter().map(|score| weight(score)).sum();
    let of = |measure: fn(&ClassScore) -> Option<f64>| {
        there.iter().map(|score| weight(score) * measure(score).unwrap_or(0.0)).sum::<f64>() / total
    };
    (total > 0.0).then(|| ClassScore {
        precision: Some(of(|score| score.precision)),
        recall: Some(of(|score| score.recall)),
        f1: Some(of(|score| score.f1)),
        support: scores.iter().map(|score| score.support).sum(),
    })
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Predictions of about the same probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bin {
    /// Where it begins; it ends where the next begins.
    pub(crate) from: f64,
    /// Its end.
    pub(crate) to: f64,
    /// Predictions in it.
    pub(crate) count: usize,
    /// The mean of their probabilities; 0 without any.
    pub(crate) confidence: f64,
    /// The share that came true; 0 without any.
    pub(crate) hits: f64,
}

/// Predictions as `(probability, whether it came true)` in `n` bins of equal width from 0 to 1. Probabilities that are
/// no number are left out.
pub(crate) fn bins(predictions: impl Iterator<Item = (f64, bool)>, n: usize) -> Vec<Bin> {
    let edge = |i: usize| i as f64 / n as f64;
    let empty = |i| Bin { from: edge(i), to: edge(i + 1), count: 0, confidence: 0.0, hits: 0.0 };
    let mut bins: Vec<Bin> = (0..n).map(empty).collect();
    for (probability, hit) in predictions.filter(|(probability, _)| (0.0..=1.0).contains(probability)) {
        let bin = &mut bins[((probability * n as f64) as usize).min(n - 1)];
        bin.count += 1;
        bin.confidence += probability;
        bin.hits += f64::from(u8::from(hit));
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.hits /= bin.count as f64;
    }
    bins
}

/// Expected calibration error: the mean of `|hits - confidence|` over bins, weighted by their predictions (Naeini et
/// al. 2015), from 0 to 1; none without predictions.
pub(crate) fn calibration_error(bins: &[Bin]) -> Option<f64> {
    let all: usize = bins.iter().map(|bin| bin.count).sum();
    let gaps = bins.iter().map(|bin| bin.count as f64 * (bin.hits - bin.confidence).abs());
    (all > 0).then(|| gaps.sum::<f64>() / all as f64)
}

/// How far predicted numbers are from the true ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ValueScore {
    /// The root of the mean squared error.
    pub(crate) rmse: f64,
    /// The mean absolute error.
    pub(crate) mae: f64,
    /// The mean of `predicted - actual`.
    pub(crate) bias: f64,
    /// `1 - sum (actual - predicted)² / sum (actual - mean)²`; none if all true numbers are equal.
    pub(crate) r2: Option<f64>,
    /// Pairs of finite numbers, of which these are the measures.
    pub(crate) rows: usize,
}

/// Measures of pairs `(actual, predicted)`, of which those with a number that is not finite are left out; none without
/// any.
pub(crate) fn value_score(pairs: &[(f64, f64)]) -> Option<ValueScore> {
    let finite: Vec<_> = pairs.iter().filter(|(a, p)| a.is_finite() && p.is_finite()).collect();
    let rows = finite.len();
    let mean = |of: &dyn Fn(f64, f64) -> f64| finite.iter().map(|(a, p)| of(*a, *p)).sum::<f64>() / rows as f64;
    (rows > 0).then(|| {
        let squared = mean(&|a, p| (p - a).powi(2));
        let middle = mean(&|a, _| a);
        let spread = mean(&|a, _| (a - middle).powi(2));
        ValueScore {
            rmse: squared.sqrt(),
            mae: mean(&|a, p| (p - a).abs()),
            bias: mean(&|a, p| p - a),
            r2: (spread > 0.0).then(|| 1.0 - squared / spread),
            rows,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("a measure");
        assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
    }

    #[test]
    fn classes_by_hand() {
        // Of three 0s two are hit, of two 1s one; nothing is a 2, and it is predicted once; 3 occurs nowhere.
        let confusion = Confusion::new(4, &[0, 0, 0, 1, 1], &[0, 0, 1, 1, 2]);
        near(confusion.accuracy(), 0.6);
        let scores: Vec<ClassScore> = (0..confusion.len()).map(|class| confusion.score(class)).collect();
        near(scores[0].precision, 1.0);
        near(scores[0].recall, 2.0 / 3.0);
        near(scores[0].f1, 0.8);
        near(scores[1].f1, 0.5);
        assert_eq!((scores[2].precision, scores[2].recall, scores[2].f1), (Some(0.0), None, Some(0.0)));
        assert_eq!(scores[3].f1, None);
        let mean = macro_mean(&scores).expect("classes");
        near(mean.f1, 1.3 / 3.0);
        near(mean.recall, (2.0 / 3.0 + 0.5) / 3.0);
        near(weighted_mean(&scores).expect("rows").f1, (3.0 * 0.8 + 2.0 * 0.5) / 5.0);
        assert_eq!(confusion.mistaken(), [(0, 1, 1), (1, 2, 1)]);
        assert_eq!((mean.support, macro_mean(&[])), (5, None));
    }

    #[test]
    fn one_label_of_several() {
        let found = label_score([(true, true), (true, false), (false, true), (false, false), (true, true)].into_iter());
        near(found.precision, 2.0 / 3.0);
        near(found.recall, 2.0 / 3.0);
        assert_eq!(found.support, 3);
    }

    #[test]
    fn calibration_by_hand() {
        let predictions = [(0.95, true), (0.85, false), (0.95, false), (0.1, true), (1.0, true), (f64::NAN, true)];
        let bins = bins(predictions.into_iter(), 10);
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [0, 1, 0, 0, 0, 0, 0, 0, 1, 3]);
        near(Some(bins[9].confidence), 2.9 / 3.0);
        near(Some(bins[9].hits), 2.0 / 3.0);
        near(calibration_error(&bins), (0.9 + 0.85 + 0.9) / 5.0);
        assert_eq!(calibration_error(&super::bins([].into_iter(), 10)), None);
    }

    #[test]
    fn values_by_hand() {
        let score = value_score(&[(0.0, 1.0), (2.0, 2.0), (4.0, 2.0), (1.0, f64::NAN)]).expect("rows");
        near(Some(score.rmse), (5.0_f64 / 3.0).sqrt());
        near(Some(score.mae), 1.0);
        near(Some(score.bias), -1.0 / 3.0);
        near(score.r2, 1.0 - 5.0 / 8.0);
        assert_eq!(score.rows, 3);
        assert_eq!(value_score(&[(1.0, 2.0)]).expect("a row").r2, None);
        assert_eq!(value_score(&[]), None);
    }
}
