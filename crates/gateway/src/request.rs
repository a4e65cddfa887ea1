//! Conversion of a request's JSON to rows, with a list of all invalid values.

use std::collections::HashSet;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::classifier::{ClassifierInfo, InvalidRow, Row};
use crate::options::Options;
use crate::problem::{InvalidValue, Problem};

const MAX_INVALID: usize = 8;

/// Field that holds the rows of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowsField {
    /// `text`, the only row.
    Text,
    /// `texts`, a list of rows.
    Texts,
}

impl RowsField {
    /// JSON pointer to a row.
    pub(crate) fn pointer(self, row: usize) -> String {
        match self {
            Self::Text => "#/text".to_owned(),
            Self::Texts => format!("#/texts/{row}"),
        }
    }
}

/// Fields of a request for predictions that are not checked yet.
pub(crate) type Fields = Map<String, Value>;

/// Models that a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The only one.
    Default,
    One(String),
    /// Several, of distinct names.
    Several(Vec<String>),
    All,
}

/// Parses a body `{"model": .., "texts": [..]}`. Returns the models and the fields of the rows.
pub(crate) fn parse_body(body: &[u8]) -> Result<(Choice, Fields), Problem> {
    let mut fields = parse_object(body)?;
    let choice = match (fields.remove("model"), fields.remove("models")) {
        (None, None) => Choice::Default,
        (Some(Value::String(name)), None) => Choice::One(name),
        (Some(other), None) => {
            return Err(single_problem("#/model", format!("expected a string, found {}", describe(&other))));
        }
        (None, Some(Value::String(all))) if all == "*" => Choice::All,
        (None, Some(Value::Array(names))) => Choice::Several(parse_names(names)?),
        (None, Some(_)) => return Err(single_problem("#/models", "expected a list of names, or \"*\" for all")),
        (Some(_), Some(_)) => return Err(single_problem("#/models", "expected either model or models, found both")),
    };
    Ok((choice, fields))
}

/// Parses a body `{"name": .., "run": ..}`.
pub(crate) fn parse_load(body: &[u8]) -> Result<(String, String), Problem> {
    let mut fields = parse_object(body)?;
    let mut text = |key: &str| match fields.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => {
            Err(single_problem(&format!("#/{key}"), format!("expected a string, found {}", describe(&other))))
        }
        None => Err(single_problem(&format!("#/{key}"), "it is missing")),
    };
    let parts = (text("name")?, text("run")?);
    match fields.keys().next() {
        Some(key) => Err(refuse(&mut vec![unknown_field(key, "name and run")])),
        None => Ok(parts),
    }
}

fn parse_object(body: &[u8]) -> Result<Fields, Problem> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(single_problem("#", format!("expected an object, found {}", describe(&other)))),
    }
}

fn parse_names(values: Vec<Value>) -> Result<Vec<String>, Problem> {
    let (mut names, mut seen) = (Vec::new(), HashSet::new());
    for (index, value) in values.into_iter().enumerate() {
        let pointer = format!("#/models/{index}");
        match value {
            Value::String(name) if !seen.insert(name.clone()) => {
                return Err(single_problem(&pointer, "it is named twice"));
            }
            Value::String(name) => names.push(name),
            other => return Err(single_problem(&pointer, format!("expected a string, found {}", describe(&other)))),
        }
    }
    if names.is_empty() { Err(single_problem("#/models", "expected one name at least")) } else { Ok(names) }
}

/// Parses the rows of a request, `texts` or `text`. A row is a string, or a list of two for a classifier of pairs. `expected`
/// names the fields of the request.
pub(crate) fn parse_rows(
    fields: Fields,
    info: &ClassifierInfo,
    options: &Options,
    expected: &str,
) -> Result<(RowsField, Vec<Row>), Problem> {
    let mut invalid: Vec<InvalidValue> =
        fields.keys().filter(|key| !is_known(key)).take(MAX_INVALID).map(|key| unknown_field(key, expected)).collect();
    let (field, values) =
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
        rows.extend(parse_row(value, field.pointer(index), info, options, &mut invalid));
        if invalid.len() >= MAX_INVALID {
            break;
        }
    }
    if invalid.is_empty() { Ok((field, rows)) } else { Err(refuse(&mut invalid)) }
}

/// Problem of rows that a classifier does not take. The first of them are listed, as those of other invalid values.
pub(crate) fn invalid_rows(field: RowsField, rows: &[InvalidRow]) -> Problem {
    let value = |invalid: &InvalidRow| InvalidValue {
        pointer: field.pointer(invalid.row),
        detail: invalid.problem.to_string(),
    };
    refuse(&mut rows.iter().take(MAX_INVALID).map(value).collect())
}

fn is_known(key: &str) -> bool {
    key == "text" || key == "texts"
}

fn unknown_field(key: &str, expected: &str) -> InvalidValue {
    // Escapes of JSON pointers; characters that URI fragments forbid stay readable.
    let key = key.replace('~', "~0").replace('/', "~1");
    InvalidValue { pointer: format!("#/{key}"), detail: format!("there is no such field; expected {expected}") }
}

fn row_values(mut fields: Map<String, Value>) -> Result<(RowsField, Vec<Value>), Problem> {
    match (fields.remove("texts"), fields.remove("text")) {
        (Some(Value::Array(texts)), None) => Ok((RowsField::Texts, texts)),
        (Some(other), None) => Err(single_problem("#/texts", format!("expected a list, found {}", describe(&other)))),
        (None, Some(text)) => Ok((RowsField::Text, vec![text])),
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

pub(crate) fn single_problem(pointer: &str, detail: impl Into<String>) -> Problem {
    refuse(&mut vec![InvalidValue { pointer: pointer.into(), detail: detail.into() }])
}

fn refuse(invalid: &mut Vec<InvalidValue>) -> Problem {
    Problem::from_invalid_values(StatusCode::UNPROCESSABLE_ENTITY, std::mem::take(invalid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::{AnswerKind, RowProblem};

    fn parse(body: &str, takes_pairs: bool) -> Result<Vec<Row>, Problem> {
        let info = ClassifierInfo { takes_pairs, ..ClassifierInfo::new("a", AnswerKind::Class, &["no", "yes"]) };
        let (_, fields) = parse_body(body.as_bytes())?;
        let options = Options { max_rows: 3, max_text_bytes: 4, ..Options::default() };
        parse_rows(fields, &info, &options, "texts or text").map(|(_, rows)| rows)
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
        let problem = parse_body(b"{\"text\": \"\xff\"}");
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
    fn rows_that_a_classifier_refuses_are_named() {
        let invalid = |row, problem| InvalidRow { row, problem };
        let long = RowProblem::TooLong { n_windows: 9, max_windows: 8 };
        let problem = invalid_rows(RowsField::Texts, &[invalid(1, RowProblem::NoToken), invalid(4, long)]);
        assert_eq!(problem.status, 422);
        let pointers: Vec<&str> = problem.errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(pointers, ["#/texts/1", "#/texts/4"]);
        assert!(
            problem.detail.starts_with("#/texts/1: it yields no token") && problem.detail.ends_with("(and 1 more)")
        );
        assert!(problem.errors[1].detail.contains("9 windows, at most 8"), "{problem:?}");
        assert_eq!(invalid_rows(RowsField::Text, &[invalid(0, long)]).errors[0].pointer, "#/text");
    }

    #[test]
    fn pair_without_two_texts_is_refused() {
        check(r#"{"texts": ["a"]}"#, true, 422, &[("#/texts/0", "a list of two strings, found a string")]);
        check(r#"{"texts": [["a"]]}"#, true, 422, &[("#/texts/0", "found a list of 1")]);
        check(r#"{"text": ["a", ""]}"#, true, 422, &[("#/text/1", "empty")]);
        check(r#"{"texts": [[1, null]]}"#, true, 422, &[("#/texts/0/0", "a number"), ("#/texts/0/1", "null")]);
    }

    #[test]
    fn models_of_a_request_are_parsed() {
        let choice = |body: &str| parse_body(body.as_bytes()).map(|(choice, _)| choice);
        assert_eq!(choice(r#"{"text": "a"}"#), Ok(Choice::Default));
        assert_eq!(choice(r#"{"text": "a", "model": "films"}"#), Ok(Choice::One("films".into())));
        assert_eq!(choice(r#"{"models": ["b", "a"]}"#), Ok(Choice::Several(vec!["b".into(), "a".into()])));
        assert_eq!(choice(r#"{"models": "*"}"#), Ok(Choice::All));
        check(r#"{"model": 1}"#, false, 422, &[("#/model", "a string, found a number")]);
        check(r#"{"models": []}"#, false, 422, &[("#/models", "one name at least")]);
        check(r#"{"models": "films"}"#, false, 422, &[("#/models", "a list of names")]);
        check(r#"{"models": ["a", "a"]}"#, false, 422, &[("#/models/1", "twice")]);
        check(r#"{"models": ["a", 2]}"#, false, 422, &[("#/models/1", "a string, found a number")]);
        check(r#"{"model": "a", "models": "*"}"#, false, 422, &[("#/models", "both")]);
    }

    #[test]
    fn run_to_load_is_parsed() {
        let parsed = parse_load(br#"{"name": "films", "run": "runs/a"}"#);
        assert_eq!(parsed, Ok(("films".to_owned(), "runs/a".to_owned())));
        for (body, pointer) in [
            (r#"{"name": "films"}"#, "#/run"),
            (r#"{"name": 1, "run": "a"}"#, "#/name"),
            (r#"{"name": "a", "run": "a", "other": 1}"#, "#/other"),
        ] {
            let problem = parse_load(body.as_bytes()).expect_err(body);
            assert_eq!((problem.status.as_u16(), problem.errors[0].pointer.as_str()), (422, pointer));
        }
    }
}
