//! What a request asks: JSON to rows, with every value that is wrong named.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::about::{About, Row};
use crate::options::Options;
use crate::problem::{Problem, Wrong};

/// Wrong values that are named at the most.
const MOST_WRONG: usize = 8;

/// The rows of a body: `{"texts": [..]}` or `{"text": ..}`, where a row is a string, or of a classifier of pairs a list
/// of two.
pub(crate) fn rows(body: &[u8], about: &About, options: &Options) -> Result<Vec<Row>, Problem> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(one("#", format!("expected an object, found {}", what(&value))));
    };
    let mut wrong: Vec<Wrong> =
        fields.keys().filter(|key| !is_known(key)).take(MOST_WRONG).map(|key| unknown(key)).collect();
    let (prefix, given) =
        given(fields).map_err(|problem| if wrong.is_empty() { problem } else { refuse(&mut wrong) })?;
    if given.is_empty() {
        return Err(one("#/texts", "expected one text at least"));
    }
    if given.len() > options.max_rows {
        let detail = format!("expected {} texts at the most, found {}", options.max_rows, given.len());
        return Err(one("#/texts", detail));
    }
    let mut rows = Vec::with_capacity(given.len());
    for (index, value) in given.into_iter().enumerate() {
        let pointer = if prefix == "#/texts" { format!("{prefix}/{index}") } else { prefix.to_owned() };
        rows.extend(row(value, pointer, about, options, &mut wrong));
        if wrong.len() >= MOST_WRONG {
            break;
        }
    }
    if wrong.is_empty() { Ok(rows) } else { Err(refuse(&mut wrong)) }
}

fn is_known(key: &str) -> bool {
    key == "text" || key == "texts"
}

fn unknown(key: &str) -> Wrong {
    // A pointer's own signs, and what a fragment cannot have, are escaped only as far as needed to read them.
    let key = key.replace('~', "~0").replace('/', "~1");
    Wrong { pointer: format!("#/{key}"), detail: "there is no such field; expected texts, or text".into() }
}

/// Where the rows are, and what is there.
fn given(mut fields: Map<String, Value>) -> Result<(&'static str, Vec<Value>), Problem> {
    match (fields.remove("texts"), fields.remove("text")) {
        (Some(Value::Array(texts)), None) => Ok(("#/texts", texts)),
        (Some(other), None) => Err(one("#/texts", format!("expected a list, found {}", what(&other)))),
        (None, Some(text)) => Ok(("#/text", vec![text])),
        (Some(_), Some(_)) => Err(one("#/text", "expected either texts or text, found both")),
        (None, None) => Err(one("#/texts", "it is missing")),
    }
}

fn row(value: Value, pointer: String, about: &About, options: &Options, wrong: &mut Vec<Wrong>) -> Option<Row> {
    let mut texts = match value {
        Value::Array(pair) if about.takes_pairs && pair.len() == 2 => pair.into_iter(),
        Value::String(_) if !about.takes_pairs => vec![value].into_iter(),
        other => {
            let expected = if about.takes_pairs { "a list of two strings" } else { "a string" };
            wrong.push(Wrong { pointer, detail: format!("expected {expected}, found {}", what(&other)) });
            return None;
        }
    };
    let at = |index: usize| if about.takes_pairs { format!("{pointer}/{index}") } else { pointer.clone() };
    let first = text(texts.next()?, at(0), options, wrong);
    let second = texts.next().map(|second| text(second, at(1), options, wrong));
    match second {
        None => Some(Row { text: first?, pair: None }),
        Some(second) => Some(Row { text: first?, pair: Some(second?) }),
    }
}

fn text(value: Value, pointer: String, options: &Options, wrong: &mut Vec<Wrong>) -> Option<String> {
    let detail = match value {
        Value::String(text) if text.is_empty() => "it is empty".to_owned(),
        Value::String(text) if text.len() > options.max_text_bytes => {
            format!("expected {} bytes at the most, found {}", options.max_text_bytes, text.len())
        }
        Value::String(text) => return Some(text),
        other => format!("expected a string, found {}", what(&other)),
    };
    wrong.push(Wrong { pointer, detail });
    None
}

/// A value in words.
fn what(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(_) => "a number".into(),
        Value::String(_) => "a string".into(),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}

fn one(pointer: &str, detail: impl Into<String>) -> Problem {
    refuse(&mut vec![Wrong { pointer: pointer.into(), detail: detail.into() }])
}

fn refuse(wrong: &mut Vec<Wrong>) -> Problem {
    Problem::of(StatusCode::UNPROCESSABLE_ENTITY, std::mem::take(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::about::Kind;

    fn ask(body: &str, takes_pairs: bool) -> Result<Vec<Row>, Problem> {
        let about = About { takes_pairs, ..About::new("a", Kind::Class, &["no", "yes"]) };
        rows(body.as_bytes(), &about, &Options { max_rows: 3, max_text_bytes: 4, ..Options::default() })
    }

    fn texts(body: &str, takes_pairs: bool) -> Vec<(String, Option<String>)> {
        ask(body, takes_pairs).expect("rows").into_iter().map(|row| (row.text, row.pair)).collect()
    }

    /// What is wrong: the status, and each pointer with how its detail begins.
    fn check(body: &str, takes_pairs: bool, status: u16, expected: &[(&str, &str)]) {
        let problem = ask(body, takes_pairs).expect_err("it is refused");
        assert_eq!(problem.status.as_u16(), status, "{body}: {problem:?}");
        assert_eq!(problem.errors.len(), expected.len(), "{body}: {problem:?}");
        for (wrong, (pointer, detail)) in problem.errors.iter().zip(expected) {
            assert_eq!(wrong.pointer, *pointer, "{body}");
            assert!(wrong.detail.contains(detail), "{body}: {wrong:?}");
        }
    }

    #[test]
    fn rows_are_texts_or_pairs() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts(r#"{"texts": ["a", " b"]}"#, false), [("a".into(), None), (" b".into(), None)]);
        assert_eq!(texts(r#"{"text": "ä"}"#, false), [("ä".into(), None)]);
        assert_eq!(texts(r#"{"texts": [["a", "b"]]}"#, true), [("a".into(), some("b"))]);
        assert_eq!(texts(r#"{"text": ["a", "b"]}"#, true), [("a".into(), some("b"))]);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        check("", false, 400, &[]);
        check("{", false, 400, &[]);
        check(&"[".repeat(100_000), false, 400, &[]);
        let problem = rows(b"{\"text\": \"\xff\"}", &About::new("a", Kind::Class, &["x"]), &Options::default());
        assert_eq!(problem.expect_err("not UTF-8").status, 400);
    }

    #[test]
    fn each_wrong_value_is_named() {
        check("[]", false, 422, &[("#", "an object, found a list of 0")]);
        check("{}", false, 422, &[("#/texts", "missing")]);
        check(r#"{"text": "a", "texts": ["a"]}"#, false, 422, &[("#/text", "both")]);
        check(r#"{"texts": "a"}"#, false, 422, &[("#/texts", "a list, found a string")]);
        check(r#"{"texts": []}"#, false, 422, &[("#/texts", "one text at least")]);
        check(r#"{"texts": ["a", "b", "c", "d"]}"#, false, 422, &[("#/texts", "3 texts at the most, found 4")]);
        check(
            r#"{"texts": ["a", "", 3], "a/b": 1}"#,
            false,
            422,
            &[("#/a~1b", "no such field"), ("#/texts/1", "empty"), ("#/texts/2", "a string, found a number")],
        );
        check(r#"{"tests": ["a"]}"#, false, 422, &[("#/tests", "expected texts")]);
        check(r#"{"texts": [""]}"#, false, 422, &[("#/texts/0", "empty")]);
        check(r#"{"text": "äöü"}"#, false, 422, &[("#/text", "4 bytes at the most, found 6")]);
        check(r#"{"texts": [["a", "b"]]}"#, false, 422, &[("#/texts/0", "a string, found a list of 2")]);
    }

    #[test]
    fn pairs_are_two_texts() {
        check(r#"{"texts": ["a"]}"#, true, 422, &[("#/texts/0", "a list of two strings, found a string")]);
        check(r#"{"texts": [["a"]]}"#, true, 422, &[("#/texts/0", "found a list of 1")]);
        check(r#"{"text": ["a", ""]}"#, true, 422, &[("#/text/1", "empty")]);
        check(r#"{"texts": [[1, null]]}"#, true, 422, &[("#/texts/0/0", "a number"), ("#/texts/0/1", "null")]);
    }
}
