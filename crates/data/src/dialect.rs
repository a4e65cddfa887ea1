//! Conventions of text files that their bytes do not always tell.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Delimiter and encoding of a csv, tsv, json, jsonl or lines file. Missing values are detected: the encoding by a byte order
/// mark, the delimiter of a csv file by a first line such as `sep=;`, or by its header and first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// Separates cells; a comma in csv files and a tab in tsv files, if not given.
    pub delimiter: Option<Delimiter>,
    /// The character encoding; UTF-8 if not given. A byte order mark in the file wins.
    pub encoding: Option<Encoding>,
}

/// Separator of the cells of a csv or tsv file: one ASCII character, but no quotation mark, line break or NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Delimiter(u8);

impl Delimiter {
    pub(crate) const COMMA: Self = Self(b',');
    pub(crate) const TAB: Self = Self(b'\t');
    /// Delimiters that are tried, in this order, if the header of a csv file has no commas.
    pub(crate) const OTHERS: [Self; 3] = [Self(b';'), Self::TAB, Self(b'|')];

    pub(crate) fn byte(self) -> u8 {
        self.0
    }
}

impl FromStr for Delimiter {
    type Err = DialectError;

    fn from_str(text: &str) -> Result<Self, DialectError> {
        match text.as_bytes() {
            b"tab" | b"\\t" => Ok(Self::TAB),
            &[byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r' | 0) => Ok(Self(byte)),
            _ => Err(DialectError::Delimiter { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::TAB { f.write_str("tab") } else { write!(f, "{}", char::from(self.0)) }
    }
}

/// Character encoding, by a label of the [WHATWG encoding standard](https://encoding.spec.whatwg.org/#names-and-labels) or
/// of Python. As in browsers, `latin-1` is read as windows-1252, which has printable characters in the place of some
/// control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Encoding(&'static encoding_rs::Encoding);

/// Python's names for encodings whose standard labels are others.
const PYTHON_NAMES: [(&str, &str); 10] = [
    ("latin-1", "latin1"),
    ("utf-8-sig", "utf-8"),
    ("utf16", "utf-16"),
    ("utf-16-le", "utf-16le"),
    ("utf-16-be", "utf-16be"),
    ("cp932", "shift_jis"),
    ("cp936", "gbk"),
    ("cp949", "euc-kr"),
    ("cp950", "big5"),
    ("mac-roman", "macintosh"),
];

impl Encoding {
    pub(crate) const UTF_8: Self = Self(encoding_rs::UTF_8);
    pub(crate) const UTF_16LE: Self = Self(encoding_rs::UTF_16LE);
    pub(crate) const UTF_16BE: Self = Self(encoding_rs::UTF_16BE);

    /// Encoding of a byte order mark, and the length of the mark.
    pub(crate) fn from_bom(start: &[u8]) -> Option<(Self, usize)> {
        encoding_rs::Encoding::for_bom(start).map(|(encoding, length)| (Self(encoding), length))
    }

    /// Returns the encoding unless it is UTF-8, the default.
    pub(crate) fn unless_utf8(self) -> Option<Self> {
        Some(self).filter(|encoding| *encoding != Self::UTF_8)
    }

    pub(crate) fn decoder(self) -> encoding_rs::Decoder {
        self.0.new_decoder_without_bom_handling()
    }
}

impl FromStr for Encoding {
    type Err = DialectError;

    fn from_str(text: &str) -> Result<Self, DialectError> {
        let label = text.trim().to_ascii_lowercase();
        let dashed = label.replace('_', "-");
        let python = PYTHON_NAMES.into_iter().find(|(name, _)| *name == dashed).map(|(_, label)| label);
        let labels = [label.as_str(), dashed.as_str()].into_iter().chain(python);
        // Encodings that the standard forbids to decode are refused.
        let known = |label: &str| encoding_rs::Encoding::for_label_no_replacement(label.as_bytes());
        let found = labels.filter_map(known).next();
        found.map(Self).ok_or_else(|| DialectError::Encoding { found: text.to_owned() })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name().to_ascii_lowercase())
    }
}

sepal_core::string_conversions!(Delimiter, Encoding);

/// An invalid delimiter or an unknown encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum DialectError {
    /// Text that is not one character, or a character that has another meaning.
    #[error(
        "expected one ASCII character as delimiter, or `tab`, found `{found}`; not a quotation mark or a line break"
    )]
    Delimiter { found: String },
    /// Name of no known encoding.
    #[error("expected an encoding, for example utf-8, windows-1252, latin-1, utf-16 or shift_jis, found `{found}`")]
    Encoding { found: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_single_characters() {
        for (text, shown) in [(";", ";"), ("\t", "tab"), ("tab", "tab"), ("\\t", "tab"), ("|", "|"), ("\u{1}", "\u{1}")]
        {
            let delimiter: Delimiter = text.parse().expect(text);
            assert_eq!(delimiter.to_string(), shown);
            assert_eq!(String::from(delimiter).parse(), Ok(delimiter), "{text:?} comes back");
        }
        for text in ["", ";;", "\"", "\n", "\0", "é"] {
            assert!(text.parse::<Delimiter>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn encoding_names_of_browsers_and_python_are_known() {
        for (text, name) in [
            ("latin-1", "windows-1252"),
            ("latin_1", "windows-1252"),
            ("ISO-8859-1", "windows-1252"),
            ("cp1252", "windows-1252"),
            ("utf-8-sig", "utf-8"),
            ("UTF_8", "utf-8"),
            ("utf-16", "utf-16le"),
            ("utf_16_be", "utf-16be"),
            ("cp932", "shift_jis"),
            ("iso8859-15", "iso-8859-15"),
        ] {
            let encoding: Encoding = text.parse().expect(text);
            assert_eq!(encoding.to_string(), name, "{text}");
            assert_eq!(String::from(encoding).parse(), Ok(encoding), "{text} comes back");
        }
        for text in ["", "latin", "iso-2022-kr", "utf-32"] {
            assert!(text.parse::<Encoding>().is_err(), "{text}");
        }
    }
}
