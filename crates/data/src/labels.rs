use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::nearest::{hint, nearest};
use crate::{Place, RawLabel, Rows, Table};

/// The names of a task's labels; a label's number is its place among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
}

/// What the labels of a task are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LabelKind {
    /// One class of several.
    Class,
    /// A number.
    Value,
    /// Any number of classes.
    Multi,
}

/// The labels of rows, ready to train on.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// Class numbers `[rows]`.
    Class(Vec<i64>),
    /// Numbers `[rows]`.
    Value(Vec<f32>),
    /// Multi-hot vectors `[rows, labels]`.
    Multi(Vec<Vec<f32>>),
}

impl Labels {
    /// The number of rows.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(rows) => rows.len(),
            Labels::Value(rows) => rows.len(),
            Labels::Multi(rows) => rows.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they are.
    pub fn kind(&self) -> LabelKind {
        match self {
            Labels::Class(_) => LabelKind::Class,
            Labels::Value(_) => LabelKind::Value,
            Labels::Multi(_) => LabelKind::Multi,
        }
    }

    /// The labels of these rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        match self {
            Labels::Class(all) => Labels::Class(rows.iter().map(|&row| all[row]).collect()),
            Labels::Value(all) => Labels::Value(rows.iter().map(|&row| all[row]).collect()),
            Labels::Multi(all) => Labels::Multi(rows.iter().map(|&row| all[row].clone()).collect()),
        }
    }
}

impl LabelSet {
    /// Labels of these names, in this order.
    ///
    /// # Errors
    /// [`LabelError::Names`] if there is none, one is empty, or two are the same.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, LabelError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        if names.is_empty() {
            return Err(LabelError::Names { problem: "there is none".to_owned() });
        }
        for (i, name) in names.iter().enumerate() {
            if name.trim().is_empty() {
                return Err(LabelError::Names { problem: format!("number {i} is empty") });
            }
            if names[..i].contains(name) {
                return Err(LabelError::Names { problem: format!("`{name}` is there twice") });
            }
        }
        Ok(Self { names })
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What this task's labels are: a single name stands for a number; lists in the table are multi-label; all else
    /// is classes.
    pub fn kind(&self, table: &Table) -> LabelKind {
        let many = |labels: &[RawLabel]| labels.iter().any(|label| matches!(label, RawLabel::Many(_)));
        match self.names.len() {
            _ if table.labels().is_some_and(many) => LabelKind::Multi,
            1 => LabelKind::Value,
            _ => LabelKind::Class,
        }
    }

    /// The labels of a table, of the kind that [`LabelSet::kind`] gives.
    ///
    /// # Errors
    /// [`LabelError`] with file and row for the first that is no label.
    pub fn labels(&self, table: &Table) -> Result<Labels, LabelError> {
        self.labels_as(table, self.kind(table))
    }

    /// The labels of a table, of this kind.
    ///
    /// A class is a name of the set, or its number from 0; where a name is itself a number, the name counts. A value
    /// is a number. Several classes are a list of names or numbers, or a list of as many floating-point numbers from
    /// 0 to 1 as there are names.
    ///
    /// # Errors
    /// [`LabelError`] with file and row for the first that is no label.
    pub fn labels_as(&self, table: &Table, kind: LabelKind) -> Result<Labels, LabelError> {
        let rows = table.labels().ok_or(LabelError::NoColumn)?;
        self.convert(rows.iter(), &|row| table.place(row), kind)
    }

    /// The labels of a chunk of rows, of this kind; as [`LabelSet::labels_as`].
    ///
    /// # Errors
    /// [`LabelError`] with file and row for the first that is no label, or is missing.
    pub fn labels_of(&self, rows: &Rows, kind: LabelKind) -> Result<Labels, LabelError> {
        let labels = rows.labels.as_ref().ok_or(LabelError::NoColumn)?;
        let place = |row| rows.place(row);
        if let Some(row) = labels.iter().position(Option::is_none) {
            return Err(LabelError::Missing { place: place(row) });
        }
        self.convert(labels.iter().flatten(), &place, kind)
    }

    /// The number of the class that a label stands for, if it is one.
    pub(crate) fn class_of(&self, label: &RawLabel) -> Option<usize> {
        let nowhere = |row| Place { path: PathBuf::new(), row };
        Site { set: self, places: &nowhere, row: 0 }.class(label).ok().and_then(|class| usize::try_from(class).ok())
    }

    fn convert<'a>(
        &self,
        labels: impl Iterator<Item = &'a RawLabel>,
        places: &dyn Fn(usize) -> Place,
        kind: LabelKind,
    ) -> Result<Labels, LabelError> {
        let rows = || labels.enumerate().map(|(row, label)| (Site { set: self, places, row }, label));
        Ok(match kind {
            LabelKind::Class => Labels::Class(rows().map(|(site, label)| site.class(label)).collect::<Result<_, _>>()?),
            LabelKind::Value => Labels::Value(rows().map(|(site, label)| site.value(label)).collect::<Result<_, _>>()?),
            LabelKind::Multi => {
                Labels::Multi(rows().map(|(site, label)| site.multi_hot(label)).collect::<Result<_, _>>()?)
            }
        })
    }

    fn number_of(&self, name: &str) -> Option<i64> {
        self.names.iter().position(|known| known == name).map(|i| i as i64)
    }
}

/// Checks that a training set has at least two classes. Values and multi-hot labels always pass.
///
/// # Errors
/// [`LabelError::OneClass`] if all rows are of one class.
pub fn check_classes(labels: &Labels, set: &LabelSet) -> Result<(), LabelError> {
    let Labels::Class(rows) = labels else { return Ok(()) };
    let classes: BTreeSet<i64> = rows.iter().copied().collect();
    match (classes.len(), classes.first()) {
        (1, Some(&class)) => {
            let name = usize::try_from(class).ok().and_then(|i| set.names.get(i));
            let class = name.cloned().unwrap_or_else(|| class.to_string());
            Err(LabelError::OneClass { class, rows: rows.len() })
        }
        _ => Ok(()),
    }
}

/// One label of a table.
struct Site<'a> {
    set: &'a LabelSet,
    places: &'a dyn Fn(usize) -> Place,
    row: usize,
}

impl Site<'_> {
    fn class(&self, label: &RawLabel) -> Result<i64, LabelError> {
        match label {
            RawLabel::Int(number) => self.number(*number),
            RawLabel::Float(number) if is_whole(*number) => self.number(*number as i64),
            RawLabel::Name(name) => self.name(name.trim()),
            other => Err(self.expected(other, "a class")),
        }
    }

    fn name(&self, name: &str) -> Result<i64, LabelError> {
        if let Some(number) = self.set.number_of(name) {
            return Ok(number);
        }
        let whole = name.parse::<i64>().ok();
        let whole = whole.or_else(|| name.parse::<f64>().ok().filter(|number| is_whole(*number)).map(|n| n as i64));
        // As jsonl has booleans.
        let whole = whole.or_else(|| name.parse::<bool>().ok().map(i64::from));
        match whole {
            Some(number) => self.number(number),
            None => Err(LabelError::UnknownName {
                place: self.place(),
                name: name.to_owned(),
                known: self.set.names.clone(),
                nearest: nearest(name, self.set.names.iter().map(String::as_str)).map(str::to_owned),
            }),
        }
    }

    fn number(&self, number: i64) -> Result<i64, LabelError> {
        if let Some(named) = self.set.number_of(&number.to_string()) {
            return Ok(named);
        }
        match usize::try_from(number) {
            Ok(i) if i < self.set.names.len() => Ok(number),
            _ => Err(LabelError::OutOfRange { place: self.place(), number, known: self.set.names.clone() }),
        }
    }

    fn value(&self, label: &RawLabel) -> Result<f32, LabelError> {
        let number = match label {
            RawLabel::Int(number) => Some(*number as f32),
            RawLabel::Float(number) => Some(*number as f32),
            RawLabel::Name(name) => name.trim().parse().ok(),
            RawLabel::Many(_) => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| self.expected(label, "a number"))
    }

    fn multi_hot(&self, label: &RawLabel) -> Result<Vec<f32>, LabelError> {
        let RawLabel::Many(items) = label else { return Err(self.expected(label, "a list of classes")) };
        let n = self.set.names.len();
        if !items.is_empty() && items.iter().all(|item| matches!(item, RawLabel::Float(_))) {
            let hot: Vec<f32> = items.iter().map(|item| self.value(item)).collect::<Result<_, _>>()?;
            if hot.len() != n || hot.iter().any(|value| !(0.0..=1.0).contains(value)) {
                return Err(self.expected(label, "as many numbers from 0 to 1 as there are labels"));
            }
            return Ok(hot);
        }
        let mut hot = vec![0.0; n]; // [labels]
        for item in items {
            let class = self.class(item)?;
            let place = &mut hot[class as usize];
            if *place != 0.0 {
                return Err(self.expected(label, "each class once; a multi-hot vector is of floating-point numbers"));
            }
            *place = 1.0;
        }
        Ok(hot)
    }

    fn expected(&self, found: &RawLabel, expected: &'static str) -> LabelError {
        LabelError::Kind { place: self.place(), found: found.to_string(), expected }
    }

    fn place(&self) -> Place {
        (self.places)(self.row)
    }
}

fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() < 9e15
}

/// Labels that cannot be trained on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The label names contradict themselves.
    #[error("use the label names: {problem}")]
    Names {
        /// What is wrong with them.
        problem: String,
    },
    /// The table was read without labels.
    #[error("find labels: no column of labels was named")]
    NoColumn,
    /// A row without a label.
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
        /// What stands there.
        name: String,
        /// The names that there are.
        known: Vec<String>,
        /// The one most like it.
        nearest: Option<String>,
    },
    /// A number that stands for no label.
    #[error("use {place}: the label {number} is out of range; expected 0 to {} for {}", known.len() - 1, list(known))]
    OutOfRange {
        /// The file and row.
        place: Place,
        /// What stands there.
        number: i64,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A label of another kind.
    #[error("use {place}: the label is {found}, expected {expected}")]
    Kind {
        /// The file and row.
        place: Place,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// Nothing can be learnt from rows of one class.
    #[error("train on rows of one class only: all {rows} are `{class}`; a training set has at least two classes")]
    OneClass {
        /// The name of the class.
        class: String,
        /// How many rows there are.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::jsonl;

    fn set(names: &[&str]) -> LabelSet {
        LabelSet::new(names.iter().copied()).expect("names")
    }

    fn labels(names: &[&str], cells: &[&str]) -> Result<Labels, LabelError> {
        let set = set(names);
        set.labels(&jsonl(cells))
    }

    fn error(names: &[&str], cells: &[&str]) -> String {
        labels(names, cells).expect_err("no labels").to_string()
    }

    #[test]
    fn classes_by_name_or_number() {
        let names = ["negative", "positive"];
        let cells = ["0", "1", "\"positive\"", "\" negative \"", "\"1\"", "1.0", "true"];
        assert_eq!(labels(&names, &cells), Ok(Labels::Class(vec![0, 1, 1, 0, 1, 1, 1])));
        // names that are numbers count as names
        assert_eq!(labels(&["1", "2", "3"], &["1", "3", "\"2\""]), Ok(Labels::Class(vec![0, 2, 1])));
    }

    #[test]
    fn what_is_no_class_is_named_with_its_row() {
        let names = ["negative", "positive"];
        let text = error(&names, &["0", "\"postive\""]);
        assert!(text.contains("row 2 of ") && text.contains("negative, positive; did you mean `positive`?"), "{text}");
        let text = error(&names, &["0", "1", "2"]);
        assert!(text.contains("row 3 of ") && text.contains("expected 0 to 1 for negative, positive"), "{text}");
        assert!(error(&names, &["-1"]).contains("the label -1 is out of range"));
        assert!(error(&names, &["0.5"]).contains("`0.5` is no label"));
    }

    #[test]
    fn one_name_is_a_number() {
        assert_eq!(labels(&["score"], &["0", "-2.5", "\"3e1\""]), Ok(Labels::Value(vec![0.0, -2.5, 30.0])));
        for cell in ["\"much\"", "\"NaN\"", "\"inf\""] {
            assert!(error(&["score"], &["1", cell]).contains("expected a number"), "{cell}");
        }
    }

    #[test]
    fn lists_are_multi_hot() {
        let names = ["joy", "anger", "fear"];
        let expected = Labels::Multi(vec![vec![1.0, 0.0, 1.0], vec![0.0; 3], vec![0.0, 1.0, 0.0]]);
        assert_eq!(labels(&names, &["[0, 2]", "[]", "[\"anger\"]"]), Ok(expected));
        assert!(error(&names, &["[0, 0, 1]"]).contains("each class once"));
        assert!(error(&names, &["[3]"]).contains("out of range"));
        let vector = Labels::Multi(vec![vec![0.0, 1.0, 0.5]]);
        assert_eq!(labels(&names, &["[0.0, 1.0, 0.5]"]), Ok(vector));
        for cell in ["[0.0, 1.0]", "[0.0, 1.0, 1.5]"] {
            assert!(error(&names, &[cell]).contains("as many numbers from 0 to 1"), "{cell}");
        }
    }

    #[test]
    fn names_must_be_told_apart() {
        for names in [&[][..], &["a", "a"], &["a", " "]] {
            assert!(matches!(LabelSet::new(names.iter().copied()), Err(LabelError::Names { .. })), "{names:?}");
        }
    }

    #[test]
    fn one_class_teaches_nothing() {
        let set = set(&["negative", "positive"]);
        let error = check_classes(&Labels::Class(vec![1, 1, 1]), &set).expect_err("one class");
        assert_eq!(error, LabelError::OneClass { class: "positive".to_owned(), rows: 3 });
        check_classes(&Labels::Class(vec![1, 0]), &set).expect("two classes");
        check_classes(&Labels::Value(vec![1.0, 1.0]), &set).expect("values are not classes");
    }
}
