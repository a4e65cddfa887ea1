use crate::Place;
use crate::nearest::hint;

/// Labels that cannot be trained on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The label names contradict themselves.
    #[error("use the label names: {problem}")]
    Names {
        /// The contradiction.
        problem: String,
    },
    /// The table was read without labels.
    #[error("find labels: no column of labels was named")]
    NoColumn,
    /// A row without a label: null, empty or NaN.
    #[error("use {place}: there is no label")]
    Missing {
        /// The file and row.
        place: Place,
    },
    /// A name that is not in the set.
    #[error("use {place}: `{name}` is no label; the labels are {}{}", list(known), hint(nearest.as_deref()))]
    UnknownName {
        /// The file and row.
        place: Place,
        /// The name found.
        name: String,
        /// The names that there are.
        known: Vec<String>,
        /// The one most like it.
        nearest: Option<String>,
    },
    /// A number that is the value of no name, where names have values and numbers are therefore no indices.
    #[error(
        "use {place}: `{found}` is no label; the labels are {}, and as `{valued}` is itself a value, {found} is not taken \
         for the index of a label",
        list(known)
    )]
    NotAnIndex {
        /// The file and row.
        place: Place,
        /// The cell's value.
        found: String,
        /// The names that there are.
        known: Vec<String>,
        /// A name that is a number or truth value.
        valued: String,
    },
    /// A number that stands for no label.
    #[error("use {place}: the label {number} is out of range; expected 0 to {} for {}", known.len() - 1, list(known))]
    OutOfRange {
        /// The file and row.
        place: Place,
        /// The number found.
        number: i64,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A label that can be read in two ways.
    #[error("use {place}: the label {found} is {first} or {second}; {remedy}")]
    Ambiguous {
        /// The file and row.
        place: Place,
        /// The cell's value.
        found: String,
        /// One reading.
        first: String,
        /// The other.
        second: String,
        /// A way for the file to say which is meant.
        remedy: &'static str,
    },
    /// A label of another kind.
    #[error("use {place}: the label is {found}, expected {expected}")]
    Kind {
        /// The file and row.
        place: Place,
        /// The cell's value.
        found: String,
        /// The kind of value expected.
        expected: &'static str,
    },
    /// Nothing can be learnt from rows of one class.
    #[error("train on rows of one class only: all {rows} are `{class}`; a training set has at least two classes")]
    OneClass {
        /// The name of the class.
        class: String,
        /// Number of rows.
        rows: usize,
    },
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
