//! Fit of a trained classifier's probabilities and decisions, and their use in predictions.

use std::collections::BTreeMap;

use sepal_config::spec::CalibrateSpec;
use sepal_core::{LabelKind, Labels, Task};
use sepal_metrics::{
    CALIBRATION_BINS, MetricError, TemperatureFit, best_f1_threshold, calibration, class_temperature,
    label_temperature, log_loss, reliability, scaled_sigmoid, scaled_softmax,
};
use sepal_plugin::{HeadError, Logits, Prediction, TaskHead};
use sepal_track::Calibration;
use tch::Tensor;

use crate::error::CalibrateError;

/// Probabilities and decisions of a classifier, from the logits of its head.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decisions {
    kind: LabelKind,
    temperature: Option<f64>,
    /// Least probability of each predicted label, `[n_labels]`; empty without a fit.
    thresholds: Vec<f32>,
}

impl Decisions {
    pub(crate) fn new(task: &Task, calibration: Option<&Calibration>) -> Self {
        let thresholds = calibration.map(|calibration| &calibration.thresholds);
        let thresholds = thresholds.filter(|thresholds| !thresholds.is_empty());
        let of_label = |label: &String| thresholds.and_then(|thresholds| thresholds.get(label)).copied().unwrap_or(0.5);
        Self {
            kind: task.kind(),
            temperature: calibration.and_then(|calibration| calibration.temperature),
            thresholds: thresholds.map_or_else(Vec::new, |_| task.labels().iter().map(of_label).collect()),
        }
    }

    /// Replaces the probabilities and the decisions of the head.
    pub(crate) fn apply(&self, mut prediction: Prediction) -> Prediction {
        if let Some(temperature) = self.temperature {
            let scaled = if self.kind == LabelKind::Multi { scaled_sigmoid } else { scaled_softmax };
            prediction.probabilities = prediction.logits.iter().map(|row| scaled(row, temperature)).collect();
        }
        match (self.kind, self.thresholds.as_slice()) {
            (LabelKind::Multi, thresholds) => prediction.thresholds = thresholds.to_vec(),
            (LabelKind::Class, &[_, threshold]) => {
                let is_second = |row: &Vec<f32>| row.get(1).is_some_and(|&probability| probability >= threshold);
                prediction.class = prediction.probabilities.iter().map(|row| i64::from(is_second(row))).collect();
            }
            _ => {}
        }
        prediction
    }

    /// The head's mean loss of the rows with its logits divided by the temperature; `None` without one.
    pub(crate) fn loss(
        &self,
        head: &dyn TaskHead,
        prediction: &Prediction,
        labels: &Labels,
    ) -> Result<Option<f64>, HeadError> {
        let Some(temperature) = self.temperature else { return Ok(None) };
        let size = [prediction.logits.len(), prediction.logits.first().map_or(0, Vec::len)].map(|size| size as i64);
        let logits = Tensor::f_from_slice(&prediction.logits.concat())?.f_view(size)?.f_div_scalar_(temperature)?;
        let loss = tch::no_grad(|| head.loss(&Logits::new(logits), labels))?;
        Ok(Some(f64::try_from(&loss)?))
    }

    /// Thresholds of the labels, `[n_labels]`, where rows have any number of them; empty for one half.
    pub(crate) fn label_thresholds(&self) -> &[f32] {
        if self.kind == LabelKind::Multi { &self.thresholds } else { &[] }
    }
}

/// Fit with its warnings, one line each.
#[derive(Debug)]
pub(crate) struct Fit {
    pub(crate) calibration: Calibration,
    pub(crate) warnings: Vec<String>,
}

/// Number of rows below which a fit has a warning.
const FEW_ROWS: usize = 50;

/// Fits what `spec` names on the head's predictions of labelled rows. `data` is the source of the rows.
pub(crate) fn fit(
    spec: CalibrateSpec,
    head: &dyn TaskHead,
    prediction: &Prediction,
    labels: &Labels,
    data: &str,
) -> Result<Fit, CalibrateError> {
    let task = head.task();
    spec.check(task)?;
    let mut calibration = Calibration {
        data: data.to_owned(),
        rows: labels.len(),
        before: measures(head, prediction, labels)?,
        ..Calibration::default()
    };
    let mut warnings = Vec::new();
    if labels.len() < FEW_ROWS {
        warnings.push(format!("probabilities are fitted on {} rows only, and may not hold for others", labels.len()));
    }
    if spec.temperature {
        match temperature(prediction, labels)? {
            TemperatureFit::Fitted(temperature) => calibration.temperature = Some(temperature),
            TemperatureFit::AllCorrect => warnings.push(format!(
                "the temperature stays 1: all of the {} rows are predicted correctly, so that the best one is 0; fit it on \
                 more rows",
                labels.len()
            )),
            TemperatureFit::Uninformative => {
                warnings.push("the temperature stays 1: the predictions are no better than chance".to_owned());
            }
        }
    }
    if spec.thresholds.is_some() {
        let scaled = Decisions::new(task, Some(&calibration)).apply(prediction.clone());
        for (label, found) in thresholds(task, &scaled, labels)? {
            match found {
                Some(threshold) => {
                    calibration.thresholds.insert(label, threshold);
                }
                None => warnings.push(format!(
                    "the threshold of `{label}` stays 0.5: it is the label of all rows or of none; fit it on others"
                )),
            }
        }
    }
    let decided = Decisions::new(task, Some(&calibration)).apply(prediction.clone());
    calibration.after = measures(head, &decided, labels)?;
    Ok(Fit { calibration, warnings })
}

fn temperature(prediction: &Prediction, labels: &Labels) -> Result<TemperatureFit, MetricError> {
    let logits = wide(&prediction.logits);
    match labels {
        Labels::Class(actual) => class_temperature(&logits, actual),
        Labels::Multi(hot) => label_temperature(&logits, &hot.iter().map(|row| is_hot(row)).collect::<Vec<_>>()),
        // The check of the task refuses them.
        _ => Ok(TemperatureFit::Uninformative),
    }
}

/// Threshold of each label that has one, with the largest F1; `None` if it is the label of all rows or of none.
fn thresholds(task: &Task, scaled: &Prediction, labels: &Labels) -> Result<Vec<(String, Option<f32>)>, MetricError> {
    let of_label = |(index, label): (usize, &String)| {
        let positive: Vec<bool> = match labels {
            Labels::Class(actual) => actual.iter().map(|&class| class == index as i64).collect(),
            Labels::Multi(hot) => hot.iter().map(|row| row.get(index).is_some_and(|&hot| hot >= 0.5)).collect(),
            _ => Vec::new(),
        };
        // The thresholds are compared with probabilities in single precision.
        let scores: Vec<f64> =
            scaled.probabilities.iter().filter_map(|row| row.get(index)).copied().map(f64::from).collect();
        let found = best_f1_threshold(&scores, &positive)?;
        Ok((label.clone(), found.map(|found| found.threshold as f32)))
    };
    // Of two classes the second one has the threshold.
    let skipped = usize::from(task.kind() == LabelKind::Class);
    task.labels().iter().enumerate().skip(skipped).map(of_label).collect()
}

/// Metrics of the head that are kept with a fit.
const KEPT_METRICS: [&str; 4] = ["accuracy", "f1", "f1_macro", "exact_match"];

fn measures(
    head: &dyn TaskHead,
    prediction: &Prediction,
    labels: &Labels,
) -> Result<BTreeMap<String, f64>, CalibrateError> {
    let named = head.metrics(prediction, labels).map_err(CalibrateError::Head)?;
    let is_kept = |(name, _): &(String, f64)| KEPT_METRICS.contains(&name.as_str());
    let mut measures: BTreeMap<String, f64> = named.into_iter().filter(is_kept).collect();
    let probabilities = wide(&prediction.probabilities);
    let (loss, error) = match labels {
        Labels::Class(actual) => {
            let error = calibration(&probabilities, actual, CALIBRATION_BINS)?.error;
            (log_loss(&probabilities, actual)?, error)
        }
        Labels::Multi(hot) => {
            let (probabilities, hot) = (probabilities.concat(), is_hot(&hot.concat()));
            let pairs: Vec<Vec<f64>> = probabilities.iter().map(|&positive| vec![1.0 - positive, positive]).collect();
            let actual: Vec<i64> = hot.iter().map(|&hot| i64::from(hot)).collect();
            let error = reliability(probabilities.into_iter().zip(hot), CALIBRATION_BINS)?.error;
            (log_loss(&pairs, &actual)?, error)
        }
        _ => return Ok(measures),
    };
    measures.extend([("log_loss".to_owned(), loss), ("ece".to_owned(), error)]);
    Ok(measures)
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

fn is_hot(row: &[f32]) -> Vec<bool> {
    row.iter().map(|&number| number >= 0.5).collect()
}

#[cfg(test)]
mod tests {
    use sepal_config::spec::ThresholdGoal;
    use sepal_plugin::{HiddenView, Phase};
    use tch::Kind;

    use super::*;

    /// Head that describes its task and has the cross entropy of classes.
    struct Described(Task);

    impl TaskHead for Described {
        fn forward(&self, _: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
            Err(HeadError::NoItems)
        }

        fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
            let Labels::Class(classes) = labels else { return Err(HeadError::NoItems) };
            Ok(logits.values.log_softmax(-1, Kind::Float).nll_loss(&Tensor::from_slice(classes)))
        }

        fn predict(&self, _: &Logits) -> Result<Prediction, HeadError> {
            Err(HeadError::NoItems)
        }

        fn task(&self) -> &Task {
            &self.0
        }
    }

    const ALL: CalibrateSpec = CalibrateSpec { temperature: true, thresholds: Some(ThresholdGoal::F1) };

    fn described(kind: LabelKind, labels: &[&str]) -> Described {
        Described(Task::new(kind, labels.iter().map(|&label| label.to_owned()).collect()))
    }

    /// Predictions of a head without a fit.
    fn predicted(kind: LabelKind, logits: &[&[f32]]) -> Prediction {
        let scaled = if kind == LabelKind::Multi { scaled_sigmoid } else { scaled_softmax };
        let larger = |row: &&[f32]| i64::from(row.len() > 1 && row[1] > row[0]);
        Prediction {
            class: logits.iter().map(larger).collect(),
            probabilities: logits.iter().map(|row| scaled(row, 1.0)).collect(),
            logits: logits.iter().map(|row| row.to_vec()).collect(),
            ..Prediction::default()
        }
    }

    #[test]
    fn two_classes_get_a_temperature_and_a_threshold() {
        let head = described(LabelKind::Class, &["bad", "good"]);
        let prediction =
            predicted(LabelKind::Class, &[&[4.0, 0.0], &[1.0, 0.0], &[0.0, 3.0], &[0.5, 0.0], &[3.0, 0.0]]);
        let labels = Labels::Class(vec![0, 1, 1, 1, 1]);
        let found = fit(ALL, &head, &prediction, &labels, "rows.csv").expect("a fit");
        let calibration = found.calibration;
        assert!(calibration.temperature.is_some_and(|temperature| temperature > 1.0), "{calibration:?}");
        assert_eq!((calibration.rows, calibration.data.as_str()), (5, "rows.csv"));
        assert!(found.warnings.len() == 1 && found.warnings[0].contains("5 rows only"), "{:?}", found.warnings);
        assert!(calibration.after["log_loss"] < calibration.before["log_loss"]);
        assert!(calibration.after["f1"] > calibration.before["f1"] && calibration.after["f1"] == 1.0);
        let decisions = Decisions::new(head.task(), Some(&calibration));
        let loss = decisions.loss(&head, &prediction, &labels).expect("a loss").expect("a temperature");
        assert!((loss - calibration.after["log_loss"]).abs() < 1e-6, "{loss}, {calibration:?}");
        let decided = decisions.apply(prediction);
        assert_eq!(decided.class, [0, 1, 1, 1, 1]);
        let threshold = calibration.thresholds["good"];
        assert!(decided.probabilities[4][1] == threshold && calibration.thresholds.len() == 1, "{calibration:?}");
    }

    #[test]
    fn labels_get_thresholds_of_their_own() {
        let head = described(LabelKind::Multi, &["a", "b", "c"]);
        let prediction = predicted(LabelKind::Multi, &[&[2.0, -1.0, 1.0], &[-1.0, -2.0, 1.0], &[-0.5, -3.0, -1.0]]);
        let labels = Labels::Multi(vec![vec![1.0, 1.0, 0.0], vec![0.0, 1.0, 0.0], vec![1.0, 0.0, 0.0]]);
        let spec = CalibrateSpec { temperature: false, ..ALL };
        let found = fit(spec, &head, &prediction, &labels, "").expect("a fit");
        assert_eq!(found.calibration.thresholds.keys().collect::<Vec<_>>(), ["a", "b"], "no row has the label c");
        assert!(found.warnings.iter().any(|warning| warning.contains("`c`")), "{:?}", found.warnings);
        let decisions = Decisions::new(head.task(), Some(&found.calibration));
        assert_eq!((decisions.label_thresholds().len(), decisions.label_thresholds()[2]), (3, 0.5));
        let decided = decisions.apply(prediction);
        let rows = decided.probabilities.iter().map(|row| decided.label_decisions(row).collect::<Vec<_>>());
        assert_eq!(rows.collect::<Vec<_>>(), [[true, true, true], [false, true, true], [true, false, false]]);
    }

    #[test]
    fn predictions_without_a_fit_stay_as_they_are() {
        let head = described(LabelKind::Class, &["bad", "good"]);
        let prediction = predicted(LabelKind::Class, &[&[2.0, 0.0], &[0.0, 1.0]]);
        let found = fit(ALL, &head, &prediction, &Labels::Class(vec![0, 1]), "").expect("a fit");
        assert!(found.calibration.temperature.is_none(), "all rows are right");
        assert!(found.warnings.iter().any(|warning| warning.contains("stays 1")), "{:?}", found.warnings);
        let kept = Decisions::new(head.task(), None).apply(prediction.clone());
        let loss = Decisions::new(head.task(), None).loss(&head, &prediction, &Labels::Class(vec![0, 1]));
        assert_eq!(loss.expect("no temperature"), None);
        assert_eq!((kept.class, kept.probabilities), (prediction.class, prediction.probabilities));
    }

    #[test]
    fn tasks_without_such_a_fit_are_refused() {
        let refused = |kind, labels: &[&str]| ALL.check(&described(kind, labels).0).map_err(|error| error.to_string());
        assert!(refused(LabelKind::Value, &["score"]).expect_err("numbers").contains("`calibrate.temperature`"));
        assert!(refused(LabelKind::Class, &["a", "b", "c"]).expect_err("three").contains("`calibrate.thresholds`"));
        assert!(refused(LabelKind::Multi, &["a"]).is_ok() && refused(LabelKind::Class, &["a", "b"]).is_ok());
    }
}
