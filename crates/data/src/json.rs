//! Lossless members of JSON lines: numbers of any size, duplicate keys, lone surrogates, and the constants `NaN` and
//! `Infinity` that Python writes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Member of an object: key and value, both as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a str,
}

impl<'a> Member<'a> {
    /// Decoded key.
    pub(crate) fn name(self) -> Cow<'a, str> {
        string(self.key).unwrap_or(Cow::Borrowed(self.key))
    }

    /// Value, unless it represents a missing value.
    pub(crate) fn cell(self) -> Option<&'a str> {
        Some(self.value).filter(|value| !matches!(*value, "null" | "NaN"))
    }
}

/// Members of the only object in a text, in order.
pub(crate) fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    match parse(text) {
        Err(_) if has_constant(text) => {
            let masked = masked(text);
            let part = |part: &str| unmasked(text, &masked, part);
            let members = parse(&masked)?.into_iter();
            members.map(|member| Ok(Member { key: part(member.key)?, value: part(member.value)? })).collect()
        }
        parsed => parsed,
    }
}

/// Items of the only list in a text, in order, as JSON.
pub(crate) fn items(text: &str) -> Result<Vec<&str>, serde_json::Error> {
    match parse_items(text) {
        Err(_) if has_constant(text) => {
            let masked = masked(text);
            parse_items(&masked)?.into_iter().map(|item| unmasked(text, &masked, item)).collect()
        }
        parsed => parsed,
    }
}

/// Replaces the line ends outside of strings by blanks, so that a value is one line.
pub(crate) fn replace_line_ends(bytes: &mut [u8]) {
    let (mut quoted, mut escaped) = (false, false);
    for byte in bytes {
        match *byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => *byte = b' ',
            _ => {}
        }
    }
}

/// Problem of a text that is not an object, with its column but without its line, which is always the first.
pub(crate) fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // serde_json has no column for values that are not objects.
    let position = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&position) {
        Some(text) if error.column() > 0 => format!("{text} at column {}", error.column()),
        Some(text) => text.to_owned(),
        None => text,
    }
}

/// Decoded JSON string, with a replacement character for each lone surrogate. `None` for other values.
pub(crate) fn string(json: &str) -> Option<Cow<'_, str>> {
    let plain = json.strip_prefix('"')?.strip_suffix('"')?;
    if !plain.contains(['\\', '"']) {
        return Some(Cow::Borrowed(plain));
    }
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return Some(Cow::Owned(text));
    }
    let mut bytes = serde_json::Deserializer::from_str(json).deserialize_bytes(Bytes).ok()?;
    replace_surrogates(&mut bytes);
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Constants that are not JSON, with numbers of the same length.
const CONSTANTS: [(&str, &str); 2] = [("NaN", "1e1"), ("Infinity", "10000000")];

fn has_constant(text: &str) -> bool {
    CONSTANTS.iter().any(|(name, _)| text.contains(name))
}

/// Part of `text` at the position that `part` has in its masked form.
fn unmasked<'a>(text: &'a str, masked: &str, part: &str) -> Result<&'a str, serde_json::Error> {
    let start = part.as_ptr().addr() - masked.as_ptr().addr();
    text.get(start..start + part.len()).ok_or_else(|| serde_json::Error::custom("a constant is split"))
}

/// Text with constants in value positions replaced by numbers of the same length.
fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let (mut quoted, mut escaped, mut before) = (false, false, ' ');
    let mut remaining = text;
    while let Some(next) = remaining.chars().next() {
        let constant = CONSTANTS.iter().find(|(name, _)| {
            let behind = remaining.strip_prefix(name).map(|behind| behind.chars().next().unwrap_or(' '));
            behind.is_some_and(|behind| " \t\r\n,]}".contains(behind))
        });
        if let Some((name, number)) = constant.filter(|_| !quoted && " \t\r\n,:[-".contains(before)) {
            masked.push_str(number);
            (remaining, before) = (&remaining[name.len()..], ' ');
            continue;
        }
        (quoted, escaped) = match next {
            '"' if !escaped => (!quoted, false),
            '\\' if quoted => (quoted, !escaped),
            _ => (quoted, false),
        };
        masked.push(next);
        (remaining, before) = (&remaining[next.len_utf8()..], next);
    }
    masked
}

fn parse(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members)?;
    deserializer.end()?;
    Ok(members)
}

fn parse_items(text: &str) -> Result<Vec<&str>, serde_json::Error> {
    let items: Vec<&RawValue> = serde_json::from_str(text)?;
    Ok(items.into_iter().map(RawValue::get).collect())
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one object to a line")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            members.push(Member { key: key.get(), value: value.get() });
        }
        Ok(members)
    }
}

/// Visitor of a string with lone surrogates, each encoded as three bytes.
struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

/// Replaces each surrogate by U+FFFD, which has three bytes, too.
fn replace_surrogates(bytes: &mut [u8]) {
    for start in 0..bytes.len().saturating_sub(2) {
        if bytes[start] == 0xed && bytes[start + 1] >= 0xa0 {
            bytes[start..start + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let members = members(text).expect(text);
        members.into_iter().map(|member| (member.name().into_owned(), member.value.to_owned())).collect()
    }

    #[test]
    fn member_values_are_lossless() {
        let text = r#" {"a": 1.50, "b" : {"c": [1, null]}, "a": 123456789012345678901234567890, "\u00e9": "\ud83d", "\ud83d": 1e999} "#;
        let expected = [
            ("a", "1.50"),
            ("b", "{\"c\": [1, null]}"),
            ("a", "123456789012345678901234567890"),
            ("é", "\"\\ud83d\""),
            ("\u{fffd}", "1e999"),
        ];
        assert_eq!(pairs(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn python_constants_are_values() {
        let text = r#"{"é NaN \" NaN,": NaN, "b": [-Infinity,Infinity, NaN ], "c": {"d":NaN}, "s": "\\", "e": NaN}"#;
        let values: Vec<String> = pairs(text).into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["NaN", "[-Infinity,Infinity, NaN ]", "{\"d\":NaN}", "\"\\\\\"", "NaN"]);
        assert_eq!(pairs(text)[0].0, "é NaN \" NaN,");
        for text in ["{\"a\": 1NaN}", "{\"a\": NaN1}", "{\"a\": nan}", "{NaN: 1}", "{\"a\": NaN", "NaN"] {
            assert!(members(text).is_err(), "{text}");
        }
    }

    #[test]
    fn items_are_lossless() {
        assert_eq!(
            items(r#" [1.50, "a, b", NaN, {"c": [-Infinity]}] "#).expect("a list"),
            ["1.50", "\"a, b\"", "NaN", "{\"c\": [-Infinity]}"]
        );
        assert!(items("[1, 2").is_err() && items("{}").is_err());
    }

    #[test]
    fn line_ends_are_replaced_outside_of_strings() {
        let mut bytes = b"{\"a\\\\\":\r\n[1,\n2], \"b\\\"\n\": \n0}".to_vec();
        replace_line_ends(&mut bytes);
        assert_eq!(String::from_utf8_lossy(&bytes), "{\"a\\\\\":  [1, 2], \"b\\\"\n\":  0}");
    }

    #[test]
    fn problems_have_one_position() {
        let check = |text: &str, expected: &str| {
            assert_eq!(problem(&members(text).expect_err(text)), expected);
        };
        check("{\"a\": }", "expected value at column 7");
        check("{\"a\": 1} {\"a\": 2}", "trailing characters at column 10");
        check("{\"a\": NaN, ]", "key must be a string at column 12");
        check("[{\"a\": 1},", "invalid type: sequence, expected one object to a line");
    }

    #[test]
    fn lone_surrogates_are_replaced() {
        let check = |json: &str, expected: Option<&str>| assert_eq!(string(json).as_deref(), expected, "{json}");
        check("\"plain é\"", Some("plain é"));
        check(r#""a\n\u00e9\ud83c\udfac""#, Some("a\né🎬"));
        check(r#""a\ud83cb""#, Some("a\u{fffd}b"));
        check(r#""\ude00\ud83c""#, Some("\u{fffd}\u{fffd}"));
        check(r#""\ud83c\ud83c\udfac\ud7ff""#, Some("\u{fffd}🎬\u{d7ff}"));
        check("7", None);
        check("[\"a\"]", None);
    }

    proptest! {
        #[test]
        fn members_are_split_at_their_borders(
            entries in prop::collection::vec(("[a-zNaIfnity\"\\\\é ]{0,6}", "[a-zNaIfnity\"\\\\,:é ]{0,9}", 0_usize..6), 0..6),
            space in "[ \\t]{0,2}",
        ) {
            let constants = ["NaN", "Infinity", "-Infinity", "[NaN, {\"NaN\": Infinity}]", "-1.50e+7"];
            let json = |text: &String| serde_json::json!(text).to_string();
            let value = |text: &String, at: usize| constants.get(at).map_or_else(|| json(text), |constant| (*constant).to_owned());
            let parts: Vec<String> = entries
                .iter()
                .map(|(key, text, at)| format!("{space}{}{space}:{space}{}{space}", json(key), value(text, *at)))
                .collect();
            let text = format!("{{{}}}", parts.join(","));
            let expected: Vec<_> = entries.iter().map(|(key, text, at)| (key.clone(), value(text, *at))).collect();
            prop_assert_eq!(pairs(&text), expected);
        }
    }
}
