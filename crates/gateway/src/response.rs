//! Answers as JSON.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::classifier::{Answer, ClassifierInfo};

/// `{"model": .., "predictions": [..]}`
#[derive(serde::Serialize)]
pub(crate) struct Document<'a> {
    model: &'a str,
    predictions: Vec<NamedAnswer<'a>>,
}

impl<'a> Document<'a> {
    /// Joins answers. Labels that are less probable than `abstain_below` are left out where rows have one label.
    pub(crate) fn new(info: &'a ClassifierInfo, answers: &'a [Answer], abstain_below: Option<f32>) -> Self {
        let predictions = answers.iter().map(|answer| NamedAnswer { answer, info, abstain_below });
        Self { model: &info.name, predictions: predictions.collect() }
    }

    /// Returns the JSON text. Numbers have enough digits to restore the same fp32.
    pub(crate) fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// `{"results": [{"model": .., "predictions": [..]}, ..]}`
#[derive(serde::Serialize)]
pub(crate) struct Results<'a> {
    pub(crate) results: Vec<Document<'a>>,
}

struct NamedAnswer<'a> {
    answer: &'a Answer,
    info: &'a ClassifierInfo,
    abstain_below: Option<f32>,
}

impl Serialize for NamedAnswer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let labels = &self.info.labels;
        let mut map = serializer.serialize_map(None)?;
        match self.answer {
            Answer::Class { class, probabilities } => {
                let probability = probabilities.get(*class);
                let abstained = self.abstain_below.map(|least| probability.is_none_or(|found| *found < least));
                map.serialize_entry("label", &labels.get(*class).filter(|_| abstained != Some(true)))?;
                map.serialize_entry("probability", &probability)?;
                if let Some(abstained) = abstained {
                    map.serialize_entry("abstained", &abstained)?;
                }
                map.serialize_entry("probabilities", &ByName { labels, probabilities })?;
            }
            Answer::Labels { probabilities } => {
                let thresholds = self.info.thresholds.iter().copied().chain(std::iter::repeat(0.5));
                let labelled = labels.iter().zip(probabilities).zip(thresholds);
                let chosen = labelled.filter(|((_, probability), threshold)| *probability >= threshold);
                map.serialize_entry("labels", &chosen.map(|((label, _), _)| label).collect::<Vec<_>>())?;
                map.serialize_entry("probabilities", &ByName { labels, probabilities })?;
            }
            Answer::Value(value) => map.serialize_entry("value", value)?,
            Answer::Tags { words, tags, probabilities } => {
                let names: Vec<Option<&String>> = tags.iter().map(|tag| labels.get(*tag)).collect();
                map.serialize_entry("words", words)?;
                map.serialize_entry("labels", &names)?;
                map.serialize_entry("probabilities", probabilities)?;
            }
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
    use crate::classifier::AnswerKind;

    fn check(kind: AnswerKind, answer: Answer, expected: &str) {
        let info = ClassifierInfo::new("a", kind, &["no", "yes"]);
        assert!(answer.is_valid_for(&info));
        let text = Document::new(&info, &[answer], None).to_json().expect("JSON");
        assert_eq!(text, format!(r#"{{"model":"a","predictions":[{expected}]}}"#));
    }

    #[test]
    fn json_names_labels() {
        check(
            AnswerKind::Class,
            Answer::Class { class: 1, probabilities: vec![0.02, 0.98] },
            r#"{"label":"yes","probability":0.98,"probabilities":{"no":0.02,"yes":0.98}}"#,
        );
        let probabilities = vec![0.5, 0.1];
        check(
            AnswerKind::Labels,
            Answer::Labels { probabilities },
            r#"{"labels":["no"],"probabilities":{"no":0.5,"yes":0.1}}"#,
        );
        check(AnswerKind::Value, Answer::Value(3.2), r#"{"value":3.2}"#);
        let words = vec!["a".to_owned(), "b".to_owned()];
        check(
            AnswerKind::Tags,
            Answer::Tags { words, tags: vec![1, 0], probabilities: vec![0.5, 0.75] },
            r#"{"words":["a","b"],"labels":["yes","no"],"probabilities":[0.5,0.75]}"#,
        );
    }

    #[test]
    fn improbable_label_is_left_out() {
        let info = ClassifierInfo::new("a", AnswerKind::Class, &["no", "yes"]);
        let answer = [Answer::Class { class: 1, probabilities: vec![0.25, 0.75] }];
        let text = |least| Document::new(&info, &answer, Some(least)).to_json().expect("JSON");
        assert!(text(0.75).contains(r#"{"label":"yes","probability":0.75,"abstained":false,"#), "{}", text(0.75));
        assert!(text(0.8).contains(r#"{"label":null,"probability":0.75,"abstained":true,"#), "{}", text(0.8));
    }

    #[test]
    fn labels_are_chosen_from_their_thresholds_on() {
        let names = ClassifierInfo::new("a", AnswerKind::Labels, &["no", "yes"]);
        let info = ClassifierInfo { thresholds: vec![0.6, 0.1], ..names };
        let answer = [Answer::Labels { probabilities: vec![0.5, 0.1] }];
        let text = Document::new(&info, &answer, Some(0.9)).to_json().expect("JSON");
        assert!(text.contains(r#"{"labels":["yes"],"probabilities""#), "{text}");
    }

    #[test]
    fn non_finite_or_mismatched_answer_is_invalid() {
        let info = ClassifierInfo::new("a", AnswerKind::Class, &["no", "yes"]);
        assert!(!Answer::Class { class: 0, probabilities: vec![f32::NAN, 1.0] }.is_valid_for(&info));
        assert!(!Answer::Class { class: 2, probabilities: vec![0.5, 0.5] }.is_valid_for(&info));
        assert!(!Answer::Class { class: 0, probabilities: vec![1.0] }.is_valid_for(&info));
        assert!(!Answer::Value(1.0).is_valid_for(&info));
        let info_of_tags = ClassifierInfo::new("a", AnswerKind::Tags, &["no", "yes"]);
        let tags = |tags: Vec<usize>| Answer::Tags { words: vec!["a".to_owned()], tags, probabilities: vec![0.5] };
        assert!(tags(vec![1]).is_valid_for(&info_of_tags));
        assert!(!tags(vec![2]).is_valid_for(&info_of_tags) && !tags(vec![]).is_valid_for(&info_of_tags));
        assert!(!Answer::Value(f32::INFINITY).is_valid_for(&ClassifierInfo::new("a", AnswerKind::Value, &["score"])));
    }
}
