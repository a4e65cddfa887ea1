//! Conversion of a request's JSON to rows, with a list of all invalid values.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::classifier::{ClassifierInfo, Row};
use crate::options::Options;
use crate::problem::{InvalidValue, Problem};

const MAX_INVALID: usize = 8;

/// Parses a body, `{"texts": [..]}` or `{"text": ..}`. A row is a string, or a list of two for a classifier of pairs.
pub(crate) fn parse_rows(body: &[u8], info: &ClassifierInfo, options: &Options) -> Result<Vec<Row>, Problem> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(single_problem("#", format!("expected an object, found {}", describe(&value))));
    };
    let mut invalid: Vec<InvalidValue> =
        fields.keys().filter(|key| !is_known(key)).take(MAX_INVALID).map(|key| unknown_field(key)).collect();
    let (prefix, values) =
        row_values(fields).map_err(|problem| if invalid.is_empty() { problem } else { refuse(&mut invalid) })?;
    if values.is_empty() {
        return Err(single_problem("#/texts", "expected one text at least"));
    }
    if values.len() > options.max_rows {
        let detail = format!("expected {} texts at the most, found {}", options.max_rows, values.len());
        return Err(single_problem("#/texts", detail));
    }
    let mut rows = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let pointer = if prefix == "#/texts" { format!("{prefix}/{index}") } else { prefix.to_owned() };
        rows.extend(parse_row(value, pointer, info, options, &mut invalid));
        if invalid.len() >= MAX_INVALID {
            break;
        }
    }
    if invalid.is_empty() { Ok(rows) } else { Err(refuse(&mut invalid)) }
}

fn is_known(key: &str) -> bool {
    key == "text" || key == "texts"
}

fn unknown_field(key: &str) -> InvalidValue {
    // Escapes of JSON pointers; characters that URI fragments forbid stay readable.
    let key = key.replace('~', "~0").replace('/', "~1");
    InvalidValue { pointer: format!("#/{key}"), detail: "there is no such field; expected texts, or text".into() }
}

fn row_values(mut fields: Map<String, Value>) -> Result<(&'static str, Vec<Value>), Problem> {
    match (fields.remove("texts"), fields.remove("text")) {
        (Some(Value::Array(texts)), None) => Ok(("#/texts", texts)),
        (Some(other), None) => Err(single_problem("#/texts", format!("expected a list, found {}", describe(&other)))),
        (None, Some(text)) => Ok(("#/text", vec![text])),
        (Some(_), Some(_)) => Err(single_problem("#/text", "expected either texts or text, found both")),
        (None, None) => Err(single_problem("#/texts", "it is missing")),
    }
}

fn parse_row(
    value: Value,
    pointer: String,
    info: &ClassifierInfo,
    options: &Options,
    invalid: &mut Vec<InvalidValue>,
) -> Option<Row> {
    let mut texts = match value {
        Value::Array(pair) if info.takes_pairs && pair.len() == 2 => pair.into_iter(),
        Value::String(_) if !info.takes_pairs => vec![value].into_iter(),
        other => {
            let expected = if info.takes_pairs { "a list of two strings" } else { "a string" };
            invalid.push(InvalidValue { pointer, detail: format!("expected {expected}, found {}", describe(&other)) });
            return None;
        }
    };
    let pointer_to = |index: usize| if info.takes_pairs { format!("{pointer}/{index}") } else { pointer.clone() };
    let first = parse_text(texts.next()?, pointer_to(0), options, invalid);
    let second = texts.next().map(|second| parse_text(second, pointer_to(1), options, invalid));
    match second {
        None => Some(Row { text: first?, pair: None }),
        Some(second) => Some(Row { text: first?, pair: Some(second?) }),
    }
}

fn parse_text(value: Value, pointer: String, options: &Options, invalid: &mut Vec<InvalidValue>) -> Option<String> {
    let detail = match value {
        Value::String(text) if text.is_empty() => "it is empty".to_owned(),
        Value::String(text) if text.len() > options.max_text_bytes => {
            format!("expected {} bytes at the most, found {}", options.max_text_bytes, text.len())
        }
        Value::String(text) => return Some(text),
        other => format!("expected a string, found {}", describe(&other)),
    };
    invalid.push(InvalidValue { pointer, detail });
    None
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(_) => "a number".into(),
        Value::String(_) => "a string".into(),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}

fn single_problem(pointer: &str, detail: impl Into<String>) -> Problem {
    refuse(&mut vec![InvalidValue { pointer: pointer.into(), detail: detail.into() }])
}

fn refuse(invalid: &mut Vec<InvalidValue>) -> Problem {
    Problem::from_invalid_values(StatusCode::UNPROCESSABLE_ENTITY, std::mem::take(invalid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::AnswerKind;

    fn parse(body: &str, takes_pairs: bool) -> Result<Vec<Row>, Problem> {
        let info = ClassifierInfo { takes_pairs, ..ClassifierInfo::new("a", AnswerKind::Class, &["no", "yes"]) };
        parse_rows(body.as_bytes(), &info, &Options { max_rows: 3, max_text_bytes: 4, ..Options::default() })
    }

    fn texts(body: &str, takes_pairs: bool) -> Vec<(String, Option<String>)> {
        parse(body, takes_pairs).expect("rows").into_iter().map(|row| (row.text, row.pair)).collect()
    }

    fn check(body: &str, takes_pairs: bool, status: u16, expected: &[(&str, &str)]) {
        let problem = parse(body, takes_pairs).expect_err("it is refused");
        assert_eq!(problem.status.as_u16(), status, "{body}: {problem:?}");
        assert_eq!(problem.errors.len(), expected.len(), "{body}: {problem:?}");
        for (value, (pointer, detail)) in problem.errors.iter().zip(expected) {
            assert_eq!(value.pointer, *pointer, "{body}");
            assert!(value.detail.contains(detail), "{body}: {value:?}");
        }
    }

    #[test]
    fn parse_accepts_texts_and_pairs() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts(r#"{"texts": ["a", " b"]}"#, false), [("a".into(), None), (" b".into(), None)]);
        assert_eq!(texts(r#"{"text": "ä"}"#, false), [("ä".into(), None)]);
        assert_eq!(texts(r#"{"texts": [["a", "b"]]}"#, true), [("a".into(), some("b"))]);
        assert_eq!(texts(r#"{"text": ["a", "b"]}"#, true), [("a".into(), some("b"))]);
    }

    #[test]
    fn invalid_json_is_refused() {
        check("", false, 400, &[]);
        check("{", false, 400, &[]);
        check(&"[".repeat(100_000), false, 400, &[]);
        let info = ClassifierInfo::new("a", AnswerKind::Class, &["x"]);
        let problem = parse_rows(b"{\"text\": \"\xff\"}", &info, &Options::default());
        assert_eq!(problem.expect_err("not UTF-8").status, 400);
    }

    #[test]
    fn every_invalid_value_is_listed() {
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
    fn pair_without_two_texts_is_refused() {
        check(r#"{"texts": ["a"]}"#, true, 422, &[("#/texts/0", "a list of two strings, found a string")]);
        check(r#"{"texts": [["a"]]}"#, true, 422, &[("#/texts/0", "found a list of 1")]);
        check(r#"{"text": ["a", ""]}"#, true, 422, &[("#/text/1", "empty")]);
        check(r#"{"texts": [[1, null]]}"#, true, 422, &[("#/texts/0/0", "a number"), ("#/texts/0/1", "null")]);
    }
}
