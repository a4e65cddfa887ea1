use std::borrow::Cow;
use std::path::PathBuf;

use super::lists::{ListLayout, share};
use super::several::{SEPARATORS, list, parts};
use super::value::{Value, is_missing, normalized};
use super::{LabelError, LabelSet};
use crate::nearest::nearest;
use crate::{Place, RawLabel};

/// One cell of a column of labels.
#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) set: &'a LabelSet,
    pub(super) places: &'a dyn Fn(usize) -> Place,
    pub(super) row: usize,
}

impl LabelSet {
    /// The number of the class that a label stands for, if it is one.
    pub(crate) fn class_of(&self, label: &RawLabel) -> Option<usize> {
        alone(self, |cell| cell.class(label).ok())
    }

    /// The names of several labels in one cell of a column that is not known as a whole. In a multi-hot vector those
    /// of at least `threshold` count. Nothing if the cell shows no labels.
    pub(crate) fn names_of(&self, label: &RawLabel, threshold: f32) -> Option<Vec<&str>> {
        let hot = alone(self, |cell| {
            let items = cell.items(label).ok()?;
            cell.hot(&items, self.layout_of(&items)?).ok()
        })?;
        let applies = |(_, share): &(&String, f32)| *share >= threshold;
        Some(self.names().iter().zip(hot).filter(applies).map(|(name, _)| name.as_str()).collect())
    }
}

/// Tests that all items are those of a multi-hot vector.
fn is_hot(items: &[RawLabel]) -> bool {
    items.iter().all(|item| share(item).is_some())
}

/// Reads a cell that stands in no file.
pub(super) fn alone<T>(set: &LabelSet, read: impl FnOnce(Cell<'_>) -> Option<T>) -> Option<T> {
    let nowhere = |row| Place { path: PathBuf::new(), row };
    read(Cell { set, places: &nowhere, row: 0 })
}

impl Cell<'_> {
    /// The number of a class.
    pub(super) fn class(&self, label: &RawLabel) -> Result<usize, LabelError> {
        if let RawLabel::Name(text) = label
            && let Some(place) = self.set.by_text(text)
        {
            return Ok(place);
        }
        self.check_present(label)?;
        let values = Value::of_cell(label);
        match self.set.by_value(&values).as_slice() {
            [place] => return Ok(*place),
            [first, second, ..] => return Err(self.two_names(label, *first, *second)),
            [] => {}
        }
        match (values.first(), label) {
            (Some(value), _) => self.by_index(label, value),
            (None, RawLabel::Name(text)) => Err(self.unknown(&normalized(text))),
            (None, _) => Err(self.expected(label, "a class")),
        }
    }

    /// The class that a number or truth value stands for that is the value of no name.
    fn by_index(&self, label: &RawLabel, value: &Value) -> Result<usize, LabelError> {
        let set = self.set;
        let index = value.number().whole();
        let place = index.and_then(|index| usize::try_from(index).ok()).filter(|place| *place < set.names().len());
        if let Some(by_truth) = set.by_truth(value) {
            return match (place, value) {
                (Some(place), Value::Number(_)) if place != by_truth => {
                    Err(self.index_or_truth(label, place, by_truth))
                }
                _ => Ok(by_truth),
            };
        }
        if let Value::Boolean(truth) = value
            && let Some(place) = set.by_word(*truth)
        {
            return Ok(place);
        }
        match (place, index, set.valued()) {
            (Some(_), _, Some(valued)) => Err(LabelError::NotAnIndex {
                place: self.place(),
                found: label.to_string(),
                known: set.names().to_vec(),
                valued: valued.to_owned(),
            }),
            (Some(place), _, None) => Ok(place),
            (None, Some(number), None) => {
                Err(LabelError::OutOfRange { place: self.place(), number, known: set.names().to_vec() })
            }
            (None, _, _) => Err(self.unknown(&label.to_string())),
        }
    }

    /// A number.
    pub(super) fn value(&self, label: &RawLabel) -> Result<f32, LabelError> {
        self.check_present(label)?;
        let number = match label {
            RawLabel::Bool(truth) => Some(f32::from(u8::from(*truth))),
            RawLabel::Int(number) => Some(*number as f32),
            RawLabel::Float(number) => Some(*number as f32),
            RawLabel::Name(name) => name.trim().parse().ok(),
            RawLabel::Many(_) => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| self.expected(label, "a number"))
    }

    /// Several labels, each for itself.
    pub(super) fn items<'a>(&self, label: &'a RawLabel) -> Result<Cow<'a, [RawLabel]>, LabelError> {
        match label {
            RawLabel::Many(items) => Ok(Cow::Borrowed(items)),
            RawLabel::Name(_) if self.class(label).is_ok() => Ok(Cow::Borrowed(std::slice::from_ref(label))),
            // An empty cell is how no label is written to csv.
            RawLabel::Name(text) if text.trim().is_empty() => Ok(Cow::Borrowed(&[])),
            RawLabel::Name(text) => {
                self.check_present(label)?;
                self.written(text).map(Cow::Owned)
            }
            _ => Err(self.expected(label, "a list of classes")),
        }
    }

    /// The labels that are written into a text: those between separators of the group by which all parts are labels, or
    /// else those of a list.
    fn written(&self, text: &str) -> Result<Vec<RawLabel>, LabelError> {
        let split = |separators: &&[char]| -> Vec<RawLabel> {
            parts(text, separators).map(|part| RawLabel::Name(part.to_owned())).collect()
        };
        let known = |items: &[RawLabel]| items.iter().filter(|item| self.set.class_of(item).is_some()).count();
        let readings: Vec<Vec<RawLabel>> = SEPARATORS.iter().map(split).collect();
        let mut whole = readings.iter().filter(|items| !items.is_empty() && known(items) == items.len());
        match (whole.next(), whole.next()) {
            (Some(first), Some(second)) if first != second => Err(LabelError::Ambiguous {
                place: self.place(),
                found: format!("`{text}`"),
                first: RawLabel::Many(first.clone()).to_string(),
                second: RawLabel::Many(second.clone()).to_string(),
                remedy: "write a list instead, as JSON has it",
            }),
            (Some(items), _) => Ok(items.clone()),
            (None, _) => {
                Ok(list(text).or_else(|| readings.iter().find(|items| is_hot(items)).cloned()).unwrap_or_else(|| {
                    // The part that is no label is named when it is read.
                    let some = readings.iter().rev().filter(|items| !items.is_empty());
                    let nearest = some.max_by_key(|items| known(items)).cloned();
                    nearest.unwrap_or_else(|| vec![RawLabel::Name(text.to_owned())])
                }))
            }
        }
    }

    /// Multi-hot vector `[labels]`: for each label a share from 0 to 1.
    pub(super) fn hot(&self, items: &[RawLabel], layout: ListLayout) -> Result<Vec<f32>, LabelError> {
        let mut hot = vec![0.0; self.set.names().len()]; // [labels]
        let found = || RawLabel::Many(items.to_vec());
        match layout {
            ListLayout::MultiHot if items.is_empty() => {}
            ListLayout::MultiHot => {
                let shares = items.iter().map(share).collect::<Option<Vec<f32>>>();
                let shares = shares.filter(|shares| shares.len() == hot.len());
                hot =
                    shares.ok_or_else(|| self.expected(&found(), "as many numbers from 0 to 1 as there are labels"))?;
            }
            ListLayout::Classes => {
                for item in items {
                    let place = &mut hot[self.class(item)?];
                    if *place != 0.0 {
                        return Err(self.expected(&found(), "each class once, or in each row a multi-hot vector"));
                    }
                    *place = 1.0;
                }
            }
        }
        Ok(hot)
    }

    fn check_present(&self, label: &RawLabel) -> Result<(), LabelError> {
        let is_missing = match label {
            RawLabel::Float(number) => number.is_nan(),
            RawLabel::Name(text) => is_missing(text),
            _ => false,
        };
        if is_missing { Err(LabelError::Missing { place: self.place() }) } else { Ok(()) }
    }

    fn unknown(&self, name: &str) -> LabelError {
        let known = self.set.names();
        LabelError::UnknownName {
            place: self.place(),
            name: name.to_owned(),
            known: known.to_vec(),
            nearest: nearest(name, known.iter().map(String::as_str)).map(str::to_owned),
        }
    }

    fn two_names(&self, label: &RawLabel, first: usize, second: usize) -> LabelError {
        LabelError::Ambiguous {
            place: self.place(),
            found: label.to_string(),
            first: format!("`{}`", self.set.names()[first]),
            second: format!("`{}`, which is the same value", self.set.names()[second]),
            remedy: "use names of different values, or cells that are texts and spelled as the names are",
        }
    }

    fn index_or_truth(&self, label: &RawLabel, place: usize, by_truth: usize) -> LabelError {
        LabelError::Ambiguous {
            place: self.place(),
            found: label.to_string(),
            first: format!("`{}` by its index", self.set.names()[place]),
            second: format!("`{}` by its truth value", self.set.names()[by_truth]),
            remedy: "use the names in the cells, or put the name that is false first",
        }
    }

    fn expected(&self, found: &RawLabel, expected: &'static str) -> LabelError {
        LabelError::Kind { place: self.place(), found: found.to_string(), expected }
    }

    pub(super) fn place(&self) -> Place {
        (self.places)(self.row)
    }
}
