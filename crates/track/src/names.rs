//! Names in the form that trackers accept.
//!
//! A refused character is written as `_xHEX_`, its code point in hexadecimal: `eval/f1//r/news` becomes
//! `eval/f1/_x2F_r/news`. A new name depends on the old one only, so that a resumed run uses the same names, and
//! different names stay different. A name that contains such a sequence already gets its underscore written as `_x5F_`;
//! every other accepted name stays as it is. A name that is too long ends in a digest of the whole.

use std::collections::BTreeMap;
use std::iter::once;

use sha2::{Digest, Sha256};
#[cfg(any(feature = "mlflow", test))]
use unicode_general_category::get_general_category;

/// Rule for the names that a tracker accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameRule {
    /// Allowed characters. Lower-case ASCII letters, digits and underscores are among them.
    pub(crate) allows: fn(char) -> bool,
    /// True if a name must be a relative path in normal form.
    pub(crate) is_path: bool,
    /// Maximum number of characters, 64 or more.
    pub(crate) max_chars: usize,
}

/// Replacement of the empty name.
const EMPTY: &str = "_x_";

/// Number of hexadecimal digits of the digest in a long name; an escaped character has at most six.
const DIGEST: usize = 16;

impl NameRule {
    /// Returns the accepted form of `name`.
    pub(crate) fn rename(&self, name: &str) -> String {
        if name.is_empty() {
            return EMPTY.to_owned();
        }
        let chars: Vec<char> = name.chars().collect();
        let mut is_escaped: Vec<bool> = chars.iter().map(|&c| !(self.allows)(c)).collect();
        if self.is_path {
            escape_path(&chars, &mut is_escaped);
        }
        escape_lookalikes(&chars, &mut is_escaped);
        let mut renamed = String::with_capacity(name.len());
        for (&c, is_escaped) in chars.iter().zip(is_escaped) {
            match is_escaped {
                true => renamed.push_str(&format!("_x{:X}_", u32::from(c))),
                false => renamed.push(c),
            }
        }
        self.shorten(renamed, name)
    }

    fn shorten(&self, renamed: String, name: &str) -> String {
        if renamed.chars().count() <= self.max_chars {
            return renamed;
        }
        let digest: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02X}")).collect();
        let end = format!("_x{}_", &digest[..DIGEST]);
        renamed.chars().take(self.max_chars - end.len()).chain(end.chars()).collect()
    }
}

/// Marks characters outside of the normal form of a path: slashes at the ends and behind slashes, `.` and `..`.
fn escape_path(chars: &[char], is_escaped: &mut [bool]) {
    let last = chars.len() - 1;
    for (i, _) in chars.iter().enumerate().filter(|&(_, &c)| c == '/') {
        is_escaped[i] |= i == 0 || i == last || chars[i - 1] == '/';
    }
    let mut start = 0;
    for segment in chars.split(|&c| c == '/') {
        is_escaped[start.min(last)] |= matches!(segment, ['.'] | ['.', '.']);
        start += segment.len() + 1;
    }
    is_escaped[0] |= chars.starts_with(&['.', '.']);
}

/// Marks underscores that would start an escape sequence.
fn escape_lookalikes(chars: &[char], is_escaped: &mut [bool]) {
    for i in 0..chars.len() {
        let is_x = chars[i] == '_' && chars.get(i + 1).is_some_and(|c| c.eq_ignore_ascii_case(&'x'));
        if !is_x || is_escaped[i + 1] {
            continue;
        }
        let digits = (i + 2..chars.len()).take_while(|&j| chars[j].is_ascii_hexdigit() && !is_escaped[j]).count();
        let is_closed = chars.get(i + 2 + digits).is_some_and(|&c| c == '_' || is_escaped[i + 2 + digits]);
        is_escaped[i] |= is_closed && (digits > 0 || chars.len() == EMPTY.len());
    }
}

/// Names for a tracker that ignores case: in names that differ in case only, capitals are escaped.
pub(crate) fn distinct_ignoring_case(names: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(name.to_lowercase()).or_default() += 1);
    let is_unique = |name: &String| counts.get(&name.to_lowercase()) == Some(&1);
    names.iter().map(|name| if is_unique(name) { ANY.rename(name) } else { WITHOUT_CASE.rename(name) }).collect()
}

const ANY: NameRule = NameRule { allows: |_| true, is_path: false, max_chars: usize::MAX };
const WITHOUT_CASE: NameRule = NameRule { allows: |c| c.to_lowercase().eq(once(c)), ..ANY };

/// Returns true for the characters of Python's `\w`: letters, numbers and the underscore.
#[cfg(any(feature = "mlflow", test))]
pub(crate) fn is_word(c: char) -> bool {
    c == '_' || get_general_category(c).abbreviation().starts_with(['L', 'N'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const WORD_NAMES: NameRule =
        NameRule { allows: |c| is_word(c) || "/.- :".contains(c), is_path: true, max_chars: 250 };
    const LOWER_NAMES: NameRule =
        NameRule { allows: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._- ".contains(c), ..WORD_NAMES };
    const SHORT_NAMES: NameRule = NameRule { max_chars: 64, ..WORD_NAMES };

    /// Rule of MLflow's `path_not_unique`.
    fn is_accepted(rule: &NameRule, name: &str) -> bool {
        let mut segments: Vec<&str> = Vec::new();
        for segment in name.split('/').filter(|segment| !["", "."].contains(segment)) {
            match (segment, segments.last()) {
                ("..", Some(&last)) if last != ".." => drop(segments.pop()),
                _ => segments.push(segment),
            }
        }
        let is_normal = segments.join("/") == name && !name.is_empty() && !name.starts_with("..");
        is_normal && name.chars().all(rule.allows) && name.chars().count() <= rule.max_chars
    }

    /// Inverse of `rename` for names that are not too long.
    fn original(renamed: &str) -> String {
        if renamed == EMPTY {
            return String::new();
        }
        let (mut name, mut rest) = (String::new(), renamed);
        while let Some(c) = rest.chars().next() {
            let escaped = rest.strip_prefix("_x").and_then(|rest| rest.split_once('_'));
            let code = escaped.and_then(|(digits, rest)| Some((u32::from_str_radix(digits, 16).ok()?, rest)));
            match code.and_then(|(code, rest)| Some((char::from_u32(code)?, rest))) {
                Some((escaped, after)) => (name, rest) = (name + &escaped.to_string(), after),
                None => {
                    name.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        name
    }

    /// Names with special characters and with escape sequences.
    fn names() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[/._x5F2a ]{1,4}",
            "[a-zA-Z]{1,6}",
            "_[xX][0-9A-Fa-f]{0,6}_?",
            any::<char>().prop_map(String::from),
            Just("评".to_owned()),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    #[test]
    fn rename_escapes_only_refused_characters() {
        for (name, expected) in [
            ("eval/f1//r/news", "eval/f1/_x2F_r/news"),
            ("eval/f1/..", "eval/f1/_x2E_."),
            ("eval/f1/.", "eval/f1/_x2E_"),
            ("eval/f1/", "eval/f1_x2F_"),
            ("eval/f1/差评", "eval/f1/差评"),
            ("eval/f1/C++", "eval/f1/C_x2B__x2B_"),
            ("eval/f1/a:b c.d-e", "eval/f1/a:b c.d-e"),
            ("eval/f1/e\u{301}", "eval/f1/e_x301_"),
            ("eval/f1/_x2F_r", "eval/f1/_x5F_x2F_r"),
            ("eval/f1/max_x2", "eval/f1/max_x2"),
            ("...", "_x2E_.."),
            ("a/../b", "a/_x2E_./b"),
            ("/", "_x2F_"),
            ("", "_x_"),
            ("_x_", "_x5F_x_"),
        ] {
            assert_eq!(WORD_NAMES.rename(name), expected, "{name:?}");
        }
    }

    /// Prints the characters that Python knows, and those of them that MLflow's regular expression accepts, as ranges.
    const CHARACTERS: &str = r"
import json, re, unicodedata
def ranges(of):
    found = []
    for c in filter(of, range(0x110000)):
        if found and found[-1][1] == c:
            found[-1][1] = c + 1
        else:
            found.append([c, c + 1])
    return found
known = lambda c: unicodedata.category(chr(c)) not in ('Cn', 'Cs')
print(json.dumps([ranges(known), ranges(lambda c: known(c) and re.match(r'^[/\w.\- :]*$', chr(c)) and c != 10)]))
";

    #[test]
    fn is_word_equals_python() {
        let Some(python) = crate::python::plain_python() else { return };
        let ranges = crate::python::Script { python: &python, code: CHARACTERS }.json(&[]);
        let characters = |ranges: &serde_json::Value| -> BTreeSet<char> {
            let ranges: Vec<[u32; 2]> = serde_json::from_value(ranges.clone()).expect("ranges");
            ranges.iter().flat_map(|&[start, end]| (start..end).filter_map(char::from_u32)).collect()
        };
        let known = characters(&ranges[0]);
        assert!(known.len() > 100_000);
        let taken: BTreeSet<char> = known.iter().copied().filter(|&c| (WORD_NAMES.allows)(c)).collect();
        assert_eq!(taken, characters(&ranges[1]));
    }

    #[test]
    fn rename_long_names_stay_different() {
        let long = ["a", "b"].map(|end| WORD_NAMES.rename(&format!("{}{end}", "é".repeat(300))));
        assert!(long[0] != long[1] && long.iter().all(|name| is_accepted(&WORD_NAMES, name)), "{long:?}");
        assert!(long[0].starts_with(&"é".repeat(231)));
        assert_eq!(WORD_NAMES.rename(&"é".repeat(250)), "é".repeat(250));
    }

    #[test]
    fn distinct_ignoring_case_escapes_capitals() {
        let names = ["f1/Spam", "f1/spam", "f1/Ham", "f1/SPAM"].map(str::to_owned);
        let expected = ["f1/_x53_pam", "f1/spam", "f1/Ham", "f1/_x53__x50__x41__x4D_"];
        assert_eq!(distinct_ignoring_case(&names), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn renamed_names_are_accepted_and_invertible(name in names()) {
            for rule in [WORD_NAMES, LOWER_NAMES] {
                let renamed = rule.rename(&name);
                prop_assert!(is_accepted(&WORD_NAMES, &renamed), "{name:?} became {renamed:?}");
                prop_assert_eq!(original(&renamed), &*name, "from {:?}", renamed);
            }
            let lower = LOWER_NAMES.rename(&name);
            prop_assert!(lower.is_ascii() && !lower.contains(':'), "{name:?} became {lower:?}");
            let renamed = SHORT_NAMES.rename(&name);
            prop_assert!(is_accepted(&SHORT_NAMES, &renamed), "{name:?} became {renamed:?}");
        }

        #[test]
        fn rename_keeps_names_different(names in proptest::collection::btree_set(names(), 2..40)) {
            for rule in [WORD_NAMES, LOWER_NAMES, SHORT_NAMES] {
                let renamed: BTreeSet<String> = names.iter().map(|name| rule.rename(name)).collect();
                prop_assert_eq!(renamed.len(), names.len());
            }
            let names: Vec<String> = names.into_iter().collect();
            let lower = distinct_ignoring_case(&names).into_iter().map(|name| name.to_lowercase());
            prop_assert_eq!(lower.collect::<BTreeSet<_>>().len(), names.len());
        }

        #[test]
        fn rename_keeps_accepted_names(name in names()) {
            let is_plain = !name.to_lowercase().contains("_x");
            if is_plain && is_accepted(&WORD_NAMES, &name) {
                prop_assert_eq!(WORD_NAMES.rename(&name), name);
            }
        }
    }
}
