use crate::suggest::{Remedy, hint};
use crate::{BadRow, RowLocation};

/// Labels that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LabelError {
    /// The label names are inconsistent.
    #[error("use the label names: {problem}")]
    Names { problem: String },
    /// The table was read without labels.
    #[error("find labels: no column of labels was named")]
    NoColumn,
    /// Options were not read.
    #[error("find labels: they are options, and no column of options was named")]
    NoOptions,
    /// Labels of options, words or answers without their rows.
    #[error("read labels of options, words or answers without their rows")]
    NoTable,
    /// Another number of labels than of words.
    #[error("use {location}: it has {tags} labels for {words} word{}", plural(*words))]
    Words { location: RowLocation, tags: usize, words: usize },
    /// A row without a label: null, empty or NaN.
    #[error("use {location}: there is no label")]
    Missing { location: RowLocation },
    /// A row without a text or label, which ended the reading of its table.
    #[error("use {}: {}", .0.location, .0.problem_text())]
    BadRow(BadRow),
    /// A name that is not in the set.
    #[error("use {location}: `{name}` is no label; the labels are {}{}", shortened(known), hint(nearest.as_deref()))]
    UnknownName { location: RowLocation, name: String, known: Vec<String>, nearest: Option<String> },
    /// A number that is no name's value. Numbers are not indices if names are values themselves.
    #[error(
        "use {location}: `{found}` is no label; the labels are {}, and as `{valued}` is itself a value, {found} is not taken \
         for the index of a label",
        shortened(known)
    )]
    NotAnIndex {
        location: RowLocation,
        found: String,
        known: Vec<String>,
        /// A name that is a number or truth value.
        valued: String,
    },
    /// A number that is not the index of a label.
    #[error("use {location}: the label {number} is out of range; expected 0 to {} for {}", known.len() - 1, shortened(known))]
    OutOfRange { location: RowLocation, number: i64, known: Vec<String> },
    /// An ambiguous label.
    #[error("use {location}: the label {found} is {first} or {second}; {remedy}")]
    Ambiguous {
        location: RowLocation,
        found: String,
        first: String,
        second: String,
        /// A change of the file that removes the ambiguity.
        remedy: &'static str,
    },
    /// A label of another kind.
    #[error("use {location}: the label is {found}, expected {expected}")]
    Kind { location: RowLocation, found: String, expected: &'static str },
    /// Rows of one class, from which nothing can be learnt.
    #[error("train on rows of one class only: all {rows} are `{class}`; a training set has at least two classes")]
    OneClass { class: String, rows: usize },
}

impl LabelError {
    /// Returns the setting that would settle the error, if one is known.
    pub(crate) fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::Missing { .. } => Some(Remedy::SkipEmpty),
            Self::BadRow(bad) => bad.problem.is_absence().then_some(Remedy::SkipEmpty),
            _ => None,
        }
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let first = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{first} and {} more", names.len() - SHOWN) } else { first }
}
