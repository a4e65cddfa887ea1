use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::nullable;

/// Fit of a classifier's probabilities and decisions on labelled rows, after its training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Temperature: probabilities are those of the logits divided by it; none for those of the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Least probability of a predicted label, by its name; one half for labels that are missing. Of two classes only the
    /// second one has a threshold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<String, f32>,
    /// Source of the rows.
    pub data: String,
    /// Number of rows.
    pub rows: usize,
    /// Measures of the rows before the fit.
    #[serde(deserialize_with = "nullable::numbers")]
    pub before: BTreeMap<String, f64>,
    /// Measures of the same rows after it.
    #[serde(deserialize_with = "nullable::numbers")]
    pub after: BTreeMap<String, f64>,
}

impl Calibration {
    /// Name of the file in which exports carry it.
    pub const FILE: &str = "calibration.json";

    /// True if nothing was fitted, so that predictions are those of the head.
    pub fn is_empty(&self) -> bool {
        self.temperature.is_none() && self.thresholds.is_empty()
    }

    /// Description in one line: `temperature 1.38, positive from 0.41`.
    pub fn description(&self) -> String {
        let temperature = self.temperature.map(|temperature| format!("temperature {temperature:.4}"));
        let thresholds = self.thresholds.iter().map(|(label, threshold)| format!("{label} from {threshold:.4}"));
        temperature.into_iter().chain(thresholds).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_calibration_reads_as_itself() {
        let calibration = Calibration {
            temperature: Some(1.387_621_099_844_018_6),
            thresholds: BTreeMap::from([("positive".to_owned(), 0.1_f32 + 0.2)]),
            data: "validation.csv".to_owned(),
            rows: 40,
            before: BTreeMap::from([("ece".to_owned(), 0.1)]),
            after: BTreeMap::from([("ece".to_owned(), 0.05)]),
        };
        let text = serde_json::to_string(&calibration).expect("JSON");
        assert_eq!(serde_json::from_str::<Calibration>(&text).expect("read"), calibration);
        assert_eq!(calibration.description(), "temperature 1.3876, positive from 0.3000");
        assert!(!calibration.is_empty() && Calibration::default().is_empty());
    }
}
