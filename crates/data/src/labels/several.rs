//! Several labels in the text of one cell.

use crate::RawLabel;

/// The character that joins several labels in a cell of a csv or tsv file that is written.
pub(crate) const JOIN: char = '|';

/// Characters that separate several labels in a cell, the surest first; those of a group are the same in other scripts.
pub(crate) const SEPARATORS: [&[char]; 3] = [&[JOIN, '｜'], &[';', '；'], &[',', '，', '、']];

/// The parts of a cell between the separators of a group. Blank parts count for nothing.
pub(crate) fn parts<'a>(cell: &'a str, separators: &'a [char]) -> impl Iterator<Item = &'a str> + 'a {
    cell.split(separators).map(str::trim).filter(|part| !part.is_empty())
}

/// The items of a list that is written into a cell: as JSON, as Python prints a list, tuple or set, or as NumPy prints an
/// array (blanks in the place of commas).
pub(crate) fn list(cell: &str) -> Option<Vec<RawLabel>> {
    let cell = cell.trim();
    if let Ok(items) = serde_json::from_str::<Vec<String>>(cell) {
        return Some(items.into_iter().map(RawLabel::Name).collect());
    }
    let inside = [('[', ']'), ('(', ')'), ('{', '}')]
        .into_iter()
        .find_map(|(open, close)| cell.strip_prefix(open)?.strip_suffix(close))?;
    if cell.starts_with('{') && !inside.trim_start().starts_with(['\'', '"']) {
        return None;
    }
    let mut items = Vec::new();
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let after = match rest.chars().next().filter(|quote| matches!(quote, '\'' | '"')) {
            Some(quote) => {
                let (item, after) = quoted(&rest[1..], quote)?;
                items.push(RawLabel::Name(item));
                after
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                items.extend(bare(&rest[..end])?);
                &rest[end..]
            }
        };
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            // Two strings beside each other are as NumPy prints them.
            None if after.is_empty() || after.starts_with(['\'', '"']) => after,
            None => return None,
        };
    }
    Some(items)
}

/// A string up to its closing quote, and what follows.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((item, &text[at + c.len_utf8()..])),
            '\\' => match chars.next()?.1 {
                'n' => item.push('\n'),
                'r' => item.push('\r'),
                't' => item.push('\t'),
                escape @ ('x' | 'u' | 'U') => {
                    let n_digits = match escape {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let code: String = chars.by_ref().take(n_digits).map(|(_, digit)| digit).collect();
                    item.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                }
                escape if escape.is_alphanumeric() => return None,
                other => item.push(other),
            },
            _ => item.push(c),
        }
    }
    None
}

/// An item without quotes, or several numbers between blanks.
fn bare(text: &str) -> Option<Vec<RawLabel>> {
    let name = |text: &str| RawLabel::Name(text.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [] | ["None" | "null"] => None,
        _ if words.len() > 1 && words.iter().all(|word| word.parse::<f64>().is_ok()) => {
            Some(words.into_iter().map(name).collect())
        }
        _ if text.contains(['[', ']', '(', ')', '{', '}', '\'', '"']) => None,
        _ => Some(vec![name(text.trim())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cell: &str, expected: Option<&[&str]>) {
        let names = |items: &[&str]| items.iter().map(|&item| RawLabel::Name(item.to_owned())).collect::<Vec<_>>();
        assert_eq!(list(cell), expected.map(names), "{cell}");
    }

    #[test]
    fn lists_as_programs_print_them() {
        for (cell, expected) in [
            ("[\"joy\", \"a, b\"]", &["joy", "a, b"][..]),
            ("['joy', \"it's\"]", &["joy", "it's"]),
            ("['joy' 'fear'\n 'anger']", &["joy", "fear", "anger"]),
            ("('joy',)", &["joy"]),
            ("{'joy', 'fear'}", &["joy", "fear"]),
            ("[joy, Account access]", &["joy", "Account access"]),
            ("[1, 0, 1]", &["1", "0", "1"]),
            ("[1 0 1]", &["1", "0", "1"]),
            ("[0. 0.5]", &["0.", "0.5"]),
            ("[]", &[]),
            ("[\"\\u00e9t\\u00e9\", 'a\\'b']", &["été", "a'b"]),
            ("[\"\\ud83d\\ude00 joy\"]", &["😀 joy"]),
            ("['a\\xa0b', '\\U0001F600']", &["a\u{a0}b", "😀"]),
        ] {
            check(cell, Some(expected));
        }
    }

    #[test]
    fn other_texts_are_no_lists() {
        for cell in [
            "joy",
            "[joy",
            "[['a'], ['b']]",
            "{1: 2}",
            "{a}",
            "['a' b]",
            "['\\q']",
            "[a, None]",
            "['a",
            "[a,,b]",
            "(see [1])",
        ] {
            check(cell, None);
        }
    }

    #[test]
    fn parts_are_those_between_separators() {
        let parts = |cell: &str, group: usize| parts(cell, SEPARATORS[group]).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(parts("joy| fear |", 0), ["joy", "fear"]);
        assert_eq!(parts("差评；好评", 1), ["差评", "好评"]);
        assert_eq!(parts("joy, fear", 1), ["joy, fear"]);
    }
}
