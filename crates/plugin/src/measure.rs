use sepal_metrics::{
    Average, CALIBRATION_BINS, MetricError, Scores, accuracy, answers, auroc, averaged, calibration, entities,
    matthews, mean_absolute_error, mean_squared_error, multilabel, pearson, per_class, r2, spearman,
};

use crate::{HeadError, Labels, Prediction};

pub(crate) fn usual(
    label_names: &[String],
    predictions: &Prediction,
    labels: &Labels,
) -> Result<Vec<(String, f64)>, HeadError> {
    match labels {
        Labels::Class(actual) => {
            let scores = per_class(&predictions.class, actual, label_names.len())?;
            let mut named = owned(class_metrics(&scores, predictions, actual)?);
            named.extend(label_names.iter().zip(&scores).map(|(label, scores)| (format!("f1/{label}"), scores.f1)));
            Ok(named)
        }
        Labels::Value(actual) => {
            let actual: Vec<f64> = actual.iter().copied().map(f64::from).collect();
            Ok(owned(value_metrics(&flat(&predictions.logits), &actual)?))
        }
        Labels::Multi(actual) => Ok(owned(multi_label_metrics(predictions, actual)?)),
        Labels::Choice(actual) => Ok(owned(vec![("accuracy", accuracy(&predictions.class, actual)?)])),
        Labels::Tags(actual) => Ok(tag_metrics(label_names, &predictions.items, actual)?),
        Labels::Text(actual) => Ok(owned(text_metrics(predictions, actual.len())?)),
    }
}

/// Metrics of tags: of entities, of words, and of each type of entity.
fn tag_metrics(
    label_names: &[String],
    predicted: &[Vec<i64>],
    actual: &[Vec<i64>],
) -> Result<Vec<(String, f64)>, MetricError> {
    let name = |&tag: &i64| usize::try_from(tag).ok().and_then(|tag| label_names.get(tag)).map_or("O", String::as_str);
    let named = |rows: &[Vec<i64>]| rows.iter().map(|row| row.iter().map(name).collect()).collect::<Vec<Vec<&str>>>();
    let scores = entities::scores(&named(predicted), &named(actual))?;
    let Scores { precision, recall, f1, .. } = scores.overall;
    let mut metrics = owned(vec![
        ("f1", f1),
        ("precision", precision),
        ("recall", recall),
        ("accuracy", accuracy(&predicted.concat(), &actual.concat())?),
    ]);
    metrics.extend(scores.by_type.into_iter().map(|(kind, scores)| (format!("f1/{kind}"), scores.f1)));
    Ok(metrics)
}

fn text_metrics(predictions: &Prediction, rows: usize) -> Result<Named, MetricError> {
    let log_probabilities = wide(&predictions.logits);
    if log_probabilities.len() != rows {
        return Err(MetricError::Lengths { predicted: log_probabilities.len(), actual: rows });
    }
    let lengths: Vec<usize> = log_probabilities.iter().map(Vec::len).collect();
    Ok(vec![
        ("perplexity", answers::perplexity(&log_probabilities)?),
        ("token_accuracy", answers::token_accuracy(&predictions.right_tokens, &lengths)?),
        ("exact_match", answers::exact_match(&predictions.right_tokens, &lengths)?),
    ])
}

type Named = Vec<(&'static str, f64)>;

fn class_metrics(per_class: &[Scores], predictions: &Prediction, actual: &[i64]) -> Result<Named, MetricError> {
    let predicted = &predictions.class;
    let over_classes = averaged(predicted, actual, Average::Macro)?;
    let shown = if let [_, second] = per_class { *second } else { over_classes };
    let mut named = vec![
        ("accuracy", accuracy(predicted, actual)?),
        ("f1", shown.f1),
        ("precision", shown.precision),
        ("recall", shown.recall),
        ("f1_macro", over_classes.f1),
        ("f1_micro", averaged(predicted, actual, Average::Micro)?.f1),
        ("mcc", matthews(predicted, actual)?),
    ];
    let probabilities = wide(&predictions.probabilities);
    named.extend(if_finite(auroc(&probabilities, actual))?.flatten().map(|area| ("auroc", area)));
    named.extend(if_finite(calibration(&probabilities, actual, CALIBRATION_BINS))?.map(|found| ("ece", found.error)));
    Ok(named)
}

fn value_metrics(predicted: &[f64], actual: &[f64]) -> Result<Named, MetricError> {
    Ok(vec![
        ("pearson", pearson(predicted, actual)?),
        ("spearman", spearman(predicted, actual)?),
        ("mse", mean_squared_error(predicted, actual)?),
        ("mae", mean_absolute_error(predicted, actual)?),
        ("r2", r2(predicted, actual)?),
    ])
}

fn multi_label_metrics(predictions: &Prediction, actual: &[Vec<f32>]) -> Result<Named, MetricError> {
    let rows = &predictions.probabilities;
    let predicted: Vec<Vec<bool>> = rows.iter().map(|row| predictions.label_decisions(row).collect()).collect();
    let (probabilities, actual) = (wide(rows), whether(actual));
    let mut named = vec![
        ("accuracy", 1.0 - multilabel::hamming_loss(&predicted, &actual)?),
        ("f1", multilabel::averaged(&predicted, &actual, Average::Micro)?.f1),
        ("f1_macro", multilabel::averaged(&predicted, &actual, Average::Macro)?.f1),
        ("exact_match", multilabel::exact_match(&predicted, &actual)?),
    ];
    named.extend(if_finite(multilabel::auroc(&probabilities, &actual))?.flatten().map(|area| ("auroc", area)));
    Ok(named)
}

/// `None` if probabilities are NaN after a diverged training; metrics of the classes alone stay available.
fn if_finite<T>(found: Result<T, MetricError>) -> Result<Option<T>, MetricError> {
    match found {
        Err(MetricError::NotFinite { .. }) => Ok(None),
        found => found.map(Some),
    }
}

fn whether(rows: &[Vec<f32>]) -> Vec<Vec<bool>> {
    rows.iter().map(|row| row.iter().map(|&number| number >= 0.5).collect()).collect()
}

fn owned(named: Named) -> Vec<(String, f64)> {
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|&number| f64::from(number)).collect()).collect()
}

fn flat(rows: &[Vec<f32>]) -> Vec<f64> {
    rows.iter().flatten().map(|&number| f64::from(number)).collect()
}

#[cfg(test)]
mod tests {
    use sepal_metrics::Metric;

    use super::*;

    fn check(label_names: &[&str], predictions: &Prediction, labels: &Labels, expected: &[(&str, f64)]) {
        let label_names: Vec<String> = label_names.iter().map(|&name| name.to_owned()).collect();
        let found = usual(&label_names, predictions, labels).expect("metrics");
        let names = |named: &[(&str, f64)]| named.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(found.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names(expected));
        for ((name, value), (_, expected)) in found.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{name}: expected {expected}, found {value}");
            assert!(Metric::find(name).is_ok(), "{name} is in the list of metrics");
        }
    }

    fn classes(class: &[i64], probabilities: &[&[f32]]) -> Prediction {
        let probabilities = probabilities.iter().map(|row| row.to_vec()).collect();
        Prediction { class: class.to_vec(), probabilities, ..Prediction::default() }
    }

    #[test]
    fn metrics_of_two_classes_are_those_of_the_second() {
        let predictions = classes(&[1, 0, 0, 0], &[&[0.2, 0.8], &[0.6, 0.4], &[0.9, 0.1], &[0.5, 0.5]]);
        let labels = Labels::Class(vec![1, 1, 0, 0]);
        let expected = [
            ("accuracy", 0.75),
            ("f1", 2.0 / 3.0),
            ("precision", 1.0),
            ("recall", 0.5),
            ("f1_macro", (2.0 / 3.0 + 0.8) / 2.0),
            ("f1_micro", 0.75),
            ("mcc", 2.0 / 12.0_f64.sqrt()),
            ("auroc", 0.75),
            ("ece", (0.2 + 0.6 + 0.1 + 0.5) / 4.0),
            ("f1/bad", 0.8),
            ("f1/good", 2.0 / 3.0),
        ];
        check(&["bad", "good"], &predictions, &labels, &expected);
    }

    #[test]
    fn metrics_of_three_classes_are_means() {
        let predictions = classes(&[2, 1, 1], &[&[0.1, 0.2, 0.7], &[0.2, 0.5, 0.3], &[0.15, 0.55, 0.3]]);
        let labels = Labels::Class(vec![2, 1, 0]);
        let expected = [
            ("accuracy", 2.0 / 3.0),
            ("f1", (1.0 + 2.0 / 3.0) / 3.0),
            ("precision", 0.5),
            ("recall", 2.0 / 3.0),
            ("f1_macro", (1.0 + 2.0 / 3.0) / 3.0),
            ("f1_micro", 2.0 / 3.0),
            ("mcc", 3.0 / 24.0_f64.sqrt()),
            ("auroc", (0.5 + 0.5 + 1.0) / 3.0),
            ("ece", (0.3 + 0.5 + 0.55) / 3.0),
            ("f1/a", 0.0),
            ("f1/b", 2.0 / 3.0),
            ("f1/c", 1.0),
        ];
        check(&["a", "b", "c"], &predictions, &labels, &expected);
    }

    #[test]
    fn undefined_metrics_are_left_out() {
        let labels = Labels::Class(vec![1, 1]);
        let label_names = ["bad".to_owned(), "good".to_owned()];
        let has = |probabilities: &[&[f32]]| {
            let found = usual(&label_names, &classes(&[1, 0], probabilities), &labels).expect("metrics");
            ["accuracy", "auroc", "ece"].map(|name| found.iter().any(|(found, _)| found == name))
        };
        assert_eq!(has(&[&[0.2, 0.8], &[0.6, 0.4]]), [true, false, true], "no row of the first class");
        assert_eq!(has(&[&[f32::NAN; 2], &[0.6, 0.4]]), [true, false, false], "no numbers");
    }

    #[test]
    fn values_and_several_labels_have_their_own() {
        let values = Prediction { logits: vec![vec![1.0], vec![2.0], vec![4.0]], ..Prediction::default() };
        let labels = Labels::Value(vec![2.0, 4.0, 8.0]);
        let expected = [("pearson", 1.0), ("spearman", 1.0), ("mse", 7.0), ("mae", 7.0 / 3.0), ("r2", -0.125)];
        check(&["score"], &values, &labels, &expected);
        let several = Prediction { probabilities: vec![vec![0.9, 0.1], vec![0.5, 0.6]], ..Prediction::default() };
        let labels = Labels::Multi(vec![vec![1.0, 0.0], vec![0.0, 1.0]]);
        let expected = [("accuracy", 0.75), ("f1", 0.8), ("f1_macro", 5.0 / 6.0), ("exact_match", 0.5), ("auroc", 1.0)];
        check(&["a", "b"], &several, &labels, &expected);
        let strict = Prediction { thresholds: vec![0.6, 0.5], ..several };
        let expected = [("accuracy", 1.0), ("f1", 1.0), ("f1_macro", 1.0), ("exact_match", 1.0), ("auroc", 1.0)];
        check(&["a", "b"], &strict, &labels, &expected);
    }

    #[test]
    fn tags_are_measured_by_entity_and_word() {
        let items = vec![vec![1, 2, 0], vec![0, 1]];
        let predictions = Prediction { items, ..Prediction::default() };
        let labels = Labels::Tags(vec![vec![1, 2, 0], vec![1, 0]]);
        let expected = [("f1", 0.5), ("precision", 0.5), ("recall", 0.5), ("accuracy", 0.6), ("f1/PER", 0.5)];
        check(&["O", "B-PER", "I-PER"], &predictions, &labels, &expected);
    }

    #[test]
    fn answers_and_options_have_their_own() {
        let half = 0.5_f32.ln();
        let logits = vec![vec![half, half], vec![half]];
        let predictions = Prediction { logits, right_tokens: vec![1, 1], ..Prediction::default() };
        let labels = Labels::Text(vec!["a b".to_owned(), "c".to_owned()]);
        let expected = [("perplexity", 2.0), ("token_accuracy", 2.0 / 3.0), ("exact_match", 0.5)];
        check(&[], &predictions, &labels, &expected);
        let choice = Prediction { class: vec![1, 3], ..Prediction::default() };
        check(&[], &choice, &Labels::Choice(vec![1, 2]), &[("accuracy", 0.5)]);
    }

    #[test]
    fn rows_must_agree() {
        let labels = Labels::Class(vec![1, 1]);
        let label_names = ["bad".to_owned(), "good".to_owned()];
        let found = usual(&label_names, &Prediction::default(), &labels);
        assert!(matches!(found, Err(HeadError::Metric(_))));
    }
}
