//! Predicted classes with their names and indices.

use std::collections::HashMap;

use sepal_data::Predictions;

/// Predictions of one class for each row.
#[derive(Debug)]
pub(crate) struct Classes<'a> {
    /// Names of the classes, the known labels first, in the order of the logits.
    pub(crate) names: Vec<String>,
    /// Index of each class among the probabilities.
    positions: Vec<Option<usize>>,
    pub(crate) actual: Vec<usize>,
    pub(crate) predicted: Vec<usize>,
    /// Probabilities, `[rows][n_labels]`.
    pub(crate) probabilities: &'a [Vec<f32>],
}

impl<'a> Classes<'a> {
    /// `labels` are the names in the order of the logits; without them, the order is derived from the probabilities.
    pub(crate) fn new(
        labels: &[String],
        predictions: &'a Predictions,
        actual: &[String],
        predicted: &[String],
    ) -> Self {
        let probabilities = &predictions.probabilities;
        let ordered = match labels {
            [] => by_probability(actual, predicted, probabilities),
            known => known.iter().map(Some).collect(),
        };
        let (mut names, mut positions, mut indices) = (Vec::new(), Vec::new(), HashMap::new());
        let known = ordered.into_iter().enumerate().filter_map(|(position, name)| Some((name?, Some(position))));
        for (name, position) in known.chain(predicted.iter().chain(actual).map(|name| (name, None))) {
            indices.entry(name).or_insert_with(|| {
                names.push(name.clone());
                positions.push(position);
                names.len() - 1
            });
        }
        let to_indices = |names: &[String]| names.iter().map(|name| indices[name]).collect();
        let (actual, predicted) = (to_indices(actual), to_indices(predicted));
        Self { names, positions, actual, predicted, probabilities }
    }

    /// Probability of a class in a row; NaN if unknown.
    pub(crate) fn probability(&self, row: usize, class: usize) -> f64 {
        let find = || self.probabilities.get(row)?.get(self.positions[class]?);
        find().map_or(f64::NAN, |p| f64::from(*p))
    }

    /// Probability of the predicted class of a row.
    pub(crate) fn confidence(&self, row: usize) -> f64 {
        let all = self.probabilities.get(row).map_or(&[][..], Vec::as_slice);
        all.iter().copied().filter(|p| p.is_finite()).reduce(f32::max).map_or(f64::NAN, f64::from)
    }

    pub(crate) fn hit(&self, row: usize) -> bool {
        self.actual[row] == self.predicted[row]
    }
}

/// Names in the order of the probabilities, as far as it can be derived: by the predictions where each is highest, and
/// the last one by elimination.
fn by_probability<'a>(
    actual: &'a [String],
    predicted: &'a [String],
    probabilities: &[Vec<f32>],
) -> Vec<Option<&'a String>> {
    let n = probabilities.first().map_or(0, Vec::len);
    let mut names: Vec<Option<&String>> = vec![None; n];
    for (name, row) in predicted.iter().zip(probabilities) {
        let highest = (0..row.len().min(n)).max_by(|&i, &j| row[i].total_cmp(&row[j]));
        if let Some(position) = highest.filter(|_| !names.contains(&Some(name))) {
            names[position].get_or_insert(name);
        }
    }
    let mut unplaced: Vec<&String> = actual.iter().filter(|name| !names.contains(&Some(name))).collect();
    unplaced.sort_unstable();
    unplaced.dedup();
    if let ([name], 1) = (&unplaced[..], names.iter().filter(|name| name.is_none()).count()) {
        names.iter_mut().filter(|entry| entry.is_none()).for_each(|entry| *entry = Some(name));
    }
    names
}

/// Names of `n` labels; unknown ones are numbered.
pub(crate) fn names(labels: &[String], n: usize) -> Vec<String> {
    (0..n).map(|i| labels.get(i).cloned().unwrap_or_else(|| format!("label {i}"))).collect()
}
