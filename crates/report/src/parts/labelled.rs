//! Predictions of classes with numbers for names.

use std::collections::HashMap;

use sepal_data::Predictions;

/// Predictions of one class to each row.
#[derive(Debug)]
pub(crate) struct Classes<'a> {
    /// The classes' names. Those that the model knows come first, in the order of its logits.
    pub(crate) names: Vec<String>,
    /// Of each class, its place among the probabilities.
    places: Vec<Option<usize>>,
    /// The true class of each row.
    pub(crate) actual: Vec<usize>,
    /// What it got.
    pub(crate) predicted: Vec<usize>,
    /// `[rows][n_labels]`
    pub(crate) probabilities: &'a [Vec<f32>],
}

impl<'a> Classes<'a> {
    /// `labels` are the names in the order of the logits; if there are none, they are told by the probabilities.
    pub(crate) fn new(
        labels: &[String],
        predictions: &'a Predictions,
        actual: &[String],
        predicted: &[String],
    ) -> Self {
        let probabilities = &predictions.probabilities;
        let placed = match labels {
            [] => by_probability(actual, predicted, probabilities),
            known => known.iter().map(Some).collect(),
        };
        let (mut names, mut places, mut numbers) = (Vec::new(), Vec::new(), HashMap::new());
        let known = placed.into_iter().enumerate().filter_map(|(place, name)| Some((name?, Some(place))));
        for (name, place) in known.chain(predicted.iter().chain(actual).map(|name| (name, None))) {
            numbers.entry(name).or_insert_with(|| {
                names.push(name.clone());
                places.push(place);
                names.len() - 1
            });
        }
        let number = |names: &[String]| names.iter().map(|name| numbers[name]).collect();
        let (actual, predicted) = (number(actual), number(predicted));
        Self { names, places, actual, predicted, probabilities }
    }

    /// The probability of a class in a row; NaN if it is not known.
    pub(crate) fn probability(&self, row: usize, class: usize) -> f64 {
        let find = || self.probabilities.get(row)?.get(self.places[class]?);
        find().map_or(f64::NAN, |p| f64::from(*p))
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

/// The names in the order of the probabilities, as far as it can be told: by what was predicted where each is highest,
/// and the last one by what is left.
fn by_probability<'a>(
    actual: &'a [String],
    predicted: &'a [String],
    probabilities: &[Vec<f32>],
) -> Vec<Option<&'a String>> {
    let n = probabilities.first().map_or(0, Vec::len);
    let mut names: Vec<Option<&String>> = vec![None; n];
    for (name, row) in predicted.iter().zip(probabilities) {
        let highest = (0..row.len().min(n)).max_by(|&i, &j| row[i].total_cmp(&row[j]));
        if let Some(place) = highest.filter(|_| !names.contains(&Some(name))) {
            names[place].get_or_insert(name);
        }
    }
    let mut left: Vec<&String> = actual.iter().filter(|name| !names.contains(&Some(name))).collect();
    left.sort_unstable();
    left.dedup();
    if let ([name], 1) = (&left[..], names.iter().filter(|name| name.is_none()).count()) {
        names.iter_mut().filter(|place| place.is_none()).for_each(|place| *place = Some(name));
    }
    names
}

/// The names of so many labels; those that are not known are numbered.
pub(crate) fn names(labels: &[String], n: usize) -> Vec<String> {
    (0..n).map(|i| labels.get(i).cloned().unwrap_or_else(|| format!("label {i}"))).collect()
}
