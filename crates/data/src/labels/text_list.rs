//! Several labels in the text of one cell.

use crate::RawLabel;

/// Separator of several labels in cells of csv and tsv files that are written.
pub(crate) const OUTPUT_SEPARATOR: char = '|';

/// Groups of characters that separate several labels in a cell, the most reliable first. The characters of a group are
/// equivalent in different scripts.
pub(crate) const SEPARATORS: [&[char]; 3] = [&[OUTPUT_SEPARATOR, '｜'], &[';', '；'], &[',', '，', '、']];

/// Parts of a cell between the separators of a group, without blank parts.
pub(crate) fn split_parts<'a>(cell: &'a str, separators: &'a [char]) -> impl Iterator<Item = &'a str> + 'a {
    cell.split(separators).map(str::trim).filter(|part| !part.is_empty())
}

/// Items of a list in a cell: JSON, a list, tuple or set as Python prints it, or an array as NumPy prints it (blanks instead
/// of commas).
pub(crate) fn parse_list(cell: &str) -> Option<Vec<RawLabel>> {
    let cell = cell.trim();
    if let Ok(items) = serde_json::from_str::<Vec<String>>(cell) {
        return Some(items.into_iter().map(RawLabel::listed_text).collect());
    }
    let inside = [('[', ']'), ('(', ')'), ('{', '}')]
        .into_iter()
        .find_map(|(open, close)| cell.strip_prefix(open)?.strip_suffix(close))?;
    if cell.starts_with('{') && !inside.trim_start().starts_with(['\'', '"']) {
        return None;
    }
    let mut items = Vec::new();
    let mut remaining = inside.trim();
    while !remaining.is_empty() {
        let after = match remaining.chars().next().filter(|quote| matches!(quote, '\'' | '"')) {
            Some(quote) => {
                let (item, after) = quoted(&remaining[1..], quote)?;
                items.push(RawLabel::listed_text(item));
                after
            }
            None => {
                let end = remaining.find(',').unwrap_or(remaining.len());
                items.extend(unquoted(&remaining[..end])?);
                &remaining[end..]
            }
        };
        let after = after.trim_start();
        remaining = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            // NumPy prints no separator between strings.
            None if after.is_empty() || after.starts_with(['\'', '"']) => after,
            None => return None,
        };
    }
    Some(items)
}

/// String up to its closing quote, and the text after it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut chars = text.char_indices();
    while let Some((offset, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((item, &text[offset + c.len_utf8()..])),
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

/// Item without quotes, or several numbers separated by blanks.
fn unquoted(text: &str) -> Option<Vec<RawLabel>> {
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
        assert_eq!(parse_list(cell), expected.map(names), "{cell}");
    }

    #[test]
    fn printed_lists_are_parsed() {
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
    fn numbers_in_quotation_marks_are_texts() {
        let (name, quoted) =
            (|text: &str| RawLabel::Name(text.to_owned()), |text: &str| RawLabel::Quoted(text.to_owned()));
        for cell in ["[\"0\", \"true\", \"a\"]", "['0', 'true', 'a']", "['0' 'true' 'a']"] {
            assert_eq!(parse_list(cell), Some(vec![quoted("0"), quoted("true"), name("a")]), "{cell}");
        }
        assert_eq!(parse_list("[0, '1']"), Some(vec![name("0"), quoted("1")]));
    }

    #[test]
    fn other_texts_are_not_lists() {
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
    fn cell_is_split_at_separators_of_one_group() {
        let parts =
            |cell: &str, group: usize| split_parts(cell, SEPARATORS[group]).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(parts("joy| fear |", 0), ["joy", "fear"]);
        assert_eq!(parts("差评；好评", 1), ["差评", "好评"]);
        assert_eq!(parts("joy, fear", 1), ["joy, fear"]);
    }
}
