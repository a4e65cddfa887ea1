use std::borrow::Cow;
use std::path::PathBuf;

use sepal_core::{NameMatching, nearest};

use super::text_list::{SEPARATORS, parse_list, split_parts};
use super::value::{Value, is_missing, normalized, share};
use super::{LabelError, LabelSet, ListLayout};
use crate::{RawLabel, RowLocation};

#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) set: &'a LabelSet,
    pub(super) locations: &'a dyn Fn(usize) -> RowLocation,
    pub(super) row: usize,
}

impl LabelSet {
    /// Number of the class that a label represents, if it is one.
    pub(crate) fn class_of(&self, label: &RawLabel) -> Option<usize> {
        read_detached(self, |cell| cell.class(label).ok())
    }
}

/// Reads a cell that belongs to no file.
pub(super) fn read_detached<T>(set: &LabelSet, read: impl FnOnce(Cell<'_>) -> Option<T>) -> Option<T> {
    let no_location = |row| RowLocation { path: PathBuf::new(), row };
    read(Cell { set, locations: &no_location, row: 0 })
}

impl Cell<'_> {
    pub(super) fn class(&self, label: &RawLabel) -> Result<usize, LabelError> {
        if let RawLabel::Name(text) | RawLabel::Quoted(text) = label
            && let Some(index) = self.set.by_text(text)
        {
            return Ok(index);
        }
        self.check_present(label)?;
        let values = Value::candidates(label);
        match self.set.by_value(&values).as_slice() {
            [index] => return Ok(*index),
            [first, second, ..] => return Err(self.ambiguous_names(label, *first, *second)),
            [] => {}
        }
        match (values.first(), label) {
            (Some(value), _) => self.by_index(label, value),
            (None, RawLabel::Name(text)) => Err(self.unknown(&normalized(text))),
            (None, _) => Err(self.expected(label, "a class")),
        }
    }

    /// Class of a number or truth value that is no name's value.
    fn by_index(&self, label: &RawLabel, value: &Value) -> Result<usize, LabelError> {
        let set = self.set;
        let number = value.number().to_integer();
        let index = number.and_then(|number| usize::try_from(number).ok()).filter(|index| *index < set.names().len());
        if let Some(by_truth) = set.by_truth(value) {
            return match (index, value) {
                (Some(index), Value::Number(_)) if index != by_truth => {
                    Err(self.ambiguous_number(label, index, by_truth))
                }
                _ => Ok(by_truth),
            };
        }
        if let Value::Boolean(truth) = value
            && let Some(index) = set.by_word(*truth)
        {
            return Ok(index);
        }
        match (index, number, set.first_value_name()) {
            (Some(_), _, Some(valued)) => Err(LabelError::NotAnIndex {
                location: self.location(),
                found: label.to_string(),
                known: set.names().to_vec(),
                valued: valued.to_owned(),
            }),
            (Some(index), _, None) => Ok(index),
            (None, Some(number), None) => {
                Err(LabelError::OutOfRange { location: self.location(), number, known: set.names().to_vec() })
            }
            (None, _, _) => Err(self.unknown(&label.to_string())),
        }
    }

    pub(super) fn value(&self, label: &RawLabel) -> Result<f32, LabelError> {
        self.check_present(label)?;
        let number = match label {
            RawLabel::Bool(truth) => Some(f32::from(u8::from(*truth))),
            RawLabel::Int(number) => Some(*number as f32),
            RawLabel::Float(number) => Some(*number as f32),
            RawLabel::Name(text) | RawLabel::Quoted(text) => text.trim().parse().ok(),
            RawLabel::Many(_) => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| self.expected(label, "a number"))
    }

    pub(super) fn items<'a>(&self, label: &'a RawLabel) -> Result<Cow<'a, [RawLabel]>, LabelError> {
        match label {
            RawLabel::Many(items) => Ok(Cow::Borrowed(items)),
            RawLabel::Name(_) if self.class(label).is_ok() => Ok(Cow::Borrowed(std::slice::from_ref(label))),
            // An empty csv cell is an empty list.
            RawLabel::Name(text) if text.trim().is_empty() => Ok(Cow::Borrowed(&[])),
            RawLabel::Name(text) => {
                self.check_present(label)?;
                self.text_items(text).map(Cow::Owned)
            }
            _ => Err(self.expected(label, "a list of classes")),
        }
    }

    /// Labels in a text: the parts between separators of the group by which all parts are labels, or else the items of a
    /// list.
    fn text_items(&self, text: &str) -> Result<Vec<RawLabel>, LabelError> {
        let split = |separators: &&[char]| -> Vec<RawLabel> {
            split_parts(text, separators).map(|part| RawLabel::Name(part.to_owned())).collect()
        };
        let known = |items: &[RawLabel]| items.iter().filter(|item| self.set.class_of(item).is_some()).count();
        let readings: Vec<Vec<RawLabel>> = SEPARATORS.iter().map(split).collect();
        let mut complete = readings.iter().filter(|items| !items.is_empty() && known(items) == items.len());
        match (complete.next(), complete.next()) {
            (Some(first), Some(second)) if first != second => Err(LabelError::Ambiguous {
                location: self.location(),
                found: format!("`{text}`"),
                first: RawLabel::Many(first.clone()).to_string(),
                second: RawLabel::Many(second.clone()).to_string(),
                remedy: "write a list instead, as JSON has it",
            }),
            (Some(items), _) => Ok(items.clone()),
            (None, _) => {
                Ok(parse_list(text)
                    .or_else(|| readings.iter().find(|items| items.iter().all(|item| share(item).is_some())).cloned())
                    .unwrap_or_else(|| {
                        // The error names the part that is not a label.
                        let candidates = readings.iter().rev().filter(|items| !items.is_empty());
                        let nearest = candidates.max_by_key(|items| known(items)).cloned();
                        nearest.unwrap_or_else(|| vec![RawLabel::Name(text.to_owned())])
                    }))
            }
        }
    }

    /// Multi-hot vector `[labels]`: a share from 0 to 1 for each label.
    pub(super) fn multi_hot(&self, items: &[RawLabel], layout: ListLayout) -> Result<Vec<f32>, LabelError> {
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
                    let entry = &mut hot[self.class(item)?];
                    if *entry != 0.0 {
                        return Err(self.expected(&found(), "each class once, or in each row a multi-hot vector"));
                    }
                    *entry = 1.0;
                }
            }
        }
        Ok(hot)
    }

    pub(super) fn check_present(&self, label: &RawLabel) -> Result<(), LabelError> {
        let is_missing = match label {
            RawLabel::Float(number) => number.is_nan(),
            RawLabel::Name(text) => is_missing(text),
            _ => false,
        };
        if is_missing { Err(LabelError::Missing { location: self.location() }) } else { Ok(()) }
    }

    fn unknown(&self, name: &str) -> LabelError {
        let known = self.set.names();
        LabelError::UnknownName {
            location: self.location(),
            name: name.to_owned(),
            known: known.to_vec(),
            nearest: nearest(name, known.iter().map(String::as_str), NameMatching::Data).map(str::to_owned),
        }
    }

    fn ambiguous_names(&self, label: &RawLabel, first: usize, second: usize) -> LabelError {
        LabelError::Ambiguous {
            location: self.location(),
            found: label.to_string(),
            first: format!("`{}`", self.set.names()[first]),
            second: format!("`{}`, which is the same value", self.set.names()[second]),
            remedy: "use names of different values, or cells that are texts and spelled as the names are",
        }
    }

    fn ambiguous_number(&self, label: &RawLabel, index: usize, by_truth: usize) -> LabelError {
        LabelError::Ambiguous {
            location: self.location(),
            found: label.to_string(),
            first: format!("`{}` by its index", self.set.names()[index]),
            second: format!("`{}` by its truth value", self.set.names()[by_truth]),
            remedy: "use the names in the cells, or put the name that is false first",
        }
    }

    pub(super) fn expected(&self, found: &RawLabel, expected: &'static str) -> LabelError {
        LabelError::Kind { location: self.location(), found: found.to_string(), expected }
    }

    pub(super) fn location(&self) -> RowLocation {
        (self.locations)(self.row)
    }
}
