use std::fmt;

use crate::labels::{SEPARATORS, Value, is_missing, normalized, parse_list, split_parts};

/// Label as the file has it. Cells of csv and jsonl files are names, including digits.
#[derive(Debug, Clone, PartialEq)]
pub enum RawLabel {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A text.
    Name(String),
    /// A text of a list that is a number or truth value: `"1"`, unlike 1. Other texts are names.
    Quoted(String),
    /// A number.
    Float(f64),
    /// A list.
    Many(Vec<RawLabel>),
}

impl RawLabel {
    /// Text in a list.
    pub(crate) fn listed_text(text: String) -> Self {
        if Value::from_text(&normalized(&text)).is_some() { Self::Quoted(text) } else { Self::Name(text) }
    }

    /// Returns true if the label, or an item of a list or between separators, may be missing. Only the kind of labels and
    /// their names tell.
    pub(crate) fn may_be_missing(&self) -> bool {
        match self {
            RawLabel::Float(number) => number.is_nan(),
            RawLabel::Name(text) => {
                is_missing(text)
                    || SEPARATORS.iter().any(|separators| split_parts(text, separators).any(is_missing))
                    || parse_list(text).is_some_and(|items| items.iter().any(Self::may_be_missing))
            }
            RawLabel::Many(items) => items.iter().any(Self::may_be_missing),
            RawLabel::Bool(_) | RawLabel::Int(_) | RawLabel::Quoted(_) => false,
        }
    }

    /// Text that is different for all values and kinds. A truth value has the text of its number, and a text of a list that of
    /// a name, so that digests of earlier versions stay valid.
    pub(crate) fn digest_text(&self) -> String {
        match self {
            RawLabel::Bool(truth) => RawLabel::Int(i64::from(*truth)).digest_text(),
            RawLabel::Quoted(text) => RawLabel::Name(text.clone()).digest_text(),
            RawLabel::Many(items) => {
                format!("Many([{}])", items.iter().map(RawLabel::digest_text).collect::<Vec<_>>().join(", "))
            }
            other => format!("{other:?}"),
        }
    }
}

impl fmt::Display for RawLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawLabel::Bool(truth) => write!(f, "{truth}"),
            RawLabel::Int(number) => write!(f, "{number}"),
            RawLabel::Name(text) | RawLabel::Quoted(text) => f.write_str(text),
            RawLabel::Float(number) => write!(f, "{number}"),
            RawLabel::Many(items) => {
                let items: Vec<String> = items.iter().map(RawLabel::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cell_or_an_item_may_be_missing() {
        let may_be_missing = |text: &str| RawLabel::Name(text.to_owned()).may_be_missing();
        for text in ["", " ", "nan", "<NA>", "no|nan", "no; NaN", "no, nan", "['no', '']", "[nan, 1]", "[0. nan]"] {
            assert!(may_be_missing(text), "{text}");
        }
        for text in ["no", "my nan said so", "nan no", "no||yes", "['no']", "[]", "nano|no"] {
            assert!(!may_be_missing(text), "{text}");
        }
        assert!(RawLabel::Many(vec![RawLabel::Int(1), RawLabel::Float(f64::NAN)]).may_be_missing());
        assert!(!RawLabel::Many(vec![RawLabel::Quoted("1".to_owned())]).may_be_missing());
    }
}
