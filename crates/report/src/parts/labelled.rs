//! Predictions of classes with numbers for names.

use std::collections::HashMap;

use sepal_data::Predictions;

/// Predictions of one class to each row.
#[derive(Debug)]
pub(crate) struct Classes<'a> {
    /// The classes' names. Those that the model knows come first, in the order of its logits.
    pub(crate) names: Vec<String>,
    /// The true class of each row.
    pub(crate) actual: Vec<usize>,
    /// What it got.
    pub(crate) predicted: Vec<usize>,
    /// `[rows][n_labels]`
    pub(crate) probabilities: &'a [Vec<f32>],
}

impl<'a> Classes<'a> {
    /// `labels` are the names in the order of the logits, as far as they are known.
    pub(crate) fn new(
        labels: &[String],
        predictions: &'a Predictions,
        actual: &[String],
        predicted: &[String],
    ) -> Self {
        let probabilities = &predictions.probabilities;
        let known = if labels.is_empty() { by_probability(predicted, probabilities) } else { labels.to_vec() };
        let mut names = Vec::new();
        let mut numbers = HashMap::new();
        for name in known.iter().chain(predicted).chain(actual) {
            if !numbers.contains_key(name) {
                numbers.insert(name.clone(), names.len());
                names.push(name.clone());
            }
        }
        let number = |names: &[String]| names.iter().map(|name| numbers[name]).collect();
        Self { actual: number(actual), predicted: number(predicted), probabilities, names }
    }

    /// The probability of a class in a row; NaN if it has none.
    pub(crate) fn probability(&self, row: usize, class: usize) -> f64 {
        self.probabilities.get(row).and_then(|all| all.get(class)).map_or(f64::NAN, |p| f64::from(*p))
    }

    /// The probability of what a row got.
    pub(crate) fn confidence(&self, row: usize) -> f64 {
        let all = self.probabilities.get(row).map_or(&[][..], Vec::as_slice);
        all.iter().copied().filter(|p| p.is_finite()).reduce(f32::max).map_or(f64::NAN, f64::from)
    }

    /// Whether a row got its class.
    pub(crate) fn hit(&self, row: usize) -> bool {
        self.actual[row] == self.predicted[row]
    }
}

/// The names in the order of the probabilities, told by what was predicted where each is highest; those that were never
/// predicted are named by their number.
fn by_probability(predicted: &[String], probabilities: &[Vec<f32>]) -> Vec<String> {
    let n = probabilities.first().map_or(0, Vec::len);
    let mut names: Vec<Option<&String>> = vec![None; n];
    for (name, row) in predicted.iter().zip(probabilities) {
        let highest = (0..row.len().min(n)).max_by(|&i, &j| row[i].total_cmp(&row[j]));
        if let Some(place) = highest {
            names[place].get_or_insert(name);
        }
    }
    let unique = |(i, name): (usize, Option<&String>)| name.cloned().unwrap_or_else(|| format!("label {i}"));
    names.into_iter().enumerate().map(unique).collect()
}

/// The names of so many labels; those that are not known are numbered.
pub(crate) fn names(labels: &[String], n: usize) -> Vec<String> {
    (0..n).map(|i| labels.get(i).cloned().unwrap_or_else(|| format!("label {i}"))).collect()
}
