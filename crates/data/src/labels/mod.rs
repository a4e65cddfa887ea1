//! From cells to labels.

mod cell;
mod digest;
mod error;
mod lists;
mod names;
mod several;
mod value;

use std::collections::BTreeSet;

use sepal_core::{LabelKind, Labels};

use crate::{Place, RawLabel, Rows, Table};

use cell::Cell;

pub use error::LabelError;
pub use lists::ListLayout;
pub use names::LabelSet;

pub(crate) use lists::share;
pub(crate) use several::{JOIN, SEPARATORS, list, parts};
pub(crate) use value::{is_missing, normalized};

impl LabelSet {
    /// Returns the kind of this task's labels: a number for a single name, several classes if the table has lists, one
    /// class otherwise.
    pub fn kind(&self, table: &Table) -> LabelKind {
        let many = |labels: &[RawLabel]| labels.iter().any(|label| matches!(label, RawLabel::Many(_)));
        match self.names().len() {
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
    /// A class is a name of the set: by its text, or else by its value, so that `true` is `True`, and 1 is `1.0`. Where
    /// no name is itself a number or truth value, it may be the index of a name, from 0, too. A value is a number.
    /// Several classes are a list of classes, also one that is written into a text or joined there by `|`, `;` or `,`;
    /// or a multi-hot vector: as many numbers from 0 to 1 as there are names. [`ListLayout`] says which of the two the
    /// lists of a table are.
    ///
    /// # Errors
    /// [`LabelError`] with file and row for the first that is no label, is missing, or can be read in two ways.
    pub fn labels_as(&self, table: &Table, kind: LabelKind) -> Result<Labels, LabelError> {
        let rows = table.labels().ok_or(LabelError::NoColumn)?;
        self.convert(rows.iter(), &|row| table.place(row), kind, true)
    }

    /// The labels of a chunk of rows, of this kind; as [`LabelSet::labels_as`], but lists that have two readings are
    /// refused unless [`LabelSet::with_layout`] says which: other chunks may show what this one does not.
    ///
    /// # Errors
    /// [`LabelError`] with file and row for the first that is no label, or is missing.
    pub fn labels_of(&self, rows: &Rows, kind: LabelKind) -> Result<Labels, LabelError> {
        let labels = rows.labels.as_ref().ok_or(LabelError::NoColumn)?;
        let place = |row| rows.place(row);
        if let Some(row) = labels.iter().position(Option::is_none) {
            return Err(LabelError::Missing { place: place(row) });
        }
        self.convert(labels.iter().flatten(), &place, kind, false)
    }

    fn convert<'a>(
        &self,
        labels: impl Iterator<Item = &'a RawLabel>,
        places: &dyn Fn(usize) -> Place,
        kind: LabelKind,
        is_whole: bool,
    ) -> Result<Labels, LabelError> {
        let rows = labels.enumerate().map(|(row, label)| (Cell { set: self, places, row }, label));
        Ok(match kind {
            LabelKind::Class => {
                Labels::Class(rows.map(|(cell, label)| Ok(cell.class(label)? as i64)).collect::<Result<_, _>>()?)
            }
            LabelKind::Value => Labels::Value(rows.map(|(cell, label)| cell.value(label)).collect::<Result<_, _>>()?),
            LabelKind::Multi => {
                let lists: Vec<_> =
                    rows.map(|(cell, label)| Ok((cell, cell.items(label)?))).collect::<Result<_, _>>()?;
                let layout = self.decide(&lists, is_whole)?;
                Labels::Multi(lists.iter().map(|(cell, items)| cell.hot(items, layout)).collect::<Result<_, _>>()?)
            }
        })
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
            let name = usize::try_from(class).ok().and_then(|i| set.names().get(i));
            let class = name.cloned().unwrap_or_else(|| class.to_string());
            Err(LabelError::OneClass { class, rows: rows.len() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
