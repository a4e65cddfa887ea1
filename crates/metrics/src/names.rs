/// Metric that runs report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Written name: `accuracy`, `f1_macro`.
    pub name: &'static str,
    /// Title: `Accuracy`, `F1 macro`.
    pub title: &'static str,
    /// True if a larger value is better.
    pub larger_is_better: bool,
    /// True if there is also a value per label, written `NAME/LABEL`.
    pub per_label: bool,
    /// Description in one line.
    pub description: &'static str,
}

/// All metrics, the same for every task; the labels of a run determine which it has.
pub const METRICS: &[Metric] = &[
    smaller("loss", "Loss", "the mean loss that training makes smaller"),
    larger(
        "accuracy",
        "Accuracy",
        "the share of rows (with several labels a row: of pairs of row and label) that are right",
    ),
    larger("balanced_accuracy", "Balanced accuracy", "the mean recall of the classes"),
    larger("top_k_accuracy", "Top-k accuracy", "the share of rows whose label is among the k most probable"),
    each("precision", "Precision", "of two classes the second one's, else the mean over classes"),
    each("recall", "Recall", "of two classes the second one's, else the mean over classes"),
    each(
        "f1",
        "F1",
        "of two classes the second one's, else the mean over classes; over pairs with several labels a row",
    ),
    larger("precision_macro", "Precision macro", "the plain mean over classes"),
    larger("precision_micro", "Precision micro", "over all decisions"),
    larger("precision_weighted", "Precision weighted", "the mean over classes, each as often as it is a label"),
    larger("recall_macro", "Recall macro", "the plain mean over classes"),
    larger("recall_micro", "Recall micro", "over all decisions"),
    larger("recall_weighted", "Recall weighted", "the mean over classes, each as often as it is a label"),
    larger("f1_macro", "F1 macro", "the plain mean over classes"),
    larger("f1_micro", "F1 micro", "over all decisions"),
    larger("f1_weighted", "F1 weighted", "the mean over classes, each as often as it is a label"),
    larger("mcc", "MCC", "Matthews' correlation of classes"),
    larger("kappa", "Kappa", "Cohen's kappa"),
    larger("auroc", "AUROC", "the area under the receiver operating characteristic; of several classes the mean"),
    larger("average_precision", "Average precision", "the area under precision over recall"),
    larger("exact_match", "Exact match", "the share of rows that have exactly the predicted labels"),
    smaller("hamming_loss", "Hamming loss", "the share of pairs of row and label that are wrong"),
    smaller("log_loss", "Log loss", "the mean of -ln of the label's probability"),
    smaller("brier", "Brier score", "the mean squared distance of probabilities and labels"),
    smaller("ece", "Calibration error", "the expected calibration error"),
    larger("coverage", "Coverage", "the share of rows whose prediction is probable enough to be given"),
    larger("covered_accuracy", "Covered accuracy", "the share of right predictions among the given ones"),
    smaller("mse", "MSE", "the mean squared error"),
    smaller("rmse", "RMSE", "the root of the mean squared error"),
    smaller("mae", "MAE", "the mean absolute error"),
    larger("r2", "R²", "the share of the labels' variance that the predictions explain"),
    smaller("perplexity", "Perplexity", "e to the mean of -ln of the probability of the answers' tokens"),
    larger("token_accuracy", "Token accuracy", "the share of the answers' tokens that are the most probable ones"),
    larger("pearson", "Pearson", "Pearson's correlation"),
    larger("spearman", "Spearman", "Spearman's correlation of ranks"),
];

const fn larger(name: &'static str, title: &'static str, description: &'static str) -> Metric {
    Metric { name, title, larger_is_better: true, per_label: false, description }
}

const fn smaller(name: &'static str, title: &'static str, description: &'static str) -> Metric {
    Metric { larger_is_better: false, ..larger(name, title, description) }
}

const fn each(name: &'static str, title: &'static str, description: &'static str) -> Metric {
    Metric { per_label: true, ..larger(name, title, description) }
}

impl Metric {
    /// Returns the metric of this name; `f1/LABEL` is the `f1` of one label of any name.
    ///
    /// ```
    /// use sepal_metrics::Metric;
    ///
    /// assert!(Metric::find("f1/positive")?.larger_is_better);
    /// assert!(!Metric::find("loss")?.larger_is_better);
    /// # Ok::<(), sepal_metrics::UnknownMetric>(())
    /// ```
    ///
    /// # Errors
    /// [`UnknownMetric`] with the known names if there is none.
    pub fn find(name: &str) -> Result<&'static Metric, UnknownMetric> {
        let (base, has_label) = name.split_once('/').map_or((name, false), |(base, label)| (base, !label.is_empty()));
        let has_no_label = base.len() == name.len();
        let fits = |metric: &&Metric| metric.name == base && (has_no_label || metric.per_label && has_label);
        METRICS.iter().find(fits).ok_or_else(|| UnknownMetric { name: name.to_owned() })
    }

    /// Returns true if `value` is better than `best`; a NaN never is, and any other value is better than a NaN.
    pub fn is_better(&self, value: f64, best: f64) -> bool {
        let ahead = if self.larger_is_better { value > best } else { value < best };
        ahead || (best.is_nan() && !value.is_nan())
    }
}

/// Returns the names of all metrics, in the order of [`METRICS`].
pub fn names() -> impl Iterator<Item = &'static str> {
    METRICS.iter().map(|metric| metric.name)
}

/// Unknown name of a metric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("find the metric {name:?}: there are {}", listed())]
pub struct UnknownMetric {
    pub name: String,
}

/// List of the known names: `loss, accuracy, f1, f1/LABEL`.
fn listed() -> String {
    let both = |metric: &Metric| match metric.per_label {
        true => format!("{0}, {0}/LABEL", metric.name),
        false => metric.name.to_owned(),
    };
    METRICS.iter().map(both).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let all: HashSet<_> = names().collect();
        assert_eq!(all.len(), METRICS.len());
        for metric in METRICS {
            assert_eq!(Metric::find(metric.name), Ok(metric));
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(metric.name.chars().all(plain), "{}", metric.name);
            assert!(!metric.description.is_empty() && !metric.description.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn find_accepts_any_label() {
        for name in ["f1/positive", "precision/a/b", "recall/ü"] {
            assert_eq!(Metric::find(name).map(|metric| Some(metric.name)), Ok(name.split('/').next()));
        }
        for name in ["f1/", "accuracy/positive", "/f1", "F1", "f1 ", "", "acc"] {
            assert_eq!(Metric::find(name), Err(UnknownMetric { name: name.to_owned() }));
        }
        let text = UnknownMetric { name: "acc".to_owned() }.to_string();
        assert!(text.starts_with("find the metric \"acc\": there are loss, accuracy, "), "{text}");
        assert!(text.contains(", f1, f1/LABEL, "), "{text}");
    }

    #[test]
    fn is_better_follows_direction() {
        let (loss, f1) = (Metric::find("loss").expect("known"), Metric::find("f1").expect("known"));
        assert!(loss.is_better(0.1, 0.2) && !loss.is_better(0.2, 0.1) && !loss.is_better(0.1, 0.1));
        assert!(f1.is_better(0.2, 0.1) && !f1.is_better(0.1, 0.2) && !f1.is_better(0.1, 0.1));
        for metric in [loss, f1] {
            assert!(metric.is_better(0.1, f64::NAN));
            assert!(!metric.is_better(f64::NAN, 0.1) && !metric.is_better(f64::NAN, f64::NAN));
        }
    }
}
