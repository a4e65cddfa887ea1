use sepal_metrics::{accuracy, binary_f1, macro_f1, matthews, mean_squared_error, pearson, spearman};
use tch::{Kind, TchError, Tensor};

use crate::{HeadError, Labels, Prediction};

/// The metrics that every head has unless it says otherwise.
pub(crate) fn usual(
    n_labels: usize,
    predictions: &Prediction,
    labels: &Labels,
) -> Result<Vec<(String, f64)>, HeadError> {
    let named = match labels {
        Labels::Class(tensor) => of_classes(n_labels, &predictions.class, &Vec::<i64>::try_from(tensor)?)?,
        Labels::Value(tensor) => of_values(&flat(&predictions.logits), &numbers(tensor)?)?,
        Labels::Multi(tensor) => of_several(&flat(&predictions.probabilities), &numbers(tensor)?)?,
    };
    Ok(named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

type Named = Vec<(&'static str, f64)>;

fn of_classes(n_labels: usize, predicted: &[i64], actual: &[i64]) -> Result<Named, HeadError> {
    let f1 = if n_labels == 2 { binary_f1(predicted, actual, 1)? } else { macro_f1(predicted, actual)? };
    Ok(vec![("accuracy", accuracy(predicted, actual)?), ("f1", f1), ("mcc", matthews(predicted, actual)?)])
}

fn of_values(predicted: &[f64], actual: &[f64]) -> Result<Named, HeadError> {
    Ok(vec![
        ("pearson", pearson(predicted, actual)?),
        ("spearman", spearman(predicted, actual)?),
        ("mse", mean_squared_error(predicted, actual)?),
    ])
}

fn of_several(probabilities: &[f64], actual: &[f64]) -> Result<Named, HeadError> {
    let whether = |numbers: &[f64]| numbers.iter().map(|&number| i64::from(number >= 0.5)).collect::<Vec<_>>();
    let (predicted, actual) = (whether(probabilities), whether(actual));
    Ok(vec![("accuracy", accuracy(&predicted, &actual)?), ("f1", binary_f1(&predicted, &actual, 1)?)])
}

fn flat(rows: &[Vec<f32>]) -> Vec<f64> {
    rows.iter().flatten().map(|&number| f64::from(number)).collect()
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::try_from(tensor.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(n_labels: usize, predictions: &Prediction, labels: &Labels, expected: &[(&str, f64)]) {
        let found = usual(n_labels, predictions, labels).expect("metrics");
        assert_eq!(found.len(), expected.len());
        for ((name, value), (expected_name, expected)) in found.iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((value - expected).abs() < 1e-6, "{name}: expected {expected}, found {value}");
        }
    }

    #[test]
    fn each_kind_has_its_metrics() {
        let classes = |class: &[i64]| Prediction { class: class.to_vec(), ..Prediction::default() };
        let labels = Labels::Class(Tensor::from_slice(&[1_i64, 1, 0, 0]));
        check(
            2,
            &classes(&[1, 0, 0, 0]),
            &labels,
            &[("accuracy", 0.75), ("f1", 2.0 / 3.0), ("mcc", 2.0 / 12.0_f64.sqrt())],
        );
        let labels = Labels::Class(Tensor::from_slice(&[2_i64, 1, 0]));
        check(
            3,
            &classes(&[2, 1, 1]),
            &labels,
            &[("accuracy", 2.0 / 3.0), ("f1", (1.0 + 2.0 / 3.0) / 3.0), ("mcc", 3.0 / 24.0_f64.sqrt())],
        );
        let values = Prediction { logits: vec![vec![1.0], vec![2.0], vec![4.0]], ..Prediction::default() };
        let labels = Labels::Value(Tensor::from_slice(&[2.0_f32, 4.0, 8.0]));
        check(1, &values, &labels, &[("pearson", 1.0), ("spearman", 1.0), ("mse", 7.0)]);
        let several = Prediction { probabilities: vec![vec![0.9, 0.1], vec![0.5, 0.6]], ..Prediction::default() };
        let labels = Labels::Multi(Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0]).view([2, 2]));
        check(2, &several, &labels, &[("accuracy", 0.75), ("f1", 0.8)]);
    }

    #[test]
    fn rows_must_agree() {
        let labels = Labels::Class(Tensor::from_slice(&[1_i64, 1]));
        assert!(matches!(usual(2, &Prediction::default(), &labels), Err(HeadError::Metric(_))));
    }
}
