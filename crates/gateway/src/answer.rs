//! Answers as JSON.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::about::{About, Answer};

/// `{"model": .., "predictions": [..]}`
#[derive(serde::Serialize)]
pub(crate) struct Document<'a> {
    model: &'a str,
    predictions: Vec<Named<'a>>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(about: &'a About, answers: &'a [Answer]) -> Self {
        Self { model: &about.name, predictions: answers.iter().map(|answer| Named { answer, about }).collect() }
    }

    /// The text. Numbers have the digits that bring the same fp32 back.
    pub(crate) fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// An answer with the names of its labels.
struct Named<'a> {
    answer: &'a Answer,
    about: &'a About,
}

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let labels = &self.about.labels;
        let mut map = serializer.serialize_map(None)?;
        match self.answer {
            Answer::Class { class, probabilities } => {
                map.serialize_entry("label", &labels.get(*class))?;
                map.serialize_entry("probability", &probabilities.get(*class))?;
                map.serialize_entry("probabilities", &ByName { labels, probabilities })?;
            }
            Answer::Labels { probabilities } => {
                let has = labels.iter().zip(probabilities).filter(|(_, probability)| **probability >= 0.5);
                map.serialize_entry("labels", &has.map(|(label, _)| label).collect::<Vec<_>>())?;
                map.serialize_entry("probabilities", &ByName { labels, probabilities })?;
            }
            Answer::Value(value) => map.serialize_entry("value", value)?,
        }
        map.end()
    }
}

struct ByName<'a> {
    labels: &'a [String],
    probabilities: &'a [f32],
}

impl Serialize for ByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.labels.iter().zip(self.probabilities))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::about::Kind;

    fn check(kind: Kind, answer: Answer, expected: &str) {
        let about = About::new("a", kind, &["no", "yes"]);
        assert!(answer.fits(&about));
        let text = Document::new(&about, &[answer]).to_json().expect("JSON");
        assert_eq!(text, format!(r#"{{"model":"a","predictions":[{expected}]}}"#));
    }

    #[test]
    fn answers_name_their_labels() {
        check(
            Kind::Class,
            Answer::Class { class: 1, probabilities: vec![0.02, 0.98] },
            r#"{"label":"yes","probability":0.98,"probabilities":{"no":0.02,"yes":0.98}}"#,
        );
        let probabilities = vec![0.5, 0.1];
        check(
            Kind::Labels,
            Answer::Labels { probabilities },
            r#"{"labels":["no"],"probabilities":{"no":0.5,"yes":0.1}}"#,
        );
        check(Kind::Value, Answer::Value(3.2), r#"{"value":3.2}"#);
    }

    #[test]
    fn what_is_not_finite_or_of_another_kind_does_not_fit() {
        let about = About::new("a", Kind::Class, &["no", "yes"]);
        assert!(!Answer::Class { class: 0, probabilities: vec![f32::NAN, 1.0] }.fits(&about));
        assert!(!Answer::Class { class: 2, probabilities: vec![0.5, 0.5] }.fits(&about));
        assert!(!Answer::Class { class: 0, probabilities: vec![1.0] }.fits(&about));
        assert!(!Answer::Value(1.0).fits(&about));
        assert!(!Answer::Value(f32::INFINITY).fits(&About::new("a", Kind::Value, &["score"])));
    }
}
