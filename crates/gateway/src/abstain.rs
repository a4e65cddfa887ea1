//! Confidence that a request demands of its answers.

use serde_json::{Map, Value};

use crate::classifier::{AnswerKind, ClassifierInfo};
use crate::problem::Problem;
use crate::request::single_problem;

/// Field of a request with the least probability of a label.
pub(crate) const FIELD: &str = "abstain_below";

/// Removes the least probability of a label from a request for these classifiers; `None` if the request has none.
pub(crate) fn take<'a>(
    fields: &mut Map<String, Value>,
    mut classifiers: impl Iterator<Item = &'a ClassifierInfo>,
) -> Result<Option<f32>, Problem> {
    let Some(value) = fields.remove(FIELD) else { return Ok(None) };
    let refused = |detail: String| Err(single_problem("#/abstain_below", detail));
    if classifiers.any(|info| info.kind != AnswerKind::Class) {
        return refused("only a classifier with one label per row abstains".to_owned());
    }
    match value.as_f64() {
        Some(least) if (0.0..=1.0).contains(&least) => Ok(Some(least as f32)),
        _ => refused(format!("expected a number from 0 to 1, found {value}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn least_probability_is_taken_from_the_request() {
        let taken = |value: Value, kind| {
            let mut fields = Map::from_iter([(FIELD.to_owned(), value)]);
            let classifier = ClassifierInfo::new("a", kind, &["x", "y"]);
            let found = take(&mut fields, std::iter::once(&classifier));
            assert!(fields.is_empty());
            found.map_err(|problem| problem.errors[0].detail.clone())
        };
        assert_eq!(taken(json!(0.75), AnswerKind::Class), Ok(Some(0.75)));
        assert_eq!(taken(json!(1), AnswerKind::Class), Ok(Some(1.0)));
        for wrong in [json!(1.5), json!(-0.1), json!("0.5"), json!(null), json!([0.5])] {
            let detail = taken(wrong.clone(), AnswerKind::Class).expect_err("no probability");
            assert!(detail.contains("from 0 to 1") && detail.contains(&wrong.to_string()), "{detail}");
        }
        let detail = taken(json!(0.5), AnswerKind::Labels).expect_err("several labels");
        assert!(detail.contains("one label per row"), "{detail}");
        let regression = ClassifierInfo::new("a", AnswerKind::Value, &["x"]);
        assert_eq!(take(&mut Map::new(), std::iter::once(&regression)).ok(), Some(None));
    }
}
