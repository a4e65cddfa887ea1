//! Conversion of YAML text to values.

use serde_json::Value;
use serde_saphyr::{Error, Options, SnippetMode, UserMessageFormatter};

use crate::positions::Position;

#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) position: Option<Position>,
    pub(crate) message: String,
}

/// Parses a document. Repeated keys are refused, and only `true` and `false` are booleans.
pub(crate) fn parse(text: &str) -> Result<Value, SyntaxError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| SyntaxError {
        position: error.location().map(|location| Position {
            line: usize::try_from(location.line()).unwrap_or(usize::MAX),
            column: usize::try_from(location.column()).unwrap_or(usize::MAX),
        }),
        message: message(&error),
    })
}

/// Parses a value from the command line or the environment: a scalar, or a list or map in brackets. Text that is no
/// YAML is taken literally, unless it starts like a list, a map or a quotation.
pub(crate) fn parse_scalar(text: &str) -> Result<Value, String> {
    match parse(text) {
        Ok(Value::Object(_)) if !text.trim_start().starts_with('{') => Ok(Value::from(text)),
        Ok(Value::Array(_)) if !text.trim_start().starts_with('[') => Ok(Value::from(text)),
        Ok(value) => Ok(value),
        Err(error) if text.trim_start().starts_with(['[', '{', '"', '\'']) => Err(error.message),
        Err(_) => Ok(Value::from(text)),
    }
}

/// Most aliases of a file, and most events that they repeat: far above those of any pipeline, and few enough that the
/// position of each repeated key can be recorded.
const MAX_ALIASES: usize = 256;
const MAX_REPEATED_EVENTS: usize = 50_000;

fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_aliases: MAX_ALIASES },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED_EVENTS },
    }
}

/// Formats the error on one line, without excerpt and position.
fn message(error: &Error) -> String {
    if let Error::DuplicateMappingKey { key: Some(key), .. } = error.without_snippet() {
        return format!("expected each key once, found `{key}` again");
    }
    let text = error.render_with_options(serde_saphyr::render_options! {
        formatter: &UserMessageFormatter,
        snippets: SnippetMode::Off
    });
    let line = text.lines().next().unwrap_or_default();
    let cut = line.find(" at line ").map_or(line, |end| &line[..end]);
    format!("expected YAML: {}", cut.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_and_brackets() {
        for (text, expected) in [
            ("3", json!(3)),
            ("1e-2", json!(0.01)),
            ("1.0e-2", json!(0.01)),
            ("true", json!(true)),
            ("no", json!("no")),
            ("", json!(null)),
            ("null", json!(null)),
            ("[]", json!([])),
            ("[a, 'b c']", json!(["a", "b c"])),
            ("{steps: 5}", json!({ "steps": 5 })),
            ("hub:a/b@main", json!("hub:a/b@main")),
            ("pypi:a==0.1/b.csv#sha256=00", json!("pypi:a==0.1/b.csv#sha256=00")),
            ("Review: {text}", json!("Review: {text}")),
            ("@odd", json!("@odd")),
            ("- x", json!("- x")),
        ] {
            assert_eq!(parse_scalar(text).expect("a value"), expected, "{text}");
        }
        assert!(parse_scalar("[a, b").is_err());
    }

    #[test]
    fn aliases_that_repeat_too_much_are_refused() {
        let level = |(name, of): (char, char)| format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(","));
        let levels: String = ('b'..='h').zip('a'..='g').map(level).collect();
        assert!(parse(&format!("a: &a [1]\n{levels}")).is_err());
        let many = format!("a: &a 1\nb: [{}]\n", vec!["*a"; MAX_ALIASES + 1].join(", "));
        assert!(parse(&many).is_err());
        assert!(parse("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n").is_ok());
    }

    #[test]
    fn errors_have_a_place() {
        let error = parse("a: 1\nb: 2\na: 3\n").expect_err("twice");
        assert_eq!(error.position, Some(Position { line: 3, column: 1 }));
        assert!(parse("a: [1,\nb: 2").is_err());
    }
}
